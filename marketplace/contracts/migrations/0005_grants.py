"""Accruals burn grants before the balance."""

from pathlib import Path

from django.db import migrations

_SQL = Path(__file__).resolve().parent.parent / "sql"


def _as_it_was() -> str:
    text = (_SQL / "holds.sql").read_text()
    start = text.index("CREATE FUNCTION contracts_accrue(")
    return text[start : text.index("\n$$;", start) + 4].replace("CREATE", "CREATE OR REPLACE", 1)


class Migration(migrations.Migration):
    dependencies = (("contracts", "0004_supply"), ("ledger", "0005_grants"))
    operations = (migrations.RunSQL((_SQL / "grants.sql").read_text(), _as_it_was()),)
