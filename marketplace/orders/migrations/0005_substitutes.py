"""Bids that take other grades for their own, and the auctions that such bids join."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("contracts", "0001_initial"),
        ("orders", "0004_price_index"),
        ("pricing", "0001_initial"),
    ]

    operations = [
        migrations.AddField(model_name="auction", name="joined", field=models.JSONField(default=list)),
        migrations.AddField(model_name="auction", name="left_out", field=models.JSONField(default=list)),
        migrations.CreateModel(
            name="BidSubstitute",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False)),
                ("adjustment_micros_per_mtok", models.BigIntegerField()),
                ("withdrawn_at", models.DateTimeField(null=True)),
                ("created_at", models.DateTimeField()),
                (
                    "bid",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="substitutes",
                        to="orders.bid",
                    ),
                ),
                (
                    "contract",
                    models.OneToOneField(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="contracts.contract",
                    ),
                ),
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
                        fields=("bid", "grade"), name="orders_bidsubstitute_once_a_grade"
                    ),
                ],
            },
        ),
    ]
