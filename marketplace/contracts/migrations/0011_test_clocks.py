"""Contracts that a test clock ended ahead of their delivery periods."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0007_test_clocks"),
        ("contracts", "0010_list_tariffs"),
        ("pricing", "0003_service_levels"),
    ]

    operations = [
        migrations.AddField(
            model_name="contract",
            name="delivers_until",
            field=models.DateTimeField(null=True),
        ),
        migrations.AddConstraint(
            model_name="contract",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("delivers_until__isnull", True),
                    models.Q(
                        ("delivers_until__lte", models.F("ends_at")),
                        ("kind", "committed"),
                        ("status", "ended"),
                    ),
                    _connector="OR",
                ),
                name="contracts_contract_delivers_until_its_end",
            ),
        ),
    ]
