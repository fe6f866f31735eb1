"""On-demand requests are not served by the hosts of whoever sends them; purchases count under spend caps."""

from pathlib import Path

import django.contrib.postgres.fields
from django.db import migrations, models

import marketplace.ids

_SQL = Path(__file__).resolve().parent.parent / "sql"
_AGAIN = "".join(
    (_SQL / name).read_text()
    for name in ("drop_holds.sql", "holds.sql", "entitled_holds.sql", "grants.sql", "spend_caps.sql")
)


class Migration(migrations.Migration):
    dependencies = (("contracts", "0011_test_clocks"),)

    operations = (
        migrations.RunSQL(_AGAIN, migrations.RunSQL.noop),
        migrations.CreateModel(
            name="PurchaseSpend",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=marketplace.ids.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("ledger_hold_id", models.UUIDField(db_index=True)),
                (
                    "counter_ids",
                    django.contrib.postgres.fields.ArrayField(base_field=models.UUIDField(), size=None),
                ),
                ("amount_micros", models.BigIntegerField()),
                ("returned_micros", models.BigIntegerField(default=0)),
                ("created_at", models.DateTimeField()),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            ("amount_micros__gt", 0),
                            ("returned_micros__gte", 0),
                            ("returned_micros__lte", models.F("amount_micros")),
                        ),
                        name="contracts_purchasespend_returned_within",
                    )
                ],
            },
        ),
    )
