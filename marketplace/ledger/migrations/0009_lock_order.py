"""One order of locks for transactions that call several functions of the ledger."""

from pathlib import Path

from django.db import migrations

_SQL = Path(__file__).resolve().parent.parent / "sql" / "lock_order.sql"


class Migration(migrations.Migration):
    dependencies = [("ledger", "0008_grant_refunds")]

    operations = [
        migrations.RunSQL(_SQL.read_text(), "DROP FUNCTION ledger_lock(uuid[], uuid[], uuid[]);"),
    ]
