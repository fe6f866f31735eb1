-- `ledger_carve_holds` of `batched_holds.sql` on the same promises, with one look at what exists in place of three: the new
-- holds are inserted first, and only where one stood in the way is asked which, and on what terms.
CREATE OR REPLACE FUNCTION ledger_carve_holds(
    p_sources uuid[], p_ids uuid[], p_amounts bigint[], p_code text, p_reference uuid, p_now timestamptz
) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_asked integer := cardinality(p_ids);
    v_found integer;
    v_known integer;
    v_same integer;
    v_fresh uuid[];
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
    )
    SELECT array_agg(id), count(*) INTO v_fresh, v_new FROM fresh;
    IF v_new < v_asked THEN
        -- What is not new is there already, on these terms, or has a source that ended. A refusal undoes all.
        SELECT count(*), count(*) FILTER (WHERE known.account_id = source.account_id
            AND known.opened_micros = n.amount AND known.code = p_code
            AND known.reference_id IS NOT DISTINCT FROM p_reference)
        INTO v_known, v_same
        FROM unnest(p_sources, p_ids, p_amounts) AS n (source, id, amount)
        JOIN ledger_hold AS known ON known.id = n.id
        JOIN ledger_hold AS source ON source.id = n.source
        WHERE n.id <> ALL (coalesce(v_fresh, '{}'));
        IF v_known <> v_same THEN
            RAISE EXCEPTION 'a hold of this id exists with other terms'
                USING ERRCODE = 'TY409', CONSTRAINT = 'ledger_hold_terms';
        END IF;
        IF v_new + v_known <> v_asked THEN
            RAISE EXCEPTION 'a hold has ended' USING ERRCODE = 'TY409', CONSTRAINT = 'ledger_hold_open';
        END IF;
    END IF;
    -- The CHECK on the row keeps the amount from falling below what was captured.
    UPDATE ledger_hold AS h SET amount_micros = h.amount_micros - c.amount
    FROM (
        SELECT n.source, sum(n.amount)::bigint AS amount
        FROM unnest(p_sources, p_ids, p_amounts) AS n (source, id, amount)
        WHERE v_new = v_asked OR n.id = ANY (v_fresh)
        GROUP BY 1
    ) AS c WHERE h.id = c.source;
    RETURN v_new;
END $$;
