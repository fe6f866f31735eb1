DROP FUNCTION metering_claim_batches(integer, bigint);
DROP FUNCTION metering_accept_event(uuid, bytea, timestamptz);
DROP FUNCTION metering_drop_partitions(timestamptz);
DROP FUNCTION metering_make_partitions(timestamptz);
DROP TABLE metering_usageevent;
DROP FUNCTION metering_id_floor(timestamptz);
