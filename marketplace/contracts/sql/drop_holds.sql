DROP FUNCTION contracts_void_hold(uuid, timestamptz);
DROP FUNCTION contracts_capture_hold(uuid, bigint, bytea, uuid, timestamptz);
DROP FUNCTION contracts_end_hold(uuid, text, bigint, timestamptz);
DROP FUNCTION contracts_extend_hold(uuid, bigint, timestamptz);
DROP FUNCTION contracts_open_hold(
    uuid, uuid, integer, text, uuid, uuid, uuid[], bigint[], uuid, timestamptz, integer, integer, bigint, uuid[]
);
-- What pays is a parameter since (spend_caps.sql).
DROP FUNCTION IF EXISTS contracts_open_on_demand(contracts_asked);
DROP FUNCTION IF EXISTS contracts_open_on_demand(contracts_asked, text);
-- It has a file and a migration of its own since (entitled_holds.sql).
DROP FUNCTION IF EXISTS contracts_open_on_entitlement(contracts_asked, uuid);
-- It has a parameter more since (spend_caps.sql).
DROP FUNCTION IF EXISTS contracts_record_hold(contracts_asked, contracts_opened, uuid, uuid);
DROP FUNCTION IF EXISTS contracts_record_hold(contracts_asked, contracts_opened, uuid, uuid, uuid[]);
DROP FUNCTION IF EXISTS contracts_capped(contracts_opened, text, timestamptz);
DROP FUNCTION contracts_accrue(uuid, timestamptz, bigint, timestamptz);
DROP FUNCTION contracts_serves(text, boolean, timestamptz, timestamptz);
DROP TYPE contracts_opened;
DROP TYPE contracts_asked;
DROP FUNCTION contracts_period_start(timestamptz, integer);
DROP FUNCTION contracts_wait_ms(bigint, bigint);
DROP FUNCTION contracts_refilled(bigint, timestamptz, bigint, bigint, timestamptz);
DROP FUNCTION contracts_gross_up(bigint, bigint);
DROP FUNCTION contracts_price_ceil(bigint, bigint);
