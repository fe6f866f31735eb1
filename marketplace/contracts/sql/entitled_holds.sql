-- Opens the hold on one entitlement (committed or spot), at its least-served allocation that can serve. One that was
-- curtailed admits no more than is kept of it; where that is why nothing is left, the outcome is capacity_curtailed.
CREATE OR REPLACE FUNCTION contracts_open_on_entitlement(p_asked contracts_asked, p_entitlement uuid)
RETURNS contracts_opened LANGUAGE plpgsql AS $$
DECLARE
    o contracts_opened;
    e record;
    n record;
    v_rate_per_s bigint;
    v_depth bigint;
    v_level bigint;
    v_free bigint;
    v_accrual uuid;
    v_spend uuid[];
    v_constraint text;
    v_detail text;
BEGIN
    SELECT en.*, c.kind, c.payment, c.grade_id, r.micros_per_mtok, g.max_request_s, org.tax_ppm
      INTO STRICT e
      FROM contracts_entitlement en
      JOIN contracts_contract c ON c.id = en.contract_id
      JOIN pricing_rate r ON r.id = en.rate_id
      JOIN pricing_grade g ON g.id = c.grade_id
      JOIN accounts_organization org ON org.id = c.organization_id
     WHERE en.id = p_entitlement;
    o.contract_id := e.contract_id;
    o.kind := e.kind;
    o.grade_id := e.grade_id;
    o.rate_id := e.rate_id;
    o.rate_micros_per_mtok := e.micros_per_mtok;
    o.period_start := contracts_period_start(p_asked.at, p_asked.delivery_s);
    o.expires_at := p_asked.at + make_interval(secs => e.max_request_s);
    o.amount_numerator := p_asked.numerators[array_position(p_asked.grades, e.grade_id)];
    v_rate_per_s := e.bucket_rate_numerator_per_s;
    v_depth := e.bucket_depth_numerator;
    -- What was released of this period (of one that is published: resold) is not the buyer's: bucket and volume shrink.
    SELECT nom.id, nom.firm_lots, nom.firm_lots - coalesce(nom.resold_lots, nom.released_lots) AS kept_lots INTO n
      FROM contracts_nomination nom WHERE nom.contract_id = e.contract_id AND nom.period_start = o.period_start;
    IF n.id IS NOT NULL THEN
        v_rate_per_s := div(v_rate_per_s::numeric * n.kept_lots, n.firm_lots)::bigint;
        v_depth := div(v_depth::numeric * n.kept_lots, n.firm_lots)::bigint;
    END IF;
    o.limit_numerator := GREATEST(v_depth, o.amount_numerator);
    o.amount_micros := 0;
    IF e.payment = 'arrears' THEN
        o.amount_micros :=
            contracts_gross_up(contracts_price_ceil(o.amount_numerator, e.micros_per_mtok), e.tax_ppm);
    END IF;

    SELECT a.offering_id, f.host_id, h.base_url, h.engine ->> 'kind'
      INTO o.offering_id, o.host_id, o.base_url, o.engine
      FROM contracts_allocation a
      JOIN providers_offering f ON f.id = a.offering_id
      JOIN providers_host h ON h.id = f.host_id
      LEFT JOIN contracts_nominationshare s ON s.nomination_id = n.id AND s.offering_id = a.offering_id
     CROSS JOIN LATERAL (
        SELECT a.served_numerator + coalesce(sum(w.amount_numerator), 0) AS numerator FROM contracts_hold w
         WHERE w.contract_id = a.contract_id AND w.offering_id = a.offering_id AND w.status = 'open'
     ) taken
     WHERE a.contract_id = e.contract_id
       AND (a.period_start IS NULL OR a.period_start = e.period_start)
       AND a.firm_lots > coalesce(s.resold_lots, 0)
       AND contracts_serves(h.status, h.ready, h.last_heartbeat_at, p_asked.at)
       AND NOT a.offering_id = ANY (p_asked.exclude)
       AND NOT EXISTS (
        SELECT 1 FROM contracts_curtailment k
         WHERE k.allocation_id = a.id AND k.period_start = o.period_start
           AND taken.numerator + o.amount_numerator > k.kept_numerator
       )
     ORDER BY taken.numerator / (a.firm_lots - coalesce(s.resold_lots, 0)), a.offering_id
     LIMIT 1;
    IF NOT FOUND THEN
        IF EXISTS (
            SELECT 1 FROM contracts_allocation a
              JOIN contracts_curtailment k ON k.allocation_id = a.id AND k.period_start = o.period_start
              JOIN providers_offering f ON f.id = a.offering_id
              JOIN providers_host h ON h.id = f.host_id
             WHERE a.contract_id = e.contract_id
               AND contracts_serves(h.status, h.ready, h.last_heartbeat_at, p_asked.at)
               AND NOT a.offering_id = ANY (p_asked.exclude)
        ) THEN
            -- The next period has other awards, or the host back.
            o.outcome := 'capacity_curtailed';
            o.retry_after_ms := GREATEST(1, extract(epoch FROM
                o.period_start + make_interval(secs => p_asked.delivery_s) - p_asked.at) * 1000)::bigint;
            RETURN o;
        END IF;
        o.outcome := 'no_offering';
        o.retry_after_ms := 5000;
        RETURN o;
    END IF;

    BEGIN
        UPDATE contracts_entitlement en SET
            held_numerator = en.held_numerator + o.amount_numerator,
            bucket_level_numerator = contracts_refilled(en.bucket_level_numerator, en.bucket_level_at,
                v_rate_per_s, v_depth, p_asked.at)
                - o.amount_numerator,
            bucket_level_at = GREATEST(en.bucket_level_at, p_asked.at)
         WHERE en.id = p_entitlement
           AND en.entitled_numerator - en.held_numerator - en.used_numerator - en.released_numerator
               - en.failed_numerator >= o.amount_numerator
           AND contracts_refilled(en.bucket_level_numerator, en.bucket_level_at, v_rate_per_s,
               v_depth, p_asked.at) >= LEAST(v_depth, o.amount_numerator)
        RETURNING en.bucket_level_numerator INTO v_level;
        IF FOUND THEN
            IF n.id IS NOT NULL THEN
                UPDATE contracts_nomination SET taken_numerator = taken_numerator + o.amount_numerator WHERE id = n.id;
            END IF;
            IF o.amount_micros > 0 THEN
                v_spend := contracts_take_spend(
                    p_asked.organization_id, p_asked.api_key_id, o.amount_micros, p_asked.at);
                v_accrual := contracts_accrue(e.contract_id,
                    contracts_period_start(p_asked.at, p_asked.settlement_s), o.amount_micros, p_asked.at);
            END IF;
            o.outcome := 'ok';
            o.remaining_numerator := GREATEST(0, v_level);
            o.reset_ms := contracts_wait_ms(o.limit_numerator - v_level, v_rate_per_s);
            PERFORM contracts_record_hold(p_asked, o, p_entitlement, v_accrual, v_spend);
            RETURN o;
        END IF;
    EXCEPTION WHEN check_violation THEN
        GET STACKED DIAGNOSTICS v_constraint = CONSTRAINT_NAME, v_detail = PG_EXCEPTION_DETAIL;
        IF v_constraint = 'contracts_nomination_never_overdrawn' THEN
            SELECT GREATEST(0, n.kept_lots * 1000000000 - nom.taken_numerator) INTO o.remaining_numerator
              FROM contracts_nomination nom WHERE nom.id = n.id;
            o.outcome := 'rate_limited';
            o.retry_after_ms := GREATEST(1, extract(
                epoch FROM o.period_start + make_interval(secs => p_asked.delivery_s) - p_asked.at) * 1000)::bigint;
            o.reset_ms := o.retry_after_ms;
            RETURN o;
        END IF;
        IF v_constraint = 'contracts_spendcounter_within_cap' THEN
            RETURN contracts_capped(o, v_detail, p_asked.at);
        END IF;
        IF v_constraint <> 'ledger_account_debits_must_not_exceed_credits' THEN
            RAISE;
        END IF;
        o.outcome := 'insufficient_funds';
        RETURN o;
    END;

    SELECT en.entitled_numerator - en.held_numerator - en.used_numerator - en.released_numerator
           - en.failed_numerator,
           contracts_refilled(en.bucket_level_numerator, en.bucket_level_at, v_rate_per_s,
               v_depth, p_asked.at)
      INTO v_free, v_level
      FROM contracts_entitlement en WHERE en.id = p_entitlement;
    o.remaining_numerator := GREATEST(0, v_level);
    o.reset_ms := contracts_wait_ms(o.limit_numerator - v_level, v_rate_per_s);
    IF v_free < o.amount_numerator THEN
        o.outcome := 'contract_exhausted';
        o.remaining_numerator := GREATEST(0, v_free);
    ELSE
        o.outcome := 'rate_limited';
        o.retry_after_ms := GREATEST(1, contracts_wait_ms(
            LEAST(v_depth, o.amount_numerator) - v_level, v_rate_per_s));
    END IF;
    RETURN o;
END
$$;

