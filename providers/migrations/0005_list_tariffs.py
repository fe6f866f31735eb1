"""Dated versions of offerings' list prices. Which rate holds at a moment is said by a function of the next migration."""

from pathlib import Path

import django.db.models.deletion
from django.db import migrations, models

import marketplace.ids
from marketplace.accounts.append_only import append_only, take_from_app

_SQL = Path(__file__).resolve().parent.parent / "sql" / "list_tariffs.sql"
_UNDO = """
DROP FUNCTION providers_list_rate(uuid, uuid, timestamptz);
DROP TRIGGER providers_listtariff_immutable ON providers_listtariff;
DROP FUNCTION providers_withdraw_tariff_once();
ALTER TABLE providers_listtariffslot DROP CONSTRAINT providers_listtariffslot_apart;
"""


class Migration(migrations.Migration):
    dependencies = [
        ("pricing", "0003_service_levels"),
        ("providers", "0004_supply"),
    ]

    operations = [
        migrations.CreateModel(
            name="ListTariff",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=marketplace.ids.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                (
                    "kind",
                    models.CharField(
                        choices=[("per_unit", "Per Unit"), ("time_of_use", "Time Of Use")], max_length=12
                    ),
                ),
                ("valid_from", models.DateTimeField()),
                ("withdrawn_at", models.DateTimeField(null=True)),
                ("created_at", models.DateTimeField()),
                (
                    "offering",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="list_tariffs",
                        to="providers.offering",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="ListTariffSlot",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=marketplace.ids.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("start_s", models.IntegerField()),
                ("end_s", models.IntegerField()),
                (
                    "rate",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to="pricing.rate"
                    ),
                ),
                (
                    "tariff",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="slots",
                        to="providers.listtariff",
                    ),
                ),
            ],
        ),
        migrations.AddConstraint(
            model_name="listtariff",
            constraint=models.UniqueConstraint(
                condition=models.Q(("withdrawn_at__isnull", True)),
                fields=("offering", "valid_from"),
                name="providers_listtariff_one_at_a_time",
            ),
        ),
        migrations.AddConstraint(
            model_name="listtariff",
            constraint=models.CheckConstraint(
                condition=models.Q(("created_at__lt", models.F("valid_from"))),
                name="providers_listtariff_never_retroactive",
            ),
        ),
        migrations.AddConstraint(
            model_name="listtariff",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("withdrawn_at__isnull", True),
                    models.Q(
                        ("withdrawn_at__gte", models.F("created_at")),
                        ("withdrawn_at__lt", models.F("valid_from")),
                    ),
                    _connector="OR",
                ),
                name="providers_listtariff_withdrawn_ahead",
            ),
        ),
        migrations.AddConstraint(
            model_name="listtariff",
            constraint=models.CheckConstraint(
                condition=models.Q(("kind__in", ["per_unit", "time_of_use"])),
                name="providers_listtariff_kind_known",
            ),
        ),
        migrations.AddConstraint(
            model_name="listtariffslot",
            constraint=models.UniqueConstraint(
                fields=("tariff", "start_s"), name="providers_listtariffslot_unique"
            ),
        ),
        migrations.AddConstraint(
            model_name="listtariffslot",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("start_s__gte", 0), ("end_s__gt", models.F("start_s")), ("end_s__lte", 86400)
                ),
                name="providers_listtariffslot_in_a_day",
            ),
        ),
        migrations.RunSQL(_SQL.read_text(), _UNDO),
        take_from_app("providers_listtariff", ["DELETE", "TRUNCATE"]),
        *append_only("providers_listtariffslot"),
    ]
