"""Parts of grants given back."""

from pathlib import Path

import django.db.models.deletion
from django.db import migrations, models

from marketplace.accounts.append_only import append_only, take_from_app

_SQL = Path(__file__).resolve().parent.parent / "sql" / "grant_refunds.sql"
_DROP = "DROP FUNCTION ledger_refund_grant(uuid, uuid, bigint, uuid, uuid, uuid, timestamptz)"


class Migration(migrations.Migration):
    dependencies = [
        ("ledger", "0007_credit_lines"),
    ]

    operations = [
        migrations.CreateModel(
            name="GrantRefund",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False)),
                ("asked_micros", models.BigIntegerField(null=True)),
                ("amount_micros", models.BigIntegerField()),
                ("paid_micros", models.BigIntegerField()),
                ("created_at", models.DateTimeField()),
                (
                    "grant",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="refunds",
                        to="ledger.grant",
                    ),
                ),
            ],
        ),
        migrations.AddConstraint(
            model_name="grantrefund",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("amount_micros__gt", 0),
                    ("paid_micros__gte", 0),
                    ("paid_micros__lte", models.F("amount_micros")),
                ),
                name="ledger_grantrefund_paid_within_amount",
            ),
        ),
        migrations.AddConstraint(
            model_name="grantrefund",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("asked_micros__isnull", True),
                    ("asked_micros", models.F("amount_micros")),
                    _connector="OR",
                ),
                name="ledger_grantrefund_as_asked",
            ),
        ),
        migrations.RunSQL(_SQL.read_text(), _DROP),
        *append_only("ledger_grantrefund"),
        take_from_app("ledger_grantrefund", ["INSERT"]),
    ]
