"""Test clocks of organizations in a sandbox market."""

import django.db.models.deletion
from django.db import migrations, models

import marketplace.ids


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0006_regions"),
    ]

    operations = [
        migrations.CreateModel(
            name="OrganizationClock",
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
                        choices=[("ready", "Ready"), ("advancing", "Advancing"), ("failed", "Failed")],
                        default="ready",
                        max_length=10,
                    ),
                ),
                ("now_at", models.DateTimeField()),
                ("from_at", models.DateTimeField(null=True)),
                ("target_at", models.DateTimeField(null=True)),
                ("stop_at", models.DateTimeField(null=True)),
                ("failure", models.CharField(blank=True, max_length=300)),
                ("advances", models.PositiveIntegerField(default=0)),
                ("worker_id", models.UUIDField(null=True)),
                ("worker_until", models.DateTimeField(null=True)),
                ("created_at", models.DateTimeField()),
                (
                    "organization",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="test_clock",
                        to="accounts.organization",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("now_at__gte", models.F("created_at"))),
                        name="accounts_organizationclock_forwards",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("advances", 0), ("from_at__isnull", True), ("target_at__isnull", True)),
                            models.Q(
                                ("advances__gt", 0),
                                ("from_at__isnull", False),
                                ("from_at__lte", models.F("now_at")),
                                ("now_at__lte", models.F("target_at")),
                                ("target_at__isnull", False),
                            ),
                            _connector="OR",
                        ),
                        name="accounts_organizationclock_within_its_advance",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("stop_at__isnull", True),
                            models.Q(
                                models.Q(("status", "ready"), _negated=True),
                                ("stop_at__gt", models.F("now_at")),
                                ("stop_at__lte", models.F("target_at")),
                            ),
                            _connector="OR",
                        ),
                        name="accounts_organizationclock_stop_on_its_way",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("status", "ready"), _negated=True),
                            ("target_at__isnull", True),
                            ("now_at", models.F("target_at")),
                            _connector="OR",
                        ),
                        name="accounts_organizationclock_ready_has_arrived",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("status", "failed"), models.Q(("failure", ""), _negated=True)),
                            models.Q(models.Q(("status", "failed"), _negated=True), ("failure", "")),
                            _connector="OR",
                        ),
                        name="accounts_organizationclock_failed_says_why",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("worker_id__isnull", True), ("worker_until__isnull", True)),
                            models.Q(("worker_id__isnull", False), ("worker_until__isnull", False)),
                            _connector="OR",
                        ),
                        name="accounts_organizationclock_one_worker",
                    ),
                ],
            },
        ),
    ]
