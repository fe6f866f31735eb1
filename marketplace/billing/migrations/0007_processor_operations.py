"""What is asked of the payment processor, what it tells us, disputes, and the reports that compare balances."""

import django.db.models.deletion
import django.db.models.expressions
from django.db import migrations, models

import marketplace.ids
from marketplace.accounts.append_only import append_only, take_from_app

_KEPT = (
    "billing_processoroperation",
    "billing_processorevent",
    "billing_paymentdispute",
    "billing_disputeshare",
    "billing_processoraccount",
    "billing_processorpayer",
    "billing_processorgate",
)


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0002_one_operator_audit_append_only"),
        ("billing", "0006_documents"),
    ]

    operations = [
        migrations.AddField(
            model_name="topup",
            name="action_url",
            field=models.CharField(blank=True, default="", max_length=2000),
        ),
        migrations.CreateModel(
            name="ProcessorEvent",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=marketplace.ids.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("processor", models.CharField(max_length=16)),
                ("event_id", models.CharField(max_length=120)),
                ("event_type", models.CharField(max_length=80)),
                ("object_id", models.CharField(max_length=120)),
                ("account_id", models.CharField(blank=True, max_length=120)),
                ("operation_id", models.UUIDField(null=True)),
                (
                    "status",
                    models.CharField(
                        choices=[("received", "Received"), ("applied", "Applied"), ("ignored", "Ignored")],
                        default="received",
                        max_length=8,
                    ),
                ),
                ("attempts", models.PositiveIntegerField(default=0)),
                ("error", models.CharField(blank=True, max_length=200)),
                ("occurred_at", models.DateTimeField()),
                ("received_at", models.DateTimeField()),
                ("next_attempt_at", models.DateTimeField(null=True)),
            ],
            options={
                "indexes": [
                    models.Index(
                        condition=models.Q(("status", "received")),
                        fields=["next_attempt_at"],
                        name="billing_processorevent_open",
                    )
                ],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("processor", "event_id"), name="billing_processorevent_unique"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="ProcessorGate",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=marketplace.ids.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("processor", models.CharField(max_length=16, unique=True)),
                ("allowance_millis", models.BigIntegerField()),
                ("refilled_at", models.DateTimeField()),
                ("failures", models.PositiveIntegerField(default=0)),
                ("open_until", models.DateTimeField(null=True)),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("allowance_millis__gte", 0)),
                        name="billing_processorgate_allowance_not_negative",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="ProcessorOperation",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False)),
                (
                    "kind",
                    models.CharField(
                        choices=[
                            ("payer", "A buyer made known to the processor"),
                            ("save_card", "A card kept for later charges"),
                            ("checkout", "A payment on the processor's own page"),
                            ("charge", "A charge of the saved card"),
                            ("refund", "Part of a payment sent back"),
                            ("account", "A provider's account at the processor"),
                            ("transfer", "Money moved to a provider's account"),
                            ("reversal", "A transfer taken back"),
                            ("payout", "Money sent from a provider's account to his bank"),
                        ],
                        max_length=10,
                    ),
                ),
                ("fact_id", models.UUIDField()),
                ("subject_id", models.UUIDField()),
                (
                    "purpose",
                    models.CharField(
                        blank=True,
                        choices=[("top_up", "Top Up"), ("invoice", "Invoice"), ("", "None")],
                        max_length=8,
                    ),
                ),
                ("processor", models.CharField(max_length=16)),
                (
                    "status",
                    models.CharField(
                        choices=[
                            ("requested", "Requested"),
                            ("sent", "Sent"),
                            ("unknown", "Unknown"),
                            ("action_required", "Action Required"),
                            ("failed", "Failed"),
                            ("succeeded", "Succeeded"),
                        ],
                        default="requested",
                        max_length=16,
                    ),
                ),
                ("idempotency_key", models.CharField(max_length=80, unique=True)),
                ("key_number", models.PositiveIntegerField(default=1)),
                ("amount_micros", models.BigIntegerField(default=0)),
                ("currency", models.CharField(max_length=3)),
                ("refunded_micros", models.BigIntegerField(default=0)),
                ("transferred_micros", models.BigIntegerField(default=0)),
                ("terms", models.JSONField(default=dict)),
                ("object_id", models.CharField(blank=True, max_length=120)),
                ("charge_object_id", models.CharField(blank=True, max_length=120)),
                ("action_url", models.CharField(blank=True, max_length=2000)),
                ("reason", models.CharField(blank=True, max_length=200)),
                ("attempts", models.PositiveIntegerField(default=0)),
                ("requested_at", models.DateTimeField()),
                ("sent_at", models.DateTimeField(null=True)),
                ("ended_at", models.DateTimeField(null=True)),
                ("called_at", models.DateTimeField(null=True)),
                ("key_sent_at", models.DateTimeField(null=True)),
                ("lease_until", models.DateTimeField(null=True)),
                ("next_attempt_at", models.DateTimeField(null=True)),
                (
                    "organization",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="accounts.organization",
                    ),
                ),
                (
                    "parent",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="children",
                        to="billing.processoroperation",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="PaymentDispute",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False)),
                ("object_id", models.CharField(max_length=120, unique=True)),
                ("amount_micros", models.BigIntegerField()),
                ("from_balance_micros", models.BigIntegerField()),
                ("currency", models.CharField(max_length=3)),
                (
                    "status",
                    models.CharField(
                        choices=[("open", "Open"), ("won", "Won"), ("lost", "Lost")],
                        default="open",
                        max_length=8,
                    ),
                ),
                ("created_at", models.DateTimeField()),
                ("ended_at", models.DateTimeField(null=True)),
                (
                    "payment",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="disputes",
                        to="billing.processoroperation",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="DisputeShare",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False)),
                ("amount_micros", models.BigIntegerField()),
                ("recovered_micros", models.BigIntegerField(default=0)),
                (
                    "status",
                    models.CharField(
                        choices=[
                            ("requested", "Requested"),
                            ("reversed", "Reversed"),
                            ("owed", "Owed"),
                            ("settled", "Settled"),
                        ],
                        default="requested",
                        max_length=9,
                    ),
                ),
                ("created_at", models.DateTimeField()),
                (
                    "organization",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="accounts.organization",
                    ),
                ),
                (
                    "dispute",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="shares",
                        to="billing.paymentdispute",
                    ),
                ),
                (
                    "transfer",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="billing.processoroperation",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="ProcessorReport",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=marketplace.ids.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("processor", models.CharField(max_length=16)),
                ("since", models.DateTimeField()),
                ("until", models.DateTimeField()),
                ("currency", models.CharField(max_length=3)),
                ("ledger_micros", models.BigIntegerField()),
                ("processor_micros", models.BigIntegerField()),
                ("difference_micros", models.BigIntegerField()),
                ("details", models.JSONField(default=dict)),
                ("created_at", models.DateTimeField()),
            ],
            options={
                "indexes": [
                    models.Index(fields=["processor", "-until"], name="billing_processorreport_last")
                ],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            (
                                "difference_micros",
                                django.db.models.expressions.CombinedExpression(
                                    models.F("processor_micros"), "-", models.F("ledger_micros")
                                ),
                            )
                        ),
                        name="billing_processorreport_adds_up",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="ProcessorAccount",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=marketplace.ids.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("processor", models.CharField(max_length=16)),
                ("account_id", models.CharField(max_length=120)),
                ("payouts_enabled", models.BooleanField(default=False)),
                ("transfers_enabled", models.BooleanField(default=False)),
                ("requirements_due", models.JSONField(default=list)),
                ("created_at", models.DateTimeField()),
                ("checked_at", models.DateTimeField()),
                (
                    "organization",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="accounts.organization",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("processor", "account_id"), name="billing_processoraccount_unique"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="ProcessorPayer",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=marketplace.ids.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("processor", models.CharField(max_length=16)),
                ("payer_id", models.CharField(max_length=120)),
                ("payment_method_id", models.CharField(blank=True, max_length=120)),
                ("card_brand", models.CharField(blank=True, max_length=32)),
                ("card_last4", models.CharField(blank=True, max_length=4)),
                ("card_expires", models.CharField(blank=True, max_length=7)),
                ("created_at", models.DateTimeField()),
                (
                    "organization",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="accounts.organization",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("processor", "payer_id"), name="billing_processorpayer_unique"
                    )
                ],
            },
        ),
        migrations.AddIndex(
            model_name="processoroperation",
            index=models.Index(
                condition=models.Q(("status__in", ["requested", "sent", "unknown"])),
                fields=["next_attempt_at"],
                name="billing_operation_open",
            ),
        ),
        migrations.AddIndex(
            model_name="processoroperation",
            index=models.Index(fields=["subject_id"], name="billing_operation_by_subject"),
        ),
        migrations.AddIndex(
            model_name="processoroperation",
            index=models.Index(fields=["charge_object_id"], name="billing_operation_by_charge"),
        ),
        migrations.AddIndex(
            model_name="processoroperation",
            index=models.Index(fields=["organization", "-id"], name="billing_operation_by_org"),
        ),
        migrations.AddConstraint(
            model_name="processoroperation",
            constraint=models.UniqueConstraint(
                fields=("kind", "fact_id"), name="billing_operation_fact_unique"
            ),
        ),
        migrations.AddConstraint(
            model_name="processoroperation",
            constraint=models.UniqueConstraint(
                condition=models.Q(
                    ("kind__in", ("checkout", "charge")), models.Q(("status", "failed"), _negated=True)
                ),
                fields=("subject_id",),
                name="billing_operation_one_live_collection",
            ),
        ),
        migrations.AddConstraint(
            model_name="processoroperation",
            constraint=models.UniqueConstraint(
                condition=models.Q(("object_id", ""), _negated=True),
                fields=("processor", "kind", "object_id"),
                name="billing_operation_object_unique",
            ),
        ),
        migrations.AddConstraint(
            model_name="processoroperation",
            constraint=models.CheckConstraint(
                condition=models.Q(("amount_micros__gte", 0)), name="billing_operation_amount_not_negative"
            ),
        ),
        migrations.AddConstraint(
            model_name="processoroperation",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("refunded_micros__gte", 0), ("refunded_micros__lte", models.F("amount_micros"))
                ),
                name="billing_operation_refunds_within_payment",
            ),
        ),
        migrations.AddConstraint(
            model_name="processoroperation",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("transferred_micros__gte", 0), ("transferred_micros__lte", models.F("amount_micros"))
                ),
                name="billing_operation_transfers_within_payment",
            ),
        ),
        migrations.AddConstraint(
            model_name="processoroperation",
            constraint=models.CheckConstraint(
                condition=models.Q(("status", "requested"), ("sent_at__isnull", False), _connector="OR"),
                name="billing_operation_sent_has_time",
            ),
        ),
        migrations.AddConstraint(
            model_name="paymentdispute",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("from_balance_micros__gte", 0), ("from_balance_micros__lte", models.F("amount_micros"))
                ),
                name="billing_paymentdispute_from_balance_within_amount",
            ),
        ),
        migrations.AddConstraint(
            model_name="paymentdispute",
            constraint=models.CheckConstraint(
                condition=models.Q(("amount_micros__gt", 0)), name="billing_paymentdispute_amount_positive"
            ),
        ),
        migrations.AddConstraint(
            model_name="disputeshare",
            constraint=models.UniqueConstraint(
                fields=("dispute", "transfer"), name="billing_disputeshare_unique"
            ),
        ),
        migrations.AddConstraint(
            model_name="disputeshare",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("amount_micros__gt", 0),
                    ("recovered_micros__gte", 0),
                    ("recovered_micros__lte", models.F("amount_micros")),
                ),
                name="billing_disputeshare_recovered_within_amount",
            ),
        ),
        *append_only("billing_processorreport"),
        *(take_from_app(table, ["DELETE", "TRUNCATE"]) for table in _KEPT),
    ]
