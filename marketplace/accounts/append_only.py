"""Migration operations that make a table append-only, whoever writes to it and however.

The grants stop the app role; the triggers stop the owner too, so that not even a migration edits history by accident.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from django.conf import settings
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.operations.base import Operation
from django.db.migrations.state import StateApps
from psycopg import sql

FUNCTION_SQL = """
CREATE OR REPLACE FUNCTION marketplace_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'restrict_violation', TABLE = TG_TABLE_NAME;
END $$
"""


def append_only(table: str) -> list[Operation]:
    """Refuse UPDATE, DELETE and TRUNCATE on `table` by trigger, and take the rights from the app role."""
    name = f"{table}_append_only"
    row = (
        f"CREATE TRIGGER {name} BEFORE UPDATE OR DELETE ON {table} "
        "FOR EACH ROW EXECUTE FUNCTION marketplace_refuse_change()"
    )
    whole = (
        f"CREATE TRIGGER {name}_whole BEFORE TRUNCATE ON {table} "
        "FOR EACH STATEMENT EXECUTE FUNCTION marketplace_refuse_change()"
    )
    return [
        migrations.RunSQL(FUNCTION_SQL, migrations.RunSQL.noop),
        migrations.RunSQL(row, f"DROP TRIGGER {name} ON {table}"),
        migrations.RunSQL(whole, f"DROP TRIGGER {name}_whole ON {table}"),
        take_from_app(table, ["UPDATE", "DELETE", "TRUNCATE"]),
    ]


def take_from_app(table: str, privileges: Sequence[str]) -> Operation:
    """Revoke these privileges on `table` from the app role; its undoing grants them again."""
    return migrations.RunPython(
        _for_app("REVOKE {privileges} ON {table} FROM {app}", table, privileges),
        _for_app("GRANT {privileges} ON {table} TO {app}", table, privileges),
    )


def give_to_app(table: str, privileges: Sequence[str]) -> Operation:
    """Grant these privileges on `table` to the app role again, where a trigger now says how far; and back."""
    return migrations.RunPython(
        _for_app("GRANT {privileges} ON {table} TO {app}", table, privileges),
        _for_app("REVOKE {privileges} ON {table} FROM {app}", table, privileges),
    )


def _for_app(
    statement: str, table: str, privileges: Sequence[str]
) -> Callable[[StateApps, BaseDatabaseSchemaEditor], None]:
    def run(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
        with schema_editor.connection.cursor() as cursor:
            cursor.execute("SELECT current_user")
            app_role = settings.DATABASES["default"]["USER"]
            if app_role == cursor.fetchone()[0]:
                return  # One role for everything: an operator's choice for a trial. The triggers still hold.
            words = sql.SQL(", ").join(map(sql.SQL, privileges))
            command = sql.SQL(statement).format(
                privileges=words, table=sql.Identifier(table), app=sql.Identifier(app_role)
            )
            cursor.execute(command.as_string())

    return run
