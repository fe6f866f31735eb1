from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from uuid import UUID

import psycopg
import pytest
from django.contrib.auth import authenticate
from django.db import DatabaseError, connection, transaction

from marketplace.accounts.models import ApiKey, AuditEntry, Membership, Organization
from marketplace.accounts.selectors import find_api_key, memberships_of, operator_organization
from marketplace.accounts.services import (
    SYSTEM,
    LastOwner,
    OperatorExists,
    ScopeNotAllowed,
    add_member,
    create_api_key,
    create_organization,
    create_user,
    ensure_operator,
    record_key_use,
    remove_member,
    revoke_api_key,
    update_organization,
)
from marketplace.accounts.tax_numbers import can_be_tax_number
from marketplace.errors import Conflict, InvalidInput, NotFound
from marketplace.ids import uuid7
from tests.cast import PASSWORD, Party
from tests.conftest import TestDatabase


def test_only_the_digest_of_a_key_is_kept(acme: Party) -> None:
    api_key = ApiKey.objects.get(pk=acme.api_key_id)
    prefix, key_id, secret = acme.secret.split("_")
    assert (prefix, key_id) == ("ty", api_key.key_id)
    assert bytes(api_key.secret_sha256) == hashlib.sha256(secret.encode()).digest()
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM accounts_apikey AS k WHERE k::text LIKE %s", [f"%{secret}%"])
        assert cursor.fetchone() == (0,)
        cursor.execute("SELECT count(*) FROM accounts_auditentry AS e WHERE e::text LIKE %s", [f"%{secret}%"])
        assert cursor.fetchone() == (0,)


def test_unknown_wrong_expired_and_revoked_keys_are_one_answer(acme: Party, now: datetime) -> None:
    def make(expires_at: datetime | None = None) -> tuple[ApiKey, str]:
        return create_api_key(
            organization_id=acme.id, label="", scopes=["read"], expires_at=expires_at, now=now, actor=SYSTEM
        )

    _, good = make()
    revoked, revoked_text = make()
    revoke_api_key(organization_id=acme.id, api_key_id=revoked.id, now=now, actor=SYSTEM)
    _, expired_text = make(expires_at=now + timedelta(hours=1))
    later = now + timedelta(hours=1)
    wrong = good[:-1] + ("a" if good[-1] != "a" else "b")
    unknown = f"ty_{'a' * 16}_{good.rsplit('_', 1)[1]}"
    found = find_api_key(good, later)
    assert found is not None
    assert found.organization_id == acme.id
    for text in (
        wrong,
        unknown,
        revoked_text,
        expired_text,
        "",
        "ty_",
        good + "x",
        good.upper(),
        "ty_\x00_é",
    ):
        assert find_api_key(text, later) is None
    assert find_api_key(expired_text, later - timedelta(microseconds=1)) is not None


def test_a_key_is_found_with_one_indexed_query(
    acme: Party, now: datetime, django_assert_num_queries: object
) -> None:
    with django_assert_num_queries(1):  # type: ignore[operator]
        found = find_api_key(acme.secret, now)
        assert found is not None
        assert found.organization.has_role("buyer")


def test_use_is_noted_at_most_once_a_minute(acme: Party, now: datetime) -> None:
    def noted(at: datetime) -> datetime | None:
        record_key_use(api_key=ApiKey.objects.get(pk=acme.api_key_id), now=at)
        return ApiKey.objects.get(pk=acme.api_key_id).last_used_at

    assert noted(now) == now
    assert noted(now + timedelta(seconds=59)) == now
    assert noted(now + timedelta(seconds=60)) == now + timedelta(seconds=60)


def test_a_key_gets_no_scope_beyond_its_roles_or_its_maker(acme: Party, now: datetime) -> None:
    before = ApiKey.objects.count()
    for scopes in (["operate"], ["read", "provide"], ["everything"]):
        with pytest.raises(ScopeNotAllowed):
            create_api_key(organization_id=acme.id, label="", scopes=scopes, now=now, actor=SYSTEM)
    with pytest.raises(ScopeNotAllowed):
        create_api_key(
            organization_id=acme.id,
            label="",
            scopes=["read", "trade"],
            within_scopes=["read", "manage"],
            now=now,
            actor=SYSTEM,
        )
    for scopes in ([], ["read", "read"]):
        with pytest.raises(InvalidInput):
            create_api_key(organization_id=acme.id, label="", scopes=scopes, now=now, actor=SYSTEM)
    assert ApiKey.objects.count() == before


def test_another_organizations_key_cannot_be_revoked(acme: Party, mallory: Party, now: datetime) -> None:
    with pytest.raises(NotFound):
        revoke_api_key(organization_id=mallory.id, api_key_id=acme.api_key_id, now=now, actor=SYSTEM)
    assert find_api_key(acme.secret, now) is not None


def test_revoking_twice_is_revoking_once(acme: Party, now: datetime) -> None:
    for at in (now, now + timedelta(days=1)):
        revoke_api_key(organization_id=acme.id, api_key_id=acme.api_key_id, now=at, actor=SYSTEM)
    assert ApiKey.objects.get(pk=acme.api_key_id).revoked_at == now
    assert AuditEntry.objects.filter(action="api_key.revoked").count() == 1


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("name", "roles", "field"),
    [
        ("", ["buyer"], "name"),
        ("   ", ["buyer"], "name"),
        ("x" * 201, ["buyer"], "name"),
        ("a\x00b", ["buyer"], "name"),
        ("a\ud800b", ["buyer"], "name"),
        ("A", [], "roles"),
        ("A", ["seller"], "roles"),
        ("A", ["buyer", "buyer"], "roles"),
    ],
)
def test_bad_organizations_are_refused_by_field(
    name: str, roles: list[str], field: str, now: datetime
) -> None:
    with pytest.raises(InvalidInput) as refused:
        create_organization(name=name, roles=roles, now=now)
    assert refused.value.field == field
    assert not Organization.objects.exists()
    assert not AuditEntry.objects.exists()


