-- Partitions of metering_usageevent, one a day by the time inside the UUIDv7, and the inbox of the gateway.
-- SECURITY DEFINER where the app role must make tables: it may not do so itself.

CREATE TABLE metering_usageevent (
    id uuid NOT NULL,
    source_id uuid NOT NULL,
    batch_id uuid NOT NULL,
    request_id uuid NOT NULL,
    contract_id uuid NOT NULL,
    offering_id uuid NOT NULL,
    grade_id uuid NOT NULL,
    rate_id uuid NOT NULL,
    api_key_id uuid,
    period_start timestamptz NOT NULL,
    occurred_at timestamptz NOT NULL,
    numerator bigint NOT NULL,
    uncached_input_tokens bigint,
    cache_read_tokens bigint,
    cache_write_tokens bigint,
    output_tokens bigint,
    reasoning_tokens bigint,
    image_input_tokens bigint,
    audio_input_tokens bigint,
    audio_output_tokens bigint,
    recount_o200k_tokens bigint,
    bytes_in bigint NOT NULL,
    bytes_out bigint NOT NULL,
    first_byte_ms integer,
    duration_ms integer,
    attempt smallint NOT NULL,
    part smallint NOT NULL,
    flags smallint NOT NULL,
    finish varchar(16) NOT NULL,
    content_digest bytea NOT NULL,
    PRIMARY KEY (id, source_id),
    CONSTRAINT metering_event_counts_not_negative CHECK (
        numerator >= 0
        AND least(uncached_input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens,
                  image_input_tokens, audio_input_tokens, audio_output_tokens, recount_o200k_tokens,
                  bytes_in, bytes_out, 0) >= 0
    )
) PARTITION BY RANGE (id);

CREATE INDEX metering_event_by_contract ON metering_usageevent (contract_id, period_start);

-- The least UUID whose first 48 bits are this moment in milliseconds.
CREATE FUNCTION metering_first_id(p_at timestamptz) RETURNS uuid LANGUAGE sql STABLE AS $$
    SELECT (lpad(to_hex(floor(extract(epoch FROM p_at) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
$$;

-- Makes the partition of one UTC day, if there is none yet; true when it was made now.
CREATE FUNCTION metering_make_partition(p_day date) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_name text := 'metering_usageevent_' || to_char(p_day, 'YYYYMMDD');
BEGIN
    IF to_regclass(v_name) IS NOT NULL THEN
        RETURN false;
    END IF;
    -- Two workers may want the same day at once.
    PERFORM pg_advisory_xact_lock(hashtext(v_name));
    IF to_regclass(v_name) IS NOT NULL THEN
        RETURN false;
    END IF;
    EXECUTE format(
        'CREATE TABLE %I PARTITION OF metering_usageevent FOR VALUES FROM (%L) TO (%L)', v_name,
        metering_first_id(p_day::timestamp AT TIME ZONE 'UTC'),
        metering_first_id((p_day + 1)::timestamp AT TIME ZONE 'UTC')
    );
    RETURN true;
END
$$;

-- Retention: drops whole days before p_before; returns how many.
CREATE FUNCTION metering_drop_partitions(p_before date) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_name text;
    v_dropped integer := 0;
BEGIN
    FOR v_name IN
        SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'metering_usageevent'::regclass
          AND c.relname < 'metering_usageevent_' || to_char(p_before, 'YYYYMMDD')
    LOOP
        EXECUTE format('DROP TABLE %I', v_name);
        v_dropped := v_dropped + 1;
    END LOOP;
    RETURN v_dropped;
END
$$;

-- One durable insert into the inbox: called by the gateway's capture, in its transaction.
CREATE FUNCTION metering_accept_event(p_source uuid, p_body bytea, p_now timestamptz) RETURNS uuid
LANGUAGE sql AS $$
    INSERT INTO metering_usagebatch (
        source_id, previous_digest, digest, body, status, attempts, accepted_events, duplicate_events, exceptions,
        error, received_at
    ) VALUES (p_source, '', '', p_body, 'pending', 0, 0, 0, '[]', '', p_now)
    RETURNING id
$$;
