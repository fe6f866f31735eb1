"""The SQL functions that post money; the tables closed to every other writer; transfers append-only."""

from pathlib import Path

from django.db import migrations

from marketplace.accounts.append_only import append_only, take_from_app

_FUNCTIONS = (Path(__file__).parent.parent / "sql" / "functions.sql").read_text()
_DROP_ALL = """
DROP FUNCTION ledger_expire_holds(timestamptz, integer);
DROP FUNCTION ledger_close_hold(uuid, text, timestamptz);
DROP FUNCTION ledger_change_hold(uuid, bigint, timestamptz);
DROP FUNCTION ledger_open_hold(uuid, uuid, bigint, text, uuid, timestamptz, timestamptz);
DROP FUNCTION ledger_post_transfers(uuid[], uuid[], uuid[], bigint[], text[], uuid[], uuid[], timestamptz);
DROP FUNCTION ledger_post_transfer(uuid, uuid, uuid, bigint, text, uuid, uuid, timestamptz);
DROP FUNCTION ledger_set_overdraft_limit(uuid, bigint);
DROP FUNCTION ledger_account_id(uuid, text, text, uuid, timestamptz);
"""
_WRITES = ("INSERT", "UPDATE", "DELETE", "TRUNCATE")


class Migration(migrations.Migration):
    dependencies = (("ledger", "0001_initial"), ("accounts", "0002_one_operator_audit_append_only"))
    operations = (
        migrations.RunSQL(_FUNCTIONS, _DROP_ALL),
        # Room on each page, so that a changed balance stays on it and touches no index (HOT updates).
        migrations.RunSQL(
            "ALTER TABLE ledger_ledgeraccount SET (fillfactor = 50); ALTER TABLE ledger_hold SET (fillfactor = 70)",
            "ALTER TABLE ledger_ledgeraccount RESET (fillfactor); ALTER TABLE ledger_hold RESET (fillfactor)",
        ),
        *append_only("ledger_transfer"),
        take_from_app("ledger_transfer", ["INSERT"]),
        take_from_app("ledger_ledgeraccount", _WRITES),
        take_from_app("ledger_hold", _WRITES),
    )
