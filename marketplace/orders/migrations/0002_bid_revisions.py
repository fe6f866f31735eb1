"""Bids can be revised and end at a time; every change is kept, append-only, with the receipt the market signed."""

import django.db.models.deletion
from django.db import migrations, models

import marketplace.ids
from marketplace.accounts.append_only import append_only


class Migration(migrations.Migration):
    dependencies = [("orders", "0001_initial")]

    operations = [
        migrations.AddField("bid", "revision", models.PositiveIntegerField(default=1)),
        migrations.AddField("bid", "valid_until", models.DateTimeField(null=True)),
        migrations.AddField("bid", "priority_at", models.DateTimeField(null=True)),
        # Until now no bid could ask for more than it was placed with.
        migrations.RunSQL("UPDATE orders_bid SET priority_at = created_at", migrations.RunSQL.noop),
        # Checked deferred, the update's foreign keys would hold up the change of the column.
        migrations.RunSQL("SET CONSTRAINTS ALL IMMEDIATE", migrations.RunSQL.noop),
        migrations.AlterField("bid", "priority_at", models.DateTimeField()),
        migrations.AddConstraint(
            "bid",
            models.CheckConstraint(
                condition=models.Q(("standing", True), ("valid_until__isnull", True), _connector="OR"),
                name="orders_bid_valid_until_only_standing",
            ),
        ),
        migrations.AddConstraint(
            "bid",
            models.CheckConstraint(
                condition=models.Q(("revision__gte", 1)), name="orders_bid_revision_from_one"
            ),
        ),
        migrations.AddIndex(
            "bid",
            models.Index(
                condition=models.Q(("status", "open"), ("valid_until__isnull", False)),
                fields=["valid_until"],
                name="orders_bid_open_by_end",
            ),
        ),
        migrations.CreateModel(
            name="BidRevision",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=marketplace.ids.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("number", models.PositiveIntegerField()),
                (
                    "event",
                    models.CharField(
                        choices=[("placed", "Placed"), ("revised", "Revised"), ("cancelled", "Cancelled")],
                        max_length=10,
                    ),
                ),
                ("terms", models.JSONField()),
                ("terms_sha256", models.BinaryField(max_length=32)),
                ("held_micros", models.BigIntegerField()),
                ("receipt", models.JSONField()),
                ("signature", models.BinaryField(max_length=64)),
                ("actor_kind", models.CharField(max_length=16)),
                ("actor_id", models.UUIDField(null=True)),
                ("created_at", models.DateTimeField()),
                (
                    "bid",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="revisions",
                        to="orders.bid",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("bid", "number"), name="orders_bidrevision_number_unique"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("number__gte", 1), ("held_micros__gte", 0)),
                        name="orders_bidrevision_in_range",
                    ),
                ],
            },
        ),
        *append_only("orders_bidrevision"),
    ]
