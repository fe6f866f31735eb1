"""Contracts that renew themselves, or end unpaid with a warning; what was promised counts under spend caps unrefused."""

from pathlib import Path

import django.db.models.deletion
from django.db import migrations, models

_SQL = Path(__file__).resolve().parent.parent / "sql"


class Migration(migrations.Migration):
    dependencies = (("contracts", "0013_month_tariffs"),)

    operations = (
        migrations.RunSQL((_SQL / "spend_caps.sql").read_text(), migrations.RunSQL.noop),
        migrations.CreateModel(
            name="Renewal",
            fields=[
                (
                    "contract",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT,
                        primary_key=True,
                        related_name="renewal",
                        serialize=False,
                        to="contracts.contract",
                    ),
                ),
                (
                    "status",
                    models.CharField(
                        choices=[
                            ("off", "Off"),
                            ("on", "On"),
                            ("renewed", "Renewed"),
                            ("not_renewed", "Not Renewed"),
                        ],
                        max_length=11,
                    ),
                ),
                ("max_rate_micros_per_mtok", models.BigIntegerField(null=True)),
                ("next_attempt_at", models.DateTimeField(null=True)),
                ("attempts", models.PositiveIntegerField(default=0)),
                ("problem", models.CharField(blank=True, max_length=40)),
                ("problem_detail", models.CharField(blank=True, max_length=300)),
                ("actor_kind", models.CharField(max_length=16)),
                ("actor_id", models.UUIDField(null=True)),
                ("changed_at", models.DateTimeField()),
            ],
        ),
        migrations.AddField(
            model_name="contract",
            name="renews",
            field=models.OneToOneField(
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="renewed_by",
                to="contracts.contract",
            ),
        ),
        migrations.AlterField(
            model_name="contractevent",
            name="kind",
            field=models.CharField(
                choices=[
                    ("created", "Created"),
                    ("suspended", "Suspended"),
                    ("resumed", "Resumed"),
                    ("freed", "Freed"),
                    ("warned", "Warned"),
                    ("terminated", "Terminated"),
                    ("amended", "Amended"),
                    ("renewed", "Renewed"),
                    ("not_renewed", "Not Renewed"),
                    ("ended", "Ended"),
                ],
                max_length=11,
            ),
        ),
        migrations.AddConstraint(
            model_name="contract",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("renews__isnull", True),
                    models.Q(("amends__isnull", True), ("kind", "committed")),
                    _connector="OR",
                ),
                name="contracts_contract_renews_or_amends",
            ),
        ),
        migrations.AddIndex(
            model_name="renewal",
            index=models.Index(
                condition=models.Q(("status", "on")), fields=["next_attempt_at"], name="contracts_renewal_due"
            ),
        ),
        migrations.AddConstraint(
            model_name="renewal",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("status", "off"),
                    models.Q(
                        ("max_rate_micros_per_mtok__gt", 0), ("max_rate_micros_per_mtok__isnull", False)
                    ),
                    _connector="OR",
                ),
                name="contracts_renewal_has_a_highest_rate",
            ),
        ),
        migrations.AddConstraint(
            model_name="renewal",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("next_attempt_at__isnull", False), ("status", "on")),
                    models.Q(models.Q(("status", "on"), _negated=True), ("next_attempt_at__isnull", True)),
                    _connector="OR",
                ),
                name="contracts_renewal_tried_while_on",
            ),
        ),
    )
