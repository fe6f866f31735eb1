"""Contracts that end for want of payment leave a warning in their history."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = (("contracts", "0012_own_hosts"),)

    operations = (
        migrations.AlterField(
            model_name="contractevent",
            name="kind",
            field=models.CharField(
                choices=[
                    ("created", "Created"),
                    ("suspended", "Suspended"),
                    ("resumed", "Resumed"),
                    ("freed", "Freed"),
                    ("warned", "Warned"),
                    ("terminated", "Terminated"),
                    ("amended", "Amended"),
                    ("ended", "Ended"),
                ],
                max_length=10,
            ),
        ),
    )
