"""What Django's fields cannot say: one version at a time, rows that never change, grants."""

from pathlib import Path

from django.db import migrations

from marketplace.accounts.append_only import append_only, take_from_app

_SQL = Path(__file__).parent.parent / "sql"
_UNDO = """
DROP TRIGGER pricing_grade_immutable ON pricing_grade;
DROP TRIGGER pricing_grade_kept ON pricing_grade;
DROP TRIGGER pricing_gradebucket_immutable ON pricing_gradebucket;
DROP TRIGGER pricing_rate_immutable ON pricing_rate;
DROP FUNCTION pricing_refuse_change();
DROP FUNCTION pricing_end_version_once();
"""


class Migration(migrations.Migration):
    dependencies = (("pricing", "0001_initial"),)
    operations = (
        # An exclusion constraint over a uuid key needs a range of it; so no contrib extension is asked for.
        migrations.RunSQL("CREATE TYPE uuidrange AS RANGE (subtype = uuid)", "DROP TYPE uuidrange"),
        migrations.RunSQL(
            """
            ALTER TABLE pricing_grade ADD CONSTRAINT pricing_grade_one_version_at_a_time
                EXCLUDE USING gist (uuidrange(family_id, family_id, '[]') WITH &&, valid_during WITH &&)
            """,
            "ALTER TABLE pricing_grade DROP CONSTRAINT pricing_grade_one_version_at_a_time",
        ),
        migrations.RunSQL((_SQL / "immutable.sql").read_text(), _UNDO),
        take_from_app("pricing_gradefamily", ["DELETE", "TRUNCATE"]),
        take_from_app("pricing_grade", ["DELETE", "TRUNCATE"]),
        take_from_app("pricing_gradebucket", ["UPDATE", "DELETE", "TRUNCATE"]),
        take_from_app("pricing_rate", ["UPDATE", "DELETE", "TRUNCATE"]),
        *append_only("pricing_tokenizercalibration"),
        *append_only("pricing_calibrationclass"),
    )
