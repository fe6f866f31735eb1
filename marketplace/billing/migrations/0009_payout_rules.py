"""Bonds, where payouts go, holding and retention, and the account on a statement."""

import django.db.models.deletion
import django.db.models.expressions
from django.db import migrations, models

import marketplace.ids
from marketplace.accounts.append_only import append_only, take_from_app

_KEPT = ("billing_bonddeposit", "billing_payoutdestinationchange")


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0003_legal_identity"),
        ("billing", "0008_service_credits"),
    ]

    operations = [
        migrations.CreateModel(
            name="BondDeposit",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False)),
                (
                    "source",
                    models.CharField(
                        choices=[
                            ("processor", "Processor"),
                            ("earnings", "Earnings"),
                            ("retained", "Retained"),
                        ],
                        max_length=9,
                    ),
                ),
                ("amount_micros", models.BigIntegerField()),
                ("currency", models.CharField(max_length=3)),
                (
                    "status",
                    models.CharField(
                        choices=[("pending", "Pending"), ("succeeded", "Succeeded"), ("failed", "Failed")],
                        default="pending",
                        max_length=9,
                    ),
                ),
                ("processor_reference", models.CharField(blank=True, max_length=120)),
                ("action_url", models.CharField(blank=True, max_length=2000)),
                ("created_at", models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name="BondWithdrawal",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False)),
                ("amount_micros", models.BigIntegerField()),
                ("currency", models.CharField(max_length=3)),
                ("created_at", models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name="DestinationNotice",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=marketplace.ids.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("user_id", models.UUIDField()),
                ("email", models.EmailField(max_length=254)),
                (
                    "kind",
                    models.CharField(
                        choices=[
                            ("requested", "Requested"),
                            ("applied", "Applied"),
                            ("cancelled", "Cancelled"),
                        ],
                        max_length=9,
                    ),
                ),
                ("created_at", models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name="PayoutDestinationChange",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False)),
                ("former", models.CharField(blank=True, max_length=200)),
                ("destination", models.CharField(max_length=200)),
                (
                    "status",
                    models.CharField(
                        choices=[("pending", "Pending"), ("applied", "Applied"), ("cancelled", "Cancelled")],
                        default="pending",
                        max_length=9,
                    ),
                ),
                ("effective_at", models.DateTimeField()),
                ("ended_at", models.DateTimeField(null=True)),
                ("created_at", models.DateTimeField()),
            ],
        ),
        migrations.AddField(
            model_name="payout",
            name="destination",
            field=models.CharField(blank=True, db_default="", default="", max_length=200),
        ),
        migrations.AddField(
            model_name="statement",
            name="brought_forward_micros",
            field=models.BigIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="statement",
            name="carried_forward_micros",
            field=models.BigIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="statement",
            name="last_transfer_number",
            field=models.BigIntegerField(null=True),
        ),
        migrations.AddField(
            model_name="statement",
            name="payable_at",
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name="statement",
            name="posted_bond_micros",
            field=models.BigIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="statement",
            name="posted_dispute_micros",
            field=models.BigIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="statement",
            name="posted_earned_micros",
            field=models.BigIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="statement",
            name="posted_fee_micros",
            field=models.BigIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="statement",
            name="posted_given_back_micros",
            field=models.BigIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="statement",
            name="posted_payout_micros",
            field=models.BigIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="statement",
            name="released_micros",
            field=models.BigIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="statement",
            name="retained_micros",
            field=models.BigIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="statement",
            name="retained_until",
            field=models.DateTimeField(null=True),
        ),
        migrations.AlterField(
            model_name="payout",
            name="statement",
            field=models.OneToOneField(
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="payout",
                to="billing.statement",
            ),
        ),
        migrations.AlterField(
            model_name="processoroperation",
            name="purpose",
            field=models.CharField(
                blank=True,
                choices=[("top_up", "Top Up"), ("invoice", "Invoice"), ("bond", "Bond"), ("", "None")],
                max_length=8,
            ),
        ),
        migrations.AddConstraint(
            model_name="statement",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("retained_micros", 0),
                    models.Q(
                        ("retained_micros__gt", 0),
                        ("retained_micros__lte", models.F("net_micros")),
                        ("retained_until__gt", models.F("payable_at")),
                    ),
                    _connector="OR",
                ),
                name="billing_statement_retained_within_net",
            ),
        ),
        migrations.AddConstraint(
            model_name="statement",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    (
                        "carried_forward_micros",
                        django.db.models.expressions.CombinedExpression(
                            django.db.models.expressions.CombinedExpression(
                                django.db.models.expressions.CombinedExpression(
                                    django.db.models.expressions.CombinedExpression(
                                        django.db.models.expressions.CombinedExpression(
                                            django.db.models.expressions.CombinedExpression(
                                                models.F("brought_forward_micros"),
                                                "+",
                                                models.F("posted_earned_micros"),
                                            ),
                                            "+",
                                            models.F("posted_fee_micros"),
                                        ),
                                        "+",
                                        models.F("posted_given_back_micros"),
                                    ),
                                    "+",
                                    models.F("posted_bond_micros"),
                                ),
                                "+",
                                models.F("posted_dispute_micros"),
                            ),
                            "+",
                            models.F("posted_payout_micros"),
                        ),
                    )
                ),
                name="billing_statement_account_closes",
            ),
        ),
        migrations.AddField(
            model_name="bonddeposit",
            name="organization",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to="accounts.organization"
            ),
        ),
        migrations.AddField(
            model_name="bondwithdrawal",
            name="organization",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to="accounts.organization"
            ),
        ),
        migrations.AddField(
            model_name="payoutdestinationchange",
            name="organization",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to="accounts.organization"
            ),
        ),
        migrations.AddField(
            model_name="destinationnotice",
            name="change",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT,
                related_name="notices",
                to="billing.payoutdestinationchange",
            ),
        ),
        migrations.AddIndex(
            model_name="bonddeposit",
            index=models.Index(fields=["organization", "-id"], name="billing_bonddeposit_by_org"),
        ),
        migrations.AddConstraint(
            model_name="bonddeposit",
            constraint=models.CheckConstraint(
                condition=models.Q(("amount_micros__gt", 0)), name="billing_bonddeposit_positive"
            ),
        ),
        migrations.AddIndex(
            model_name="bondwithdrawal",
            index=models.Index(fields=["organization", "-id"], name="billing_bondwithdrawal_by_org"),
        ),
        migrations.AddConstraint(
            model_name="bondwithdrawal",
            constraint=models.CheckConstraint(
                condition=models.Q(("amount_micros__gt", 0)), name="billing_bondwithdrawal_positive"
            ),
        ),
        migrations.AddIndex(
            model_name="payoutdestinationchange",
            index=models.Index(fields=["organization", "-id"], name="billing_destchange_by_org"),
        ),
        migrations.AddConstraint(
            model_name="payoutdestinationchange",
            constraint=models.UniqueConstraint(
                condition=models.Q(("status", "pending")),
                fields=("organization",),
                name="billing_destinationchange_one_pending",
            ),
        ),
        migrations.AddConstraint(
            model_name="payoutdestinationchange",
            constraint=models.CheckConstraint(
                condition=models.Q(("effective_at__gt", models.F("created_at"))),
                name="billing_destinationchange_waits",
            ),
        ),
        migrations.AddConstraint(
            model_name="payoutdestinationchange",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("status", "pending"), ("ended_at__isnull", True)),
                    models.Q(("status", "applied"), ("ended_at__gte", models.F("effective_at"))),
                    models.Q(("status", "cancelled"), ("ended_at__isnull", False)),
                    _connector="OR",
                ),
                name="billing_destinationchange_ends_once",
            ),
        ),
        migrations.AddConstraint(
            model_name="destinationnotice",
            constraint=models.UniqueConstraint(
                fields=("change", "kind", "user_id"), name="billing_destinationnotice_once"
            ),
        ),
        *append_only("billing_bondwithdrawal"),
        *append_only("billing_destinationnotice"),
        *(take_from_app(table, ["DELETE", "TRUNCATE"]) for table in _KEPT),
    ]
