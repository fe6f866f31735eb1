"""First of all migrations: what the app role may do by default, the clock's offset, the periodic jobs' runs."""

from typing import Final

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps
from psycopg import sql

_POSTGRESQL_18: Final = 180_000
_GRANTS: Final = (
    "GRANT USAGE ON SCHEMA public TO {app}",
    "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {app}",
    "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT USAGE ON SEQUENCES TO {app}",
    "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT EXECUTE ON FUNCTIONS TO {app}",
    # What the migration recorder made before this migration ran.
    "GRANT SELECT ON ALL TABLES IN SCHEMA public TO {app}",
)


def grant_defaults(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    connection = schema_editor.connection
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('server_version_num')::int, current_user")
        version, owner = cursor.fetchone()
        if version < _POSTGRESQL_18:
            raise ImproperlyConfigured(
                f"PostgreSQL 18 is required (uuidv7()), this server is {version // 10_000}"
            )
        app_role = settings.DATABASES["default"]["USER"]
        if app_role == owner:
            return  # One role for everything: an operator's choice for a trial; there is nobody to grant to.
        for statement in _GRANTS:
            cursor.execute(sql.SQL(statement).format(app=sql.Identifier(app_role)).as_string())


class Migration(migrations.Migration):
    initial = True
    # Before every other app's tables, so that the default grants reach all of them.
    run_before = (
        ("contenttypes", "0001_initial"),
        ("sessions", "0001_initial"),
    )
    dependencies = ()
    operations = (
        migrations.RunPython(grant_defaults, migrations.RunPython.noop),
        migrations.CreateModel(
            name="ClockOffset",
            fields=[
                ("id", models.SmallIntegerField(default=1, primary_key=True, serialize=False)),
                ("offset_ms", models.BigIntegerField(default=0)),
            ],
            options={
                "constraints": (
                    models.CheckConstraint(
                        condition=models.Q(("id", 1)), name="marketplace_clockoffset_one_row"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("offset_ms__gte", 0)), name="marketplace_clockoffset_forward"
                    ),
                ),
            },
        ),
        migrations.CreateModel(
            name="JobRun",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("job", models.TextField()),
                ("period_start", models.DateTimeField()),
                ("claimed_at", models.DateTimeField()),
                ("lease_until", models.DateTimeField()),
                ("finished_at", models.DateTimeField(null=True)),
                ("attempts", models.IntegerField(default=1)),
            ],
            options={
                "constraints": (
                    models.UniqueConstraint(
                        fields=("job", "period_start"), name="marketplace_jobrun_one_per_period"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("lease_until__gt", models.F("claimed_at"))),
                        name="marketplace_jobrun_lease_after_claim",
                    ),
                ),
            },
        ),
    )
