"""Awards without indexes that repeat the beginning of another one, or that no question uses."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = (("contracts", "0005_grants"),)
    operations = (
        migrations.AlterField(
            model_name="allocation",
            name="contract",
            field=models.ForeignKey(
                db_index=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="allocations",
                to="contracts.contract",
            ),
        ),
        migrations.AlterField(
            model_name="entitlement",
            name="contract",
            field=models.ForeignKey(
                db_index=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="entitlements",
                to="contracts.contract",
            ),
        ),
        migrations.AlterField(
            model_name="entitlement",
            name="rate",
            field=models.ForeignKey(
                db_index=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to="pricing.rate",
            ),
        ),
    )
