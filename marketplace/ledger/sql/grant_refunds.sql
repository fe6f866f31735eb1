-- Part of a grant given back: what was paid for it to the prepaid balance, the rest to the operator. The paid part is the
-- difference of two totals, each rounded down, so that many small refunds give what one large one gives, and all of them
-- together never more than was paid. p_amount null: all that is free. Whether it is new.
--
-- Locks: the organization's grants (advisory), then the accounts, in one step.
CREATE FUNCTION ledger_refund_grant(
    p_id uuid, p_grant uuid, p_amount bigint, p_operator uuid, p_paid_id uuid, p_rest_id uuid, p_now timestamptz
) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    g ledger_grant;
    v_kept ledger_grantrefund;
    v_amount bigint;
    v_before bigint;
    v_paid bigint;
    v_rest bigint;
BEGIN
    SELECT * INTO g FROM ledger_grant WHERE id = p_grant;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no such grant' USING ERRCODE = 'TY404';
    END IF;
    PERFORM ledger_lock_grants(g.organization_id);
    SELECT * INTO v_kept FROM ledger_grantrefund WHERE id = p_id;
    IF FOUND THEN
        IF v_kept.grant_id <> p_grant OR v_kept.asked_micros IS DISTINCT FROM p_amount THEN
            RAISE EXCEPTION 'a refund of this id was made on other terms'
                USING ERRCODE = 'TY409', CONSTRAINT = 'ledger_grant_refund_terms';
        END IF;
        RETURN false;
    END IF;
    SELECT * INTO g FROM ledger_grant WHERE id = p_grant;
    IF g.status <> 'open' OR g.expires_at <= p_now THEN
        RAISE EXCEPTION 'the grant has ended' USING ERRCODE = 'TY409', CONSTRAINT = 'ledger_grant_ended';
    END IF;
    v_amount := coalesce(p_amount, g.free_micros);
    IF v_amount < 1 OR v_amount > g.free_micros THEN
        RAISE EXCEPTION 'not that much of it is unused'
            USING ERRCODE = 'TY409', CONSTRAINT = 'ledger_grant_refund_within_free';
    END IF;
    SELECT coalesce(sum(amount_micros), 0) INTO v_before FROM ledger_grantrefund WHERE grant_id = p_grant;
    v_paid := div((v_before + v_amount)::numeric * g.cost_basis_ppm, 1000000)
        - div(v_before::numeric * g.cost_basis_ppm, 1000000);
    v_rest := v_amount - v_paid;
    INSERT INTO ledger_grantrefund (id, grant_id, asked_micros, amount_micros, paid_micros, created_at)
    VALUES (p_id, p_grant, p_amount, v_amount, v_paid, p_now);
    UPDATE ledger_grant SET free_micros = free_micros - v_amount WHERE id = p_grant;
    PERFORM ledger_post_transfers(
        array_agg(m.id), array_agg(g.account_id), array_agg(m.credit), array_agg(m.amount), array_agg(m.code::text),
        array_agg(NULL::uuid), array_agg(p_grant), p_now
    ) FROM (VALUES
        (p_paid_id, ledger_account_id(g.organization_id, 'prepaid', g.currency, NULL, p_now), v_paid, 'grant_refund'),
        (p_rest_id, ledger_account_id(p_operator, 'operator', g.currency, NULL, p_now), v_rest, 'grant_voided')
    ) AS m (id, credit, amount, code) WHERE m.amount > 0;
    RETURN true;
END $$;

REVOKE ALL ON FUNCTION ledger_refund_grant(uuid, uuid, bigint, uuid, uuid, uuid, timestamptz) FROM PUBLIC;
