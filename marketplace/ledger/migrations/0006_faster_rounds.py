"""Carving with one look at what exists; holds without an index that no question uses (open ones have their own)."""

from pathlib import Path

import django.db.models.deletion
from django.db import migrations, models

_SQL = Path(__file__).parent.parent / "sql"
_FUNCTION = (_SQL / "faster_carving.sql").read_text()
# The function as it was: the second of the file before.
_BEFORE = (_SQL / "batched_holds.sql").read_text()
_BEFORE = _BEFORE[_BEFORE.index("CREATE FUNCTION ledger_carve_holds") : _BEFORE.index("REVOKE ALL")].replace(
    "CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1
)


class Migration(migrations.Migration):
    dependencies = (("ledger", "0005_grants"),)
    operations = (
        migrations.RunSQL(_FUNCTION, _BEFORE),
        migrations.AlterField(
            model_name="hold",
            name="account",
            field=models.ForeignKey(
                db_index=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to="ledger.ledgeraccount",
            ),
        ),
    )
