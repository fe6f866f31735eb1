"""Nominations: what is released of a delivery period, and hold functions that keep it from the buyer."""

from pathlib import Path

import django.db.models.deletion
import django.db.models.expressions
import django.db.models.functions.comparison
from django.db import migrations, models

import marketplace.ids

_SQL = Path(__file__).resolve().parent.parent / "sql"
# Dropped and made again, so that a database of before has the functions of now.
_AGAIN = (_SQL / "drop_holds.sql").read_text() + (_SQL / "holds.sql").read_text()


class Migration(migrations.Migration):
    dependencies = [
        ("contracts", "0002_hold_functions"),
        ("providers", "0003_outages"),
    ]

    operations = [
        migrations.CreateModel(
            name="Nomination",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=marketplace.ids.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("period_start", models.DateTimeField()),
                ("period_end", models.DateTimeField()),
                ("firm_lots", models.BigIntegerField()),
                ("released_lots", models.BigIntegerField()),
                ("resold_lots", models.BigIntegerField(null=True)),
                ("taken_numerator", models.BigIntegerField(default=0)),
                ("created_at", models.DateTimeField()),
                (
                    "contract",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="nominations",
                        to="contracts.contract",
                    ),
                ),
                (
                    "entitlement",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="contracts.entitlement",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="NominationShare",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=marketplace.ids.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("resold_lots", models.BigIntegerField()),
                (
                    "nomination",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="shares",
                        to="contracts.nomination",
                    ),
                ),
                (
                    "offering",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to="providers.offering"
                    ),
                ),
            ],
        ),
        migrations.AddConstraint(
            model_name="nomination",
            constraint=models.UniqueConstraint(
                fields=("contract", "period_start"), name="contracts_nomination_unique"
            ),
        ),
        migrations.AddConstraint(
            model_name="nomination",
            constraint=models.CheckConstraint(
                condition=models.Q(("released_lots__gt", 0), ("released_lots__lte", models.F("firm_lots"))),
                name="contracts_nomination_released_within_firm",
            ),
        ),
        migrations.AddConstraint(
            model_name="nomination",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("resold_lots__isnull", True),
                    models.Q(("resold_lots__gte", 0), ("resold_lots__lte", models.F("released_lots"))),
                    _connector="OR",
                ),
                name="contracts_nomination_resold_within_released",
            ),
        ),
        migrations.AddConstraint(
            model_name="nomination",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("taken_numerator__gte", 0),
                    (
                        "taken_numerator__lte",
                        django.db.models.expressions.CombinedExpression(
                            django.db.models.expressions.CombinedExpression(
                                models.F("firm_lots"),
                                "-",
                                django.db.models.functions.comparison.Coalesce(
                                    models.F("resold_lots"), models.F("released_lots")
                                ),
                            ),
                            "*",
                            models.Value(1000000000),
                        ),
                    ),
                ),
                name="contracts_nomination_never_overdrawn",
            ),
        ),
        migrations.AddConstraint(
            model_name="nomination",
            constraint=models.CheckConstraint(
                condition=models.Q(("period_end__gt", models.F("period_start"))),
                name="contracts_nomination_forwards",
            ),
        ),
        migrations.AddConstraint(
            model_name="nominationshare",
            constraint=models.UniqueConstraint(
                fields=("nomination", "offering"), name="contracts_nominationshare_unique"
            ),
        ),
        migrations.AddConstraint(
            model_name="nominationshare",
            constraint=models.CheckConstraint(
                condition=models.Q(("resold_lots__gt", 0)), name="contracts_nominationshare_positive"
            ),
        ),
        migrations.RunSQL(_AGAIN, _AGAIN),
    ]
