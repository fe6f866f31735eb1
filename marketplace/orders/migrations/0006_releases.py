"""Released volume of committed contracts, and asks that stand for it."""

import django.db.models.deletion
from django.db import migrations, models

import marketplace.ids


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0002_one_operator_audit_append_only"),
        ("contracts", "0003_nominations"),
        ("orders", "0005_substitutes"),
        ("pricing", "0002_versions_and_immutability"),
        ("providers", "0003_outages"),
    ]

    operations = [
        migrations.CreateModel(
            name="Release",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=marketplace.ids.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("period_start", models.DateTimeField()),
                ("period_end", models.DateTimeField()),
                ("lots", models.BigIntegerField()),
                ("floor_micros_per_mtok", models.BigIntegerField()),
                (
                    "status",
                    models.CharField(
                        choices=[("placed", "Placed"), ("asked", "Asked"), ("closed", "Closed")],
                        default="placed",
                        max_length=10,
                    ),
                ),
                ("resold_lots", models.BigIntegerField(null=True)),
                ("rate_micros_per_mtok", models.BigIntegerField(null=True)),
                ("reason", models.CharField(blank=True, max_length=200)),
                ("created_at", models.DateTimeField()),
                ("closed_at", models.DateTimeField(null=True)),
            ],
        ),
        migrations.RemoveConstraint(
            model_name="ask",
            name="orders_ask_unique",
        ),
        migrations.RemoveConstraint(
            model_name="ask",
            name="orders_ask_awarded_within_lots",
        ),
        migrations.AddField(
            model_name="release",
            name="contract",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to="contracts.contract"
            ),
        ),
        migrations.AddField(
            model_name="release",
            name="grade",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to="pricing.grade"
            ),
        ),
        migrations.AddField(
            model_name="release",
            name="organization",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to="accounts.organization"
            ),
        ),
        migrations.AddField(
            model_name="ask",
            name="release",
            field=models.ForeignKey(
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="asks",
                to="orders.release",
            ),
        ),
        migrations.AddConstraint(
            model_name="ask",
            constraint=models.UniqueConstraint(
                fields=("auction", "offering", "release"), name="orders_ask_unique", nulls_distinct=False
            ),
        ),
        migrations.AddConstraint(
            model_name="ask",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("release__isnull", True), ("share_ppm__gt", 0)),
                    models.Q(("release__isnull", False), ("share_ppm", 0)),
                    _connector="OR",
                ),
                name="orders_ask_takes_a_share_once",
            ),
        ),
        migrations.AddConstraint(
            model_name="ask",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("lots__gt", 0), ("awarded_lots__gte", 0), ("awarded_lots__lte", models.F("lots"))
                ),
                name="orders_ask_awarded_within_lots",
            ),
        ),
        migrations.AddIndex(
            model_name="release",
            index=models.Index(
                condition=models.Q(("status", "closed"), _negated=True),
                fields=["grade", "period_start"],
                name="orders_release_open",
            ),
        ),
        migrations.AddConstraint(
            model_name="release",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("lots__gt", 0),
                    ("floor_micros_per_mtok__gte", 0),
                    ("period_end__gt", models.F("period_start")),
                ),
                name="orders_release_in_range",
            ),
        ),
        migrations.AddConstraint(
            model_name="release",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        ("closed_at__isnull", False), ("resold_lots__isnull", False), ("status", "closed")
                    ),
                    models.Q(
                        models.Q(("status", "closed"), _negated=True),
                        ("closed_at__isnull", True),
                        ("resold_lots__isnull", True),
                    ),
                    _connector="OR",
                ),
                name="orders_release_closed_says_what_was_resold",
            ),
        ),
        migrations.AddConstraint(
            model_name="release",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("resold_lots__isnull", True),
                    models.Q(("resold_lots__gte", 0), ("resold_lots__lte", models.F("lots"))),
                    _connector="OR",
                ),
                name="orders_release_resold_within_lots",
            ),
        ),
    ]
