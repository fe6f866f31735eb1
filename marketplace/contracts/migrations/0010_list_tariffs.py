"""Hold functions that ask what an offering costs on demand at the moment of admission."""

from pathlib import Path

from django.db import migrations

_SQL = Path(__file__).resolve().parent.parent / "sql"
_AGAIN = "".join(
    (_SQL / name).read_text()
    for name in ("drop_holds.sql", "holds.sql", "entitled_holds.sql", "grants.sql", "spend_caps.sql")
)


class Migration(migrations.Migration):
    dependencies = [
        ("contracts", "0009_overage"),
        ("providers", "0005_list_tariffs"),
    ]

    operations = [migrations.RunSQL(_AGAIN, migrations.RunSQL.noop)]
