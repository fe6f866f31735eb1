-- Many holds in one call, on the terms of `functions.sql`: same owner, same order of locks (holds by id, then accounts
-- by id), same SQLSTATEs. For auction rounds, where a call a bid would be the whole cost.

-- Brings open holds up to these amounts; one that is as large already stays as it is. Accounts that cannot pay for all of
-- theirs pay for them in the order given, and one that does not fit does not stop a smaller one behind it. Returns the
-- ids that were left as they were for lack of money. Doing it again changes nothing more.
CREATE FUNCTION ledger_raise_holds(p_ids uuid[], p_amounts bigint[], p_now timestamptz) RETURNS uuid[]
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_asked integer := cardinality(p_ids);
    v_found integer;
    v_open integer;
    v_hold record;
    v_account uuid;
    v_free numeric;
    v_raised uuid[] := '{}';
    v_missing bigint[] := '{}';
    v_refused uuid[] := '{}';
BEGIN
    IF v_asked IS NULL OR cardinality(p_amounts) IS DISTINCT FROM v_asked THEN
        RAISE EXCEPTION 'the arrays differ in length' USING ERRCODE = 'TY422';
    END IF;
    IF v_asked <> (SELECT count(DISTINCT id) FROM unnest(p_ids) AS id) THEN
        RAISE EXCEPTION 'a hold is named twice, or not at all' USING ERRCODE = 'TY422';
    END IF;
    SELECT count(*), count(*) FILTER (WHERE status = 'open') INTO v_found, v_open FROM (
        SELECT status FROM ledger_hold WHERE id = ANY (p_ids) ORDER BY id FOR NO KEY UPDATE
    ) AS locked;
    IF v_found <> v_asked THEN
        RAISE EXCEPTION 'no such hold' USING ERRCODE = 'TY404';
    END IF;
    IF v_open <> v_asked THEN
        RAISE EXCEPTION 'a hold has ended' USING ERRCODE = 'TY409', CONSTRAINT = 'ledger_hold_open';
    END IF;
    PERFORM 1 FROM ledger_ledgeraccount
    WHERE id IN (SELECT account_id FROM ledger_hold WHERE id = ANY (p_ids)) ORDER BY id FOR NO KEY UPDATE;
    FOR v_hold IN
        SELECT n.id, h.account_id, n.amount - h.amount_micros AS missing
        FROM unnest(p_ids, p_amounts) WITH ORDINALITY AS n (id, amount, number)
        JOIN ledger_hold AS h ON h.id = n.id
        WHERE n.amount > h.amount_micros
        ORDER BY h.account_id, n.number
    LOOP
        IF v_account IS DISTINCT FROM v_hold.account_id THEN
            v_account := v_hold.account_id;
            -- In numeric, which cannot overflow; infinite where nothing bounds the account.
            SELECT CASE WHEN debits_must_not_exceed_credits
                THEN credits_posted_micros::numeric + overdraft_limit_micros - debits_posted_micros - debits_pending_micros
                ELSE 'Infinity'::numeric END
            INTO STRICT v_free FROM ledger_ledgeraccount WHERE id = v_account;
        END IF;
        IF v_hold.missing <= v_free THEN
            v_free := v_free - v_hold.missing;
            v_raised := v_raised || v_hold.id;
            v_missing := v_missing || v_hold.missing;
        ELSE
            v_refused := v_refused || v_hold.id;
        END IF;
    END LOOP;
    UPDATE ledger_ledgeraccount AS a SET debits_pending_micros = a.debits_pending_micros + d.missing
    FROM (
        SELECT h.account_id, sum(r.missing)::bigint AS missing
        FROM unnest(v_raised, v_missing) AS r (id, missing) JOIN ledger_hold AS h ON h.id = r.id GROUP BY 1
    ) AS d WHERE a.id = d.account_id;
    UPDATE ledger_hold AS h SET amount_micros = h.amount_micros + r.missing
    FROM unnest(v_raised, v_missing) AS r (id, missing) WHERE h.id = r.id;
    RETURN v_refused;
END $$;

