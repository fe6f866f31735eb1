"""Deratings, and what hours and periods lack by them and by requests still running."""

import django.db.models.deletion
import django.db.models.expressions
from django.db import migrations, models

import marketplace.ids
from marketplace.accounts.append_only import take_from_app


class Migration(migrations.Migration):
    dependencies = [
        ("providers", "0003_outages"),
    ]

    operations = [
        migrations.CreateModel(
            name="Derating",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=marketplace.ids.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                (
                    "cause",
                    models.CharField(
                        choices=[("provider", "Provider"), ("engine", "Engine"), ("bench", "Bench")],
                        max_length=8,
                    ),
                ),
                ("available_ppm", models.BigIntegerField()),
                ("started_at", models.DateTimeField()),
                ("ended_at", models.DateTimeField(null=True)),
                ("created_at", models.DateTimeField()),
            ],
        ),
        migrations.AddField(
            model_name="hosthour",
            name="derated_ppm",
            field=models.BigIntegerField(db_default=0, default=0),
        ),
        migrations.AddField(
            model_name="hosthour",
            name="lost_ppm",
            field=models.BigIntegerField(db_default=0, default=0),
        ),
        migrations.AddField(
            model_name="hosthour",
            name="need_ppm",
            field=models.BigIntegerField(db_default=1000000, default=1000000),
        ),
        migrations.AddField(
            model_name="hostperiod",
            name="carry_over_ppm",
            field=models.BigIntegerField(db_default=0, default=0),
        ),
        migrations.AddField(
            model_name="hostperiod",
            name="derated_ppm",
            field=models.BigIntegerField(db_default=0, default=0),
        ),
        migrations.AddField(
            model_name="hostperiod",
            name="lost_ppm",
            field=models.BigIntegerField(db_default=0, default=0),
        ),
        migrations.AddField(
            model_name="hostperiod",
            name="need_ppm",
            field=models.BigIntegerField(db_default=1000000, default=1000000),
        ),
        migrations.AddConstraint(
            model_name="hosthour",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("lost_ppm__range", (0, 1000000)),
                    ("need_ppm__range", (1000000, 1000000000000)),
                    ("derated_ppm__gte", 0),
                    (
                        "sellable_ppm__lte",
                        django.db.models.expressions.CombinedExpression(
                            models.Value(1000000), "-", models.F("derated_ppm")
                        ),
                    ),
                ),
                name="providers_hosthour_derated_in_range",
            ),
        ),
        migrations.AddConstraint(
            model_name="hostperiod",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("carry_over_ppm__gte", 0),
                    ("lost_ppm__range", (0, 1000000)),
                    ("need_ppm__range", (1000000, 1000000000000)),
                    ("derated_ppm__gte", 0),
                    (
                        "sellable_ppm__lte",
                        django.db.models.expressions.CombinedExpression(
                            django.db.models.expressions.CombinedExpression(
                                models.Value(1000000), "-", models.F("carry_over_ppm")
                            ),
                            "-",
                            models.F("derated_ppm"),
                        ),
                    ),
                ),
                name="providers_hostperiod_derated_in_range",
            ),
        ),
        migrations.AddField(
            model_name="derating",
            name="host",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="deratings", to="providers.host"
            ),
        ),
        migrations.AddIndex(
            model_name="derating",
            index=models.Index(fields=["host", "started_at"], name="providers_derating_by_host"),
        ),
        migrations.AddConstraint(
            model_name="derating",
            constraint=models.CheckConstraint(
                condition=models.Q(("available_ppm__range", (0, 999999))),
                name="providers_derating_takes_something",
            ),
        ),
        migrations.AddConstraint(
            model_name="derating",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("ended_at__isnull", True), ("ended_at__gte", models.F("started_at")), _connector="OR"
                ),
                name="providers_derating_forwards",
            ),
        ),
        migrations.AddConstraint(
            model_name="derating",
            constraint=models.UniqueConstraint(
                condition=models.Q(("ended_at__isnull", True)),
                fields=("host", "cause"),
                name="providers_derating_one_open_per_cause",
            ),
        ),
        take_from_app("providers_derating", ["DELETE", "TRUNCATE"]),
    ]
