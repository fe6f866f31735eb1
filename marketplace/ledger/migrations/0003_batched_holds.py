"""The SQL functions that raise and carve many holds in one call."""

from pathlib import Path

from django.db import migrations

_FUNCTIONS = (Path(__file__).parent.parent / "sql" / "batched_holds.sql").read_text()
_DROP_ALL = """
DROP FUNCTION ledger_carve_holds(uuid[], uuid[], bigint[], text, uuid, timestamptz);
DROP FUNCTION ledger_raise_holds(uuid[], bigint[], timestamptz);
"""


class Migration(migrations.Migration):
    dependencies = (("ledger", "0002_functions_and_grants"),)
    operations = (migrations.RunSQL(_FUNCTIONS, _DROP_ALL),)
