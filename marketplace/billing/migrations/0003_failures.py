"""What delivery periods came to, failures and remedies included; a remedy is a negative charge of no volume."""

import django.db.models.deletion
import django.db.models.expressions
from django.db import migrations, models

from marketplace.accounts.append_only import append_only


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0002_one_operator_audit_append_only"),
        ("billing", "0002_immutable"),
        ("contracts", "0002_hold_functions"),
        ("pricing", "0002_versions_and_immutability"),
        ("providers", "0003_outages"),
    ]

    operations = [
        migrations.CreateModel(
            name="DeliveryOutcome",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False)),
                ("run", models.PositiveIntegerField()),
                ("period_start", models.DateTimeField()),
                ("period_end", models.DateTimeField()),
                ("entitled_numerator", models.BigIntegerField()),
                ("released_numerator", models.BigIntegerField()),
                ("delivered_numerator", models.BigIntegerField()),
                ("failed_numerator", models.BigIntegerField()),
                ("unused_numerator", models.BigIntegerField()),
                ("down_ms", models.BigIntegerField()),
                ("rate_micros_per_mtok", models.BigIntegerField()),
                ("replaced_numerator", models.BigIntegerField(default=0)),
                ("replacement_micros_per_mtok", models.BigIntegerField(default=0)),
                ("remedy_micros", models.BigIntegerField(default=0)),
                ("remedy_cap_micros", models.BigIntegerField(null=True)),
                ("created_at", models.DateTimeField()),
            ],
        ),
        migrations.RemoveConstraint(
            model_name="charge",
            name="billing_charge_not_negative",
        ),
        migrations.AddConstraint(
            model_name="charge",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        ("amount_micros__gte", 0), ("numerator__gte", 0), ("estimated_numerator__gte", 0)
                    ),
                    ("kind", "adjustment"),
                    models.Q(("estimated_numerator", 0), ("kind", "remedy"), ("numerator", 0)),
                    _connector="OR",
                ),
                name="billing_charge_not_negative",
            ),
        ),
        migrations.AddField(
            model_name="deliveryoutcome",
            name="contract",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to="contracts.contract"
            ),
        ),
        migrations.AddField(
            model_name="deliveryoutcome",
            name="grade",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to="pricing.grade"
            ),
        ),
        migrations.AddField(
            model_name="deliveryoutcome",
            name="offering",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to="providers.offering"
            ),
        ),
        migrations.AddField(
            model_name="deliveryoutcome",
            name="organization",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to="accounts.organization"
            ),
        ),
        migrations.AddField(
            model_name="deliveryoutcome",
            name="provider_organization",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to="accounts.organization"
            ),
        ),
        migrations.AddField(
            model_name="deliveryoutcome",
            name="settlement",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="outcomes", to="billing.settlement"
            ),
        ),
        migrations.AddIndex(
            model_name="deliveryoutcome",
            index=models.Index(fields=["organization", "period_start"], name="billing_outcome_by_buyer"),
        ),
        migrations.AddIndex(
            model_name="deliveryoutcome",
            index=models.Index(
                fields=["provider_organization", "period_start"], name="billing_outcome_by_provider"
            ),
        ),
        migrations.AddConstraint(
            model_name="deliveryoutcome",
            constraint=models.UniqueConstraint(
                fields=("contract", "offering", "period_start", "run"), name="billing_deliveryoutcome_unique"
            ),
        ),
        migrations.AddConstraint(
            model_name="deliveryoutcome",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    (
                        "entitled_numerator",
                        django.db.models.expressions.CombinedExpression(
                            django.db.models.expressions.CombinedExpression(
                                django.db.models.expressions.CombinedExpression(
                                    models.F("released_numerator"), "+", models.F("delivered_numerator")
                                ),
                                "+",
                                models.F("failed_numerator"),
                            ),
                            "+",
                            models.F("unused_numerator"),
                        ),
                    ),
                    ("released_numerator__gte", 0),
                    ("delivered_numerator__gte", 0),
                    ("failed_numerator__gte", 0),
                    ("unused_numerator__gte", 0),
                ),
                name="billing_deliveryoutcome_adds_up",
            ),
        ),
        migrations.AddConstraint(
            model_name="deliveryoutcome",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("replaced_numerator__gte", 0), ("replaced_numerator__lte", models.F("failed_numerator"))
                ),
                name="billing_deliveryoutcome_replaced_within_failed",
            ),
        ),
        migrations.AddConstraint(
            model_name="deliveryoutcome",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("remedy_micros", 0),
                    models.Q(("remedy_micros__gt", 0), ("remedy_micros__lte", models.F("remedy_cap_micros"))),
                    _connector="OR",
                ),
                name="billing_deliveryoutcome_remedy_within_cap",
            ),
        ),
        migrations.AddConstraint(
            model_name="deliveryoutcome",
            constraint=models.CheckConstraint(
                condition=models.Q(("period_end__gt", models.F("period_start")), ("down_ms__gte", 0)),
                name="billing_deliveryoutcome_forwards",
            ),
        ),
        *append_only("billing_deliveryoutcome"),
    ]
