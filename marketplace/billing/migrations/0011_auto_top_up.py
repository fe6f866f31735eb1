"""Top-ups that begin by themselves."""

import django.db.models.deletion
from django.db import migrations, models

import marketplace.ids


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0004_spend_caps"),
        ("billing", "0010_wired_payments"),
    ]

    operations = [
        migrations.CreateModel(
            name="AutoTopUp",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=marketplace.ids.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                (
                    "status",
                    models.CharField(
                        choices=[("off", "Off"), ("active", "Active"), ("stopped", "Stopped")],
                        default="off",
                        max_length=8,
                    ),
                ),
                ("currency", models.CharField(max_length=3)),
                ("threshold_micros", models.BigIntegerField()),
                ("amount_micros", models.BigIntegerField()),
                ("monthly_limit_micros", models.BigIntegerField()),
                ("begun", models.PositiveIntegerField(default=0)),
                ("failures", models.PositiveSmallIntegerField(default=0)),
                ("stopped_reason", models.CharField(blank=True, max_length=200)),
                ("next_attempt_at", models.DateTimeField()),
                ("low_since", models.DateTimeField(null=True)),
                ("created_at", models.DateTimeField()),
                ("changed_at", models.DateTimeField()),
                (
                    "organization",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="accounts.organization",
                    ),
                ),
                (
                    "running",
                    models.OneToOneField(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="billing.topup",
                    ),
                ),
            ],
        ),
        migrations.AddField(
            model_name="topup",
            name="auto_top_up",
            field=models.ForeignKey(
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="top_ups",
                to="billing.autotopup",
            ),
        ),
        migrations.AddConstraint(
            model_name="autotopup",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("threshold_micros__gt", 0),
                    ("amount_micros__gt", 0),
                    ("monthly_limit_micros__gte", models.F("amount_micros")),
                ),
                name="billing_autotopup_amounts",
            ),
        ),
    ]
