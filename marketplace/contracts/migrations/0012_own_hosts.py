"""On-demand requests are not served by the hosts of whoever sends them."""

from pathlib import Path

from django.db import migrations

_SQL = Path(__file__).resolve().parent.parent / "sql"
_AGAIN = "".join(
    (_SQL / name).read_text()
    for name in ("drop_holds.sql", "holds.sql", "entitled_holds.sql", "grants.sql", "spend_caps.sql")
)


class Migration(migrations.Migration):
    dependencies = (("contracts", "0011_test_clocks"),)

    operations = (migrations.RunSQL(_AGAIN, migrations.RunSQL.noop),)
