DROP FUNCTION contracts_void_hold(uuid, timestamptz);
DROP FUNCTION contracts_capture_hold(uuid, bigint, bytea, uuid, timestamptz);
DROP FUNCTION contracts_end_hold(uuid, text, bigint, timestamptz);
DROP FUNCTION contracts_extend_hold(uuid, bigint, timestamptz);
-- It may leave a part to be held beyond a contract's volume since (entitled_holds.sql).
DROP FUNCTION IF EXISTS contracts_open_hold(
    uuid, uuid, integer, text, uuid, uuid, uuid[], bigint[], uuid, timestamptz, integer, integer, bigint, uuid[]
);
DROP FUNCTION IF EXISTS contracts_open_hold(
    uuid, uuid, integer, text, uuid, uuid, uuid[], bigint[], uuid, timestamptz, integer, integer, bigint, uuid[], boolean
);
DROP FUNCTION IF EXISTS contracts_open_part(
    uuid, uuid, bigint, boolean, timestamptz, integer, integer, bigint
);
DROP FUNCTION IF EXISTS contracts_take_rest(uuid, bigint, timestamptz);
DROP FUNCTION IF EXISTS contracts_open_over(contracts_asked, uuid, uuid, boolean);
-- What pays is a parameter since (spend_caps.sql), and so is whose overage it is.
DROP FUNCTION IF EXISTS contracts_open_on_demand(contracts_asked);
DROP FUNCTION IF EXISTS contracts_open_on_demand(contracts_asked, text);
DROP FUNCTION IF EXISTS contracts_open_on_demand(contracts_asked, text, uuid);
DROP FUNCTION IF EXISTS contracts_on_demand_of(uuid, uuid, text, timestamptz);
DROP FUNCTION IF EXISTS contracts_too_dear(contracts_opened, bigint, bigint, integer, timestamptz);
-- It has a file and a migration of its own since (entitled_holds.sql).
DROP FUNCTION IF EXISTS contracts_open_on_entitlement(contracts_asked, uuid);
-- It has a parameter more since (spend_caps.sql).
DROP FUNCTION IF EXISTS contracts_record_hold(contracts_asked, contracts_opened, uuid, uuid);
DROP FUNCTION IF EXISTS contracts_record_hold(contracts_asked, contracts_opened, uuid, uuid, uuid[]);
DROP FUNCTION IF EXISTS contracts_capped(contracts_opened, text, timestamptz);
DROP FUNCTION contracts_accrue(uuid, timestamptz, bigint, timestamptz);
DROP FUNCTION contracts_serves(text, boolean, timestamptz, timestamptz);
DROP TYPE contracts_opened;
DROP TYPE contracts_asked;
DROP FUNCTION contracts_period_start(timestamptz, integer);
DROP FUNCTION contracts_wait_ms(bigint, bigint);
DROP FUNCTION contracts_refilled(bigint, timestamptz, bigint, bigint, timestamptz);
DROP FUNCTION contracts_gross_up(bigint, bigint);
-- Since list prices may be tiers of a month (holds.sql).
DROP FUNCTION IF EXISTS contracts_set_aside(bigint, bigint, bigint);
DROP FUNCTION IF EXISTS contracts_at_most(bigint, bigint, bigint);
DROP FUNCTION IF EXISTS contracts_dearest_rate(bigint, bigint, bigint);
DROP FUNCTION contracts_price_ceil(bigint, bigint);
