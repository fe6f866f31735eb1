"""Parts of a country with taxes of their own."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0012_committed_months"),
    ]

    operations = [
        migrations.AlterField(
            model_name="invoicetax",
            name="jurisdiction",
            field=models.CharField(blank=True, max_length=6),
        ),
        migrations.AlterField(
            model_name="taxrule",
            name="jurisdiction",
            field=models.CharField(max_length=6),
        ),
    ]
