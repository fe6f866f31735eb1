"""Months that count towards tiers, and where a charge stands in one."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0007_test_clocks"),
        ("billing", "0015_stripe_units"),
        ("pricing", "0004_rate_tariffs"),
    ]

    operations = [
        migrations.CreateModel(
            name="TariffMonth",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False)),
                ("month_start", models.DateTimeField()),
                ("counted_numerator", models.BigIntegerField()),
                (
                    "organization",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="accounts.organization",
                    ),
                ),
                (
                    "rate",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to="pricing.rate"
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("organization", "rate", "month_start"), name="billing_tariffmonth_unique"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("counted_numerator__gte", 0)),
                        name="billing_tariffmonth_not_negative",
                    ),
                ],
            },
        ),
        migrations.AddField(
            model_name="charge",
            name="tariff_month",
            field=models.ForeignKey(
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="charges",
                to="billing.tariffmonth",
            ),
        ),
        migrations.AddField(
            model_name="charge", name="tier", field=models.PositiveSmallIntegerField(null=True)
        ),
        migrations.AddField(
            model_name="charge", name="since_numerator", field=models.BigIntegerField(null=True)
        ),
        migrations.AddConstraint(
            model_name="charge",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("since_numerator__isnull", True), ("tariff_month__isnull", True), ("tier__isnull", True)
                )
                | models.Q(("since_numerator__gte", 0), ("tariff_month__isnull", False)),
                name="billing_charge_of_a_month",
            ),
        ),
    ]
