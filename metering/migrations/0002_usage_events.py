"""What Django's fields cannot say: the partitioned table of events, append-only; the inbox's functions."""

from pathlib import Path

from django.db import migrations

from marketplace.accounts.append_only import append_only

_SQL = Path(__file__).resolve().parent.parent / "sql"


class Migration(migrations.Migration):
    dependencies = (
        ("metering", "0001_initial"),
        ("accounts", "0001_initial"),
        ("marketplace", "0001_roles_clock_jobs"),
    )
    operations = (
        migrations.RunSQL(
            (_SQL / "usage_events.sql").read_text(), (_SQL / "drop_usage_events.sql").read_text()
        ),
        # Before the partitions: they take over the row triggers of their parent.
        *append_only("metering_usageevent"),
        *append_only("metering_usagecorrection"),
        *append_only("metering_recountbaseline"),
        migrations.RunSQL("SELECT metering_make_partitions(now())", migrations.RunSQL.noop),
    )
