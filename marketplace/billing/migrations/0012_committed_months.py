"""What committed months came to, and the charge for ending one early."""

import django.db.models.deletion
import django.db.models.expressions
from django.db import migrations, models

from marketplace.accounts.append_only import append_only


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0011_auto_top_up"),
        ("contracts", "0008_terms"),
    ]

    operations = [
        migrations.AlterField(
            model_name="charge",
            name="kind",
            field=models.CharField(
                choices=[
                    ("committed_fee", "Committed Fee"),
                    ("usage", "Usage"),
                    ("overage", "Overage"),
                    ("true_up", "True Up"),
                    ("termination", "Termination"),
                    ("spot", "Spot"),
                    ("minimum_take", "Minimum Take"),
                    ("remedy", "Remedy"),
                    ("service_credit", "Service Credit"),
                    ("release", "Release"),
                    ("adjustment", "Adjustment"),
                ],
                max_length=16,
            ),
        ),
        migrations.AlterField(
            model_name="invoiceline",
            name="kind",
            field=models.CharField(
                choices=[
                    ("committed_fee", "Committed Fee"),
                    ("usage", "Usage"),
                    ("overage", "Overage"),
                    ("true_up", "True Up"),
                    ("termination", "Termination"),
                    ("spot", "Spot"),
                    ("minimum_take", "Minimum Take"),
                    ("remedy", "Remedy"),
                    ("service_credit", "Service Credit"),
                    ("release", "Release"),
                    ("adjustment", "Adjustment"),
                ],
                max_length=16,
            ),
        ),
        migrations.CreateModel(
            name="MonthOutcome",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False)),
                ("run", models.PositiveIntegerField()),
                ("volume_numerator", models.BigIntegerField()),
                ("released_numerator", models.BigIntegerField()),
                ("delivered_numerator", models.BigIntegerField()),
                ("failed_numerator", models.BigIntegerField()),
                ("unused_numerator", models.BigIntegerField()),
                ("failed_in_periods_numerator", models.BigIntegerField()),
                ("take_numerator", models.BigIntegerField()),
                ("true_up_numerator", models.BigIntegerField()),
                ("rolled_over_numerator", models.BigIntegerField(default=0)),
                ("rate_micros_per_mtok", models.BigIntegerField()),
                ("charged_micros", models.BigIntegerField()),
                ("refunded_micros", models.BigIntegerField()),
                ("created_at", models.DateTimeField()),
                (
                    "contract",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to="contracts.contract"
                    ),
                ),
                (
                    "entitlement",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="outcomes",
                        to="contracts.entitlement",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("entitlement", "run"), name="billing_monthoutcome_unique"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            (
                                "volume_numerator",
                                django.db.models.expressions.CombinedExpression(
                                    django.db.models.expressions.CombinedExpression(
                                        django.db.models.expressions.CombinedExpression(
                                            models.F("released_numerator"),
                                            "+",
                                            models.F("delivered_numerator"),
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
                        name="billing_monthoutcome_adds_up",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("true_up_numerator__gte", 0),
                            ("true_up_numerator__lte", models.F("unused_numerator")),
                            ("rolled_over_numerator__gte", 0),
                            ("rolled_over_numerator__lte", models.F("unused_numerator")),
                            ("charged_micros__gte", 0),
                            ("refunded_micros__gte", 0),
                        ),
                        name="billing_monthoutcome_in_range",
                    ),
                ],
            },
        ),
        *append_only("billing_monthoutcome"),
    ]
