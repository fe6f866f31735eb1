-- Delivery holds: open, extend, capture, void. Sync services and the gateway's pool run the same one-line statements.
--
-- Lock order, everywhere: delivery hold, right (entitlement, then its period's nomination; or on-demand bucket), allocation,
-- spend counters (spend_caps.sql), accrual (an
-- advisory lock before it while it is made), ledger hold, ledger account. A right is taken by one conditional UPDATE: a candidate that
-- fails it leaves no lock behind, so a request never holds two rights.
--
-- Money and volume are integers. `div` truncates exactly; `/` on numeric would round before a ceiling sees it.

CREATE FUNCTION contracts_price_ceil(p_numerator bigint, p_rate bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT div(p_numerator::numeric * p_rate + 999999999999, 1000000000000)::bigint
$$;

-- What a volume comes to at most, rounded up: whole packages (p_unit), and else its price.
CREATE FUNCTION contracts_at_most(p_numerator bigint, p_rate bigint, p_unit bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT div(
        div(p_numerator::numeric + coalesce(p_unit, 1) - 1, coalesce(p_unit, 1)) * coalesce(p_unit, 1) * p_rate
            + 999999999999, 1000000000000)::bigint
$$;

-- The rate that a volume comes to at most: of packages what a whole one is for it, rounded up.
CREATE FUNCTION contracts_dearest_rate(p_numerator bigint, p_rate bigint, p_unit bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN coalesce(p_unit, 1) = 1 OR p_numerator = 0 THEN p_rate
        ELSE div(contracts_at_most(p_numerator, p_rate, p_unit) * 1000000000000::numeric + p_numerator - 1, p_numerator)::bigint
    END
$$;

-- What to set aside for a volume: its price rounded up; of a month's tiers or packages (p_unit: what is billed in whole) strictly
-- more than its price, since a settlement takes the difference of two rounded totals (docs/tariffs.md, 12).
CREATE FUNCTION contracts_set_aside(p_numerator bigint, p_rate bigint, p_unit bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN p_unit IS NULL THEN contracts_price_ceil(p_numerator, p_rate)
        WHEN p_numerator = 0 THEN 0
        ELSE div(div(p_numerator::numeric + p_unit - 1, p_unit) * p_unit * p_rate, 1000000000000)::bigint + 1
    END
$$;

CREATE FUNCTION contracts_gross_up(p_amount bigint, p_tax_ppm bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT div(p_amount::numeric * (1000000 + p_tax_ppm) + 999999, 1000000)::bigint
$$;

-- The level of a token bucket at p_now. A request larger than the depth passes a full bucket and leaves it in debt,
-- so that the rate holds in the long run: `level >= LEAST(depth, request)` admits, `level - request` remains.
CREATE FUNCTION contracts_refilled(
    p_level bigint, p_level_at timestamptz, p_rate_per_s bigint, p_depth bigint, p_now timestamptz
) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT LEAST(
        p_depth::numeric,
        p_level + div(p_rate_per_s * GREATEST(0, extract(epoch FROM p_now - p_level_at) * 1000000), 1000000)
    )::bigint
$$;

-- Milliseconds until a bucket that lacks p_missing has it; an hour when it does not refill.
CREATE FUNCTION contracts_wait_ms(p_missing bigint, p_rate_per_s bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE
        WHEN p_missing <= 0 THEN 0
        WHEN p_rate_per_s <= 0 THEN 3600000
        ELSE LEAST(3600000, div(p_missing::numeric * 1000 + p_rate_per_s - 1, p_rate_per_s))::bigint
    END
$$;

CREATE FUNCTION contracts_period_start(p_at timestamptz, p_seconds integer) RETURNS timestamptz
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT to_timestamp((floor(extract(epoch FROM p_at) / p_seconds) * p_seconds)::double precision)
$$;

-- What a request asks for, as one value that the helpers below pass on. part: 1 is what goes on beyond a contract's volume.
CREATE TYPE contracts_asked AS (
    id uuid, request_id uuid, attempt smallint, holder text, organization_id uuid, api_key_id uuid,
    grades uuid[], numerators bigint[], at timestamptz, delivery_s integer, settlement_s integer,
    sellable_ppm bigint, exclude uuid[], part smallint
);

-- outcome: ok, contract_not_found, contract_suspended, contract_exhausted, insufficient_funds, rate_limited,
-- capacity_unavailable, capacity_curtailed, no_offering, spend_cap_reached, overage_above_max_rate. retry_after_ms to reset_ms
-- feed Retry-After and the x-ratelimit-* headers; spend_cap is `scope/period` of the cap that refused, max_rate_micros_per_mtok
-- the contract's where the overage (at rate_micros_per_mtok) is above it. unit_numerator: of a rate of a month's tiers or packages,
-- what is billed in whole; the rate is then the highest that a token can come to.
CREATE TYPE contracts_opened AS (
    outcome text, contract_id uuid, kind text, grade_id uuid, offering_id uuid, host_id uuid, base_url text, engine text,
    rate_id uuid, rate_micros_per_mtok bigint, period_start timestamptz, expires_at timestamptz,
    amount_numerator bigint, amount_micros bigint,
    retry_after_ms bigint, limit_numerator bigint, remaining_numerator bigint, reset_ms bigint, spend_cap text,
    max_rate_micros_per_mtok bigint, unit_numerator bigint
);

CREATE FUNCTION contracts_serves(p_status text, p_ready boolean, p_heartbeat timestamptz, p_now timestamptz)
RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT p_status = 'enrolled' AND p_ready AND p_heartbeat > p_now - interval '15 seconds'
$$;

-- Adds p_amount to the contract's pending accrual of the settlement period of admission and to its ledger hold.
-- Raises check_violation of ledger_account_debits_must_not_exceed_credits when the account cannot cover it.
CREATE FUNCTION contracts_accrue(p_contract uuid, p_settlement_start timestamptz, p_amount bigint, p_now timestamptz)
RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
    v_accrual uuid;
    v_ledger_hold uuid;
    v_account uuid;
BEGIN
    FOR attempt IN 1..2 LOOP
        UPDATE contracts_accrual SET held_micros = held_micros + p_amount
         WHERE contract_id = p_contract AND settlement_start = p_settlement_start
        RETURNING id, ledger_hold_id INTO v_accrual, v_ledger_hold;
        IF FOUND THEN
            PERFORM ledger_change_hold(v_ledger_hold, p_amount, p_now);
            RETURN v_accrual;
        END IF;
        -- The first of the period makes it; the lock lets the others find it instead of making a second.
        PERFORM pg_advisory_xact_lock(hashtextextended('contracts_accrual ' || p_contract || p_settlement_start, 0));
        CONTINUE WHEN EXISTS (
            SELECT 1 FROM contracts_accrual WHERE contract_id = p_contract AND settlement_start = p_settlement_start
        );
        EXIT;
    END LOOP;
    SELECT a.id INTO v_account
      FROM contracts_contract c
      JOIN ledger_ledgeraccount a ON a.organization_id = c.organization_id AND a.currency = c.currency
       AND a.kind = CASE c.payment WHEN 'arrears' THEN 'receivable' ELSE 'prepaid' END AND a.reference_id IS NULL
     WHERE c.id = p_contract;
    IF NOT FOUND THEN
        RAISE check_violation USING CONSTRAINT = 'ledger_account_debits_must_not_exceed_credits',
            MESSAGE = 'the organization has no account that could cover it';
    END IF;
    v_accrual := uuidv7();
    v_ledger_hold := uuidv7();
    PERFORM ledger_open_hold(v_ledger_hold, v_account, p_amount, 'usage', v_accrual, NULL, p_now);
    INSERT INTO contracts_accrual (id, contract_id, settlement_start, ledger_hold_id, held_micros, captured_micros)
    VALUES (v_accrual, p_contract, p_settlement_start, v_ledger_hold, p_amount, 0);
    RETURN v_accrual;
END
$$;

-- Writes the hold's row, and the meter point that makes its usage legitimate.
CREATE FUNCTION contracts_record_hold(
    p_asked contracts_asked, p_opened contracts_opened, p_entitlement uuid, p_accrual uuid, p_spend uuid[]
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO contracts_hold (
        id, request_id, attempt, contract_id, api_key_id, offering_id, entitlement_id, accrual_id, rate_id, grade_id,
        holder, period_start, amount_numerator, captured_numerator, amount_micros, captured_micros, status, opened_at,
        expires_at, spend_counter_ids, part
    ) VALUES (
        p_asked.id, p_asked.request_id, p_asked.attempt, p_opened.contract_id, p_asked.api_key_id,
        p_opened.offering_id, p_entitlement, p_accrual, p_opened.rate_id, p_opened.grade_id, p_asked.holder,
        p_opened.period_start, p_opened.amount_numerator, 0, p_opened.amount_micros, 0, 'open', p_asked.at,
        p_opened.expires_at, p_spend, p_asked.part
    );
    IF NOT EXISTS (
        SELECT 1 FROM metering_meterpoint
         WHERE contract_id = p_opened.contract_id AND offering_id = p_opened.offering_id
    ) THEN
        INSERT INTO metering_meterpoint (id, contract_id, offering_id, host_id, grade_id, valid_from)
        VALUES (uuidv7(), p_opened.contract_id, p_opened.offering_id, p_opened.host_id, p_opened.grade_id, p_asked.at)
        ON CONFLICT DO NOTHING;
    END IF;
END
$$;

-- The refusal of a spend cap (`scope/period`): it names the cap, and its time to come back is when that window ends.
CREATE FUNCTION contracts_capped(p_opened contracts_opened, p_cap text, p_now timestamptz) RETURNS contracts_opened
LANGUAGE plpgsql AS $$
BEGIN
    p_opened.outcome := 'spend_cap_reached';
    p_opened.spend_cap := p_cap;
    p_opened.retry_after_ms := GREATEST(1, ceil(extract(
        epoch FROM contracts_spend_resets_at(split_part(p_cap, '/', 2), p_now) - p_now) * 1000))::bigint;
    p_opened.limit_numerator := NULL;
    RETURN p_opened;
END
$$;

-- The refusal of an overage whose rate is above the contract's max_rate: the next period may have a lower one.
CREATE FUNCTION contracts_too_dear(
    p_opened contracts_opened, p_rate bigint, p_max_rate bigint, p_delivery_s integer, p_now timestamptz
) RETURNS contracts_opened LANGUAGE plpgsql AS $$
BEGIN
    p_opened.outcome := 'overage_above_max_rate';
    p_opened.rate_micros_per_mtok := p_rate;
    p_opened.max_rate_micros_per_mtok := p_max_rate;
    p_opened.retry_after_ms := GREATEST(1, extract(
        epoch FROM contracts_period_start(p_now, p_delivery_s) + make_interval(secs => p_delivery_s) - p_now) * 1000)::bigint;
    RETURN p_opened;
END
$$;

-- The organization's implicit on-demand contract of a grade and payment, made by whoever comes first.
CREATE FUNCTION contracts_on_demand_of(p_organization uuid, p_grade uuid, p_payment text, p_at timestamptz)
RETURNS TABLE (id uuid, status text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    FOR attempt IN 1..2 LOOP
        RETURN QUERY SELECT c.id, c.status::text FROM contracts_contract c
                      WHERE c.organization_id = p_organization AND c.grade_id = p_grade AND c.kind = 'on_demand'
                        AND c.payment = p_payment;
        IF FOUND THEN
            RETURN;
        END IF;
        INSERT INTO contracts_contract (
            id, organization_id, grade_id, kind, status, currency, payment, overage_policy, starts_at, created_at
        ) SELECT uuidv7(), p_organization, g.id, 'on_demand', 'active', g.currency, p_payment, 'stop', p_at, p_at
            FROM pricing_grade g WHERE g.id = p_grade
        ON CONFLICT DO NOTHING;
    END LOOP;
END
$$;

-- Opens the hold on unsold capacity: where this request comes to least whose host serves and has an unsold share, by rate, then
-- the least loaded. A price of packages is a whole one for each that a request could begin, however low its rate. What is unsold is read now, so a late publication is not missed. It is the organization's implicit on-demand
-- contract that pays; p_payment is the named one's, null for what the organization chose.
--
-- p_over is the committed contract whose overage this is (null for none). No rate above its max_rate is paid. Where its policy
-- is `spot`, it pays itself, at the period's overage rate or at the list rate where that is lower or no rate was
-- published, and who would be paid less than his floor does not serve.
CREATE FUNCTION contracts_open_on_demand(p_asked contracts_asked, p_payment text, p_over uuid)
RETURNS contracts_opened LANGUAGE plpgsql AS $$
DECLARE
    o contracts_opened;
    c record;
    f record;
    g record;
    v_level bigint;
    v_accrual uuid;
    v_spend uuid[];
    v_constraint text;
    v_detail text;
    v_wait bigint;
    v_ready boolean := false;
    v_at_spot boolean := false;
    v_max_rate bigint;
    v_too_dear bigint;
    v_period_rate uuid;
    v_period_micros bigint;
BEGIN
    SELECT gr.id, gr.currency, gr.max_request_s, org.tax_ppm, coalesce(p_payment, org.on_demand_payment) AS payment
      INTO STRICT g
      FROM pricing_grade gr, accounts_organization org
     WHERE gr.id = p_asked.grades[1] AND org.id = p_asked.organization_id;
    o.grade_id := g.id;
    o.kind := 'on_demand';
    o.period_start := contracts_period_start(p_asked.at, p_asked.delivery_s);
    IF p_over IS NOT NULL THEN
        SELECT ct.id, ct.status::text AS status, ct.overage_policy, ct.max_rate_micros_per_mtok INTO STRICT c
          FROM contracts_contract ct WHERE ct.id = p_over;
        v_max_rate := c.max_rate_micros_per_mtok;
        v_at_spot := c.overage_policy = 'spot';
    END IF;
    IF v_at_spot THEN
        o.kind := 'committed';
        SELECT p.overage_rate_id, r.micros_per_mtok INTO v_period_rate, v_period_micros
          FROM contracts_periodrate p JOIN pricing_rate r ON r.id = p.overage_rate_id
         WHERE p.grade_id = g.id AND p.period_start = o.period_start;
    ELSE
        SELECT ct.id, ct.status::text AS status INTO c FROM contracts_contract ct
         WHERE ct.organization_id = p_asked.organization_id AND ct.grade_id = g.id AND ct.kind = 'on_demand'
           AND ct.payment = g.payment;
        IF NOT FOUND THEN
            SELECT * INTO STRICT c FROM contracts_on_demand_of(p_asked.organization_id, g.id, g.payment, p_asked.at);
        END IF;
    END IF;
    o.contract_id := c.id;
    IF c.status <> 'active' THEN
        o.outcome := 'contract_suspended';
        RETURN o;
    END IF;
    o.expires_at := p_asked.at + make_interval(secs => g.max_request_s);
    o.amount_numerator := p_asked.numerators[1];

    FOR f IN
        SELECT x.*, div(x.dependable_numerator_per_s::numeric * GREATEST(0, x.unsold_ppm), 1000000)::bigint AS rate_per_s
          FROM (
            SELECT fo.id, fo.host_id, h.base_url, h.engine ->> 'kind' AS engine, r.rate_id, r.micros_per_mtok, r.unit_numerator,
                   contracts_at_most(p_asked.numerators[1], r.micros_per_mtok, r.unit_numerator) AS at_most,
                   fo.dependable_numerator_per_s, fo.spot_floor_micros_per_mtok AS floor,
                   coalesce(hp.sellable_ppm - hp.sold_ppm, hh.sellable_ppm - hh.sold_ppm, p_asked.sellable_ppm)
                       AS unsold_ppm,
                   (SELECT count(*) FROM contracts_hold w WHERE w.offering_id = fo.id AND w.status = 'open') AS load
              FROM providers_offering fo
              JOIN providers_host h ON h.id = fo.host_id
              JOIN providers_provider p ON p.id = h.provider_id
             CROSS JOIN LATERAL providers_list_rate(fo.id, fo.list_rate_id, p_asked.at) r
              LEFT JOIN providers_hostperiod hp ON hp.host_id = h.id AND hp.period_start = o.period_start
              LEFT JOIN providers_hosthour hh
                ON hh.host_id = h.id AND hh.hour_start = contracts_period_start(p_asked.at, 3600)
             WHERE fo.grade_id = g.id AND fo.status = 'listed' AND p.status = 'active'
               AND contracts_serves(h.status, h.ready, h.last_heartbeat_at, p_asked.at)
               -- Nobody sells to himself: a grant burned on one's own host would become money that is paid out.
               AND p.organization_id <> p_asked.organization_id
               AND NOT fo.id = ANY (p_asked.exclude)
          ) x
         ORDER BY x.at_most, x.micros_per_mtok, x.load, x.id
    LOOP
        o.rate_id := f.rate_id;
        o.rate_micros_per_mtok := f.micros_per_mtok;
        o.unit_numerator := f.unit_numerator;
        IF v_period_micros < f.micros_per_mtok THEN
            o.rate_id := v_period_rate;
            o.rate_micros_per_mtok := v_period_micros;
            o.unit_numerator := NULL;
        END IF;
        IF contracts_dearest_rate(o.amount_numerator, o.rate_micros_per_mtok, o.unit_numerator) > v_max_rate THEN
            -- The others come to no less, but may be of a lower rate.
            v_too_dear := coalesce(v_too_dear,
                contracts_dearest_rate(o.amount_numerator, o.rate_micros_per_mtok, o.unit_numerator));
            CONTINUE;
        END IF;
        v_ready := true;
        CONTINUE WHEN f.rate_per_s <= 0;
        -- Nobody has to serve for less than his floor.
        CONTINUE WHEN o.rate_micros_per_mtok < LEAST(f.floor, f.micros_per_mtok);
        o.offering_id := f.id;
        o.host_id := f.host_id;
        o.base_url := f.base_url;
        o.engine := f.engine;
        o.amount_micros :=
            contracts_gross_up(contracts_set_aside(o.amount_numerator, o.rate_micros_per_mtok, o.unit_numerator), g.tax_ppm);
        o.limit_numerator := GREATEST(60 * f.rate_per_s, o.amount_numerator);
        IF NOT EXISTS (SELECT 1 FROM contracts_ondemandbucket WHERE offering_id = f.id) THEN
            INSERT INTO contracts_ondemandbucket (
                offering_id, period_start, rate_numerator_per_s, depth_numerator, level_numerator, level_at
            ) VALUES (f.id, o.period_start, f.rate_per_s, 60 * f.rate_per_s, 60 * f.rate_per_s, p_asked.at)
            ON CONFLICT DO NOTHING;
        END IF;
        BEGIN
            UPDATE contracts_ondemandbucket b SET
                period_start = o.period_start,
                rate_numerator_per_s = f.rate_per_s,
                depth_numerator = 60 * f.rate_per_s,
                level_numerator = contracts_refilled(b.level_numerator, b.level_at, f.rate_per_s, 60 * f.rate_per_s, p_asked.at) - o.amount_numerator,
                level_at = GREATEST(b.level_at, p_asked.at)
             WHERE b.offering_id = f.id
               AND contracts_refilled(b.level_numerator, b.level_at, f.rate_per_s, 60 * f.rate_per_s, p_asked.at)
                   >= LEAST(60 * f.rate_per_s, o.amount_numerator)
            RETURNING b.level_numerator INTO v_level;
            IF FOUND THEN
                IF o.amount_micros > 0 THEN
                    v_spend := contracts_take_spend(
                        p_asked.organization_id, p_asked.api_key_id, o.amount_micros, p_asked.at);
                    v_accrual := contracts_accrue(c.id,
                        contracts_period_start(p_asked.at, p_asked.settlement_s), o.amount_micros, p_asked.at);
                END IF;
                o.outcome := 'ok';
                o.retry_after_ms := NULL;
                o.remaining_numerator := GREATEST(0, v_level);
                o.reset_ms := contracts_wait_ms(o.limit_numerator - v_level, f.rate_per_s);
                PERFORM contracts_record_hold(p_asked, o, NULL, v_accrual, v_spend);
                RETURN o;
            END IF;
        EXCEPTION WHEN check_violation THEN
            GET STACKED DIAGNOSTICS v_constraint = CONSTRAINT_NAME, v_detail = PG_EXCEPTION_DETAIL;
            IF v_constraint = 'contracts_spendcounter_within_cap' THEN
                RETURN contracts_capped(o, v_detail, p_asked.at);
            END IF;
            IF v_constraint <> 'ledger_account_debits_must_not_exceed_credits' THEN
                RAISE;
            END IF;
            -- The others are no cheaper.
            o.outcome := 'insufficient_funds';
            RETURN o;
        END;
        SELECT contracts_refilled(b.level_numerator, b.level_at, f.rate_per_s, 60 * f.rate_per_s, p_asked.at)
          INTO v_level FROM contracts_ondemandbucket b WHERE b.offering_id = f.id;
        v_wait := GREATEST(1, contracts_wait_ms(
            LEAST(60 * f.rate_per_s, o.amount_numerator) - v_level, f.rate_per_s));
        IF o.retry_after_ms IS NULL OR v_wait < o.retry_after_ms THEN
            o.retry_after_ms := v_wait;
            o.remaining_numerator := GREATEST(0, v_level);
            o.reset_ms := contracts_wait_ms(o.limit_numerator - v_level, f.rate_per_s);
        END IF;
    END LOOP;
    IF v_ready THEN
        o.outcome := 'capacity_unavailable';
        -- Nothing is unsold: ask again when the next delivery period begins.
        o.retry_after_ms := coalesce(o.retry_after_ms, GREATEST(1,
            extract(epoch FROM o.period_start + make_interval(secs => p_asked.delivery_s) - p_asked.at) * 1000)::bigint);
    ELSIF v_too_dear IS NOT NULL THEN
        -- The next period has a rate of its own.
        o := contracts_too_dear(o, v_too_dear, v_max_rate, p_asked.delivery_s, p_asked.at);
    ELSE
        o.outcome := 'no_offering';
        o.retry_after_ms := 5000;
    END IF;
    RETURN o;
END
$$;

-- Chooses the contract that pays (DESIGN 6) and opens the request's hold on it, in one statement.
--
-- p_grades are the versions of the asked grade, the one in force first, with the hold's numerator in each.
-- p_contract (header, or the key's default) is used alone. Else: committed with unmet take, earliest expiry first;
-- spot awards of this period; then the cheaper of committed above its take (a prepaid month is paid: it costs nothing
-- more) and on-demand. A candidate that is exhausted or limited falls to the next; what is beyond a committed contract goes
-- on under its overage policy, and on-demand is no way out of one whose policy is `stop`.
--
-- With p_split the hold may come out smaller than asked for: it is what is left of a committed contract that goes on beyond
-- its volume, and the rest is to be held by contracts_open_part before anything is dispatched.
CREATE FUNCTION contracts_open_hold(
    p_id uuid, p_request uuid, p_attempt integer, p_holder text, p_organization uuid, p_api_key uuid,
    p_grades uuid[], p_numerators bigint[], p_contract uuid, p_now timestamptz,
    p_delivery_s integer, p_settlement_s integer, p_sellable_ppm bigint, p_exclude uuid[], p_split boolean
) RETURNS contracts_opened LANGUAGE plpgsql AS $$
DECLARE
    v_asked contracts_asked;
    o contracts_opened;
    v_refused contracts_opened;
    c record;
    v_list_rate bigint;
    v_entitlement uuid;
    v_over uuid[] := '{}';
BEGIN
    v_asked := (p_id, p_request, p_attempt, p_holder, p_organization, p_api_key, p_grades, p_numerators, p_now,
        p_delivery_s, p_settlement_s, p_sellable_ppm, coalesce(p_exclude, '{}'), 0)::contracts_asked;

    IF p_contract IS NOT NULL THEN
        SELECT * INTO c FROM contracts_contract
         WHERE id = p_contract AND organization_id = p_organization AND grade_id = ANY (p_grades);
        IF NOT FOUND THEN
            o.outcome := 'contract_not_found';
            RETURN o;
        END IF;
        IF c.kind = 'on_demand' THEN
            IF c.grade_id <> p_grades[1] THEN
                o.outcome := 'contract_not_found';
                RETURN o;
            END IF;
            RETURN contracts_open_on_demand(v_asked, c.payment, NULL);
        END IF;
        o.contract_id := c.id;
        o.kind := c.kind;
        IF c.status = 'suspended' THEN
            o.outcome := 'contract_suspended';
            RETURN o;
        END IF;
        SELECT e.id INTO v_entitlement FROM contracts_entitlement e
         WHERE e.contract_id = c.id AND e.period_start <= p_now AND p_now < e.period_end
           AND (c.kind = 'spot' OR c.payment = 'arrears' OR e.paid_at IS NOT NULL OR e.ledger_hold_id IS NOT NULL)
         ORDER BY e.period_start LIMIT 1;
        IF NOT FOUND THEN
            -- No award for this period, an unpaid month, not begun, or over.
            o.outcome := 'contract_exhausted';
            IF c.kind <> 'committed' OR c.overage_policy <> 'list' THEN
                RETURN o;
            END IF;
        ELSE
            o := contracts_open_on_entitlement(v_asked, v_entitlement);
        END IF;
        IF c.kind = 'committed' AND c.overage_policy <> 'stop'
           AND o.outcome IN ('contract_exhausted', 'rate_limited') THEN
            RETURN contracts_open_over(v_asked, c.id, v_entitlement, p_split);
        END IF;
        RETURN o;
    END IF;

    FOR c IN
        SELECT x.* FROM (
            SELECT ct.id, ct.kind, ct.payment, ct.overage_policy, ct.ends_at, e.id AS entitlement_id, e.period_end, r.micros_per_mtok,
                   CASE
                       WHEN ct.kind = 'spot' THEN 1
                       WHEN e.used_numerator + e.held_numerator + e.released_numerator + e.failed_numerator
                            < div(e.entitled_numerator::numeric * ct.take_share_ppm, 1000000) THEN 0
                       ELSE 2
                   END AS rank
              FROM contracts_contract ct
              JOIN contracts_entitlement e ON e.contract_id = ct.id
              JOIN pricing_rate r ON r.id = e.rate_id
             WHERE ct.organization_id = p_organization AND ct.grade_id = ANY (p_grades)
               AND ct.kind <> 'on_demand'
               -- A bid that was cancelled still has the award of this period.
               AND (ct.status = 'active' OR ct.kind = 'spot')
               AND e.period_start <= p_now AND p_now < e.period_end
               AND (ct.kind = 'spot' OR ct.payment = 'arrears'
                    OR e.paid_at IS NOT NULL OR e.ledger_hold_id IS NOT NULL)
        ) x
        ORDER BY x.rank, x.ends_at NULLS LAST, x.period_end, x.micros_per_mtok, x.entitlement_id
    LOOP
        IF c.rank = 2 AND c.payment = 'arrears' AND v_list_rate IS NULL THEN
            SELECT min(r.comparable_micros_per_mtok) INTO v_list_rate
              FROM providers_offering f
              JOIN providers_host h ON h.id = f.host_id
              JOIN providers_provider p ON p.id = h.provider_id AND p.organization_id <> p_organization
             CROSS JOIN LATERAL providers_list_rate(f.id, f.list_rate_id, p_now) r
             WHERE f.grade_id = p_grades[1] AND f.status = 'listed'
               AND contracts_serves(h.status, h.ready, h.last_heartbeat_at, p_now);
            IF v_list_rate < c.micros_per_mtok THEN
                o := contracts_open_on_demand(v_asked, NULL, NULL);
                IF o.outcome = 'ok' THEN
                    RETURN o;
                END IF;
            END IF;
        END IF;
        o := contracts_open_on_entitlement(v_asked, c.entitlement_id);
        IF o.outcome = 'ok' THEN
            RETURN o;
        END IF;
        CONTINUE WHEN c.kind <> 'committed' OR o.outcome NOT IN ('contract_exhausted', 'rate_limited');
        IF c.overage_policy = 'stop' THEN
            v_refused := o;
            CONTINUE;
        END IF;
        v_over := v_over || c.entitlement_id;
    END LOOP;
    IF v_refused.outcome IS NOT NULL THEN
        RETURN v_refused;
    END IF;
    IF v_over = '{}' THEN
        RETURN contracts_open_on_demand(v_asked, NULL, NULL);
    END IF;
    -- The first contract whose overage can be had.
    FOR c IN
        SELECT e.id, e.contract_id FROM unnest(v_over) WITH ORDINALITY AS over (id, place)
          JOIN contracts_entitlement e USING (id) ORDER BY over.place
    LOOP
        o := contracts_open_over(v_asked, c.contract_id, c.id, p_split);
        IF o.outcome = 'ok' THEN
            RETURN o;
        END IF;
    END LOOP;
    RETURN o;
END
$$;

-- Grows (or shrinks) an open hold: ok, contract_exhausted, insufficient_funds, spend_cap_reached, or closed. The bucket may go into
-- debt: a stream that runs is not cut for its pace, the next request waits.
CREATE FUNCTION contracts_extend_hold(p_id uuid, p_delta bigint, p_now timestamptz)
RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    h record;
    v_micros bigint;
    v_ledger_hold uuid;
    v_constraint text;
BEGIN
    SELECT w.*, r.micros_per_mtok, rt.unit_numerator, org.tax_ppm INTO h
      FROM contracts_hold w
      JOIN pricing_rate r ON r.id = w.rate_id
      LEFT JOIN pricing_ratetariff rt ON rt.rate_id = r.id
      JOIN contracts_contract c ON c.id = w.contract_id
      JOIN accounts_organization org ON org.id = c.organization_id
     WHERE w.id = p_id FOR NO KEY UPDATE OF w;
    IF NOT FOUND OR h.status <> 'open' THEN
        RETURN 'closed';
    END IF;
    IF h.entitlement_id IS NOT NULL THEN
        UPDATE contracts_entitlement e SET
            held_numerator = e.held_numerator + p_delta,
            bucket_level_numerator = e.bucket_level_numerator - p_delta
         WHERE e.id = h.entitlement_id
           AND e.entitled_numerator - e.held_numerator - e.used_numerator - e.released_numerator
               - e.failed_numerator >= p_delta;
        IF NOT FOUND THEN
            RETURN 'contract_exhausted';
        END IF;
        UPDATE contracts_nomination n SET taken_numerator = n.taken_numerator + p_delta
         WHERE n.contract_id = h.contract_id AND n.period_start = h.period_start;
    ELSE
        UPDATE contracts_ondemandbucket SET level_numerator = level_numerator - p_delta
         WHERE offering_id = h.offering_id;
    END IF;
    v_micros := h.amount_micros;
    IF h.accrual_id IS NOT NULL THEN
        v_micros := contracts_gross_up(
            contracts_set_aside(h.amount_numerator + p_delta, h.micros_per_mtok, h.unit_numerator), h.tax_ppm);
        PERFORM contracts_change_spend(h.spend_counter_ids, v_micros - h.amount_micros);
        UPDATE contracts_accrual SET held_micros = held_micros + v_micros - h.amount_micros
         WHERE id = h.accrual_id RETURNING ledger_hold_id INTO v_ledger_hold;
        IF v_micros <> h.amount_micros THEN
            PERFORM ledger_change_hold(v_ledger_hold, v_micros - h.amount_micros, p_now);
        END IF;
    END IF;
    UPDATE contracts_hold SET amount_numerator = amount_numerator + p_delta, amount_micros = v_micros
     WHERE id = p_id;
    RETURN 'ok';
EXCEPTION WHEN check_violation THEN
    GET STACKED DIAGNOSTICS v_constraint = CONSTRAINT_NAME;
    IF v_constraint = 'contracts_nomination_never_overdrawn' THEN
        RETURN 'contract_exhausted';
    END IF;
    IF v_constraint = 'contracts_spendcounter_within_cap' THEN
        RETURN 'spend_cap_reached';
    END IF;
    IF v_constraint <> 'ledger_account_debits_must_not_exceed_credits' THEN
        RAISE;
    END IF;
    RETURN 'insufficient_funds';
END
$$;

-- Ends an open hold with what was used of it: volume moves from held to used, money from held to captured, the rest
-- is given back to right, bucket and account.
CREATE FUNCTION contracts_end_hold(p_id uuid, p_status text, p_numerator bigint, p_now timestamptz)
RETURNS TABLE (outcome text, captured_numerator bigint, captured_micros bigint, capped boolean)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    h record;
    v_numerator bigint;
    v_micros bigint := 0;
    v_rest bigint;
    v_ledger_hold uuid;
BEGIN
    SELECT w.*, r.micros_per_mtok, rt.unit_numerator, org.tax_ppm INTO h
      FROM contracts_hold w
      JOIN pricing_rate r ON r.id = w.rate_id
      LEFT JOIN pricing_ratetariff rt ON rt.rate_id = r.id
      JOIN contracts_contract c ON c.id = w.contract_id
      JOIN accounts_organization org ON org.id = c.organization_id
     WHERE w.id = p_id FOR NO KEY UPDATE OF w;
    IF NOT FOUND THEN
        RETURN QUERY SELECT 'missing'::text, 0::bigint, 0::bigint, false;
        RETURN;
    END IF;
    IF h.status <> 'open' THEN
        RETURN QUERY SELECT h.status::text, h.captured_numerator::bigint, h.captured_micros::bigint,
            p_numerator > h.captured_numerator;
        RETURN;
    END IF;
    v_numerator := LEAST(p_numerator, h.amount_numerator);
    v_rest := h.amount_numerator - v_numerator;
    IF h.accrual_id IS NOT NULL THEN
        v_micros := LEAST(h.amount_micros,
            contracts_gross_up(contracts_set_aside(v_numerator, h.micros_per_mtok, h.unit_numerator), h.tax_ppm));
    END IF;
    UPDATE contracts_hold SET status = p_status, captured_numerator = v_numerator, captured_micros = v_micros,
           ended_at = p_now
     WHERE id = p_id;
    IF h.entitlement_id IS NOT NULL THEN
        UPDATE contracts_entitlement e SET
            held_numerator = e.held_numerator - h.amount_numerator,
            used_numerator = e.used_numerator + v_numerator,
            bucket_level_numerator = GREATEST(e.bucket_level_numerator,
                LEAST(e.bucket_depth_numerator, e.bucket_level_numerator + v_rest))
         WHERE e.id = h.entitlement_id;
        IF v_rest > 0 THEN
            UPDATE contracts_nomination n SET taken_numerator = n.taken_numerator - v_rest
             WHERE n.contract_id = h.contract_id AND n.period_start = h.period_start;
        END IF;
        IF v_numerator > 0 THEN
            UPDATE contracts_allocation a SET served_numerator = a.served_numerator + v_numerator
             WHERE a.contract_id = h.contract_id AND a.offering_id = h.offering_id
               AND (a.period_start IS NULL
                    OR a.period_start = (SELECT e.period_start FROM contracts_entitlement e WHERE e.id = h.entitlement_id));
        END IF;
    ELSE
        UPDATE contracts_ondemandbucket b SET
            level_numerator = GREATEST(b.level_numerator, LEAST(b.depth_numerator, b.level_numerator + v_rest))
         WHERE b.offering_id = h.offering_id;
    END IF;
    IF h.accrual_id IS NOT NULL THEN
        PERFORM contracts_change_spend(h.spend_counter_ids, v_micros - h.amount_micros);
        UPDATE contracts_accrual a SET held_micros = a.held_micros - h.amount_micros,
               captured_micros = a.captured_micros + v_micros
         WHERE a.id = h.accrual_id RETURNING a.ledger_hold_id INTO v_ledger_hold;
        IF v_micros < h.amount_micros THEN
            PERFORM ledger_change_hold(v_ledger_hold, v_micros - h.amount_micros, p_now);
        END IF;
    END IF;
    RETURN QUERY SELECT 'ok'::text, v_numerator, v_micros, p_numerator > v_numerator;
END
$$;

-- Captures at most the hold and writes the gateway's usage event into the metering inbox, in the same transaction.
-- Capturing again changes nothing and answers what was captured.
CREATE FUNCTION contracts_capture_hold(
    p_id uuid, p_numerator bigint, p_event bytea, p_source uuid, p_now timestamptz
) RETURNS TABLE (outcome text, captured_numerator bigint, captured_micros bigint, capped boolean)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    v record;
BEGIN
    SELECT * INTO v FROM contracts_end_hold(p_id, 'captured', p_numerator, p_now);
    IF v.outcome = 'ok' THEN
        PERFORM metering_accept_event(p_source, p_event, p_now);
    END IF;
    RETURN QUERY SELECT v.outcome, v.captured_numerator, v.captured_micros, v.capped;
END
$$;

CREATE FUNCTION contracts_void_hold(p_id uuid, p_now timestamptz) RETURNS text
LANGUAGE sql AS $$
    SELECT outcome FROM contracts_end_hold(p_id, 'voided', 0, p_now)
$$;
