"""Terms of committed contracts (rollover, early end, amendment), their history, and suspension without funds."""

import django.db.models.deletion
from django.db import migrations, models

import marketplace.ids
from marketplace.accounts.append_only import append_only


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0004_spend_caps"),
        ("contracts", "0007_spend_caps"),
        ("ledger", "0003_batched_holds"),
        ("pricing", "0002_versions_and_immutability"),
    ]

    operations = [
        migrations.CreateModel(
            name="ContractEvent",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=marketplace.ids.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                (
                    "kind",
                    models.CharField(
                        choices=[
                            ("created", "Created"),
                            ("suspended", "Suspended"),
                            ("resumed", "Resumed"),
                            ("freed", "Freed"),
                            ("terminated", "Terminated"),
                            ("amended", "Amended"),
                            ("ended", "Ended"),
                        ],
                        max_length=10,
                    ),
                ),
                ("from_status", models.CharField(blank=True, max_length=10)),
                ("to_status", models.CharField(max_length=10)),
                ("reason", models.CharField(max_length=200)),
                ("actor_kind", models.CharField(max_length=16)),
                ("actor_id", models.UUIDField(null=True)),
                ("detail", models.JSONField(default=dict)),
                ("occurred_at", models.DateTimeField()),
            ],
        ),
        migrations.AddField(
            model_name="allocation",
            name="share_ppm",
            field=models.BigIntegerField(null=True),
        ),
        migrations.AddField(
            model_name="contract",
            name="amends",
            field=models.OneToOneField(
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="amended_by",
                to="contracts.contract",
            ),
        ),
        migrations.AddField(
            model_name="contract",
            name="freed_at",
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name="contract",
            name="notice_days",
            field=models.PositiveSmallIntegerField(null=True),
        ),
        migrations.AddField(
            model_name="contract",
            name="suspended_at",
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name="contract",
            name="termination_fee_ppm",
            field=models.BigIntegerField(null=True),
        ),
        migrations.AddField(
            model_name="entitlement",
            name="rollover_numerator",
            field=models.BigIntegerField(db_default=0, default=0),
        ),
        migrations.AddField(
            model_name="quote",
            name="amends",
            field=models.ForeignKey(
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to="contracts.contract",
            ),
        ),
        migrations.AddField(
            model_name="quote",
            name="notice_days",
            field=models.PositiveSmallIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="quote",
            name="rollover_cap_lots",
            field=models.BigIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="quote",
            name="termination_fee_ppm",
            field=models.BigIntegerField(default=0),
        ),
        migrations.AddConstraint(
            model_name="contract",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("freed_at__isnull", True), ("suspended_at__isnull", True)),
                    models.Q(
                        ("kind", "committed"),
                        ("status__in", ["suspended", "ended"]),
                        ("suspended_at__isnull", False),
                    ),
                    _connector="OR",
                ),
                name="contracts_contract_freed_while_suspended",
            ),
        ),
        migrations.AddConstraint(
            model_name="entitlement",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("rollover_numerator__gte", 0),
                    ("rollover_numerator__lte", models.F("entitled_numerator")),
                ),
                name="contracts_entitlement_rollover_within",
            ),
        ),
        migrations.AddConstraint(
            model_name="quote",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("rollover_share_ppm__gte", 0),
                    ("rollover_share_ppm__lte", 1000000),
                    ("rollover_cap_lots__gte", 0),
                    models.Q(("rollover_share_ppm", 0), ("payment", "prepaid"), _connector="OR"),
                ),
                name="contracts_quote_rollover_in_range",
            ),
        ),
        migrations.AddConstraint(
            model_name="quote",
            constraint=models.CheckConstraint(
                condition=models.Q(("termination_fee_ppm__gte", 0), ("termination_fee_ppm__lte", 1000000)),
                name="contracts_quote_fee_in_range",
            ),
        ),
        migrations.AddField(
            model_name="contractevent",
            name="contract",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="events", to="contracts.contract"
            ),
        ),
        migrations.AddIndex(
            model_name="contractevent",
            index=models.Index(fields=["contract", "occurred_at"], name="contracts_event_by_contract"),
        ),
        migrations.AddConstraint(
            model_name="contractevent",
            constraint=models.CheckConstraint(
                condition=models.Q(("to_status", ""), _negated=True),
                name="contracts_contractevent_leads_somewhere",
            ),
        ),
        *append_only("contracts_contractevent"),
    ]
