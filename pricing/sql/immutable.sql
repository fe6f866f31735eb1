-- Grades, buckets and rates are facts that contracts and usage events point at for years. A version's end may be set
-- once; nothing else ever changes.

CREATE FUNCTION pricing_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% rows are immutable', TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
END $$;

CREATE FUNCTION pricing_end_version_once() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF upper_inf(OLD.valid_during)
       AND NOT upper_inf(NEW.valid_during)
       AND lower(NEW.valid_during) = lower(OLD.valid_during)
       AND (to_jsonb(NEW) - 'valid_during') = (to_jsonb(OLD) - 'valid_during') THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'pricing_grade rows are immutable but for their end, set once'
        USING ERRCODE = 'integrity_constraint_violation';
END $$;

CREATE TRIGGER pricing_grade_immutable BEFORE UPDATE ON pricing_grade
    FOR EACH ROW EXECUTE FUNCTION pricing_end_version_once();
CREATE TRIGGER pricing_grade_kept BEFORE DELETE OR TRUNCATE ON pricing_grade
    FOR EACH STATEMENT EXECUTE FUNCTION pricing_refuse_change();
CREATE TRIGGER pricing_gradebucket_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON pricing_gradebucket
    FOR EACH STATEMENT EXECUTE FUNCTION pricing_refuse_change();
CREATE TRIGGER pricing_rate_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON pricing_rate
    FOR EACH STATEMENT EXECUTE FUNCTION pricing_refuse_change();
