-- The list rate of an offering at a moment: of the version in force then, the slot of the UTC day; before the first
-- version the offering's own rate (p_plain). A query's FROM takes this function in (STABLE, one SELECT): no call is left.
CREATE FUNCTION providers_list_rate(p_offering uuid, p_plain uuid, p_at timestamptz)
RETURNS TABLE (rate_id uuid, micros_per_mtok bigint) LANGUAGE sql STABLE PARALLEL SAFE ROWS 1 AS $$
    SELECT r.id, r.micros_per_mtok
      FROM pricing_rate r
     WHERE r.id = coalesce((
        SELECT s.rate_id
          FROM providers_listtariffslot s
         WHERE s.tariff_id = (
                SELECT t.id FROM providers_listtariff t
                 WHERE t.offering_id = p_offering AND t.valid_from <= p_at AND t.withdrawn_at IS NULL
                 ORDER BY t.valid_from DESC LIMIT 1)
           -- A query of its own, so that it is worked out once and not for each offering.
           AND (SELECT mod(floor(extract(epoch FROM p_at))::bigint, 86400)) BETWEEN s.start_s AND s.end_s - 1
     ), p_plain)
$$;

-- A version is announced ahead and taken back ahead: what was in force is history. It never changes otherwise.
CREATE FUNCTION providers_withdraw_tariff_once() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.withdrawn_at IS NULL AND NEW.withdrawn_at IS NOT NULL
       AND (to_jsonb(NEW) - 'withdrawn_at') = (to_jsonb(OLD) - 'withdrawn_at') THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'providers_listtariff rows are immutable but for their withdrawal, set once'
        USING ERRCODE = 'integrity_constraint_violation';
END $$;

CREATE TRIGGER providers_listtariff_immutable BEFORE UPDATE OR DELETE ON providers_listtariff
    FOR EACH ROW EXECUTE FUNCTION providers_withdraw_tariff_once();

ALTER TABLE providers_listtariffslot ADD CONSTRAINT providers_listtariffslot_apart EXCLUDE USING gist (
    uuidrange(tariff_id, tariff_id, '[]') WITH &&, int4range(start_s, end_s) WITH &&
);
