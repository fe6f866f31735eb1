-- For a transaction that calls several functions of the ledger: takes all that they will lock, in the one order (holds by
-- id, grants by organization, accounts by id), before the first of them. What does not exist is passed over.

CREATE FUNCTION ledger_lock(p_holds uuid[], p_organizations uuid[], p_accounts uuid[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    v_organization uuid;
BEGIN
    PERFORM 1 FROM ledger_hold WHERE id = ANY (p_holds) ORDER BY id FOR NO KEY UPDATE;
    FOR v_organization IN SELECT DISTINCT o FROM unnest(p_organizations) AS o ORDER BY o LOOP
        PERFORM ledger_lock_grants(v_organization);
    END LOOP;
    PERFORM 1 FROM ledger_ledgeraccount WHERE id = ANY (p_accounts) ORDER BY id FOR NO KEY UPDATE;
END $$;

REVOKE ALL ON FUNCTION ledger_lock(uuid[], uuid[], uuid[]) FROM PUBLIC;
