-- Accruals burn the organization's grants before its balance (marketplace/ledger/sql/grants.sql): the one of a period is
-- opened empty, and every change of it, here and at extension and capture, goes through ledger_change_hold.

-- Adds p_amount to the contract's pending accrual of the settlement period of admission and to its ledger hold.
-- Raises check_violation of ledger_account_debits_must_not_exceed_credits when grants and account cannot cover it.
CREATE OR REPLACE FUNCTION contracts_accrue(p_contract uuid, p_settlement_start timestamptz, p_amount bigint, p_now timestamptz)
RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
    v_accrual uuid;
    v_ledger_hold uuid;
    v_account uuid;
    v_grade uuid;
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
    SELECT a.id, c.grade_id INTO v_account, v_grade
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
    PERFORM ledger_open_hold(v_ledger_hold, v_account, 0, 'usage', v_accrual, NULL, p_now);
    PERFORM ledger_let_hold_burn(v_ledger_hold, v_grade);
    PERFORM ledger_change_hold(v_ledger_hold, p_amount, p_now);
    INSERT INTO contracts_accrual (id, contract_id, settlement_start, ledger_hold_id, held_micros, captured_micros)
    VALUES (v_accrual, p_contract, p_settlement_start, v_ledger_hold, p_amount, 0);
    RETURN v_accrual;
END
$$;
