"""Overage at the spot rate, its highest rate, and requests in two parts: the hold functions as they are now."""

from pathlib import Path

from django.db import migrations, models

_SQL = Path(__file__).resolve().parent.parent / "sql"
# Dropped and made again: what is asked and what is answered has more columns.
_AGAIN = "".join(
    (_SQL / name).read_text()
    for name in ("drop_holds.sql", "holds.sql", "entitled_holds.sql", "grants.sql", "spend_caps.sql")
)


class Migration(migrations.Migration):
    dependencies = [("contracts", "0008_terms")]

    operations = [
        migrations.AddField(
            model_name="hold",
            name="part",
            field=models.PositiveSmallIntegerField(db_default=0, default=0),
        ),
        migrations.AddField(
            model_name="quote",
            name="max_rate_micros_per_mtok",
            field=models.BigIntegerField(null=True),
        ),
        migrations.AddConstraint(
            model_name="hold",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("part", 0), models.Q(("entitlement__isnull", True), ("part", 1)), _connector="OR"
                ),
                name="contracts_hold_part_known",
            ),
        ),
        migrations.AddConstraint(
            model_name="quote",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("max_rate_micros_per_mtok__isnull", True),
                    models.Q(
                        ("max_rate_micros_per_mtok__gt", 0),
                        models.Q(("overage_policy", "stop"), _negated=True),
                    ),
                    _connector="OR",
                ),
                name="contracts_quote_max_rate_of_overage",
            ),
        ),
        migrations.RunSQL(_AGAIN, migrations.RunSQL.noop),
    ]
