-- The only way money is written. Owned by the owner role and SECURITY DEFINER: the app role may read the tables of
-- the ledger and call these functions, nothing else. Lock order: holds by id, then accounts by id (docs/locking.md).
--
-- SQLSTATEs: TY404 no such account or hold; TY409 exists with other terms, or a hold that has ended or does not fit
-- (CONSTRAINT says which: ledger_transfer_terms, ledger_hold_terms, ledger_hold_open); TY422 currencies differ, or
-- malformed input; 23514 a named CHECK (an overdraft, a capture above its hold); 22003 a sum beyond 64 bits.

CREATE FUNCTION ledger_account_id(
    p_organization uuid, p_kind text, p_currency text, p_reference uuid, p_now timestamptz
) RETURNS uuid LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_id uuid;
BEGIN
    SELECT id INTO v_id FROM ledger_ledgeraccount
    WHERE organization_id = p_organization AND kind = p_kind AND currency = p_currency
      AND reference_id IS NOT DISTINCT FROM p_reference;
    IF FOUND THEN
        RETURN v_id;
    END IF;
    INSERT INTO ledger_ledgeraccount (
        id, organization_id, kind, currency, reference_id, debits_must_not_exceed_credits, overdraft_limit_micros,
        debits_posted_micros, credits_posted_micros, debits_pending_micros, created_at
    ) VALUES (
        uuidv7(), p_organization, p_kind, p_currency, p_reference,
        p_kind IN ('prepaid', 'receivable', 'payable', 'deferred', 'bond'), 0, 0, 0, 0, p_now
    ) ON CONFLICT DO NOTHING RETURNING id INTO v_id;
    IF v_id IS NULL THEN
        -- Somebody else made it between the two statements; his row is committed, or we would still be waiting.
        SELECT id INTO STRICT v_id FROM ledger_ledgeraccount
        WHERE organization_id = p_organization AND kind = p_kind AND currency = p_currency
          AND reference_id IS NOT DISTINCT FROM p_reference;
    END IF;
    RETURN v_id;
END $$;

