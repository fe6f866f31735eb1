"""What pays for an organization's on-demand usage."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0003_legal_identity"),
    ]

    operations = [
        migrations.AddField(
            model_name="organization",
            name="on_demand_payment",
            field=models.CharField(
                choices=[("prepaid", "Prepaid"), ("arrears", "Arrears")],
                db_default="prepaid",
                default="prepaid",
                max_length=8,
            ),
        ),
        migrations.AddConstraint(
            model_name="organization",
            constraint=models.CheckConstraint(
                condition=models.Q(("on_demand_payment__in", ["prepaid", "arrears"])),
                name="accounts_organization_on_demand_payment_known",
            ),
        ),
    ]
