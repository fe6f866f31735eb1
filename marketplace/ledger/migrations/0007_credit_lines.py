"""Credit lines that may be lowered below what is used of them."""

from pathlib import Path

from django.db import migrations, models

_SQL = Path(__file__).resolve().parent.parent / "sql" / "credit_lines.sql"
_DROP = """
DROP TRIGGER ledger_account_follows_credit_line ON ledger_ledgeraccount;
DROP FUNCTION ledger_follow_credit_line();
DROP FUNCTION ledger_set_credit_line(uuid, bigint);
"""


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0004_spend_caps"),
        ("ledger", "0006_faster_rounds"),
    ]

    operations = [
        migrations.AddField(
            model_name="ledgeraccount",
            name="credit_line_micros",
            field=models.BigIntegerField(null=True),
        ),
        migrations.AddConstraint(
            model_name="ledgeraccount",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("credit_line_micros__isnull", True),
                    models.Q(
                        ("credit_line_micros__gte", 0),
                        ("overdraft_limit_micros__gte", models.F("credit_line_micros")),
                    ),
                    _connector="OR",
                ),
                name="ledger_account_overdraft_reaches_credit_line",
            ),
        ),
        migrations.RunSQL(_SQL.read_text(), _DROP),
    ]
