from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from rest_framework.test import APIClient

from marketplace.accounts.models import ApiKey, Membership, Organization
from marketplace.accounts.services import SYSTEM, create_api_key, revoke_api_key
from marketplace.ids import uuid7
from marketplace.ledger.services import NewTransfer, account_id, post_transfers
from tests.cast import Party
from tests.conftest import TestDatabase

API = "/api/v1"


def test_without_a_key_the_answer_names_what_is_missing(db: None) -> None:
    answer = APIClient().get(f"{API}/organization")
    assert answer.status_code == 401
    assert answer["Content-Type"] == "application/problem+json"
    assert answer["WWW-Authenticate"].startswith("Bearer")
    assert answer.json()["code"] == "not_authenticated"


@pytest.mark.parametrize("kind", ["unknown", "wrong", "expired", "revoked", "malformed", "huge"])
def test_keys_that_do_not_count_get_one_byte_identical_answer(acme: Party, now: datetime, kind: str) -> None:
    made, text = create_api_key(
        organization_id=acme.id,
        label="",
        scopes=["read"],
        expires_at=now + timedelta(seconds=1) if kind == "expired" else None,
        now=now,
        actor=SYSTEM,
    )
    if kind == "revoked":
        revoke_api_key(organization_id=acme.id, api_key_id=made.id, now=now, actor=SYSTEM)
    presented = {
        "unknown": f"ty_{'a' * 16}_{text.rsplit('_', 1)[1]}",
        "wrong": text[:-2] + ("ab" if not text.endswith("ab") else "ba"),
        "malformed": "ty_no",
        "huge": "ty_" + "a" * 150,
    }.get(kind, text)
    answer = APIClient().get(f"{API}/organization", HTTP_AUTHORIZATION=f"Bearer {presented}")
    assert answer.status_code == 401
    assert answer.json() == {
        "type": "urn:tokenyard:problem:authentication_failed",
        "title": "Unauthorized",
        "status": 401,
        "code": "authentication_failed",
        "detail": "This API key is not valid.",
        "field": "",
        "errors": [],
    }


def test_an_organization_sees_and_changes_itself(acme: Party, mallory: Party) -> None:
    assert acme.api.get(f"{API}/organization").json()["id"] == str(acme.id)
    answer = acme.api.patch(f"{API}/organization", {"legal_name": "Acme Ltd", "country": "DE"}, format="json")
    assert (answer.status_code, answer.json()["legal_name"]) == (200, "Acme Ltd")
    assert mallory.api.get(f"{API}/organization").json()["legal_name"] == ""


@pytest.mark.parametrize(
    ("body", "field", "code"),
    [
        ({"tax_ppm": 0}, "tax_ppm", "unknown_field"),
        ({"status": "active"}, "status", "unknown_field"),
        ({"legal_name": 7}, "legal_name", "invalid"),
        ({"legal_name": None}, "legal_name", "null"),
        ({"legal_name": "a\x00b"}, "legal_name", "not_text"),
        ({"legal_name": "x" * 201}, "legal_name", "max_length"),
        ({"country": "de"}, "country", "invalid_input"),
        ([], "", "invalid"),
    ],
)
def test_bad_changes_name_the_field_and_change_nothing(
    acme: Party, body: object, field: str, code: str
) -> None:
    answer = acme.api.patch(f"{API}/organization", body, format="json")
    assert answer.status_code == 422
    assert answer["Content-Type"] == "application/problem+json"
    assert answer.json()["field"] == field
    assert answer.json()["errors"][0]["code"] == code
    organization = Organization.objects.get(pk=acme.id)
    assert (organization.legal_name, organization.country) == ("", "")


def test_a_key_is_shown_once_and_never_again(acme: Party) -> None:
    body = {"label": "ci", "project": "blue", "scopes": ["read"]}
    answer = acme.api.post(f"{API}/api-keys", body, format="json")
    assert answer.status_code == 201
    assert answer["Cache-Control"] == "no-store"
    text = answer.json()["api_key"]
    listed = acme.api.get(f"{API}/api-keys")
    assert text not in listed.content.decode()
    assert [one["label"] for one in listed.json()["items"]] == ["ci", "all"]
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {text}")
    assert client.get(f"{API}/organization").status_code == 200
    refused = client.post(f"{API}/api-keys", body, format="json")
    assert (refused.status_code, refused.json()["code"]) == (403, "scope_missing")
    revoked = acme.api.delete(f"{API}/api-keys/{answer.json()['id']}")
    assert revoked.json()["revoked_at"] is not None
    assert client.get(f"{API}/organization").status_code == 401


