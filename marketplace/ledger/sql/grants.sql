-- Grants: credit that is burned before the organization's own balance, in order, where a hold is taken.
--
-- Each grant is an account (kind 'grant'), so it cannot be overspent. A hold that burns grants is a hold on the main
-- account (prepaid or receivable) for the remainder, plus a part: a hold of its own on the account of each grant that it
-- burns. Grants are taken first and given back last, so at any time the first of them in order are the ones that are held.
--
-- Locks: the main hold, then the organization's grants (advisory), then accounts. Nothing outside this file touches the
-- account of a grant, so whoever waits for a main account under the advisory lock is not waited for.

CREATE FUNCTION ledger_lock_grants(p_organization uuid) RETURNS void LANGUAGE sql AS $$
    SELECT pg_advisory_xact_lock(hashtextextended('ledger_grants ' || p_organization, 0))
$$;

-- Gives a grant once. Of a purchased one the organization pays the cost basis out of its prepaid balance; the operator
-- gives the rest, and all of a promotional one. The same id on the same terms again changes nothing.
CREATE FUNCTION ledger_give_grant(
    p_id uuid, p_organization uuid, p_operator uuid, p_kind text, p_currency text, p_amount bigint, p_cost_basis_ppm bigint,
    p_priority integer, p_grade uuid, p_expires timestamptz, p_paid_id uuid, p_given_id uuid, p_now timestamptz
) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_account uuid;
    v_prepaid uuid;
    v_paid bigint := div(p_amount::numeric * p_cost_basis_ppm, 1000000);
BEGIN
    PERFORM ledger_lock_grants(p_organization);
    IF EXISTS (SELECT 1 FROM ledger_grant WHERE id = p_id) THEN
        PERFORM 1 FROM ledger_grant WHERE id = p_id AND organization_id = p_organization AND kind = p_kind
            AND currency = p_currency AND amount_micros = p_amount AND cost_basis_ppm = p_cost_basis_ppm
            AND priority = p_priority AND grade_id IS NOT DISTINCT FROM p_grade
            AND expires_at IS NOT DISTINCT FROM p_expires;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'a grant of this id exists on other terms'
                USING ERRCODE = 'TY409', CONSTRAINT = 'ledger_grant_terms';
        END IF;
        RETURN false;
    END IF;
    -- Also where nothing is paid: usage is held on this account for what grants do not cover.
    v_prepaid := ledger_account_id(p_organization, 'prepaid', p_currency, NULL, p_now);
    v_account := ledger_account_id(p_organization, 'grant', p_currency, p_id, p_now);
    INSERT INTO ledger_grant (
        id, organization_id, account_id, kind, currency, amount_micros, free_micros, cost_basis_ppm, priority, grade_id,
        expires_at, status, created_at
    ) VALUES (
        p_id, p_organization, v_account, p_kind, p_currency, p_amount, p_amount, p_cost_basis_ppm, p_priority, p_grade,
        p_expires, 'open', p_now
    );
    IF v_paid > 0 THEN
        PERFORM ledger_post_transfer(p_paid_id, v_prepaid, v_account, v_paid, 'grant_purchase', NULL, p_id, p_now);
    END IF;
    IF p_amount > v_paid THEN
        PERFORM ledger_post_transfer(p_given_id, ledger_account_id(p_operator, 'operator', p_currency, NULL, p_now),
            v_account, p_amount - v_paid, 'grant', NULL, p_id, p_now);
    END IF;
    RETURN true;
END $$;

-- Takes p_amount for the main hold p_hold from the organization's grants in order; what they do not cover is returned.
CREATE FUNCTION ledger_burn_grants(p_hold uuid, p_grade uuid, p_account uuid, p_amount bigint, p_now timestamptz)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_organization uuid;
    v_currency text;
    v_rest bigint := p_amount;
    v_take bigint;
    v_part uuid;
    g record;
BEGIN
    SELECT organization_id, currency INTO v_organization, v_currency FROM ledger_ledgeraccount WHERE id = p_account;
    -- The look before the lock keeps organizations without grants out of it.
    IF NOT EXISTS (SELECT 1 FROM ledger_grant WHERE organization_id = v_organization AND status = 'open' AND free_micros > 0)
    THEN
        RETURN p_amount;
    END IF;
    PERFORM ledger_lock_grants(v_organization);
    FOR g IN
        SELECT id, account_id, free_micros FROM ledger_grant
         WHERE organization_id = v_organization AND status = 'open' AND free_micros > 0 AND currency = v_currency
           AND (expires_at IS NULL OR expires_at > p_now) AND (grade_id IS NULL OR grade_id = p_grade)
         ORDER BY priority, expires_at, kind, created_at, id
    LOOP
        v_take := LEAST(v_rest, g.free_micros);
        UPDATE ledger_grant SET free_micros = free_micros - v_take WHERE id = g.id;
        SELECT part_id INTO v_part FROM ledger_grantpart WHERE hold_id = p_hold AND grant_id = g.id;
        IF FOUND THEN
            UPDATE ledger_hold SET amount_micros = amount_micros + v_take WHERE id = v_part;
            UPDATE ledger_ledgeraccount SET debits_pending_micros = debits_pending_micros + v_take WHERE id = g.account_id;
        ELSE
            v_part := uuidv7();
            PERFORM ledger_open_hold(v_part, g.account_id, v_take, 'grant_part', p_hold, NULL, p_now);
            INSERT INTO ledger_grantpart (hold_id, grant_id, part_id) VALUES (p_hold, g.id, v_part);
        END IF;
        v_rest := v_rest - v_take;
        EXIT WHEN v_rest = 0;
    END LOOP;
    RETURN v_rest;
