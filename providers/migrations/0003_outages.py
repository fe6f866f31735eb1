"""Outages of one offering, when each was recorded, no two of a kind at once; attempts that hosts refused or failed."""

from datetime import UTC, datetime

import django.db.models.deletion
from django.db import migrations, models

from marketplace.accounts.append_only import append_only

_APART = """
ALTER TABLE providers_outage ADD CONSTRAINT providers_outage_apart EXCLUDE USING gist (
    uuidrange(md5(coalesce(offering_id, host_id)::text || kind)::uuid,
              md5(coalesce(offering_id, host_id)::text || kind)::uuid, '[]') WITH &&,
    tstzrange(started_at, ended_at) WITH &&
)
"""


class Migration(migrations.Migration):
    dependencies = [
        ("providers", "0002_grants"),
        ("pricing", "0002_versions_and_immutability"),
    ]

    operations = [
        migrations.CreateModel(
            name="FailedAttempt",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False)),
                (
                    "cause",
                    models.CharField(
                        choices=[("refused", "Refused"), ("failed_attempt", "Failed")], max_length=14
                    ),
                ),
                ("occurred_at", models.DateTimeField()),
            ],
        ),
        migrations.AddField(
            model_name="outage",
            name="created_at",
            field=models.DateTimeField(default=datetime(1970, 1, 1, tzinfo=UTC)),
            preserve_default=False,
        ),
        migrations.AddField(
            model_name="outage",
            name="offering",
            field=models.ForeignKey(
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to="providers.offering",
            ),
        ),
        migrations.AlterField(
            model_name="outage",
            name="kind",
            field=models.CharField(
                choices=[
                    ("heartbeat", "Heartbeat"),
                    ("refused", "Refused"),
                    ("failed_attempt", "Failed Attempt"),
                    ("withdrawn", "Withdrawn"),
                    ("planned", "Planned"),
                ],
                max_length=14,
            ),
        ),
        migrations.AddIndex(
            model_name="outage",
            index=models.Index(fields=["host", "started_at"], name="providers_outage_by_host"),
        ),
        migrations.AddField(
            model_name="failedattempt",
            name="offering",
            field=models.ForeignKey(
                db_index=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to="providers.offering",
            ),
        ),
        migrations.AddIndex(
            model_name="failedattempt",
            index=models.Index(fields=["offering", "occurred_at"], name="providers_failedattempt_when"),
        ),
        migrations.RunSQL(_APART, "ALTER TABLE providers_outage DROP CONSTRAINT providers_outage_apart"),
        *append_only("providers_failedattempt"),
    ]
