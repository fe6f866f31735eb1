"""One operator per market; the audit trail only grows."""

from django.db import migrations

from marketplace.accounts.append_only import append_only


class Migration(migrations.Migration):
    dependencies = (("accounts", "0001_initial"),)
    operations = (
        migrations.RunSQL(
            "CREATE UNIQUE INDEX accounts_organization_one_operator ON accounts_organization ((true)) "
            "WHERE 'operator' = ANY (roles)",
            "DROP INDEX accounts_organization_one_operator",
        ),
        *append_only("accounts_auditentry"),
    )
