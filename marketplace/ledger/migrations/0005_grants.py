"""Grants, and holds that burn them."""

from pathlib import Path

import django.db.models.deletion
from django.db import migrations, models

from marketplace.accounts.append_only import append_only, take_from_app

_SQL = Path(__file__).parent.parent / "sql"
_FUNCTIONS = (_SQL / "grants.sql").read_text()
_WRITES = ("INSERT", "UPDATE", "DELETE", "TRUNCATE")


def _as_it_was(name: str) -> str:
    """The function's text before this migration."""
    text = (_SQL / "functions.sql").read_text()
    start = text.index(f"CREATE FUNCTION {name}(")
    return text[start : text.index("END $$;", start) + 7].replace("CREATE", "CREATE OR REPLACE", 1)


_BACK = """
DROP FUNCTION ledger_end_grant(uuid, text, uuid, uuid, uuid, timestamptz);
DROP FUNCTION ledger_draw_grants(uuid, bigint, timestamptz);
DROP FUNCTION ledger_let_hold_burn(uuid, uuid);
DROP FUNCTION ledger_unburn_grants(uuid, bigint);
DROP FUNCTION ledger_burn_grants(uuid, uuid, uuid, bigint, timestamptz);
DROP FUNCTION ledger_give_grant(
    uuid, uuid, uuid, text, text, bigint, bigint, integer, uuid, timestamptz, uuid, uuid, timestamptz
);
DROP FUNCTION ledger_lock_grants(uuid);
""" + "\n".join(map(_as_it_was, ("ledger_change_hold", "ledger_account_id")))


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0002_one_operator_audit_append_only"),
        ("ledger", "0004_seals_and_grants"),
    ]

    operations = [
        migrations.CreateModel(
            name="BurningHold",
            fields=[
                (
                    "hold",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT,
                        primary_key=True,
                        related_name="+",
                        serialize=False,
                        to="ledger.hold",
                    ),
                ),
                ("grade_id", models.UUIDField()),
            ],
        ),
        migrations.AlterField(
            model_name="ledgeraccount",
            name="kind",
            field=models.CharField(
                choices=[
                    ("prepaid", "Prepaid balance of a buyer"),
                    ("receivable", "What a buyer in arrears owes (bounded by his credit line)"),
                    ("payable", "What the market owes a provider"),
                    ("deferred", "Prepaid committed volume not yet delivered (one per contract)"),
                    ("bond", "Provider bond"),
                    ("grant", "Credit burned before the own balance (one per grant)"),
                    ("fees", "Market fees earned"),
                    ("breakage", "What was left of expired grants"),
                    ("tax", "Tax collected"),
                    ("rounding", "Remainders of micros to minor units on documents"),
                    ("processor", "Money at the payment processor"),
                    ("operator", "The operator's own money"),
                ],
                max_length=16,
            ),
        ),
        migrations.CreateModel(
            name="Grant",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False)),
                (
                    "kind",
                    models.CharField(
                        choices=[("granted", "Granted"), ("purchased", "Purchased")], max_length=9
                    ),
                ),
                ("currency", models.CharField(max_length=3)),
                ("amount_micros", models.BigIntegerField()),
                ("free_micros", models.BigIntegerField()),
                ("cost_basis_ppm", models.BigIntegerField()),
                ("priority", models.SmallIntegerField()),
                ("grade_id", models.UUIDField(null=True)),
                ("expires_at", models.DateTimeField(null=True)),
                (
                    "status",
                    models.CharField(
                        choices=[("open", "Open"), ("expired", "Expired"), ("revoked", "Revoked")],
                        default="open",
                        max_length=7,
                    ),
                ),
                ("created_at", models.DateTimeField()),
                ("ended_at", models.DateTimeField(null=True)),
                (
                    "account",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="ledger.ledgeraccount",
                    ),
                ),
                (
                    "organization",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="accounts.organization",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="GrantPart",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "hold", "grant", blank=True, editable=False, primary_key=True, serialize=False
                    ),
                ),
                (
                    "grant",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to="ledger.grant"
                    ),
                ),
                (
                    "hold",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="ledger.hold",
                    ),
                ),
                (
                    "part",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT, related_name="+", to="ledger.hold"
                    ),
                ),
            ],
        ),
        migrations.AddIndex(
            model_name="grant",
            index=models.Index(
                condition=models.Q(("status", "open"), ("free_micros__gt", 0)),
                fields=["organization", "priority", "expires_at", "kind", "created_at", "id"],
                name="ledger_grant_in_order",
            ),
        ),
        migrations.AddIndex(
            model_name="grant",
            index=models.Index(
                condition=models.Q(("free_micros__gt", 0), ("expires_at__isnull", False)),
                fields=["expires_at"],
                name="ledger_grant_to_expire",
            ),
        ),
        migrations.AddIndex(
            model_name="grant",
            index=models.Index(fields=["organization", "id"], name="ledger_grant_by_organization"),
        ),
        migrations.AddConstraint(
            model_name="grant",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("amount_micros__gt", 0),
                    ("free_micros__gte", 0),
                    ("free_micros__lte", models.F("amount_micros")),
                ),
                name="ledger_grant_free_within_amount",
            ),
        ),
        migrations.AddConstraint(
            model_name="grant",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("cost_basis_ppm", 0), ("kind", "granted")),
                    models.Q(
                        ("cost_basis_ppm__gte", 0), ("cost_basis_ppm__lte", 1000000), ("kind", "purchased")
                    ),
                    _connector="OR",
                ),
                name="ledger_grant_cost_basis",
            ),
        ),
        migrations.AddConstraint(
            model_name="grant",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("ended_at__isnull", True), ("status", "open")),
                    models.Q(models.Q(("status", "open"), _negated=True), ("ended_at__isnull", False)),
                    _connector="OR",
                ),
                name="ledger_grant_ends_once",
            ),
        ),
        migrations.RunSQL(_FUNCTIONS, _BACK),
        *append_only("ledger_grantpart"),
        *append_only("ledger_burninghold"),
        take_from_app("ledger_grantpart", ["INSERT"]),
        take_from_app("ledger_burninghold", ["INSERT"]),
        take_from_app("ledger_grant", _WRITES),
    ]
