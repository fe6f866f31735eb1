"""The hold functions: one text in `sql/`, run by the gateway's pool and by the services alike."""

from pathlib import Path

from django.db import migrations

_SQL = Path(__file__).resolve().parent.parent / "sql"


class Migration(migrations.Migration):
    dependencies = (
        ("contracts", "0001_initial"),
        ("accounts", "0001_initial"),
        ("ledger", "0001_initial"),
        ("metering", "0001_initial"),
        ("pricing", "0001_initial"),
        ("providers", "0001_initial"),
    )
    operations = (
        migrations.RunSQL(
            sql=(_SQL / "holds.sql").read_text(),
            reverse_sql=(_SQL / "drop_holds.sql").read_text(),
        ),
    )