def test_no_key_makes_a_stronger_one(acme: Party, now: datetime) -> None:
    _, text = create_api_key(
        organization_id=acme.id, label="", scopes=["read", "manage"], now=now, actor=SYSTEM
    )
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {text}")
    answer = client.post(f"{API}/api-keys", {"scopes": ["read", "trade"]}, format="json")
    assert (answer.status_code, answer.json()["field"]) == (403, "scopes")
    assert client.post(f"{API}/api-keys", {"scopes": ["read"]}, format="json").status_code == 201


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "scopes"),
        ({"scopes": []}, "scopes"),
        ({"scopes": "read"}, "scopes"),
        ({"scopes": ["root"]}, "scopes.0"),
        ({"scopes": [True]}, "scopes.0"),
        ({"scopes": ["read"], "expires_at": "tomorrow"}, "expires_at"),
        ({"scopes": ["read"], "expires_at": "2099-01-01T00:00:00"}, "expires_at"),
        ({"scopes": ["read"], "expires_at": "2001-01-01T00:00:00Z"}, "expires_at"),
        ({"scopes": ["read"], "expires_at": "0001-01-01T00:00:00+14:00"}, "expires_at"),
        ({"scopes": ["read"], "default_contract_id": 5}, "default_contract_id"),
        ({"scopes": ["read"], "default_contract_id": "{" + "0" * 36 + "}"}, "default_contract_id"),
        ({"scopes": ["read"], "organization_id": "x"}, "organization_id"),
    ],
)
def test_bad_keys_are_refused_by_field(acme: Party, body: object, field: str) -> None:
    before = ApiKey.objects.count()
    answer = acme.api.post(f"{API}/api-keys", body, format="json")
    assert (answer.status_code, answer.json()["field"]) == (422, field)
    assert ApiKey.objects.count() == before


def test_members_come_and_go_and_the_last_owner_stays(acme: Party) -> None:
    body = {
        "email": "New@acme.example",
        "name": "New",
        "role": "viewer",
        "initial_password": "a-long-password-9",
    }
    made = acme.api.post(f"{API}/members", body, format="json")
    assert (made.status_code, made.json()["email"]) == (201, "new@acme.example")
    assert acme.api.post(f"{API}/members", body, format="json").json()["code"] == "conflict"
    listed = acme.api.get(f"{API}/members").json()["items"]
    assert [one["role"] for one in listed] == ["viewer", "owner"]
    assert acme.api.delete(f"{API}/members/{listed[0]['id']}").status_code == 204
    refused = acme.api.delete(f"{API}/members/{listed[1]['id']}")
    assert (refused.status_code, refused.json()["code"]) == (409, "last_owner")


def test_mallory_sees_and_touches_nothing_of_acme(acme: Party, mallory: Party, now: datetime) -> None:
    processor = account_id(organization_id=mallory.id, kind="processor", currency="USD", now=now)
    prepaid = account_id(organization_id=acme.id, kind="prepaid", currency="USD", now=now)
    post_transfers([NewTransfer(uuid7(), processor, prepaid, 7_777, "top_up")], now=now)
    member = Membership.objects.get(organization_id=acme.id)
    assert mallory.api.delete(f"{API}/members/{member.id}").status_code == 404
    assert mallory.api.delete(f"{API}/api-keys/{acme.api_key_id}").status_code == 404
    for path in ("organization", "members", "api-keys", "audit", "ledger/balances", "ledger/transfers"):
        answer = mallory.api.get(f"{API}/{path}")
        assert answer.status_code == 200
        for secret in (str(acme.id), "acme", str(acme.api_key_id), str(prepaid)):
            assert secret not in answer.content.decode().lower()


