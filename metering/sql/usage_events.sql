-- Usage events: append-only, partitioned by the time in their UUIDv7. The key (id, source_id) is unique over all
-- partitions because the partition key is part of it; keeping a time range is ATTACH, forgetting it is DROP.

CREATE TABLE metering_usageevent (
    -- Widest alignment first: a row has no padding.
    period_start timestamptz NOT NULL,
    occurred_at timestamptz NOT NULL,
    numerator bigint NOT NULL,
    bytes_in bigint NOT NULL,
    bytes_out bigint NOT NULL,
    uncached_input_tokens bigint,
    cache_read_tokens bigint,
    cache_write_tokens bigint,
    output_tokens bigint,
    reasoning_tokens bigint,
    image_input_tokens bigint,
    audio_input_tokens bigint,
    audio_output_tokens bigint,
    recount_o200k_tokens bigint,
    duration_ms integer,
    first_byte_ms integer,
    attempt smallint NOT NULL,
    part smallint NOT NULL,
    flags smallint NOT NULL,
    id uuid NOT NULL,
    source_id uuid NOT NULL,
    batch_id uuid NOT NULL,
    request_id uuid NOT NULL,
    contract_id uuid NOT NULL,
    offering_id uuid NOT NULL,
    grade_id uuid NOT NULL,
    rate_id uuid NOT NULL,
    api_key_id uuid,
    finish varchar(16) NOT NULL,
    CONSTRAINT metering_event_pkey PRIMARY KEY (id, source_id),
    CONSTRAINT metering_event_not_negative CHECK (
        least(uncached_input_tokens, cache_read_tokens, cache_write_tokens, output_tokens, reasoning_tokens,
              image_input_tokens, audio_input_tokens, audio_output_tokens, numerator, recount_o200k_tokens,
              bytes_in, bytes_out, first_byte_ms, duration_ms, attempt, part, flags) >= 0
    )
) PARTITION BY RANGE (id);

-- Who asks for a charge's events knows contract and period.
CREATE INDEX metering_event_by_contract ON metering_usageevent (contract_id, period_start);

