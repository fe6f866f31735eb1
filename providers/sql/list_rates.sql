-- The list rate of an offering at a moment: of the version in force then, the slot of the UTC day; before the first
-- version the offering's own rate (p_plain). A query's FROM takes this function in (STABLE, one SELECT): no call is left.
--
-- unit_numerator: of a price of a month's volume, what is billed in whole; null where each token costs the rate.
-- comparable_micros_per_mtok: the rate, but null of packages: whoever takes a few tokens pays one whole, so their rate
-- says nothing of what a request comes to.
DROP FUNCTION IF EXISTS providers_list_rate(uuid, uuid, timestamptz);
CREATE FUNCTION providers_list_rate(p_offering uuid, p_plain uuid, p_at timestamptz)
RETURNS TABLE (rate_id uuid, micros_per_mtok bigint, unit_numerator bigint, comparable_micros_per_mtok bigint)
LANGUAGE sql STABLE PARALLEL SAFE ROWS 1 AS $$
    SELECT r.id, r.micros_per_mtok, m.unit_numerator,
           CASE WHEN coalesce(m.unit_numerator, 1) = 1 THEN r.micros_per_mtok END
      FROM pricing_rate r
      LEFT JOIN pricing_ratetariff m ON m.rate_id = r.id
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
