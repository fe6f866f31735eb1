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
