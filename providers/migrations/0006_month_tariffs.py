"""List prices by tiers, volume and packages of a calendar month."""

from pathlib import Path

from django.db import migrations, models

_SQL = Path(__file__).resolve().parent.parent / "sql" / "list_rates.sql"


class Migration(migrations.Migration):
    dependencies = [
        ("pricing", "0004_rate_tariffs"),
        ("providers", "0005_list_tariffs"),
    ]

    operations = [
        migrations.RunSQL(_SQL.read_text(), migrations.RunSQL.noop),
        migrations.AlterField(
            model_name="listtariff",
            name="kind",
            field=models.CharField(
                choices=[
                    ("per_unit", "Per Unit"),
                    ("time_of_use", "Time Of Use"),
                    ("graduated", "Graduated"),
                    ("volume", "Volume"),
                    ("package", "Package"),
                ],
                max_length=12,
            ),
        ),
        migrations.RemoveConstraint(
            model_name="listtariff",
            name="providers_listtariff_kind_known",
        ),
        migrations.AddConstraint(
            model_name="listtariff",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("kind__in", ["per_unit", "time_of_use", "graduated", "volume", "package"])
                ),
                name="providers_listtariff_kind_known",
            ),
        ),
    ]
