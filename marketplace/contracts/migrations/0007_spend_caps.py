"""Spend caps, and hold functions that count against them."""

from pathlib import Path

import django.contrib.postgres.fields
import django.db.models.deletion
from django.db import migrations, models

import marketplace.ids

_SQL = Path(__file__).resolve().parent.parent / "sql"
# Dropped and made again: what an opened hold answers has one more column.
_AGAIN = "".join(
    (_SQL / name).read_text()
    for name in ("drop_holds.sql", "holds.sql", "entitled_holds.sql", "grants.sql", "spend_caps.sql")
)


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0004_spend_caps"),
        ("contracts", "0006_faster_rounds"),
    ]

    operations = [
        migrations.AddField(
            model_name="hold",
            name="spend_counter_ids",
            field=django.contrib.postgres.fields.ArrayField(
                base_field=models.UUIDField(), null=True, size=None
            ),
        ),
        migrations.CreateModel(
            name="SpendCap",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=marketplace.ids.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                (
                    "scope",
                    models.CharField(
                        choices=[
                            ("organization", "Organization"),
                            ("project", "Project"),
                            ("api_key", "Api Key"),
                        ],
                        max_length=12,
                    ),
                ),
                ("project", models.CharField(blank=True, max_length=100)),
                ("period", models.CharField(choices=[("day", "Day"), ("month", "Month")], max_length=5)),
                ("limit_micros", models.BigIntegerField(null=True)),
                ("created_at", models.DateTimeField()),
                ("changed_at", models.DateTimeField()),
                (
                    "api_key",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="accounts.apikey",
                    ),
                ),
                (
                    "organization",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="accounts.organization",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="SpendCounter",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        db_default=models.Func(function="uuidv7"),
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("window_start", models.DateTimeField()),
                ("spent_micros", models.BigIntegerField()),
                (
                    "cap",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="counters",
                        to="contracts.spendcap",
                    ),
                ),
            ],
        ),
        migrations.AddConstraint(
            model_name="spendcap",
            constraint=models.UniqueConstraint(
                fields=("organization", "scope", "api_key", "project", "period"),
                name="contracts_spendcap_unique",
                nulls_distinct=False,
            ),
        ),
        migrations.AddConstraint(
            model_name="spendcap",
            constraint=models.CheckConstraint(
                condition=models.Q(("limit_micros__isnull", True), ("limit_micros__gte", 0), _connector="OR"),
                name="contracts_spendcap_not_negative",
            ),
        ),
        migrations.AddConstraint(
            model_name="spendcap",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("api_key__isnull", True), ("project", ""), ("scope", "organization")),
                    models.Q(
                        ("api_key__isnull", True),
                        ("scope", "project"),
                        models.Q(("project", ""), _negated=True),
                    ),
                    models.Q(("api_key__isnull", False), ("project", ""), ("scope", "api_key")),
                    _connector="OR",
                ),
                name="contracts_spendcap_names_its_subject",
            ),
        ),
        migrations.AddConstraint(
            model_name="spendcap",
            constraint=models.CheckConstraint(
                condition=models.Q(("period__in", ["day", "month"])), name="contracts_spendcap_period_known"
            ),
        ),
        migrations.AddConstraint(
            model_name="spendcounter",
            constraint=models.UniqueConstraint(
                fields=("cap", "window_start"), name="contracts_spendcounter_unique"
            ),
        ),
        migrations.AddConstraint(
            model_name="spendcounter",
            constraint=models.CheckConstraint(
                condition=models.Q(("spent_micros__gte", 0)), name="contracts_spendcounter_not_negative"
            ),
        ),
        migrations.RemoveConstraint(model_name="contract", name="contracts_contract_one_on_demand"),
        migrations.AddConstraint(
            model_name="contract",
            constraint=models.UniqueConstraint(
                condition=models.Q(("kind", "on_demand")),
                fields=("organization", "grade", "payment"),
                name="contracts_contract_one_on_demand",
            ),
        ),
        migrations.RunSQL(_AGAIN, migrations.RunSQL.noop),
    ]
