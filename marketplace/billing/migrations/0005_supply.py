"""What of an outcome was curtailed, and what its mix excuses."""

import django.db.models.expressions
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0002_one_operator_audit_append_only"),
        ("billing", "0004_releases"),
        ("contracts", "0004_supply"),
        ("pricing", "0002_versions_and_immutability"),
        ("providers", "0004_supply"),
    ]

    operations = [
        migrations.AddField(
            model_name="deliveryoutcome",
            name="curtailed_numerator",
            field=models.BigIntegerField(db_default=0, default=0),
        ),
        migrations.AddField(
            model_name="deliveryoutcome",
            name="excused_numerator",
            field=models.BigIntegerField(db_default=0, default=0),
        ),
        migrations.AddConstraint(
            model_name="deliveryoutcome",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("curtailed_numerator__gte", 0),
                    (
                        "curtailed_numerator__lte",
                        django.db.models.expressions.CombinedExpression(
                            models.F("entitled_numerator"), "-", models.F("released_numerator")
                        ),
                    ),
                    ("excused_numerator__gte", 0),
                    ("excused_numerator__lte", models.F("unused_numerator")),
                ),
                name="billing_deliveryoutcome_excused_within_unused",
            ),
        ),
    ]