-- Takes an amount out of an open hold and sets it aside in a new hold of the same account; how many are new. What the
-- account has pending stays as it is, so neither a balance nor another hold can stand in the way, and no account is
-- locked. The same id on the same terms again takes nothing more.
CREATE FUNCTION ledger_carve_holds(
    p_sources uuid[], p_ids uuid[], p_amounts bigint[], p_code text, p_reference uuid, p_now timestamptz
) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_asked integer := cardinality(p_ids);
    v_found integer;
    v_known integer;
    v_same integer;
    v_new integer;
BEGIN
    IF v_asked IS NULL OR (cardinality(p_sources), cardinality(p_amounts)) IS DISTINCT FROM (v_asked, v_asked) THEN
        RAISE EXCEPTION 'the arrays differ in length' USING ERRCODE = 'TY422';
    END IF;
    IF v_asked <> (SELECT count(DISTINCT id) FROM unnest(p_ids) AS id) THEN
        RAISE EXCEPTION 'a hold is named twice, or not at all' USING ERRCODE = 'TY422';
    END IF;
    SELECT count(*) INTO v_found FROM (
        SELECT 1 FROM ledger_hold WHERE id = ANY (p_sources) ORDER BY id FOR NO KEY UPDATE
    ) AS locked;
    IF v_found <> (SELECT count(DISTINCT source) FROM unnest(p_sources) AS source) THEN
        RAISE EXCEPTION 'no such hold' USING ERRCODE = 'TY404';
    END IF;
    -- Under the sources' locks: whoever carves the same out of them at the same time is before us or after us.
    SELECT count(*), count(*) FILTER (WHERE known.account_id = source.account_id AND known.opened_micros = n.amount
        AND known.code = p_code AND known.reference_id IS NOT DISTINCT FROM p_reference)
    INTO v_known, v_same
    FROM unnest(p_sources, p_ids, p_amounts) AS n (source, id, amount)
    JOIN ledger_hold AS known ON known.id = n.id
    JOIN ledger_hold AS source ON source.id = n.source;
    IF v_known <> v_same THEN
        RAISE EXCEPTION 'a hold of this id exists with other terms'
            USING ERRCODE = 'TY409', CONSTRAINT = 'ledger_hold_terms';
    END IF;
    IF v_known = v_asked THEN
        RETURN 0;
    END IF;
    WITH fresh AS (
        INSERT INTO ledger_hold (
            id, account_id, amount_micros, opened_micros, captured_micros, code, reference_id, status, created_at
        )
        SELECT n.id, source.account_id, n.amount, n.amount, 0, p_code, p_reference, 'open', p_now
        FROM unnest(p_sources, p_ids, p_amounts) AS n (source, id, amount)
        JOIN ledger_hold AS source ON source.id = n.source AND source.status = 'open'
        ORDER BY n.id
        ON CONFLICT (id) DO NOTHING
        RETURNING id
    ), carved AS (
        -- The CHECK on the row keeps the amount from falling below what was captured.
        UPDATE ledger_hold AS h SET amount_micros = h.amount_micros - c.amount
        FROM (
            SELECT n.source, sum(n.amount)::bigint AS amount
            FROM unnest(p_sources, p_ids, p_amounts) AS n (source, id, amount) JOIN fresh ON fresh.id = n.id
            GROUP BY 1
        ) AS c WHERE h.id = c.source
    )
    SELECT count(*) INTO v_new FROM fresh;
    IF v_new + v_known <> v_asked THEN
        IF EXISTS (SELECT 1 FROM ledger_hold WHERE id = ANY (p_sources) AND status <> 'open') THEN
            RAISE EXCEPTION 'a hold has ended' USING ERRCODE = 'TY409', CONSTRAINT = 'ledger_hold_open';
        END IF;
        -- A row came between the look and the insert though we hold its source: so it has another source.
        RAISE EXCEPTION 'a hold of this id exists with other terms'
            USING ERRCODE = 'TY409', CONSTRAINT = 'ledger_hold_terms';
    END IF;
    RETURN v_new;
END $$;

REVOKE ALL ON FUNCTION ledger_raise_holds(uuid[], bigint[], timestamptz) FROM PUBLIC;
REVOKE ALL ON FUNCTION ledger_carve_holds(uuid[], uuid[], bigint[], text, uuid, timestamptz) FROM PUBLIC;
