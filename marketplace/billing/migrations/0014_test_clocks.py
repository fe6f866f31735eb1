"""Numbers of documents that a test clock dates: series of their own."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("billing", "0013_regions"),
    ]

    operations = [
        migrations.AlterField(
            model_name="documentnumber",
            name="series",
            field=models.CharField(max_length=32),
        ),
    ]
