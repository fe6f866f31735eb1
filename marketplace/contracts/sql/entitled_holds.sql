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
           AND w.entitlement_id IS NOT NULL
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
        IF e.entitled_numerator - e.held_numerator - e.used_numerator - e.released_numerator - e.failed_numerator
           < o.amount_numerator THEN
            -- Whoever owes it owes nothing that would suffice: what is beyond it needs none of them.
            o.outcome := 'contract_exhausted';
            o.remaining_numerator := GREATEST(0, e.entitled_numerator - e.held_numerator - e.used_numerator
                - e.released_numerator - e.failed_numerator);
            RETURN o;
        END IF;
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


-- What goes on beyond a committed contract's volume, at admission. With p_split first a hold on what is left of it, if that is a
-- token at least: it comes out smaller than asked for. Else all of it under the contract's overage policy.
CREATE OR REPLACE FUNCTION contracts_open_over(
    p_asked contracts_asked, p_contract uuid, p_entitlement uuid, p_split boolean
) RETURNS contracts_opened LANGUAGE plpgsql AS $$
DECLARE
    o contracts_opened;
    v_asked contracts_asked := p_asked;
    v_place integer;
    v_rest bigint;
    v_least bigint;
BEGIN
    IF p_split AND p_entitlement IS NOT NULL THEN
        SELECT array_position(p_asked.grades, c.grade_id),
               e.entitled_numerator - e.held_numerator - e.used_numerator - e.released_numerator - e.failed_numerator,
               (SELECT max(b.standard_ppm) FROM pricing_gradebucket b WHERE b.grade_id = c.grade_id)
          INTO STRICT v_place, v_rest, v_least
          FROM contracts_entitlement e JOIN contracts_contract c ON c.id = e.contract_id
         WHERE e.id = p_entitlement;
        IF v_rest >= v_least AND v_rest < p_asked.numerators[v_place] THEN
            v_asked.numerators[v_place] := v_rest;
            o := contracts_open_on_entitlement(v_asked, p_entitlement);
            IF o.outcome = 'ok' THEN
                RETURN o;
            END IF;
        END IF;
    END IF;
    RETURN contracts_open_on_demand(p_asked, NULL, p_contract);
END
$$;

-- Adds to an open hold what is left of its committed contract, at most p_most, where the contract goes on beyond its volume; how much
-- that was. Waits for who takes of the contract at the same moment, so that nothing is left over.
CREATE OR REPLACE FUNCTION contracts_take_rest(p_id uuid, p_most bigint, p_now timestamptz) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    v_entitlement uuid;
    v_rest bigint;
BEGIN
    SELECT w.entitlement_id INTO v_entitlement
      FROM contracts_hold w JOIN contracts_contract c ON c.id = w.contract_id
     WHERE w.id = p_id AND w.status = 'open' AND c.kind = 'committed' AND c.overage_policy <> 'stop'
       FOR NO KEY UPDATE OF w;
    SELECT LEAST(p_most, e.entitled_numerator - e.held_numerator - e.used_numerator - e.released_numerator
               - e.failed_numerator) INTO v_rest
      FROM contracts_entitlement e WHERE e.id = v_entitlement FOR NO KEY UPDATE;
    IF v_rest > 0 AND contracts_extend_hold(p_id, v_rest, p_now) = 'ok' THEN
        RETURN v_rest;
    END IF;
    RETURN 0;
END
$$;

-- Part 1 of a request whose hold p_hold has come to the end of its committed contract: a second hold, of p_amount, on the same
-- delivery under the contract's overage policy. Rate, grade version, period and offering are those of its admission. At
-- admission (p_is_admission) the offering must have that much unsold; a stream that runs is not cut for its pace.
--
-- outcome: ok, contract_exhausted (it does not go on: policy `stop`, or its host cannot at this rate), overage_above_max_rate,
-- capacity_unavailable, contract_suspended, insufficient_funds, spend_cap_reached, closed.
CREATE OR REPLACE FUNCTION contracts_open_part(
    p_hold uuid, p_id uuid, p_amount bigint, p_is_admission boolean, p_now timestamptz,
    p_delivery_s integer, p_settlement_s integer, p_sellable_ppm bigint
) RETURNS contracts_opened LANGUAGE plpgsql AS $$
DECLARE
    o contracts_opened;
    v_asked contracts_asked;
    h record;
    f record;
    c record;
    v_dearest bigint;
    v_accrual uuid;
    v_spend uuid[];
    v_constraint text;
    v_detail text;
