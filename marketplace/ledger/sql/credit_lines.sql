-- Credit lines: how far below zero a receivable account may go. A line may be lowered below what is used of it: what is
-- owed and held stays, and nothing new fits. Then overdraft_limit_micros, which the CHECK knows, stands above
-- credit_line_micros and follows what is used down to it, never up.

CREATE FUNCTION ledger_set_credit_line(p_account uuid, p_limit bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE ledger_ledgeraccount SET
        credit_line_micros = p_limit,
        overdraft_limit_micros = GREATEST(p_limit, debits_posted_micros + debits_pending_micros - credits_posted_micros)
     WHERE id = p_account;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no ledger account %', p_account USING ERRCODE = 'TY404';
    END IF;
END $$;

CREATE FUNCTION ledger_follow_credit_line() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.overdraft_limit_micros := GREATEST(NEW.credit_line_micros, LEAST(
        NEW.overdraft_limit_micros,
        NEW.debits_posted_micros + NEW.debits_pending_micros - NEW.credits_posted_micros));
    RETURN NEW;
END $$;

CREATE TRIGGER ledger_account_follows_credit_line BEFORE UPDATE ON ledger_ledgeraccount
FOR EACH ROW WHEN (NEW.overdraft_limit_micros > NEW.credit_line_micros)
EXECUTE FUNCTION ledger_follow_credit_line();

REVOKE ALL ON FUNCTION ledger_set_credit_line(uuid, bigint), ledger_follow_credit_line() FROM PUBLIC;
