"""Payments of invoices that banks take back, what waits for the buyer, cards that are charged automatically."""

from typing import Final

import django.db.models.expressions
from django.db import migrations, models

_STEPS: Final = """
CREATE OR REPLACE FUNCTION billing_guard_invoice() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF OLD.status IN ('draft', 'grace') AND NEW.status IN ('draft', 'grace', 'finalised') THEN
            RETURN NEW;
        END IF;
        IF to_jsonb(NEW) - 'status' = to_jsonb(OLD) - 'status' AND (OLD.status, NEW.status) IN (
            ('finalised', 'paid'), ('finalised', 'action_required'), ('finalised', 'overdue'), ('finalised', 'void'),
            ('action_required', 'paid'), ('action_required', 'finalised'), ('action_required', 'overdue'),
            ('overdue', 'paid'), ('overdue', 'action_required'), ('overdue', 'uncollectible'), ('overdue', 'void'),
            ('uncollectible', 'paid'), ('paid', 'void')
        ) THEN
            RETURN NEW;
        END IF;{more}
    ELSIF OLD.status = 'draft' THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'invoice % is %: % refused', OLD.id, OLD.status, TG_OP
        USING ERRCODE = 'restrict_violation', TABLE = TG_TABLE_NAME;
END $$;
CREATE OR REPLACE FUNCTION billing_guard_payment() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.status = 'pending' AND NEW.amount_micros = OLD.amount_micros
       AND NEW.invoice_id = OLD.invoice_id THEN
        RETURN NEW;
    END IF;{reversed}
    RAISE EXCEPTION 'payment % is %: % refused', OLD.id, OLD.status, TG_OP
        USING ERRCODE = 'restrict_violation', TABLE = TG_TABLE_NAME;
END $$;
"""
# What a bank takes back makes a paid invoice due again.
_REOPENED: Final = """
        IF to_jsonb(NEW) - 'status' = to_jsonb(OLD) - 'status' AND OLD.status = 'paid'
           AND NEW.status IN ('finalised', 'overdue') AND EXISTS (
               SELECT FROM billing_invoicepayment WHERE invoice_id = NEW.id AND reversed_micros > 0
           ) THEN
            RETURN NEW;
        END IF;"""
# A payment that was given up may have been taken after all.
_REVERSED: Final = """
    IF TG_OP = 'UPDATE' AND OLD.status = 'failed' AND NEW.status = 'succeeded'
       AND NEW.amount_micros = OLD.amount_micros AND NEW.invoice_id = OLD.invoice_id THEN
        RETURN NEW;
    END IF;
    IF TG_OP = 'UPDATE' AND OLD.status = 'succeeded'
       AND to_jsonb(NEW) - 'reversed_micros' = to_jsonb(OLD) - 'reversed_micros' THEN
        RETURN NEW;
    END IF;"""


def _steps(more: str, reverse: str) -> str:
    return _STEPS.replace("{more}", more).replace("{reversed}", reverse)


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0003_legal_identity"),
        ("billing", "0009_payout_rules"),
    ]

    operations = [
        migrations.RemoveConstraint(
            model_name="paymentdispute",
            name="billing_paymentdispute_from_balance_within_amount",
        ),
        migrations.AddField(
            model_name="invoicepayment",
            name="action_url",
            field=models.CharField(blank=True, default="", max_length=2000),
        ),
        migrations.AddField(
            model_name="invoicepayment",
            name="reversed_micros",
            field=models.BigIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="paymentdispute",
            name="reopened_micros",
            field=models.BigIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="processorpayer",
            name="collect_automatically",
            field=models.BooleanField(default=True),
        ),
        migrations.AddConstraint(
            model_name="invoicepayment",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("reversed_micros__gte", 0), ("reversed_micros__lte", models.F("amount_micros"))
                ),
                name="billing_invoicepayment_reversed_within_amount",
            ),
        ),
        migrations.AddConstraint(
            model_name="paymentdispute",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("from_balance_micros__gte", 0),
                    ("reopened_micros__gte", 0),
                    (
                        "amount_micros__gte",
                        django.db.models.expressions.CombinedExpression(
                            models.F("from_balance_micros"), "+", models.F("reopened_micros")
                        ),
                    ),
                ),
                name="billing_paymentdispute_parts_within_amount",
            ),
        ),
        migrations.RunSQL(_steps(_REOPENED, _REVERSED), _steps("", "")),
    ]
