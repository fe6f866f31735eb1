"""The partitioned events, the SQL functions, and the grants that keep events as they were written."""

from pathlib import Path

from django.db import migrations

from marketplace.accounts.append_only import append_only

_FUNCTIONS = (Path(__file__).parent.parent / "sql" / "functions.sql").read_text()
_DROP_ALL = """
DROP FUNCTION metering_accept_event(uuid, bytea, timestamptz);
DROP FUNCTION metering_drop_partitions(date);
DROP FUNCTION metering_make_partition(date);
DROP TABLE metering_usageevent;
DROP FUNCTION metering_first_id(timestamptz);
"""


class Migration(migrations.Migration):
    dependencies = (("metering", "0001_initial"), ("accounts", "0002_one_operator_audit_append_only"))
    operations = (migrations.RunSQL(_FUNCTIONS, _DROP_ALL), *append_only("metering_usageevent"))
