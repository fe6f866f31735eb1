"""The published price index: append-only, one value per family, window and method."""

import django.db.models.deletion
from django.db import migrations, models

from marketplace.accounts.append_only import append_only


class Migration(migrations.Migration):
    dependencies = [
        ("orders", "0003_market_controls"),
        ("pricing", "0002_versions_and_immutability"),
    ]

    operations = [
        migrations.CreateModel(
            name="PriceIndex",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False)),
                ("span", models.CharField(choices=[("hour", "Hour"), ("day", "Day")], max_length=4)),
                ("window_start", models.DateTimeField()),
                ("window_end", models.DateTimeField()),
                ("method_version", models.CharField(max_length=32)),
                ("rate_micros_per_mtok", models.BigIntegerField(null=True)),
                (
                    "basis",
                    models.CharField(
                        choices=[
                            ("spot", "Spot"),
                            ("committed", "Committed"),
                            ("carried", "Carried"),
                            ("none", "None"),
                        ],
                        max_length=9,
                    ),
                ),
                ("trades", models.BigIntegerField()),
                ("auctions", models.BigIntegerField()),
                ("groups", models.BigIntegerField()),
                ("lots", models.BigIntegerField()),
                ("inputs_digest", models.CharField(max_length=64)),
                ("published_at", models.DateTimeField()),
                (
                    "family",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="pricing.gradefamily",
                    ),
                ),
                (
                    "previous",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="orders.priceindex",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("family", "span", "method_version", "window_start"),
                        name="orders_priceindex_one_per_window",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("window_end__gt", models.F("window_start")),
                            ("published_at__gte", models.F("window_end")),
                        ),
                        name="orders_priceindex_after_its_window",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("basis", "none"), ("rate_micros_per_mtok__isnull", True)),
                            models.Q(
                                ("basis__in", ["spot", "committed", "carried"]),
                                ("rate_micros_per_mtok__gte", 0),
                            ),
                            _connector="OR",
                        ),
                        name="orders_priceindex_rate_or_none",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("basis", "carried"), _negated=True),
                            ("previous__isnull", False),
                            _connector="OR",
                        ),
                        name="orders_priceindex_carried_from_previous",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("trades__gte", 0), ("auctions__gte", 0), ("groups__gte", 0), ("lots__gte", 0)
                        ),
                        name="orders_priceindex_not_negative",
                    ),
                ],
            },
        ),
        migrations.AddIndex(
            model_name="auction",
            index=models.Index(fields=["published_at"], name="orders_auction_by_publication"),
        ),
        *append_only("orders_priceindex"),
    ]