-- The smallest UUIDv7 of a moment: 48 bits of milliseconds, then zeros.
CREATE FUNCTION metering_id_floor(p_at timestamptz) RETURNS uuid
LANGUAGE sql STABLE STRICT AS $$
    SELECT (lpad(to_hex((extract(epoch FROM p_at) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
$$;

-- Makes the monthly partitions for every id that may be stored at p_now (400 days back, ten minutes ahead) and for the
-- month after, so that the month's turn never waits. Returns how many are new. Runs as the owner: the app role may
-- make a partition, and nothing else, with it. CREATE TABLE ... PARTITION OF would lock out readers and writers of the
-- parent; ATTACH does not.
CREATE FUNCTION metering_make_partitions(p_now timestamptz) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    v_months date[];
    v_month date;
    v_name text;
    v_made integer := 0;
    v_grantee record;
BEGIN
    SELECT array_agg(month::date ORDER BY month) INTO v_months
      FROM generate_series(
               date_trunc('month', p_now - interval '401 days'), date_trunc('month', p_now + interval '32 days'),
               interval '1 month'
           ) AS month
     WHERE to_regclass('public.metering_usageevent_' || to_char(month, 'YYYYMM')) IS NULL;
    IF v_months IS NULL THEN
        RETURN 0;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('metering_make_partitions'));
    FOREACH v_month IN ARRAY v_months LOOP
        v_name := 'metering_usageevent_' || to_char(v_month, 'YYYYMM');
        CONTINUE WHEN to_regclass('public.' || v_name) IS NOT NULL;
        EXECUTE format('CREATE TABLE public.%I (LIKE public.metering_usageevent INCLUDING ALL)', v_name);
        -- Default grants let the app role update and delete in new tables: not in this one, and nobody reads it but
        -- through the parent.
        FOR v_grantee IN
            SELECT DISTINCT acl.grantee::regrole::text AS name
              FROM pg_class c, aclexplode(c.relacl) acl
             WHERE c.oid = to_regclass('public.' || v_name) AND acl.grantee NOT IN (0, c.relowner)
        LOOP
            EXECUTE format('REVOKE ALL ON public.%I FROM %s', v_name, v_grantee.name);
        END LOOP;
        EXECUTE format(
            'ALTER TABLE public.metering_usageevent ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)', v_name,
            metering_id_floor(v_month), metering_id_floor((v_month + interval '1 month')::timestamptz)
        );
        v_made := v_made + 1;
    END LOOP;
    RETURN v_made;
END
$$;

-- Drops partitions that ended more than 400 days before p_now. The machine's clock must agree: whatever time the app
-- role passes, younger usage cannot be dropped with this. Returns the names.
CREATE FUNCTION metering_drop_partitions(p_now timestamptz) RETURNS SETOF text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    v_name text;
    v_keep_from date := date_trunc('month', least(p_now, clock_timestamp()) - interval '400 days')::date;
BEGIN
    FOR v_name IN
        SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
         WHERE i.inhparent = 'public.metering_usageevent'::regclass
           AND c.relname ~ '^metering_usageevent_[0-9]{6}$'
           AND to_date(right(c.relname, 6), 'YYYYMM') < v_keep_from
         ORDER BY c.relname
    LOOP
        EXECUTE format('DROP TABLE public.%I', v_name);
        RETURN NEXT v_name;
    END LOOP;
END
$$;

-- Bodies come compressed (`metering.coding`), or too small to be worth it.
ALTER TABLE metering_usagebatch ALTER COLUMN body SET STORAGE EXTERNAL;

-- The gateway's door to the inbox, called inside the capture's transaction: the event lines as `metering.usage` has
-- them, without a header.
CREATE FUNCTION metering_accept_event(p_source uuid, p_body bytea, p_now timestamptz) RETURNS uuid
LANGUAGE sql AS $$
    INSERT INTO metering_usagebatch (
        id, source_id, previous_digest, digest, chain, body, body_bytes, status, attempts, accepted_events,
        duplicate_events, exceptions, error, received_at
    ) VALUES (
        uuidv7(), p_source, '', '', '', p_body, octet_length(p_body), 'pending', 0, 0, 0, '[]', '', p_now
    )
    RETURNING id
$$;

-- Locks whole batches nobody else works on, oldest first, until one of both bounds is passed (one batch at least).
-- First those of sources that no other worker is at: what repeats usage comes soon after it and from the same source, and
-- two workers that store the same event wait for each other, then one of them begins anew. Sources share 64 advisory
-- locks, so that a claim fills no lock table; when others are at all that waits, batches of any source are taken.
-- The loops lock rows as they fetch them, so that what does not fit is left to other workers, a few rows apart.
-- Batches that failed before are left to the sweeper: they must not hold up the others.
CREATE FUNCTION metering_claim_batches(p_batches integer, p_bytes bigint) RETURNS SETOF uuid
LANGUAGE plpgsql AS $$
DECLARE
    v_share record;
    v_batch record;
    v_batches integer := 0;
    v_bytes bigint := 0;
BEGIN
    FOR v_share IN
        SELECT abs(hashtext(source_id::text) % 64) AS lock, max(max(id::text)) OVER ()::uuid AS last_id
          FROM (SELECT id, source_id FROM metering_usagebatch
                 WHERE status = 'pending' AND attempts = 0 ORDER BY id LIMIT p_batches) AS oldest
         GROUP BY 1 ORDER BY min(id::text)
    LOOP
        CONTINUE WHEN NOT pg_try_advisory_xact_lock(hashtext('metering_claim_batches'), v_share.lock);
        FOR v_batch IN
            SELECT id, body_bytes FROM metering_usagebatch
             WHERE status = 'pending' AND attempts = 0 AND id <= v_share.last_id
               AND abs(hashtext(source_id::text) % 64) = v_share.lock
             ORDER BY id LIMIT p_batches - v_batches FOR UPDATE SKIP LOCKED
        LOOP
            v_batches := v_batches + 1;
            v_bytes := v_bytes + v_batch.body_bytes;
            IF v_bytes > p_bytes AND v_batches > 1 THEN
                RETURN;
            END IF;
            RETURN NEXT v_batch.id;
        END LOOP;
    END LOOP;
    IF v_batches > 0 THEN
        RETURN;
    END IF;
    FOR v_batch IN
        SELECT id, body_bytes FROM metering_usagebatch
         WHERE status = 'pending' AND attempts = 0
         ORDER BY id LIMIT p_batches FOR UPDATE SKIP LOCKED
    LOOP
        v_batches := v_batches + 1;
        v_bytes := v_bytes + v_batch.body_bytes;
        EXIT WHEN v_bytes > p_bytes AND v_batches > 1;
        RETURN NEXT v_batch.id;
    END LOOP;
END
$$;
