"""A releasing buyer's part of what an award earned, and his credit for it."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0002_one_operator_audit_append_only"),
        ("billing", "0003_failures"),
        ("contracts", "0003_nominations"),
        ("orders", "0006_releases"),
        ("pricing", "0002_versions_and_immutability"),
        ("providers", "0003_outages"),
    ]

    operations = [
        migrations.RemoveConstraint(
            model_name="charge",
            name="billing_charge_not_negative",
        ),
        migrations.RemoveConstraint(
            model_name="earning",
            name="billing_earning_unique",
        ),
        migrations.AddField(
            model_name="earning",
            name="ask",
            field=models.ForeignKey(
                null=True, on_delete=django.db.models.deletion.PROTECT, related_name="+", to="orders.ask"
            ),
        ),
        migrations.AlterField(
            model_name="charge",
            name="kind",
            field=models.CharField(
                choices=[
                    ("committed_fee", "Committed Fee"),
                    ("usage", "Usage"),
                    ("overage", "Overage"),
                    ("true_up", "True Up"),
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
        migrations.AddConstraint(
            model_name="charge",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        ("amount_micros__gte", 0), ("numerator__gte", 0), ("estimated_numerator__gte", 0)
                    ),
                    ("kind", "adjustment"),
                    models.Q(
                        ("estimated_numerator", 0), ("kind__in", ["remedy", "release"]), ("numerator", 0)
                    ),
                    _connector="OR",
                ),
                name="billing_charge_not_negative",
            ),
        ),
        migrations.AddConstraint(
            model_name="earning",
            constraint=models.UniqueConstraint(
                fields=("charge", "offering", "ask"), name="billing_earning_unique", nulls_distinct=False
            ),
        ),
    ]
