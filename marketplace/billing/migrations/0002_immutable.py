"""Charges, earnings and statements are append-only; an invoice and its lines do not change once finalised."""

from typing import Final

from django.db import migrations

from marketplace.accounts.append_only import append_only, take_from_app

_APPEND_ONLY: Final = (
    "billing_settlement",
    "billing_charge",
    "billing_earning",
    "billing_invoicelinecharge",
    "billing_statement",
    "billing_statementline",
    "billing_statementlineearning",
)

_INVOICE: Final = """
CREATE FUNCTION billing_guard_invoice() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF OLD.status = 'draft' THEN
            RETURN NEW;
        END IF;
        IF OLD.status = 'finalised' AND NEW.status = 'paid'
           AND to_jsonb(NEW) - 'status' = to_jsonb(OLD) - 'status' THEN
            RETURN NEW;
        END IF;
    ELSIF OLD.status = 'draft' THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'invoice % is %: % refused', OLD.id, OLD.status, TG_OP
        USING ERRCODE = 'restrict_violation', TABLE = TG_TABLE_NAME;
END $$;
CREATE TRIGGER billing_invoice_immutable BEFORE UPDATE OR DELETE ON billing_invoice
    FOR EACH ROW EXECUTE FUNCTION billing_guard_invoice();
"""
_INVOICE_BACK: Final = """
DROP TRIGGER billing_invoice_immutable ON billing_invoice;
DROP FUNCTION billing_guard_invoice();
"""

_LINES: Final = """
CREATE FUNCTION billing_guard_invoice_line() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'INSERT' AND (SELECT status FROM billing_invoice WHERE id = OLD.invoice_id) <> 'draft'
       OR TG_OP <> 'DELETE' AND (SELECT status FROM billing_invoice WHERE id = NEW.invoice_id) <> 'draft' THEN
        RAISE EXCEPTION 'the lines of a finalised invoice do not change: % refused', TG_OP
            USING ERRCODE = 'restrict_violation', TABLE = TG_TABLE_NAME;
    END IF;
    RETURN CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
END $$;
CREATE TRIGGER billing_invoiceline_immutable BEFORE INSERT OR UPDATE OR DELETE ON billing_invoiceline
    FOR EACH ROW EXECUTE FUNCTION billing_guard_invoice_line();
CREATE FUNCTION billing_guard_invoice_line_charge() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (SELECT invoice.status FROM billing_invoiceline line JOIN billing_invoice invoice ON invoice.id = line.invoice_id
        WHERE line.id = NEW.line_id) <> 'draft' THEN
        RAISE EXCEPTION 'the lines of a finalised invoice do not change: % refused', TG_OP
            USING ERRCODE = 'restrict_violation', TABLE = TG_TABLE_NAME;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER billing_invoicelinecharge_immutable BEFORE INSERT ON billing_invoicelinecharge
    FOR EACH ROW EXECUTE FUNCTION billing_guard_invoice_line_charge();
"""
_LINES_BACK: Final = """
DROP TRIGGER billing_invoicelinecharge_immutable ON billing_invoicelinecharge;
DROP FUNCTION billing_guard_invoice_line_charge();
DROP TRIGGER billing_invoiceline_immutable ON billing_invoiceline;
DROP FUNCTION billing_guard_invoice_line();
"""


class Migration(migrations.Migration):
    dependencies = (
        ("billing", "0001_initial"),
        ("accounts", "0002_one_operator_audit_append_only"),
    )
    operations = (
        *(operation for table in _APPEND_ONLY for operation in append_only(table)),
        migrations.RunSQL(_INVOICE, _INVOICE_BACK),
        migrations.RunSQL(_LINES, _LINES_BACK),
        take_from_app("billing_invoice", ["DELETE", "TRUNCATE"]),
        take_from_app("billing_invoiceline", ["UPDATE", "DELETE", "TRUNCATE"]),
        take_from_app("billing_topup", ["DELETE", "TRUNCATE"]),
        take_from_app("billing_payout", ["DELETE", "TRUNCATE"]),
        take_from_app("billing_documentnumber", ["DELETE", "TRUNCATE"]),
    )