CREATE FUNCTION ledger_set_overdraft_limit(p_account uuid, p_limit bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE ledger_ledgeraccount SET overdraft_limit_micros = p_limit WHERE id = p_account;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no ledger account %', p_account USING ERRCODE = 'TY404';
    END IF;
END $$;

-- One transfer, on the terms of ledger_post_transfers: most calls post one, and looking rows up one by one by their key
-- costs half of what the statements for sets do. Same locks in the same order. It has no rights of its own: only the
-- function below, which has them, can use it.
CREATE FUNCTION ledger_post_transfer(
    p_id uuid, p_debit uuid, p_credit uuid, p_amount bigint, p_code text, p_hold uuid, p_ref uuid, p_now timestamptz
) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    v_first text;
    v_second text;
    v_same boolean;
BEGIN
    IF p_hold IS NOT NULL THEN
        PERFORM 1 FROM ledger_hold WHERE id = p_hold FOR NO KEY UPDATE;
    END IF;
    SELECT currency INTO v_first FROM ledger_ledgeraccount WHERE id = LEAST(p_debit, p_credit) FOR NO KEY UPDATE;
    SELECT currency INTO v_second FROM ledger_ledgeraccount WHERE id = GREATEST(p_debit, p_credit) FOR NO KEY UPDATE;
    IF v_first IS NULL OR v_second IS NULL THEN
        RAISE EXCEPTION 'no such ledger account' USING ERRCODE = 'TY404';
    END IF;
    IF v_first <> v_second THEN
        RAISE EXCEPTION 'the two accounts have different currencies' USING ERRCODE = 'TY422';
    END IF;
    -- Under the accounts' locks: whoever posts the same transfer at the same time is before us or after us.
    INSERT INTO ledger_transfer (
        id, debit_account_id, credit_account_id, amount_micros, code, hold_id, reference_id, occurred_at
    ) VALUES (p_id, p_debit, p_credit, p_amount, p_code, p_hold, p_ref, p_now)
    ON CONFLICT (id) DO NOTHING;
    IF NOT FOUND THEN
        SELECT debit_account_id = p_debit AND credit_account_id = p_credit AND amount_micros = p_amount
               AND code = p_code AND hold_id IS NOT DISTINCT FROM p_hold AND reference_id IS NOT DISTINCT FROM p_ref
          INTO v_same FROM ledger_transfer WHERE id = p_id;
        IF v_same THEN
            RETURN 0;
        END IF;
        -- Not seen at all: it came with other accounts after this statement began.
        RAISE EXCEPTION 'a transfer of this id exists with other terms'
            USING ERRCODE = 'TY409', CONSTRAINT = 'ledger_transfer_terms';
    END IF;
    IF p_hold IS NOT NULL THEN
        UPDATE ledger_hold SET captured_micros = captured_micros + p_amount
         WHERE id = p_hold AND status = 'open' AND account_id = p_debit
           AND p_amount <= amount_micros - captured_micros;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'the hold has ended, is another account''s, or does not have that much left'
                USING ERRCODE = 'TY409', CONSTRAINT = 'ledger_hold_open';
        END IF;
    END IF;
    UPDATE ledger_ledgeraccount SET
        debits_posted_micros = debits_posted_micros + p_amount,
        debits_pending_micros = debits_pending_micros - CASE WHEN p_hold IS NULL THEN 0 ELSE p_amount END
    WHERE id = p_debit;
    UPDATE ledger_ledgeraccount SET credits_posted_micros = credits_posted_micros + p_amount WHERE id = p_credit;
    RETURN 1;
END $$;

-- Transfers that are not posted yet are posted, all or none; those that are, on the same terms, are passed over.
-- The bound of an account holds for the call as a whole: money that comes and goes in one call is one movement.
CREATE FUNCTION ledger_post_transfers(
    ids uuid[], debits uuid[], credits uuid[], amounts bigint[], codes text[], holds uuid[], refs uuid[],
    p_now timestamptz
) RETURNS integer LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_holds uuid[];
    v_accounts uuid[];
    v_locked integer;
    v_currencies integer;
    v_known integer;
    v_known_ids integer;
    v_same integer;
    v_asked integer;
    v_new integer;
BEGIN
    v_asked := cardinality(ids);
    IF v_asked IS NULL OR (cardinality(debits), cardinality(credits), cardinality(amounts), cardinality(codes),
        cardinality(holds), cardinality(refs)) IS DISTINCT FROM (v_asked, v_asked, v_asked, v_asked, v_asked, v_asked)
    THEN
        RAISE EXCEPTION 'the arrays differ in length' USING ERRCODE = 'TY422';
    END IF;
    IF v_asked = 0 THEN
        RETURN 0;
    END IF;
    IF v_asked = 1 THEN
        RETURN ledger_post_transfer(ids[1], debits[1], credits[1], amounts[1], codes[1], holds[1], refs[1], p_now);
    END IF;
    v_holds := array_remove(holds, NULL);
    v_accounts := debits || credits;
    IF cardinality(v_holds) > 0 THEN
        PERFORM 1 FROM ledger_hold WHERE id = ANY (v_holds) ORDER BY id FOR NO KEY UPDATE;
    END IF;
    SELECT count(*), count(DISTINCT currency) INTO v_locked, v_currencies FROM (
        SELECT currency FROM ledger_ledgeraccount WHERE id = ANY (v_accounts) ORDER BY id FOR NO KEY UPDATE
    ) AS locked;
    IF v_locked <> (SELECT count(DISTINCT a) FROM unnest(v_accounts) AS a) THEN
        RAISE EXCEPTION 'no such ledger account' USING ERRCODE = 'TY404';
    END IF;
    -- A market has one currency; only where a second one is present must the pairs be looked at.
    IF v_currencies > 1 AND EXISTS (
        SELECT 1 FROM unnest(debits, credits) AS n (debit, credit)
        JOIN ledger_ledgeraccount AS d ON d.id = n.debit
        JOIN ledger_ledgeraccount AS c ON c.id = n.credit
        WHERE d.currency <> c.currency
    ) THEN
        RAISE EXCEPTION 'the two accounts have different currencies' USING ERRCODE = 'TY422';
    END IF;
    -- Under the accounts' locks: whoever posts the same transfer at the same time is before us or after us.
    SELECT count(*), count(DISTINCT t.id), count(*) FILTER (WHERE t.debit_account_id = n.debit AND t.credit_account_id = n.credit
        AND t.amount_micros = n.amount AND t.code = n.code AND t.hold_id IS NOT DISTINCT FROM n.hold
        AND t.reference_id IS NOT DISTINCT FROM n.ref)
    INTO v_known, v_known_ids, v_same
    FROM unnest(ids, debits, credits, amounts, codes, holds, refs) AS n (id, debit, credit, amount, code, hold, ref)
    JOIN ledger_transfer AS t ON t.id = n.id;
    IF v_known <> v_same THEN
        RAISE EXCEPTION 'a transfer of this id exists with other terms'
            USING ERRCODE = 'TY409', CONSTRAINT = 'ledger_transfer_terms';
    END IF;
    IF v_known = v_asked THEN
        RETURN 0;
    END IF;
    IF cardinality(v_holds) > 0 AND EXISTS (
        SELECT 1 FROM (
            SELECT DISTINCT a.id, a.debit, a.amount, a.hold FROM unnest(ids, debits, amounts, holds)
                AS a (id, debit, amount, hold)
            WHERE a.hold IS NOT NULL AND NOT EXISTS (SELECT 1 FROM ledger_transfer AS t WHERE t.id = a.id)
        ) AS n
        LEFT JOIN ledger_hold AS h ON h.id = n.hold
        GROUP BY n.hold, h.id
        HAVING h.status IS DISTINCT FROM 'open' OR bool_or(h.account_id <> n.debit)
            OR sum(n.amount) > h.amount_micros - h.captured_micros
    ) THEN
        RAISE EXCEPTION 'the hold has ended, is another account''s, or does not have that much left'
            USING ERRCODE = 'TY409', CONSTRAINT = 'ledger_hold_open';
    END IF;
    WITH asked AS (
        SELECT DISTINCT id, debit, credit, amount, code, hold, ref
        FROM unnest(ids, debits, credits, amounts, codes, holds, refs)
            AS n (id, debit, credit, amount, code, hold, ref)
    ), fresh AS (
        INSERT INTO ledger_transfer (
            id, debit_account_id, credit_account_id, amount_micros, code, hold_id, reference_id, occurred_at
        )
        SELECT id, debit, credit, amount, code, hold, ref, p_now FROM asked
        ON CONFLICT (id) DO NOTHING
        RETURNING debit_account_id, credit_account_id, amount_micros, hold_id
    ), moves AS (
        SELECT m.account, sum(m.debited)::bigint AS debited, sum(m.credited)::bigint AS credited,
            sum(m.captured)::bigint AS captured
        FROM fresh, LATERAL (VALUES
            (debit_account_id, amount_micros, 0, CASE WHEN hold_id IS NULL THEN 0 ELSE amount_micros END),
            (credit_account_id, 0, amount_micros, 0)
        ) AS m (account, debited, credited, captured)
        GROUP BY m.account
    ), posted AS (
        UPDATE ledger_ledgeraccount AS a SET
            debits_posted_micros = a.debits_posted_micros + m.debited,
            credits_posted_micros = a.credits_posted_micros + m.credited,
            debits_pending_micros = a.debits_pending_micros - m.captured
        FROM moves AS m WHERE a.id = m.account
    ), captured AS (
        UPDATE ledger_hold AS h SET captured_micros = h.captured_micros + f.amount
        FROM (
            SELECT hold_id, sum(amount_micros)::bigint AS amount FROM fresh WHERE hold_id IS NOT NULL GROUP BY 1
        ) AS f WHERE h.id = f.hold_id
    )
    SELECT count(*), (SELECT count(*) FROM asked) INTO v_new, v_asked FROM fresh;
    -- An id given twice in one call on the same terms counts once.
    IF v_new + v_known_ids = v_asked THEN
        RETURN v_new;
    END IF;
    -- A row came between the look and the insert though we hold its accounts: so it has other accounts.
    -- Or one call names one id with two terms.
    RAISE EXCEPTION 'a transfer of this id exists with other terms'
        USING ERRCODE = 'TY409', CONSTRAINT = 'ledger_transfer_terms';
END $$;

CREATE FUNCTION ledger_open_hold(
    p_id uuid, p_account uuid, p_amount bigint, p_code text, p_reference uuid, p_expires timestamptz,
    p_now timestamptz
) RETURNS void LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO ledger_hold (
        id, account_id, amount_micros, opened_micros, captured_micros, code, reference_id, status, expires_at,
        created_at
    ) VALUES (p_id, p_account, p_amount, p_amount, 0, p_code, p_reference, 'open', p_expires, p_now)
    ON CONFLICT (id) DO NOTHING;
    IF NOT FOUND THEN
        -- The expiry is not a term: a retry comes later and counts from later.
        PERFORM 1 FROM ledger_hold WHERE id = p_id AND account_id = p_account AND opened_micros = p_amount
            AND code = p_code AND reference_id IS NOT DISTINCT FROM p_reference;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'a hold of this id exists with other terms'
                USING ERRCODE = 'TY409', CONSTRAINT = 'ledger_hold_terms';
        END IF;
        RETURN;
    END IF;
    UPDATE ledger_ledgeraccount SET debits_pending_micros = debits_pending_micros + p_amount WHERE id = p_account;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no ledger account %', p_account USING ERRCODE = 'TY404';
    END IF;
END $$;

CREATE FUNCTION ledger_change_hold(p_id uuid, p_delta bigint, p_now timestamptz) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_account uuid;
BEGIN
    -- The CHECK on the row keeps the amount from falling below what was captured.
    UPDATE ledger_hold SET amount_micros = amount_micros + p_delta WHERE id = p_id AND status = 'open'
    RETURNING account_id INTO v_account;
    IF NOT FOUND THEN
        PERFORM 1 FROM ledger_hold WHERE id = p_id;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'no hold %', p_id USING ERRCODE = 'TY404';
        END IF;
        RAISE EXCEPTION 'the hold has ended' USING ERRCODE = 'TY409', CONSTRAINT = 'ledger_hold_open';
    END IF;
    UPDATE ledger_ledgeraccount SET debits_pending_micros = debits_pending_micros + p_delta WHERE id = v_account;
END $$;

CREATE FUNCTION ledger_close_hold(p_id uuid, p_status text, p_now timestamptz) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_account uuid;
    v_rest bigint;
    v_status text;
BEGIN
    IF p_status IS NULL OR p_status NOT IN ('posted', 'voided', 'expired') THEN
        RAISE EXCEPTION 'a hold ends posted, voided or expired' USING ERRCODE = 'TY422';
    END IF;
    UPDATE ledger_hold SET status = p_status, ended_at = p_now WHERE id = p_id AND status = 'open'
    RETURNING account_id, amount_micros - captured_micros INTO v_account, v_rest;
    IF NOT FOUND THEN
        SELECT status INTO v_status FROM ledger_hold WHERE id = p_id;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'no hold %', p_id USING ERRCODE = 'TY404';
        END IF;
        IF v_status <> p_status THEN
            RAISE EXCEPTION 'the hold has ended %', v_status USING ERRCODE = 'TY409', CONSTRAINT = 'ledger_hold_open';
        END IF;
        RETURN;
    END IF;
    UPDATE ledger_ledgeraccount SET debits_pending_micros = debits_pending_micros - v_rest WHERE id = v_account;
END $$;

-- Ends up to p_limit open holds whose time has come; those that somebody is just capturing are left for later.
CREATE FUNCTION ledger_expire_holds(p_now timestamptz, p_limit integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_ids uuid[];
BEGIN
    SELECT array_agg(id) INTO v_ids FROM (
        SELECT id FROM ledger_hold WHERE status = 'open' AND expires_at <= p_now
        ORDER BY expires_at LIMIT p_limit FOR NO KEY UPDATE SKIP LOCKED
    ) AS due;
    IF v_ids IS NULL THEN
        RETURN 0;
    END IF;
    PERFORM 1 FROM ledger_ledgeraccount
    WHERE id IN (SELECT account_id FROM ledger_hold WHERE id = ANY (v_ids)) ORDER BY id FOR NO KEY UPDATE;
    UPDATE ledger_ledgeraccount AS a SET debits_pending_micros = a.debits_pending_micros - d.rest
    FROM (
        SELECT account_id, sum(amount_micros - captured_micros)::bigint AS rest
        FROM ledger_hold WHERE id = ANY (v_ids) GROUP BY 1
    ) AS d WHERE a.id = d.account_id;
    UPDATE ledger_hold SET status = 'expired', ended_at = p_now WHERE id = ANY (v_ids);
    RETURN cardinality(v_ids);
END $$;

DO $$
DECLARE
    v_function regprocedure;
BEGIN
    -- The app role has EXECUTE by the owner's default privileges; nobody else needs it.
    FOR v_function IN SELECT oid FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace AND proname LIKE 'ledger\_%' AND prosecdef
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', v_function);
    END LOOP;
END $$;
