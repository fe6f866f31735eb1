"""Parts of a country with taxes of their own."""

import django.db.models.functions.text
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0005_tax_identities"),
    ]

    operations = [
        migrations.AddField(
            model_name="organization",
            name="region",
            field=models.CharField(blank=True, db_default="", max_length=6),
        ),
        migrations.AddField(
            model_name="taxidentity",
            name="region",
            field=models.CharField(blank=True, max_length=6),
        ),
        migrations.AddConstraint(
            model_name="organization",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("region", ""),
                    models.Q(
                        (
                            "region__startswith",
                            django.db.models.functions.text.Concat(models.F("country"), models.Value("-")),
                        ),
                        models.Q(("country", ""), _negated=True),
                    ),
                    _connector="OR",
                ),
                name="accounts_organization_region_of_country",
            ),
        ),
    ]