END $$;

-- Gives p_amount of the main hold's parts back to their grants, the last in order first; what they do not have is returned.
CREATE FUNCTION ledger_unburn_grants(p_hold uuid, p_amount bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    v_rest bigint := p_amount;
    v_back bigint;
    p record;
BEGIN
    FOR p IN
        SELECT h.id, h.amount_micros - h.captured_micros AS held, g.id AS grant_id, g.account_id
          FROM ledger_grantpart AS gp JOIN ledger_hold AS h ON h.id = gp.part_id JOIN ledger_grant AS g ON g.id = gp.grant_id
         WHERE gp.hold_id = p_hold AND h.status = 'open' AND h.amount_micros > h.captured_micros
         ORDER BY g.priority DESC, g.expires_at DESC, g.kind DESC, g.created_at DESC, g.id DESC
    LOOP
        v_back := LEAST(v_rest, p.held);
        UPDATE ledger_hold SET amount_micros = amount_micros - v_back WHERE id = p.id;
        UPDATE ledger_ledgeraccount SET debits_pending_micros = debits_pending_micros - v_back WHERE id = p.account_id;
        UPDATE ledger_grant SET free_micros = free_micros + v_back WHERE id = p.grant_id;
        v_rest := v_rest - v_back;
        EXIT WHEN v_rest = 0;
    END LOOP;
    RETURN v_rest;
END $$;

-- From now on p_hold burns grants, those of this grade and those for all. Before its first change.
CREATE FUNCTION ledger_let_hold_burn(p_hold uuid, p_grade uuid) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    INSERT INTO ledger_burninghold (hold_id, grade_id) VALUES (p_hold, p_grade) ON CONFLICT DO NOTHING
$$;

CREATE OR REPLACE FUNCTION ledger_change_hold(p_id uuid, p_delta bigint, p_now timestamptz) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_account uuid;
    v_organization uuid;
    v_left bigint;
    v_delta bigint := p_delta;
    v_burning record;
BEGIN
    SELECT * INTO v_burning FROM ledger_burninghold WHERE hold_id = p_id;
    IF FOUND THEN
        SELECT account_id, amount_micros - captured_micros INTO v_account, v_left
          FROM ledger_hold WHERE id = p_id AND status = 'open' FOR NO KEY UPDATE;
        IF FOUND AND p_delta > 0 THEN
            v_delta := ledger_burn_grants(p_id, v_burning.grade_id, v_account, p_delta, p_now);
        ELSIF FOUND AND v_left + p_delta < 0 THEN
            SELECT organization_id INTO v_organization FROM ledger_ledgeraccount WHERE id = v_account;
            PERFORM ledger_lock_grants(v_organization);
            -- The remainder goes first. What no part has either fails below, at the CHECK.
            v_delta := -v_left - ledger_unburn_grants(p_id, -(v_left + p_delta));
        END IF;
        IF v_delta = 0 THEN
            RETURN;
        END IF;
    END IF;
    -- The CHECK on the row keeps the amount from falling below what was captured.
    UPDATE ledger_hold SET amount_micros = amount_micros + v_delta WHERE id = p_id AND status = 'open'
    RETURNING account_id INTO v_account;
    IF NOT FOUND THEN
        PERFORM 1 FROM ledger_hold WHERE id = p_id;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'no hold %', p_id USING ERRCODE = 'TY404';
        END IF;
        RAISE EXCEPTION 'the hold has ended' USING ERRCODE = 'TY409', CONSTRAINT = 'ledger_hold_open';
    END IF;
    UPDATE ledger_ledgeraccount SET debits_pending_micros = debits_pending_micros + v_delta WHERE id = v_account;
END $$;

-- Before a burning hold is captured: moves up to p_amount from its parts to the main account, in order, raises the hold
-- by as much, gives the rest of the parts back, and ends them. How much was moved. Again moves nothing.
CREATE FUNCTION ledger_draw_grants(p_hold uuid, p_amount bigint, p_now timestamptz) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_main uuid;
    v_organization uuid;
    v_drawn bigint := 0;
    v_take bigint;
    p record;
BEGIN
    IF p_amount IS NULL OR p_amount < 0 THEN
        RAISE EXCEPTION 'an amount is not negative' USING ERRCODE = 'TY422';
    END IF;
    IF NOT EXISTS (SELECT 1 FROM ledger_grantpart WHERE hold_id = p_hold) THEN
        RETURN 0;
    END IF;
    SELECT account_id INTO v_main FROM ledger_hold WHERE id = p_hold AND status = 'open' FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the hold has ended' USING ERRCODE = 'TY409', CONSTRAINT = 'ledger_hold_open';
    END IF;
    SELECT organization_id INTO v_organization FROM ledger_ledgeraccount WHERE id = v_main;
    PERFORM ledger_lock_grants(v_organization);
    FOR p IN
        SELECT h.id, h.amount_micros AS held, g.id AS grant_id, g.account_id
          FROM ledger_grantpart AS gp JOIN ledger_hold AS h ON h.id = gp.part_id JOIN ledger_grant AS g ON g.id = gp.grant_id
         WHERE gp.hold_id = p_hold AND h.status = 'open'
         ORDER BY g.priority, g.expires_at, g.kind, g.created_at, g.id
    LOOP
        v_take := LEAST(p_amount - v_drawn, p.held);
        IF v_take > 0 THEN
            -- One part is drawn once, so its id can be the transfer's.
            PERFORM ledger_post_transfer(p.id, p.account_id, v_main, v_take, 'grant_burn', p.id, p_hold, p_now);
        END IF;
        PERFORM ledger_close_hold(p.id, CASE WHEN v_take > 0 THEN 'posted' ELSE 'voided' END, p_now);
        UPDATE ledger_grant SET free_micros = free_micros + p.held - v_take WHERE id = p.grant_id;
        v_drawn := v_drawn + v_take;
    END LOOP;
    IF v_drawn > 0 THEN
        UPDATE ledger_hold SET amount_micros = amount_micros + v_drawn WHERE id = p_hold;
        UPDATE ledger_ledgeraccount SET debits_pending_micros = debits_pending_micros + v_drawn WHERE id = v_main;
    END IF;
    RETURN v_drawn;
END $$;

-- Ends a grant ('expired' or 'revoked') and posts what is free of it: to the operator's breakage account when it expired;
-- when it was revoked the part that was paid for back to the prepaid balance, the rest to the operator. What is held stays
-- held; when it comes back, the next call posts that too. How much was posted.
CREATE FUNCTION ledger_end_grant(
    p_id uuid, p_status text, p_operator uuid, p_first_id uuid, p_second_id uuid, p_now timestamptz
) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    g ledger_grant;
    v_paid bigint := 0;
    v_first text := 'breakage';
BEGIN
    SELECT * INTO g FROM ledger_grant WHERE id = p_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no such grant' USING ERRCODE = 'TY404';
    END IF;
    PERFORM ledger_lock_grants(g.organization_id);
    SELECT * INTO g FROM ledger_grant WHERE id = p_id;
    IF g.status <> p_status AND g.status <> 'open' THEN
        RAISE EXCEPTION 'the grant has ended' USING ERRCODE = 'TY409', CONSTRAINT = 'ledger_grant_ended';
    END IF;
    IF p_status = 'expired' AND (g.expires_at IS NULL OR g.expires_at > p_now) THEN
        RAISE EXCEPTION 'the grant has not expired' USING ERRCODE = 'TY409', CONSTRAINT = 'ledger_grant_ended';
    END IF;
    UPDATE ledger_grant SET status = p_status, free_micros = 0, ended_at = coalesce(ended_at, p_now) WHERE id = p_id;
    IF p_status = 'revoked' THEN
        v_first := 'operator';
        v_paid := div(g.free_micros::numeric * g.cost_basis_ppm, 1000000);
    END IF;
    IF g.free_micros > v_paid THEN
        PERFORM ledger_post_transfer(p_first_id, g.account_id,
            ledger_account_id(p_operator, v_first, g.currency, NULL, p_now), g.free_micros - v_paid,
            CASE p_status WHEN 'expired' THEN 'breakage' ELSE 'grant_revoked' END, NULL, p_id, p_now);
    END IF;
    IF v_paid > 0 THEN
        PERFORM ledger_post_transfer(p_second_id, g.account_id,
            ledger_account_id(g.organization_id, 'prepaid', g.currency, NULL, p_now), v_paid, 'grant_revoked', NULL, p_id,
            p_now);
    END IF;
    RETURN g.free_micros;
END $$;

CREATE OR REPLACE FUNCTION ledger_account_id(
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
        p_kind IN ('prepaid', 'receivable', 'payable', 'deferred', 'bond', 'grant'), 0, 0, 0, 0, p_now
    ) ON CONFLICT DO NOTHING RETURNING id INTO v_id;
    IF v_id IS NULL THEN
        -- Somebody else made it between the two statements; his row is committed, or we would still be waiting.
        SELECT id INTO STRICT v_id FROM ledger_ledgeraccount
        WHERE organization_id = p_organization AND kind = p_kind AND currency = p_currency
          AND reference_id IS NOT DISTINCT FROM p_reference;
    END IF;
    RETURN v_id;
END $$;

DO $$
DECLARE
    v_function regprocedure;
BEGIN
    FOR v_function IN SELECT oid FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace AND proname LIKE 'ledger\_%grant%' OR proname = 'ledger_let_hold_burn'
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', v_function);
    END LOOP;
END $$;
