"""What settlement periods were measured at, and the credits for it; a service credit is a negative charge of no volume."""

import django.db.models.deletion
from django.db import migrations, models

import marketplace.ids
from marketplace.accounts.append_only import append_only


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0002_one_operator_audit_append_only"),
        ("billing", "0007_processor_operations"),
        ("contracts", "0002_hold_functions"),
        ("pricing", "0003_service_levels"),
        ("providers", "0003_outages"),
    ]

    operations = [
        migrations.CreateModel(
            name="ServiceFigure",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=marketplace.ids.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("requests", models.BigIntegerField()),
                ("measured_us", models.BigIntegerField(null=True)),
                ("is_broken", models.BooleanField()),
            ],
        ),
        migrations.CreateModel(
            name="ServicePeriod",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False)),
                ("run", models.PositiveIntegerField()),
                ("period_start", models.DateTimeField()),
                ("period_end", models.DateTimeField()),
                ("gross_micros", models.BigIntegerField()),
                ("remedy_micros", models.BigIntegerField()),
                ("credit_micros", models.BigIntegerField()),
                ("created_at", models.DateTimeField()),
            ],
        ),
        migrations.RemoveConstraint(
            model_name="charge",
            name="billing_charge_not_negative",
        ),
        migrations.AddConstraint(
            model_name="charge",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        ("amount_micros__gte", 0), ("numerator__gte", 0), ("estimated_numerator__gte", 0)
                    ),
                    ("kind", "adjustment"),
                    models.Q(
                        ("estimated_numerator", 0),
                        ("kind__in", ["remedy", "release", "service_credit"]),
                        ("numerator", 0),
                    ),
                    _connector="OR",
                ),
                name="billing_charge_not_negative",
            ),
        ),
        migrations.AddField(
            model_name="servicefigure",
            name="level",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to="pricing.servicelevel"
            ),
        ),
        migrations.AddField(
            model_name="serviceperiod",
            name="contract",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to="contracts.contract"
            ),
        ),
        migrations.AddField(
            model_name="serviceperiod",
            name="grade",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to="pricing.grade"
            ),
        ),
        migrations.AddField(
            model_name="serviceperiod",
            name="offering",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to="providers.offering"
            ),
        ),
        migrations.AddField(
            model_name="serviceperiod",
            name="organization",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to="accounts.organization"
            ),
        ),
        migrations.AddField(
            model_name="serviceperiod",
            name="provider_organization",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to="accounts.organization"
            ),
        ),
        migrations.AddField(
            model_name="serviceperiod",
            name="settlement",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT,
                related_name="service_periods",
                to="billing.settlement",
            ),
        ),
        migrations.AddField(
            model_name="servicefigure",
            name="period",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT,
                related_name="figures",
                to="billing.serviceperiod",
            ),
        ),
        migrations.AddIndex(
            model_name="serviceperiod",
            index=models.Index(fields=["organization", "period_start"], name="billing_service_by_buyer"),
        ),
        migrations.AddIndex(
            model_name="serviceperiod",
            index=models.Index(
                fields=["provider_organization", "period_start"], name="billing_service_by_provider"
            ),
        ),
        migrations.AddConstraint(
            model_name="serviceperiod",
            constraint=models.UniqueConstraint(
                fields=("contract", "period_start", "offering", "grade", "run"),
                name="billing_serviceperiod_unique",
            ),
        ),
        migrations.AddConstraint(
            model_name="serviceperiod",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("remedy_micros__gte", 0),
                    ("credit_micros__gte", 0),
                    ("credit_micros__lte", models.F("gross_micros")),
                ),
                name="billing_serviceperiod_credit_within_gross",
            ),
        ),
        migrations.AddConstraint(
            model_name="serviceperiod",
            constraint=models.CheckConstraint(
                condition=models.Q(("period_end__gt", models.F("period_start"))),
                name="billing_serviceperiod_forwards",
            ),
        ),
        migrations.AddConstraint(
            model_name="servicefigure",
            constraint=models.UniqueConstraint(
                fields=("period", "level"), name="billing_servicefigure_unique"
            ),
        ),
        migrations.AddConstraint(
            model_name="servicefigure",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("requests", 0), ("measured_us__isnull", True), ("is_broken", False)),
                    models.Q(("requests__gt", 0), ("measured_us__gte", 0)),
                    _connector="OR",
                ),
                name="billing_servicefigure_measured_or_not",
            ),
        ),
        *append_only("billing_serviceperiod"),
        *append_only("billing_servicefigure"),
    ]
