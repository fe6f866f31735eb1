"""What every table of ours promises: integers for money and quantity, named constraints, keys that protect."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from django.apps import apps
from django.db import connection, models

from tests.house import own_models

BIGINT_NAMES = re.compile(
    r".*_(micros|micros_per_mtok|lots|tokens|ppm|numerator|numerator_per_s|millijoules)$"
)
NOT_INTEGERS = ("real", "double precision", "numeric", "money")
APPEND_ONLY = (
    "ledger_transfer",
    "ledger_seal",
    "ledger_sealedbalance",
    "ledger_grantpart",
    "ledger_burninghold",
    "ledger_grantrefund",
    "metering_usageevent",
    "billing_charge",
    "accounts_auditentry",
    "accounts_taxidentity",
    "pricing_rate",
    "pricing_gradebucket",
    "pricing_tokenizercalibration",
    "pricing_calibrationclass",
    "providers_bench",
    "providers_failedattempt",
    "billing_deliveryoutcome",
    "billing_processorreport",
    "billing_invoiceline",
    "billing_invoicetax",
    "billing_invoicelinetax",
    "billing_invoicediscount",
    "billing_invoicestatuschange",
    "billing_creditnote",
    "billing_creditnoteline",
    "billing_dunningstep",
    "orders_priceindex",
    "orders_bidrevision",
    "orders_marketcontrolchange",
)
# Written by SQL functions alone, as their owner.
THROUGH_FUNCTIONS = (
    "ledger_transfer",
    "ledger_hold",
    "ledger_ledgeraccount",
    "ledger_seal",
    "ledger_sealedbalance",
    "ledger_grant",
    "ledger_grantpart",
    "ledger_burninghold",
    "ledger_grantrefund",
)
# Their state moves, the row stays.
NEVER_DELETED = (
    "ledger_hold",
    "ledger_ledgeraccount",
    "billing_invoice",
    "billing_invoicepayment",
    "billing_taxrule",
    "billing_discount",
    "billing_topup",
    "billing_payout",
    "billing_processoroperation",
    "billing_processorevent",
    "billing_paymentdispute",
    "billing_disputeshare",
    "billing_documentnumber",
    "pricing_grade",
    "pricing_gradefamily",
    "providers_host",
    "providers_offering",
    "providers_outage",
    "orders_marketcontrol",
    "orders_capreview",
)


def tables() -> list[str]:
    return [model._meta.db_table for model in own_models()]


def rows(statement: str, *values: str | list[str]) -> list[tuple[str, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        found: list[tuple[str, ...]] = cursor.fetchall()
    return found


def columns() -> list[tuple[str, ...]]:
    return rows(
        "SELECT table_name, column_name, data_type FROM information_schema.columns "
        "WHERE table_schema = 'public' AND split_part(table_name, '_', 1) = ANY(%s)",
        list({table.split("_")[0] for table in tables()}),
    )


def test_no_column_is_a_float_or_a_decimal(db: None) -> None:
    found = columns()
    assert {table for table, _, _ in found} >= set(tables())
    assert [column for column in found if column[2] in NOT_INTEGERS] == []


def test_money_and_quantities_have_64_bits(db: None) -> None:
    counted = [column for column in columns() if BIGINT_NAMES.fullmatch(column[1])]
    assert len(counted) > 60
    assert [column for column in counted if column[2] != "bigint"] == []


def test_every_table_has_a_primary_key(db: None) -> None:
    keyless = rows(
        """SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = 'public' AND c.relkind IN ('r', 'p')
              AND NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = c.oid AND k.contype = 'p')"""
    )
    assert keyless == []


def test_foreign_keys_to_the_books_protect_them() -> None:
    for model in own_models():
        for field in model._meta.get_fields():
            if not isinstance(field, models.ForeignKey):
                continue
            target = field.remote_field.model._meta.app_label
            if "ledger" in (target, model._meta.app_label) or "billing" in (target, model._meta.app_label):
                assert field.remote_field.on_delete is models.PROTECT, f"{model._meta.label}.{field.name}"


def named() -> Iterator[tuple[str, str, str]]:
    for model in own_models():
        for item in (*model._meta.constraints, *model._meta.indexes):
            yield model._meta.app_label, model._meta.label, item.name


def test_names_of_constraints_and_indexes_begin_with_the_app() -> None:
    found = list(named())
    assert len(found) > 60
    assert [entry for entry in found if not entry[2].startswith(f"{entry[0]}_")] == []


def test_every_constraint_of_the_models_stands_in_the_database(db: None) -> None:
    """By the name that services turn into a domain exception."""
    there = {
        name for (name,) in rows("SELECT conname FROM pg_constraint UNION SELECT indexname FROM pg_indexes")
    }
    assert [name for _, _, name in named() if name not in there] == []


def test_amounts_have_a_check_on_their_sign(db: None) -> None:
    """A negative amount is a direction, and directions are columns of their own; who may be negative is listed."""
    may_be_negative = {
        "billing_charge", "billing_earning", "billing_invoice", "billing_invoiceline", "billing_payout",
        "billing_statement", "billing_statementline", "contracts_accrual", "billing_documentnumber",
        "ledger_ledgeraccount",
        # Lines and their taxes may be credits, and so may what a note takes back of them.
        "billing_invoicetax", "billing_invoicelinetax", "billing_creditnote", "billing_creditnoteline",
        "billing_creditnotetax",
        "billing_processorreport",
    }  # fmt: skip
    checks = rows(
        "SELECT c.relname, pg_get_constraintdef(k.oid) FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid "
        "WHERE k.contype = 'c' AND k.connamespace = 'public'::regnamespace"
    )
    bare: list[str] = []
    for table, column, _ in columns():
        if column.endswith("_micros") and table not in may_be_negative:
            guarded = any(table == where and re.search(rf"\b{column}\b", text) for where, text in checks)
            if not guarded:
                bare.append(f"{table}.{column}")
    # What a hold was opened with: its amount at that moment, which is checked, kept to recognise a repetition.
    assert bare == ["ledger_hold.opened_micros"]


@pytest.mark.parametrize("table", APPEND_ONLY)
def test_the_app_role_appends_and_nothing_else(db: None, table: str) -> None:
    assert may(table) <= {"SELECT", "INSERT"}


@pytest.mark.parametrize("table", THROUGH_FUNCTIONS)
def test_the_app_role_writes_the_books_through_functions_alone(db: None, table: str) -> None:
    assert may(table) == {"SELECT"}


@pytest.mark.parametrize("table", NEVER_DELETED)
def test_the_app_role_deletes_no_history(db: None, table: str) -> None:
    assert may(table).isdisjoint({"DELETE", "TRUNCATE"})


def test_the_app_role_owns_and_truncates_no_table(db: None) -> None:
    names = [name for (name,) in rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
    assert [name for name in names if "TRUNCATE" in may(name)] == []
    assert (
        rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tableowner = current_user")
        == []
    )


def may(table: str) -> set[str]:
    wanted = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE")
    [allowed] = rows(
        "SELECT " + ", ".join(["has_table_privilege(%s, %s)"] * 5), *sum(((table, p) for p in wanted), ())
    )
    return {privilege for privilege, yes in zip(wanted, allowed, strict=True) if yes}


def test_primary_keys_carry_their_time() -> None:
    """UUIDv7, never a serial number that tells how many customers there are."""
    serial = {
        model._meta.label
        for model in own_models()
        if isinstance(model._meta.pk, models.AutoField) and model._meta.managed
    }
    assert serial <= SERIAL, serial - SERIAL


# Rows that no address and no document names.
SERIAL = frozenset({"marketplace.JobRun"})


def test_every_app_of_ours_is_looked_at() -> None:
    own = {
        config.label
        for config in apps.get_app_configs()
        if config.name.split(".")[0] in ("marketplace", "metering", "pricing", "providers")
    }
    assert own - {"portal"} == {model._meta.app_label for model in own_models()}
