"""Requests at a list price of tiers, volume or packages set aside what any settlement can ask for."""

from pathlib import Path

from django.db import migrations

_SQL = Path(__file__).resolve().parent.parent / "sql"
_AGAIN = "".join(
    (_SQL / name).read_text()
    for name in ("drop_holds.sql", "holds.sql", "entitled_holds.sql", "grants.sql", "spend_caps.sql")
)


class Migration(migrations.Migration):
    dependencies = (("contracts", "0012_own_hosts"), ("pricing", "0004_rate_tariffs"))

    operations = (migrations.RunSQL(_AGAIN, migrations.RunSQL.noop),)