def test_the_audit_trail_says_who_did_what(acme: Party) -> None:
    made = acme.api.post(f"{API}/api-keys", {"scopes": ["read"]}, format="json").json()
    entry = acme.api.get(f"{API}/audit").json()["items"][0]
    assert (entry["action"], entry["object_id"]) == ("api_key.created", made["id"])
    assert (entry["actor_kind"], entry["actor_id"]) == ("api_key", str(acme.api_key_id))
    assert entry["ip"] == "127.0.0.1"


def test_balances_and_entries_are_the_organizations_own(acme: Party, operator: Party, now: datetime) -> None:
    processor = account_id(organization_id=operator.id, kind="processor", currency="USD", now=now)
    prepaid = account_id(organization_id=acme.id, kind="prepaid", currency="USD", now=now)
    batch = [NewTransfer(uuid7(), processor, prepaid, 1_500_000, "top_up") for _ in range(3)]
    post_transfers(batch, now=now)
    balance = acme.api.get(f"{API}/ledger/balances").json()["items"][0]
    assert (balance["kind"], balance["posted_micros"], balance["available"]) == (
        "prepaid",
        4_500_000,
        "4.50",
    )
    first = acme.api.get(f"{API}/ledger/transfers?page_size=2").json()
    assert [entry["transfer_id"] for entry in first["items"]] == [str(batch[2].id), str(batch[1].id)]
    assert first["items"][0]["amount"] == "1.50"
    second = acme.api.get(f"{API}/ledger/transfers?page_size=2&cursor={first['next']}").json()
    assert [entry["transfer_id"] for entry in second["items"]] == [str(batch[0].id)]
    assert second["next"] is None
    assert operator.api.get(f"{API}/ledger/transfers").json()["items"][0]["amount_micros"] == -1_500_000


def test_only_the_operator_takes_in_organizations(operator: Party, acme: Party) -> None:
    body = {"name": "Newcomer", "roles": ["buyer"], "tax_ppm": 190_000}
    assert acme.api.post(f"{API}/organizations", body, format="json").status_code == 403
    made = operator.api.post(f"{API}/organizations", body, format="json")
    assert (made.status_code, made.json()["tax_ppm"]) == (201, 190_000)
    again = operator.api.post(f"{API}/organizations", body, format="json")
    assert (again.status_code, again.json()["field"]) == (409, "name")
    for bad in (-1, 10**6 + 1, 10**400, 1.0, True, "1", None):
        answer = operator.api.post(f"{API}/organizations", {**body, "tax_ppm": bad}, format="json")
        assert (answer.status_code, answer.json()["field"]) == (422, "tax_ppm")


def test_a_suspended_organization_reads_and_changes_nothing(acme: Party) -> None:
    Organization.objects.filter(pk=acme.id).update(status="suspended")
    assert acme.api.get(f"{API}/organization").status_code == 200
    answer = acme.api.patch(f"{API}/organization", {}, format="json")
    assert (answer.status_code, answer.json()["code"]) == (403, "organization_suspended")


def test_createorganization_prints_ids_and_a_key_that_works(committed_db: TestDatabase) -> None:
    def create(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "manage.py", "createorganization", *arguments]
        checkout = Path(__file__).resolve().parents[2]
        return subprocess.run(
            command, cwd=checkout, env=committed_db.environment, capture_output=True, text=True
        )

    made = create("Acme", "--roles", "buyer,provider")
    report = json.loads(made.stdout)
    assert made.returncode == 0
    assert report["scopes"] == ["read", "inference", "trade", "provide", "manage"]
    assert report["operator_id"] != report["organization_id"]
    client = APIClient()
    client.credentials(HTTP_AUTHORIZATION=f"Bearer {report['api_key']}")
    assert client.get(f"{API}/organization").json()["id"] == report["organization_id"]
    again = create("acme", "--roles", "buyer")
    assert (again.returncode, json.loads(again.stderr)["field"], again.stdout) == (1, "name", "")
    assert Organization.objects.count() == 2
    assert create("X", "--roles", "seller").returncode == 1
    assert create("X").returncode == 2
    explained = create("--help").stdout
    assert "never again" in explained
    assert "Exits 0" in explained
