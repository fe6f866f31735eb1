"""Controls of a grade's market: halts, breaker, administered rate, reviews of the cap; their history only grows."""

import datetime as dt

import django.db.models.deletion
import django.db.models.expressions
from django.db import migrations, models

import marketplace.ids
from marketplace.accounts.append_only import append_only, take_from_app


class Migration(migrations.Migration):
    dependencies = [
        ("orders", "0002_bid_revisions"),
        ("pricing", "0002_versions_and_immutability"),
    ]

    operations = [
        migrations.AddField(
            model_name="auction",
            name="halted",
            field=models.CharField(blank=True, default="", max_length=20),
        ),
        migrations.CreateModel(
            name="MarketControl",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=marketplace.ids.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                (
                    "status",
                    models.CharField(
                        choices=[("normal", "Normal"), ("capped", "Capped"), ("halted", "Halted")],
                        default="normal",
                        max_length=10,
                    ),
                ),
                ("status_since", models.DateTimeField()),
                (
                    "halted_because",
                    models.CharField(
                        blank=True,
                        choices=[
                            ("operator", "Operator"),
                            ("engines_disagree", "Engines Disagree"),
                            ("book_changed", "Book Changed"),
                        ],
                        max_length=20,
                    ),
                ),
                ("administered_cap_micros_per_mtok", models.BigIntegerField(null=True)),
                ("administered_rate_micros_per_mtok", models.BigIntegerField(null=True)),
                ("created_at", models.DateTimeField()),
                (
                    "grade",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to="pricing.grade"
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="MarketControlChange",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=marketplace.ids.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                (
                    "action",
                    models.CharField(
                        choices=[
                            ("tripped", "Tripped"),
                            ("released", "Released"),
                            ("halted", "Halted"),
                            ("resumed", "Resumed"),
                            ("rate_set", "Rate Set"),
                        ],
                        max_length=10,
                    ),
                ),
                (
                    "from_status",
                    models.CharField(
                        choices=[("normal", "Normal"), ("capped", "Capped"), ("halted", "Halted")],
                        max_length=10,
                    ),
                ),
                (
                    "to_status",
                    models.CharField(
                        choices=[("normal", "Normal"), ("capped", "Capped"), ("halted", "Halted")],
                        max_length=10,
                    ),
                ),
                ("reason", models.CharField(max_length=500)),
                ("actor_kind", models.CharField(max_length=16)),
                ("actor_id", models.UUIDField(null=True)),
                ("evidence", models.JSONField(default=dict)),
                ("created_at", models.DateTimeField()),
                (
                    "control",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="changes",
                        to="orders.marketcontrol",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="CapReview",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=marketplace.ids.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                (
                    "status",
                    models.CharField(
                        choices=[("scheduled", "Scheduled"), ("declined", "Declined")],
                        default="scheduled",
                        max_length=10,
                    ),
                ),
                ("cap_micros_per_mtok", models.BigIntegerField()),
                ("cap_before_micros_per_mtok", models.BigIntegerField()),
                ("effective_from", models.DateTimeField()),
                ("reason", models.CharField(max_length=500)),
                ("actor_kind", models.CharField(max_length=16)),
                ("actor_id", models.UUIDField(null=True)),
                ("evidence", models.JSONField(default=dict)),
                ("created_at", models.DateTimeField()),
                ("declined_at", models.DateTimeField(null=True)),
                ("decline_reason", models.CharField(blank=True, max_length=500)),
                (
                    "grade",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to="pricing.grade"
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("status", "scheduled")),
                        fields=("grade", "effective_from"),
                        name="orders_capreview_one_per_moment",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("cap_micros_per_mtok__gt", 0), ("cap_before_micros_per_mtok__gt", 0)
                        ),
                        name="orders_capreview_positive",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            (
                                "effective_from__gte",
                                django.db.models.expressions.CombinedExpression(
                                    models.F("created_at"), "+", models.Value(dt.timedelta(days=28))
                                ),
                            )
                        ),
                        name="orders_capreview_after_notice",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("reason", ""), _negated=True), name="orders_capreview_reasoned"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(
                                ("decline_reason", ""), ("declined_at__isnull", True), ("status", "scheduled")
                            ),
                            models.Q(
                                ("declined_at__isnull", False),
                                ("declined_at__lt", models.F("effective_from")),
                                ("status", "declined"),
                                models.Q(("decline_reason", ""), _negated=True),
                            ),
                            _connector="OR",
                        ),
                        name="orders_capreview_declined_in_time",
                    ),
                ],
            },
        ),
        migrations.AddConstraint(
            model_name="marketcontrol",
            constraint=models.UniqueConstraint(fields=("grade",), name="orders_marketcontrol_one_per_grade"),
        ),
        migrations.AddConstraint(
            model_name="marketcontrol",
            constraint=models.CheckConstraint(
                condition=models.Q(("status__in", ["normal", "capped", "halted"])),
                name="orders_marketcontrol_status_known",
            ),
        ),
        migrations.AddConstraint(
            model_name="marketcontrol",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        ("administered_cap_micros_per_mtok__gt", 0),
                        ("administered_cap_micros_per_mtok__isnull", False),
                        ("status", "capped"),
                    ),
                    models.Q(
                        models.Q(("status", "capped"), _negated=True),
                        ("administered_cap_micros_per_mtok__isnull", True),
                    ),
                    _connector="OR",
                ),
                name="orders_marketcontrol_cap_while_capped",
            ),
        ),
        migrations.AddConstraint(
            model_name="marketcontrol",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("status", "halted"), models.Q(("halted_because", ""), _negated=True)),
                    models.Q(models.Q(("status", "halted"), _negated=True), ("halted_because", "")),
                    _connector="OR",
                ),
                name="orders_marketcontrol_halted_says_why",
            ),
        ),
        migrations.AddConstraint(
            model_name="marketcontrol",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("administered_rate_micros_per_mtok__isnull", True),
                    ("administered_rate_micros_per_mtok__gt", 0),
                    _connector="OR",
                ),
                name="orders_marketcontrol_rate_positive",
            ),
        ),
        migrations.AddIndex(
            model_name="marketcontrolchange",
            index=models.Index(fields=["control", "-id"], name="orders_controlchange_by_time"),
        ),
        migrations.AddConstraint(
            model_name="marketcontrolchange",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("action", "tripped"), ("from_status", "normal"), ("to_status", "capped")),
                    models.Q(("action", "released"), ("from_status", "capped"), ("to_status", "normal")),
                    models.Q(
                        ("action", "halted"),
                        ("from_status__in", ["normal", "capped"]),
                        ("to_status", "halted"),
                    ),
                    models.Q(("action", "resumed"), ("from_status", "halted"), ("to_status", "normal")),
                    models.Q(("action", "rate_set"), ("from_status", models.F("to_status"))),
                    _connector="OR",
                ),
                name="orders_controlchange_move_allowed",
            ),
        ),
        migrations.AddConstraint(
            model_name="marketcontrolchange",
            constraint=models.CheckConstraint(
                condition=models.Q(("reason", ""), _negated=True), name="orders_controlchange_reasoned"
            ),
        ),
        migrations.AddConstraint(
            model_name="marketcontrolchange",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("actor_kind", ""), _negated=True),
                    models.Q(
                        models.Q(("actor_kind", "rule"), _negated=True),
                        ("actor_id__isnull", True),
                        _connector="OR",
                    ),
                ),
                name="orders_controlchange_rule_is_nobody",
            ),
        ),
        *append_only("orders_marketcontrolchange"),
        take_from_app("orders_marketcontrol", ["DELETE", "TRUNCATE"]),
        take_from_app("orders_capreview", ["DELETE", "TRUNCATE"]),
    ]
