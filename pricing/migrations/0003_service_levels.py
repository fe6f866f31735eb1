"""What a grade version promises of speed: optional, and fixed like the rest of it."""

import django.db.models.deletion
from django.db import migrations, models

import marketplace.ids
from marketplace.accounts.append_only import append_only


class Migration(migrations.Migration):
    dependencies = [
        ("pricing", "0002_versions_and_immutability"),
    ]

    operations = [
        migrations.CreateModel(
            name="ServiceLevel",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=marketplace.ids.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                (
                    "metric",
                    models.CharField(
                        choices=[("first_token", "First Token"), ("output_token", "Output Token")],
                        max_length=16,
                    ),
                ),
                ("percentile", models.PositiveSmallIntegerField()),
                ("limit_us", models.BigIntegerField()),
                ("credit_ppm", models.BigIntegerField()),
                ("minimum_requests", models.BigIntegerField()),
                ("max_input_tokens", models.BigIntegerField(null=True)),
                (
                    "grade",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="service_levels",
                        to="pricing.grade",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("grade", "metric", "percentile"), name="pricing_servicelevel_unique"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("metric__in", ["first_token", "output_token"])),
                        name="pricing_servicelevel_known",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("percentile__gte", 1),
                            ("percentile__lte", 99),
                            ("limit_us__gt", 0),
                            ("credit_ppm__gt", 0),
                            ("credit_ppm__lte", 1000000),
                            ("minimum_requests__gt", 0),
                            models.Q(
                                ("max_input_tokens__isnull", True),
                                ("max_input_tokens__gt", 0),
                                _connector="OR",
                            ),
                        ),
                        name="pricing_servicelevel_in_range",
                    ),
                ],
            },
        ),
        *append_only("pricing_servicelevel"),
    ]
