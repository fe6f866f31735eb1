"""An organization may be past due: it pays and reads, and does not buy."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = (("accounts", "0002_one_operator_audit_append_only"),)
    operations = (
        migrations.AlterField(
            model_name="organization",
            name="status",
            field=models.CharField(
                choices=[("active", "Active"), ("past_due", "Past Due"), ("suspended", "Suspended")],
                default="active",
                max_length=16,
            ),
        ),
    )
