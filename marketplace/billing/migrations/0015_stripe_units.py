"""Where a provider's bank account at the processor was last seen to be, and the operator's own movements there."""

import django.db.models.deletion
from django.db import migrations, models

from marketplace.accounts.append_only import append_only


class Migration(migrations.Migration):
    dependencies = [("billing", "0014_test_clocks")]

    operations = [
        migrations.AddField(
            model_name="processoraccount",
            name="bank_account",
            field=models.CharField(blank=True, default="", max_length=200),
            preserve_default=False,
        ),
        migrations.CreateModel(
            name="OperatorPosting",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False)),
                (
                    "kind",
                    models.CharField(
                        choices=[
                            ("capital", "The operator's money put into the processor's balance"),
                            ("withdrawal", "Earnings, or tax for its office, taken out of it"),
                            ("processor_fee", "What the processor bills beside its movements"),
                        ],
                        max_length=13,
                    ),
                ),
                ("account_kind", models.CharField(max_length=16)),
                ("amount_micros", models.BigIntegerField()),
                ("currency", models.CharField(max_length=3)),
                ("reference", models.CharField(blank=True, max_length=120)),
                ("reason", models.CharField(max_length=200)),
                ("created_at", models.DateTimeField()),
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
                    models.CheckConstraint(
                        condition=models.Q(("amount_micros__gt", 0)), name="billing_operatorposting_positive"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(
                                ("account_kind__in", ["breakage", "fees", "operator", "tax"]),
                                ("kind", "withdrawal"),
                            ),
                            models.Q(
                                ("account_kind", "operator"), ("kind__in", ["capital", "processor_fee"])
                            ),
                            _connector="OR",
                        ),
                        name="billing_operatorposting_account",
                    ),
                    models.UniqueConstraint(
                        condition=models.Q(("reference", ""), _negated=True),
                        fields=("reference",),
                        name="billing_operatorposting_reference_once",
                    ),
                ]
            },
        ),
        *append_only("billing_operatorposting"),
    ]