def test_names_are_unique_whatever_their_case(acme: Party, now: datetime) -> None:
    with pytest.raises(Conflict) as refused:
        create_organization(name="aCME", roles=["buyer"], now=now)
    assert refused.value.field == "name"


def test_a_market_has_one_operator(operator: Party, now: datetime) -> None:
    with pytest.raises(OperatorExists):
        create_organization(name="Second", roles=["operator"], now=now)
    assert ensure_operator(now=now) == operator.organization == operator_organization()


def test_ten_processes_make_one_operator(committed_db: TestDatabase, now: datetime) -> None:
    with pytest.raises(NotFound):
        operator_organization()

    def ensure(_: int) -> UUID:
        try:
            return ensure_operator(now=now).id
        finally:
            connection.close()

    with ThreadPoolExecutor(10) as pool:
        assert len(set(pool.map(ensure, range(10)))) == 1


def test_the_legal_identity_changes_and_the_trail_says_who(acme: Party, now: datetime) -> None:
    changed = update_organization(
        organization_id=acme.id,
        changes={"legal_name": " Acme Ltd ", "country": "DE"},
        now=now,
        actor=SYSTEM,
    )
    assert (changed.legal_name, changed.country) == ("Acme Ltd", "DE")
    entry = AuditEntry.objects.order_by("-id")[0]
    assert (entry.action, entry.detail) == (
        "organization.updated",
        {"fields": ["country", "legal_name"]},
    )
    with pytest.raises(InvalidInput):
        update_organization(organization_id=acme.id, changes={"country": "de"}, now=now, actor=SYSTEM)


def test_a_person_signs_in_whatever_the_case_of_the_address(acme: Party, now: datetime) -> None:
    assert authenticate(username="OWNER@acme.example", password=PASSWORD) == acme.user
    assert authenticate(username="owner@acme.example", password="wrong") is None
    assert [one.organization for one in memberships_of(acme.user.id)] == [acme.organization]
    with pytest.raises(Conflict) as refused:
        create_user(email="Owner@ACME.example", password=PASSWORD, name="", now=now)
    assert refused.value.field == "email"


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("email", "password", "field"),
    [
        ("nobody", PASSWORD, "email"),
        ("a@b.example\x00", PASSWORD, "email"),
        (f"{'a' * 250}@b.example", PASSWORD, "email"),
        ("a@b.example", "short", "password"),
        ("a@b.example", "password1", "password"),
        ("a@b.example", "x" * 1001, "password"),
    ],
)
def test_bad_sign_ins_are_refused_by_field(email: str, password: str, field: str, now: datetime) -> None:
    with pytest.raises(InvalidInput) as refused:
        create_user(email=email, password=password, name="", now=now)
    assert refused.value.field == field


def test_the_last_owner_stays(acme: Party, mallory: Party, now: datetime) -> None:
    owner = Membership.objects.get(organization_id=acme.id)
    with pytest.raises(LastOwner):
        remove_member(organization_id=acme.id, membership_id=owner.id, now=now, actor=SYSTEM)
    with pytest.raises(NotFound):
        remove_member(organization_id=mallory.id, membership_id=owner.id, now=now, actor=SYSTEM)
    add_member(organization_id=acme.id, user_id=mallory.user.id, role="owner", now=now, actor=SYSTEM)
    with pytest.raises(Conflict):
        add_member(organization_id=acme.id, user_id=mallory.user.id, role="viewer", now=now, actor=SYSTEM)
    with pytest.raises(NotFound):
        add_member(organization_id=acme.id, user_id=uuid7(), role="viewer", now=now, actor=SYSTEM)
    remove_member(organization_id=acme.id, membership_id=owner.id, now=now, actor=SYSTEM)
    assert [one.user_id for one in Membership.objects.filter(organization_id=acme.id)] == [mallory.user.id]


def test_the_audit_trail_only_grows(acme: Party) -> None:
    assert AuditEntry.objects.exists()
    for statement in ("UPDATE accounts_auditentry SET action = 'x'", "DELETE FROM accounts_auditentry"):
        with pytest.raises(DatabaseError, match="permission denied"), transaction.atomic():  # noqa: SIM117
            with connection.cursor() as cursor:
                cursor.execute(statement)


def test_not_even_the_owner_edits_the_trail(committed_db: TestDatabase, now: datetime) -> None:
    create_organization(name="Acme", roles=["buyer"], now=now)
    with psycopg.connect(committed_db.owner_url, autocommit=True) as owner:
        for statement in (
            "UPDATE accounts_auditentry SET action = 'x'",
            "DELETE FROM accounts_auditentry",
            "TRUNCATE accounts_auditentry",
        ):
            with pytest.raises(psycopg.errors.RestrictViolation):
                owner.execute(statement.encode())


@pytest.mark.parametrize(
    ("number", "country", "is_one"),
    [
        ("DE123456789", "DE", True),
        ("DE1", "DE", False),
        ("123456789", "DE", False),
        ("EL123456789", "GR", True),
        ("NL123456789B01", "NL", True),
        ("FRAB123456789", "FR", True),
        ("12-3456789", "US", True),
        ("none", "US", False),
        ("NONE", "", False),
        ("", "US", False),
    ],
)
def test_a_tax_number_has_the_form_of_its_country(number: str, country: str, is_one: bool) -> None:
    assert can_be_tax_number(number, country) is is_one
