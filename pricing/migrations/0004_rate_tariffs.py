"""Tiers, volume prices and packages behind list rates."""

import django.db.models.deletion
from django.db import migrations, models

import marketplace.ids
from marketplace.accounts.append_only import append_only


class Migration(migrations.Migration):
    dependencies = [
        ("pricing", "0003_service_levels"),
    ]

    operations = [
        migrations.CreateModel(
            name="RateTariff",
            fields=[
                (
                    "rate",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT,
                        primary_key=True,
                        related_name="tariff",
                        serialize=False,
                        to="pricing.rate",
                    ),
                ),
                (
                    "kind",
                    models.CharField(
                        choices=[("graduated", "Graduated"), ("volume", "Volume"), ("package", "Package")],
                        max_length=12,
                    ),
                ),
                ("unit_numerator", models.BigIntegerField()),
                ("package_micros", models.BigIntegerField(null=True)),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            ("kind__in", ["graduated", "volume"]),
                            ("package_micros__isnull", True),
                            ("unit_numerator", 1),
                        )
                        | models.Q(("kind", "package"), ("package_micros__gt", 0), ("unit_numerator__gt", 1)),
                        name="pricing_ratetariff_of_a_kind",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="RateTier",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=marketplace.ids.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("place", models.PositiveSmallIntegerField()),
                ("up_to_numerator", models.BigIntegerField(null=True)),
                ("micros_per_mtok", models.BigIntegerField()),
                (
                    "tariff",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="tiers",
                        to="pricing.ratetariff",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(fields=("tariff", "place"), name="pricing_ratetier_place_unique"),
                    models.UniqueConstraint(
                        fields=("tariff", "up_to_numerator"),
                        name="pricing_ratetier_bound_unique",
                        nulls_distinct=False,
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("micros_per_mtok__gte", 0),
                            models.Q(
                                ("up_to_numerator__isnull", True),
                                ("up_to_numerator__gt", 0),
                                _connector="OR",
                            ),
                        ),
                        name="pricing_ratetier_in_range",
                    ),
                ],
            },
        ),
        *append_only("pricing_ratetariff"),
        *append_only("pricing_ratetier"),
    ]