BEGIN
    SELECT w.*, ct.organization_id, ct.kind, ct.overage_policy, ct.max_rate_micros_per_mtok AS max_rate,
           org.tax_ppm, org.on_demand_payment
      INTO h
      FROM contracts_hold w
      JOIN contracts_contract ct ON ct.id = w.contract_id
      JOIN accounts_organization org ON org.id = ct.organization_id
     WHERE w.id = p_hold FOR NO KEY UPDATE OF w;
    IF NOT FOUND OR h.status <> 'open' THEN
        o.outcome := 'closed';
        RETURN o;
    END IF;
    -- The list rate that was in force at admission, whatever it was changed to since.
    SELECT fo.grade_id, fo.status, r.rate_id AS list_rate_id, r.micros_per_mtok, r.unit_numerator, fo.spot_floor_micros_per_mtok AS floor,
           fo.host_id, hs.base_url, hs.engine ->> 'kind' AS engine, seller.organization_id AS seller_id,
           div(fo.dependable_numerator_per_s::numeric * GREATEST(0, coalesce(
               hp.sellable_ppm - hp.sold_ppm, hh.sellable_ppm - hh.sold_ppm, p_sellable_ppm)), 1000000)::bigint AS rate_per_s
      INTO f
      FROM providers_offering fo
      JOIN providers_host hs ON hs.id = fo.host_id
      JOIN providers_provider seller ON seller.id = hs.provider_id
      JOIN LATERAL (
        SELECT p.id FROM pricing_rate p
         WHERE p.source_id = fo.id AND p.kind = 'list' AND p.grade_id = h.grade_id AND p.valid_from <= h.opened_at
           AND NOT EXISTS (SELECT 1 FROM providers_listtariffslot s WHERE s.rate_id = p.id)
         ORDER BY p.valid_from DESC, p.id DESC LIMIT 1) plain ON true
     CROSS JOIN LATERAL providers_list_rate(fo.id, plain.id, h.opened_at) r
      LEFT JOIN providers_hostperiod hp ON hp.host_id = fo.host_id AND hp.period_start = h.period_start
      LEFT JOIN providers_hosthour hh
        ON hh.host_id = fo.host_id AND hh.hour_start = contracts_period_start(h.opened_at, 3600)
     WHERE fo.id = h.offering_id;
    o.outcome := 'contract_exhausted';
    IF NOT FOUND OR h.kind <> 'committed' OR h.overage_policy = 'stop' OR h.entitlement_id IS NULL OR f.grade_id <> h.grade_id
       -- On demand nobody is served by himself, nor are the ends of his requests.
       OR f.seller_id = h.organization_id
       OR EXISTS (SELECT 1 FROM contracts_hold w WHERE w.request_id = h.request_id AND w.attempt = h.attempt
                     AND w.part = 1 AND w.status <> 'voided') THEN
        RETURN o;
    END IF;
    o.grade_id := h.grade_id;
    o.offering_id := h.offering_id;
    o.host_id := f.host_id;
    o.base_url := f.base_url;
    o.engine := f.engine;
    o.period_start := h.period_start;
    o.expires_at := h.expires_at;
    o.amount_numerator := p_amount;
    o.rate_id := f.list_rate_id;
    o.rate_micros_per_mtok := f.micros_per_mtok;
    o.unit_numerator := f.unit_numerator;
    IF h.overage_policy = 'spot' THEN
        o.contract_id := h.contract_id;
        o.kind := 'committed';
        SELECT p.overage_rate_id, r.micros_per_mtok INTO c
          FROM contracts_periodrate p JOIN pricing_rate r ON r.id = p.overage_rate_id
         WHERE p.grade_id = h.grade_id AND p.period_start = h.period_start;
        IF c.micros_per_mtok < f.micros_per_mtok THEN
            IF c.micros_per_mtok < f.floor THEN
                RETURN o;
            END IF;
            o.rate_id := c.overage_rate_id;
            o.rate_micros_per_mtok := c.micros_per_mtok;
            o.unit_numerator := NULL;
        END IF;
    ELSE
        SELECT * INTO STRICT c
          FROM contracts_on_demand_of(h.organization_id, h.grade_id, h.on_demand_payment, h.opened_at);
        o.contract_id := c.id;
        o.kind := 'on_demand';
        IF c.status <> 'active' THEN
            o.outcome := 'contract_suspended';
            RETURN o;
        END IF;
    END IF;
    v_dearest := contracts_dearest_rate(p_amount, o.rate_micros_per_mtok, o.unit_numerator);
    IF v_dearest > h.max_rate THEN
        RETURN contracts_too_dear(o, v_dearest, h.max_rate, p_delivery_s, p_now);
    END IF;
    o.amount_micros := contracts_gross_up(
        contracts_set_aside(p_amount, o.rate_micros_per_mtok, o.unit_numerator), h.tax_ppm);
    IF p_is_admission AND (f.rate_per_s <= 0 OR f.status <> 'listed') THEN
        o.outcome := 'capacity_unavailable';
        RETURN o;
    END IF;
    INSERT INTO contracts_ondemandbucket (
        offering_id, period_start, rate_numerator_per_s, depth_numerator, level_numerator, level_at
    ) VALUES (h.offering_id, h.period_start, f.rate_per_s, 60 * f.rate_per_s, 60 * f.rate_per_s, p_now)
    ON CONFLICT DO NOTHING;
    v_asked := (p_id, h.request_id, h.attempt, h.holder, h.organization_id, h.api_key_id, ARRAY[h.grade_id],
        ARRAY[p_amount], h.opened_at, p_delivery_s, p_settlement_s, p_sellable_ppm, '{}', 1)::contracts_asked;
    BEGIN
        IF p_is_admission THEN
            UPDATE contracts_ondemandbucket b SET
                period_start = h.period_start,
                rate_numerator_per_s = f.rate_per_s,
                depth_numerator = 60 * f.rate_per_s,
                level_numerator = contracts_refilled(b.level_numerator, b.level_at, f.rate_per_s, 60 * f.rate_per_s, p_now)
                    - p_amount,
                level_at = GREATEST(b.level_at, p_now)
             WHERE b.offering_id = h.offering_id
               AND contracts_refilled(b.level_numerator, b.level_at, f.rate_per_s, 60 * f.rate_per_s, p_now)
                   >= LEAST(60 * f.rate_per_s, p_amount);
            IF NOT FOUND THEN
                o.outcome := 'capacity_unavailable';
                RETURN o;
            END IF;
        ELSE
            UPDATE contracts_ondemandbucket SET level_numerator = level_numerator - p_amount
             WHERE offering_id = h.offering_id;
        END IF;
        IF o.amount_micros > 0 THEN
            v_spend := contracts_take_spend(h.organization_id, h.api_key_id, o.amount_micros, h.opened_at);
            v_accrual := contracts_accrue(
                o.contract_id, contracts_period_start(h.opened_at, p_settlement_s), o.amount_micros, p_now);
        END IF;
        PERFORM contracts_record_hold(v_asked, o, NULL, v_accrual, v_spend);
    EXCEPTION WHEN check_violation THEN
        GET STACKED DIAGNOSTICS v_constraint = CONSTRAINT_NAME, v_detail = PG_EXCEPTION_DETAIL;
        IF v_constraint = 'contracts_spendcounter_within_cap' THEN
            RETURN contracts_capped(o, v_detail, p_now);
        END IF;
        IF v_constraint <> 'ledger_account_debits_must_not_exceed_credits' THEN
            RAISE;
        END IF;
        o.outcome := 'insufficient_funds';
        RETURN o;
    END;
    o.outcome := 'ok';
    RETURN o;
END
$$;
