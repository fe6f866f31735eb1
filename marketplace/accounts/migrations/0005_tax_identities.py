"""Where and as what an organization was taxed, by time; the operator's own rate apart from what the rules come to."""

import django.db.models.deletion
from django.db import migrations, models

import marketplace.ids
from marketplace.accounts.append_only import append_only

# Until now one column was both: where a country has rules it held what they came to, elsewhere the operator's rate.
_OWN_RATES = """
DO $$ BEGIN
    UPDATE accounts_organization SET own_tax_ppm = tax_ppm WHERE tax_ppm > 0;
    IF to_regclass('billing_taxrule') IS NOT NULL THEN
        UPDATE accounts_organization SET own_tax_ppm = 0
         WHERE own_tax_ppm > 0 AND country IN (SELECT jurisdiction FROM billing_taxrule);
    END IF;
END $$
"""


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0004_spend_caps"),
    ]

    operations = [
        migrations.CreateModel(
            name="TaxIdentity",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=marketplace.ids.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("valid_from", models.DateTimeField()),
                ("country", models.CharField(blank=True, max_length=2)),
                ("tax_number", models.CharField(blank=True, max_length=64)),
                ("is_verified", models.BooleanField()),
                ("created_at", models.DateTimeField()),
            ],
        ),
        migrations.AddField(
            model_name="organization",
            name="own_tax_ppm",
            field=models.BigIntegerField(db_default=0, default=0),
        ),
        migrations.AddField(
            model_name="organization",
            name="tax_number_verified_at",
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddConstraint(
            model_name="organization",
            constraint=models.CheckConstraint(
                condition=models.Q(("own_tax_ppm__gte", 0), ("own_tax_ppm__lte", 1000000)),
                name="accounts_organization_own_tax_in_range",
            ),
        ),
        migrations.AddConstraint(
            model_name="organization",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("tax_number_verified_at__isnull", True),
                    models.Q(("tax_number", ""), _negated=True),
                    _connector="OR",
                ),
                name="accounts_organization_verified_number",
            ),
        ),
        migrations.AddField(
            model_name="taxidentity",
            name="organization",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT,
                related_name="tax_identities",
                to="accounts.organization",
            ),
        ),
        migrations.AddIndex(
            model_name="taxidentity",
            index=models.Index(fields=["organization", "valid_from"], name="accounts_taxidentity_lookup"),
        ),
        migrations.AddConstraint(
            model_name="taxidentity",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("is_verified", False), models.Q(("tax_number", ""), _negated=True), _connector="OR"
                ),
                name="accounts_taxidentity_verified_number",
            ),
        ),
        migrations.RunSQL(_OWN_RATES, migrations.RunSQL.noop),
        *append_only("accounts_taxidentity"),
    ]
