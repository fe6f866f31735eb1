"""Stops of providers' payouts."""

import django.db.models.deletion
from django.db import migrations, models

from marketplace.accounts.append_only import take_from_app


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0007_test_clocks"),
        ("billing", "0016_tariff_months"),
    ]

    operations = [
        migrations.CreateModel(
            name="PayoutStop",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False)),
                ("reason", models.CharField(max_length=200)),
                ("created_at", models.DateTimeField()),
                ("ended_at", models.DateTimeField(null=True)),
                (
                    "organization",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="accounts.organization",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("ended_at__isnull", True)),
                        fields=("organization",),
                        name="billing_payoutstop_one_at_a_time",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("ended_at__isnull", True),
                            ("ended_at__gte", models.F("created_at")),
                            _connector="OR",
                        ),
                        name="billing_payoutstop_forwards",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("reason", ""), _negated=True), name="billing_payoutstop_says_why"
                    ),
                ],
            },
        ),
        take_from_app("billing_payoutstop", ["DELETE", "TRUNCATE"]),
    ]
