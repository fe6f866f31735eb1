-- Spend caps: what an organization, one of its projects or one of its API keys may have held and spent in a UTC day or
-- calendar month. Counted where the hold is taken, on one row per cap and window, made by whoever comes first. The hold
-- remembers its counters, so what it gives back goes to the window of its admission, whenever it ends.
--
-- Lock order: delivery hold, right, the counters in the order of their caps' ids, accrual, ledger hold, ledger account.

-- When the window that p_at lies in ends, whatever the session's time zone.
CREATE OR REPLACE FUNCTION contracts_spend_resets_at(p_period text, p_at timestamptz) RETURNS timestamptz
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT (date_trunc(p_period, p_at AT TIME ZONE 'UTC') + ('1 ' || p_period)::interval) AT TIME ZONE 'UTC'
$$;

-- Counts p_amount against every cap that the request is under; the counters, null where there is no cap. Raises
-- check_violation of contracts_spendcounter_within_cap, with `scope/period` of the cap as its detail, where it does not fit.
CREATE OR REPLACE FUNCTION contracts_take_spend(
    p_organization uuid, p_api_key uuid, p_amount bigint, p_now timestamptz
) RETURNS uuid[] LANGUAGE plpgsql AS $$
DECLARE
    c record;
    v_counter uuid;
    v_taken uuid[];
BEGIN
    IF NOT EXISTS (SELECT 1 FROM contracts_spendcap WHERE organization_id = p_organization AND limit_micros IS NOT NULL)
    THEN
        RETURN NULL;
    END IF;
    FOR c IN
        SELECT id, scope, period, limit_micros FROM contracts_spendcap
         WHERE organization_id = p_organization AND limit_micros IS NOT NULL
           AND (scope = 'organization' OR (scope = 'api_key' AND api_key_id = p_api_key)
                OR (scope = 'project' AND project = (SELECT k.project FROM accounts_apikey k WHERE k.id = p_api_key)))
         ORDER BY id
    LOOP
        INSERT INTO contracts_spendcounter AS s (id, cap_id, window_start, spent_micros)
        SELECT uuidv7(), c.id, date_trunc(c.period, p_now, 'UTC'), p_amount WHERE p_amount <= c.limit_micros
        ON CONFLICT (cap_id, window_start) DO UPDATE SET spent_micros = s.spent_micros + excluded.spent_micros
         WHERE s.spent_micros + excluded.spent_micros <= c.limit_micros
        RETURNING id INTO v_counter;
        IF NOT FOUND THEN
            RAISE check_violation USING CONSTRAINT = 'contracts_spendcounter_within_cap',
                MESSAGE = 'a spend cap is reached', DETAIL = c.scope || '/' || c.period;
        END IF;
        v_taken := v_taken || v_counter;
    END LOOP;
    RETURN v_taken;
END
$$;

-- Counts p_amount likewise, whether it fits or not: what was promised before the cap refuses it is owed all the same, and
-- takes room from what is new. The counters, null where there is no cap.
CREATE OR REPLACE FUNCTION contracts_count_spend(
    p_organization uuid, p_api_key uuid, p_amount bigint, p_now timestamptz
) RETURNS uuid[] LANGUAGE sql AS $$
    WITH counted AS (
        INSERT INTO contracts_spendcounter AS s (id, cap_id, window_start, spent_micros)
        SELECT uuidv7(), c.id, date_trunc(c.period, p_now, 'UTC'), p_amount FROM contracts_spendcap c
         WHERE c.organization_id = p_organization AND c.limit_micros IS NOT NULL
           AND (c.scope = 'organization' OR (c.scope = 'api_key' AND c.api_key_id = p_api_key)
                OR (c.scope = 'project'
                    AND c.project = (SELECT k.project FROM accounts_apikey k WHERE k.id = p_api_key)))
         ORDER BY c.id
        ON CONFLICT (cap_id, window_start) DO UPDATE SET spent_micros = s.spent_micros + excluded.spent_micros
        RETURNING id
    )
    SELECT array_agg(id) FROM counted
$$;

-- Locks every counter of now of these organizations in the order of the caps' ids, for who counts several purchases in one
-- transaction; those that are not there yet are made. Who binds nobody has none.
CREATE OR REPLACE FUNCTION contracts_lock_spend(p_organizations uuid[], p_now timestamptz) RETURNS void
LANGUAGE sql AS $$
    INSERT INTO contracts_spendcounter AS s (id, cap_id, window_start, spent_micros)
    SELECT uuidv7(), c.id, date_trunc(c.period, p_now, 'UTC'), 0 FROM contracts_spendcap c
     WHERE c.organization_id = ANY (p_organizations) AND c.limit_micros IS NOT NULL
     ORDER BY c.id
    ON CONFLICT (cap_id, window_start) DO UPDATE SET spent_micros = s.spent_micros
$$;

-- More or less of what was counted. What is given back always fits; what is added is asked of the caps as they are now.
CREATE OR REPLACE FUNCTION contracts_change_spend(p_counters uuid[], p_delta bigint) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    v_counter uuid;
BEGIN
    IF p_delta = 0 OR p_counters IS NULL THEN
        RETURN;
    END IF;
    FOREACH v_counter IN ARRAY p_counters LOOP
        UPDATE contracts_spendcounter s SET spent_micros = s.spent_micros + p_delta
          FROM contracts_spendcap c
         WHERE s.id = v_counter AND c.id = s.cap_id
           AND (p_delta < 0 OR c.limit_micros IS NULL OR s.spent_micros + p_delta <= c.limit_micros);
        IF NOT FOUND THEN
            RAISE check_violation USING CONSTRAINT = 'contracts_spendcounter_within_cap',
                MESSAGE = 'a spend cap is reached';
        END IF;
    END LOOP;
END
$$;
