"""What hosts cannot supply any more of what is sold, and its admission: the hold function as it is now."""

from pathlib import Path

import django.db.models.deletion
from django.db import migrations, models

import marketplace.ids
from marketplace.accounts.append_only import append_only

_HOLDS = Path(__file__).resolve().parent.parent / "sql" / "entitled_holds.sql"


class Migration(migrations.Migration):
    dependencies = [
        ("contracts", "0003_nominations"),
    ]

    operations = [
        migrations.CreateModel(
            name="Curtailment",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=marketplace.ids.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("period_start", models.DateTimeField()),
                ("period_end", models.DateTimeField()),
                ("lots", models.BigIntegerField()),
                ("kept_numerator", models.BigIntegerField(null=True)),
                ("curtailed_at", models.DateTimeField()),
                (
                    "allocation",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="curtailments",
                        to="contracts.allocation",
                    ),
                ),
            ],
            options={
                "indexes": [models.Index(fields=["period_start"], name="contracts_curtailment_period")],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            ("lots__gt", 0),
                            models.Q(
                                ("kept_numerator__isnull", True), ("kept_numerator__gte", 0), _connector="OR"
                            ),
                        ),
                        name="contracts_curtailment_positive",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("period_end__gt", models.F("period_start")),
                            ("period_end__gt", models.F("curtailed_at")),
                        ),
                        name="contracts_curtailment_forwards",
                    ),
                ],
            },
        ),
        *append_only("contracts_curtailment"),
        migrations.RunSQL(_HOLDS.read_text(), migrations.RunSQL.noop),
    ]
