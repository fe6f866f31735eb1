"""mallory must see nothing: every address of REST and portal, as Django knows them, tried with other people's ids."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID, uuid4

import pytest
from django.db.models import UUIDField
from django.test import Client
from rest_framework.test import APIClient

from marketplace.accounts.models import AuditEntry
from marketplace.api.errors import PROBLEM_TYPE
from marketplace.contracts.services import open_hold
from marketplace.ids import uuid7
from tests.cast import PASSWORD, Party
from tests.house import NOW, House, own_models, routes, row_counts

REST = "api/v1/"
ALL_METHODS = ("get", "post", "put", "patch", "delete")
PUBLIC, SIGNED, OPERATOR, EACH, ACME, HYPERION = "public", "signed", "operator", "each", "acme", "hyperion"
# Every address has a line here: whose it is. `EACH` has its own rows at the same address.
DOORS = {
    "healthz": PUBLIC,
    "readyz": PUBLIC,
    "metrics": PUBLIC,
    "webhooks/stripe": SIGNED,
    "api/v1/schema": PUBLIC,
    "api/v1/grades": PUBLIC,
    "api/v1/grades/<uuid:grade_id>": PUBLIC,
    "api/v1/grades/<uuid:grade_id>/list-rates": PUBLIC,
    "api/v1/grades/<uuid:grade_id>/list-tariffs": PUBLIC,
    "api/v1/tokenizers": PUBLIC,
    "api/v1/providers": PUBLIC,
    "api/v1/auctions/<uuid:auction_id>": PUBLIC,
    "api/v1/auctions/<uuid:auction_id>/depth": PUBLIC,
    "api/v1/market/index": PUBLIC,
    "api/v1/market/index/latest": PUBLIC,
    "api/v1/market/index/<uuid:index_id>/recompute": PUBLIC,
    "api/v1/market/history": PUBLIC,
    "api/v1/market/stream": PUBLIC,
    "api/v1/market/leaderboard": PUBLIC,
    "api/v1/monitoring/pivotal": OPERATOR,
    "api/v1/monitoring/concentration": OPERATOR,
    "api/v1/monitoring/wash-trades": OPERATOR,
    "api/v1/monitoring/spoofing": OPERATOR,
    "api/v1/monitoring/grant-earnings": OPERATOR,
    # Any buyer may ask, about his own orders; tests/orders/test_what_if.py shows whose he may not.
    "api/v1/auctions/<uuid:auction_id>/what-if": EACH,
    # Any buyer may ask, about his own usage: tests/billing/test_simulations.py.
    "api/v1/contract-simulations": EACH,
    "api/v1/market-key": PUBLIC,
    "api/v1/market/<slug:slug>": PUBLIC,
    "api/v1/market/<slug:slug>/history": PUBLIC,
    "api/v1/^.*$": PUBLIC,
    "api/v1/agent/enrol": SIGNED,
    "api/v1/agent/heartbeat": SIGNED,
    "api/v1/agent/bench": SIGNED,
    "api/v1/agent/offerings": SIGNED,
    "api/v1/usage/batches": OPERATOR,
    "api/v1/usage/batches/<uuid:batch_id>": OPERATOR,
    "api/v1/usage/batches/<uuid:batch_id>/events": OPERATOR,
    "api/v1/usage/batches/<uuid:batch_id>/revive": OPERATOR,
    "api/v1/usage/corrections": OPERATOR,
    "api/v1/organizations": OPERATOR,
    "api/v1/organizations/<uuid:organization_id>/verify-tax-number": OPERATOR,
    "api/v1/organization": EACH,
    "api/v1/members": EACH,
    "api/v1/members/<uuid:membership_id>": ACME,
    "api/v1/api-keys": EACH,
    "api/v1/api-keys/<uuid:api_key_id>": ACME,
    "api/v1/audit": EACH,
    "api/v1/webhook-endpoints": EACH,
    "api/v1/webhook-endpoints/<uuid:endpoint_id>": ACME,
    "api/v1/webhook-endpoints/<uuid:endpoint_id>/rotate-secret": ACME,
    "api/v1/webhook-endpoints/<uuid:endpoint_id>/test": ACME,
    "api/v1/webhook-endpoints/<uuid:endpoint_id>/deliveries": ACME,
    "api/v1/webhook-events": EACH,
    "api/v1/webhook-events/<uuid:webhook_event_id>/replay": ACME,
    "api/v1/ledger/balances": EACH,
    "api/v1/ledger/transfers": EACH,
    "api/v1/ledger/balances-at": EACH,
    "api/v1/grants": EACH,
    "api/v1/grants/<uuid:grant_id>/revoke": OPERATOR,
    "api/v1/grants/<uuid:grant_id>/refund": OPERATOR,
    "api/v1/ledger/accounts/<uuid:account_id>/statement": ACME,
    "api/v1/ledger/extract": EACH,
    "api/v1/ledger/extract/verifier": EACH,
    "api/v1/ledger/seals/head": EACH,
    "api/v1/balance": EACH,
    "api/v1/test-clock": EACH,
    "api/v1/test-clock/advance": EACH,
    "api/v1/spend-caps": ACME,
    "api/v1/credit-line": ACME,
    "api/v1/auto-top-up": ACME,
    "api/v1/credit-lines": OPERATOR,
    "api/v1/contracts": EACH,
    "api/v1/delivery-outcomes": EACH,
    "api/v1/service-periods": EACH,
    "api/v1/usage": EACH,
    "api/v1/usage/kappa": EACH,
    "api/v1/usage/events": EACH,
    "api/v1/usage/events/<uuid:event_id>": ACME,
    "api/v1/exports/focus": EACH,
    "api/v1/discrepancies": EACH,
    "api/v1/discrepancies/<uuid:discrepancy_id>": ACME,
    "api/v1/discrepancies/<uuid:discrepancy_id>/accept": HYPERION,
    "api/v1/discrepancies/<uuid:discrepancy_id>/resolve": OPERATOR,
    "api/v1/recount-baselines": OPERATOR,
    "api/v1/quotes": ACME,
    "api/v1/quotes/<uuid:quote_id>": ACME,
    "api/v1/quotes/<uuid:quote_id>/accept": ACME,
    "api/v1/contracts/<uuid:contract_id>": ACME,
    "api/v1/contracts/<uuid:contract_id>/releases": ACME,
    "api/v1/contracts/<uuid:contract_id>/events": ACME,
    "api/v1/contracts/<uuid:contract_id>/months": ACME,
    "api/v1/contracts/<uuid:contract_id>/renewal": ACME,
    "api/v1/contracts/<uuid:contract_id>/terminate": ACME,
    "api/v1/contracts/<uuid:contract_id>/amendment-quotes": ACME,
    "api/v1/contracts/<uuid:contract_id>/amend": ACME,
    "api/v1/generations/<uuid:generation_id>": ACME,
    "api/v1/bids": ACME,
    "api/v1/bids/<uuid:bid_id>": ACME,
    "api/v1/bids/<uuid:bid_id>/receipts": ACME,
    "api/v1/bids/<uuid:bid_id>/rounds": ACME,
    "api/v1/bids/cover": ACME,
    "api/v1/bids/cover/worst-case": ACME,
    "api/v1/top-ups": ACME,
    "api/v1/card": ACME,
    "api/v1/refunds": ACME,
    "api/v1/payments/<uuid:payment_id>/cancel": ACME,
    "api/v1/payout-account": HYPERION,
    "api/v1/payout-account/link": HYPERION,
    "api/v1/processor-operations": OPERATOR,
    "api/v1/operator-postings": OPERATOR,
    "api/v1/payout-stops": OPERATOR,
    "api/v1/payout-stops/<uuid:stop_id>/release": OPERATOR,
    "api/v1/processor-operations/<uuid:operation_id>/give-up": OPERATOR,
    "api/v1/processor-reports": OPERATOR,
    "api/v1/failing-items": OPERATOR,
    "api/v1/charges": ACME,
    "api/v1/charges/<uuid:charge_id>": ACME,
    "api/v1/charges/<uuid:charge_id>/events": ACME,
    "api/v1/invoices": ACME,
    "api/v1/invoices/<uuid:invoice_id>": ACME,
    "api/v1/invoices/<uuid:invoice_id>/pdf": ACME,
    "api/v1/invoices/<uuid:invoice_id>/evidence": ACME,
    "api/v1/evidence-verifier": PUBLIC,
    "api/v1/invoices/<uuid:invoice_id>/payments": ACME,
    "api/v1/invoices/<uuid:invoice_id>/credit-notes": OPERATOR,
    "api/v1/invoices/<uuid:invoice_id>/reissue": OPERATOR,
    "api/v1/credit-notes": ACME,
    "api/v1/credit-notes/<uuid:note_id>": ACME,
    "api/v1/credit-notes/<uuid:note_id>/pdf": ACME,
    "api/v1/tax-rules": OPERATOR,
    "api/v1/tax-rules/<uuid:rule_id>/end": OPERATOR,
    "api/v1/discounts": OPERATOR,
    "api/v1/discounts/<uuid:discount_id>/end": OPERATOR,
    "api/v1/statements/<uuid:statement_id>/pdf": HYPERION,
    "api/v1/hosts": HYPERION,
    "api/v1/hosts/<uuid:host_id>": HYPERION,
    "api/v1/hosts/<uuid:host_id>/enrolment-codes": HYPERION,
    "api/v1/hosts/<uuid:host_id>/outages": HYPERION,
    "api/v1/hosts/<uuid:host_id>/outages/<uuid:outage_id>": HYPERION,
    "api/v1/hosts/<uuid:host_id>/deratings": HYPERION,
    "api/v1/hosts/<uuid:host_id>/deratings/<uuid:derating_id>": HYPERION,
    "api/v1/hosts/<uuid:host_id>/curtailments": HYPERION,
    "api/v1/offerings": HYPERION,
    "api/v1/offerings/<uuid:offering_id>": HYPERION,
    "api/v1/offerings/<uuid:offering_id>/tariffs": HYPERION,
    "api/v1/offerings/<uuid:offering_id>/tariffs/<uuid:tariff_id>": HYPERION,
    "api/v1/statements": HYPERION,
    "api/v1/statements/<uuid:statement_id>": HYPERION,
    "api/v1/earnings": HYPERION,
    "api/v1/payouts": HYPERION,
    "api/v1/bond": HYPERION,
    "api/v1/bond/deposits": HYPERION,
    "api/v1/bond/withdrawals": HYPERION,
    "api/v1/payout-status": HYPERION,
    "api/v1/self-billing-consent": HYPERION,
    "api/v1/payout-destination": HYPERION,
    "api/v1/payout-destination/changes/<uuid:change_id>/cancel": HYPERION,
    "api/v1/controls": OPERATOR,
    "api/v1/controls/<slug:slug>": OPERATOR,
    "api/v1/controls/<slug:slug>/history": OPERATOR,
    "api/v1/controls/<slug:slug>/halt": OPERATOR,
    "api/v1/controls/<slug:slug>/resume": OPERATOR,
    "api/v1/controls/<slug:slug>/administered-rate": OPERATOR,
    "api/v1/controls/<slug:slug>/cap-reviews": OPERATOR,
    "api/v1/cap-reviews/<uuid:review_id>/decline": OPERATOR,
    "": PUBLIC,
    "market": PUBLIC,
    "providers": PUBLIC,
    "price-index": PUBLIC,
    "leaderboard": PUBLIC,
    "tokenizers": PUBLIC,
    "market/<slug:slug>": PUBLIC,
    "signin": PUBLIC,
    "signout": PUBLIC,
    "organization": EACH,
    "buyer": ACME,
    "buyer/top-up": ACME,
    "buyer/contracts/<uuid:contract_id>": ACME,
    "buyer/contracts/<uuid:contract_id>/releases": ACME,
    "buyer/contracts/<uuid:contract_id>/renewal": ACME,
    "buyer/contracts/<uuid:contract_id>/terms": ACME,
    "buyer/buy": ACME,
    "buyer/simulator": ACME,
    "buyer/quotes/<uuid:quote_id>": ACME,
    "buyer/bid": ACME,
    "buyer/bid/worst-case": ACME,
    "buyer/bids/<uuid:bid_id>": ACME,
    "buyer/bids/<uuid:bid_id>/cancel": ACME,
    # Any buyer may ask, about his own orders: tests/portal/test_what_if.py.
    "buyer/auctions/<uuid:auction_id>/what-if": EACH,
    "buyer/cover": ACME,
    "buyer/cover/worst-case": ACME,
    "buyer/usage": ACME,
    "buyer/focus": ACME,
    "buyer/keys": ACME,
    "buyer/keys/<uuid:api_key_id>/revoke": ACME,
    "buyer/spend-caps": ACME,
    "buyer/auto-top-up": ACME,
    "buyer/on-demand-payment": ACME,
    "notices": ACME,
    "test-clock": EACH,
    "webhooks": ACME,
    "webhooks/<uuid:endpoint_id>": ACME,
    "buyer/invoices": ACME,
    "buyer/invoices/<uuid:invoice_id>": ACME,
    "buyer/invoices/<uuid:invoice_id>/pdf": ACME,
    "buyer/invoices/<uuid:invoice_id>/evidence": ACME,
    "buyer/invoices/<uuid:invoice_id>/pay": ACME,
    "buyer/card": ACME,
    "buyer/payments/<uuid:payment_id>/refund": ACME,
    "buyer/payments/<uuid:payment_id>/cancel": ACME,
    "provider/payout-account": HYPERION,
    "operator/processor": OPERATOR,
    "operator/processor/<uuid:operation_id>/give-up": OPERATOR,
    "buyer/identity": ACME,
    "provider/identity": HYPERION,
    "provider/payouts": HYPERION,
    "provider/statements/<uuid:statement_id>/pdf": HYPERION,
    "buyer/invoice-lines/<uuid:line_id>": ACME,
    "buyer/charges": ACME,
    "buyer/charges/<uuid:charge_id>": ACME,
    "buyer/ledger": ACME,
    "buyer/discrepancies": ACME,
    "provider/discrepancies": HYPERION,
    "provider/discrepancies/<uuid:discrepancy_id>/accept": HYPERION,
    "operator/discrepancies": OPERATOR,
    "operator/discrepancies/<uuid:discrepancy_id>/resolve": OPERATOR,
    "provider": HYPERION,
    "provider/ledger": HYPERION,
    "provider/hosts/new": HYPERION,
    "provider/hosts/<uuid:host_id>": HYPERION,
    "provider/hosts/<uuid:host_id>/enrolment-code": HYPERION,
    "provider/hosts/<uuid:host_id>/outages": HYPERION,
    "provider/hosts/<uuid:host_id>/outages/<uuid:outage_id>/withdraw": HYPERION,
    "provider/offerings/<uuid:offering_id>": HYPERION,
    "provider/offerings/<uuid:offering_id>/status": HYPERION,
    "provider/offerings/<uuid:offering_id>/tariffs": HYPERION,
    "provider/offerings/<uuid:offering_id>/tariffs/<uuid:tariff_id>/withdraw": HYPERION,
    "provider/usage": HYPERION,
    "provider/focus": HYPERION,
    "provider/earnings": HYPERION,
    "provider/statements/<uuid:statement_id>": HYPERION,
    "operator": OPERATOR,
    "operator/monitoring": OPERATOR,
    "operator/ledger-check": OPERATOR,
    "operator/credit-lines": OPERATOR,
    "operator/billing": OPERATOR,
    "operator/billing/invoices/<uuid:invoice_id>": OPERATOR,
    "operator/billing/invoices/<uuid:invoice_id>/credit": OPERATOR,
    "operator/billing/invoices/<uuid:invoice_id>/reissue": OPERATOR,
    "operator/billing/tax-rules": OPERATOR,
    "operator/billing/tax-rules/<uuid:rule_id>": OPERATOR,
    "operator/billing/tax-numbers/<uuid:organization_id>": OPERATOR,
    "operator/billing/discounts": OPERATOR,
    "operator/billing/discounts/<uuid:discount_id>": OPERATOR,
    "operator/billing/grants": OPERATOR,
    "operator/billing/grants/<uuid:grant_id>": OPERATOR,
    "operator/billing/grants/<uuid:grant_id>/revoke": OPERATOR,
    "operator/billing/trail": OPERATOR,
    "operator/controls": OPERATOR,
    "operator/controls/<slug:slug>": OPERATOR,
    "operator/controls/<slug:slug>/halt": OPERATOR,
    "operator/controls/<slug:slug>/resume": OPERATOR,
    "operator/controls/<slug:slug>/rate": OPERATOR,
    "operator/controls/<slug:slug>/cap": OPERATOR,
    "operator/cap-reviews/<uuid:review_id>/decline": OPERATOR,
}
# A change that would be accepted from the owner.
BODIES = {
    "api/v1/webhook-endpoints/<uuid:endpoint_id>": {"description": "mine"},
    "api/v1/hosts/<uuid:host_id>": {"status": "paused"},
    "api/v1/hosts/<uuid:host_id>/outages": {
        "starts_at": "2026-03-12T10:00:00Z",
        "ends_at": "2026-03-12T12:00:00Z",
    },
    "api/v1/hosts/<uuid:host_id>/deratings": {"available_ppm": 500_000},
    "api/v1/invoices/<uuid:invoice_id>/payments": {"source": "balance"},
    "api/v1/bids/<uuid:bid_id>": {"revision": 1, "min_fill_lots": 1},
    "api/v1/contracts/<uuid:contract_id>/releases": {
        "period_start": "2026-03-10T15:10:00Z",
        "lots": 1,
        "floor_micros_per_mtok": 0,
    },
    "api/v1/contracts/<uuid:contract_id>/renewal": {"renews": False},
    "api/v1/contracts/<uuid:contract_id>/terminate": {"ends_at": None},
    "api/v1/contracts/<uuid:contract_id>/amendment-quotes": {
        "starts_at": "2026-04-10T12:00:00Z",
        "firm_lots": 1,
        "volume_lots": 100,
        "months": 1,
    },
    "api/v1/contracts/<uuid:contract_id>/amend": {"quote_id": "01a1fa2c-14f7-7136-8b1d-740cbe8302f3"},
    "api/v1/offerings/<uuid:offering_id>": {"status": "withdrawn"},
    "api/v1/offerings/<uuid:offering_id>/tariffs": {
        "kind": "per_unit",
        "valid_from": "2026-03-12T10:00:00Z",
        "rate_micros_per_mtok": 1,
    },
}
# What the whole market may know: goods, prices, auctions; and rows that name nobody.
PUBLIC_ROWS = frozenset(
    {
        "pricing.GradeFamily", "pricing.Grade", "pricing.GradeBucket", "pricing.Rate", "orders.Auction",
        "orders.PriceIndex", "contracts.PeriodRate", "pricing.TokenizerCalibration", "pricing.CalibrationClass",
    }
)  # fmt: skip
# They are asked by their code or signature first; without a body there is neither.
UNSIGNED = {"api/v1/agent/enrol": 422}


# Where providers stand with the names they sell under: what is published about them is about somebody.
NAMES_PROVIDERS = frozenset({"api/v1/providers", "providers", "api/v1/market/leaderboard", "leaderboard"})


@dataclass(frozen=True)
class Secrets:
    words: frozenset[str]

    def found_in(self, text: str, route: str = "") -> list[str]:
        named = {"Hyperion"} if route in NAMES_PROVIDERS else set()
        return sorted(word for word in self.words - named if word in text)


@pytest.fixture(scope="module")
def secrets(house: House) -> Secrets:
    """Every id of every row that is not public and not mallory's, the names and addresses of the others."""
    mallory = house.mallory
    words: set[str] = {"Acme", "Hyperion", house.acme.user.email, house.hyperion.user.email, "alpha", "beta"}
    for model in own_models():
        if model._meta.label in PUBLIC_ROWS or not isinstance(model._meta.pk, UUIDField):
            continue
        rows: Any = model._default_manager.all()
        if "organization" in {field.name for field in model._meta.fields}:
            rows = rows.exclude(organization_id=mallory.id)
        for pk in rows.values_list("pk", flat=True):
            if pk not in (mallory.id, mallory.user.id):
                words |= {str(pk), pk.hex}
    assert len(words) > 500
    return Secrets(frozenset(words))


@pytest.fixture(scope="module")
def browser(house: House) -> Client:
    """mallory, signed in."""
    client = Client()
    assert client.login(username=house.mallory.user.email, password=PASSWORD)
    return client


def rest(*owners: str, with_id: bool | None = None) -> list[str]:
    return [route for route in _of(owners, with_id) if route.startswith(REST) and route != "api/v1/^.*$"]


def portal(*owners: str, with_id: bool | None = None) -> list[str]:
    return [route for route in _of(owners, with_id) if not route.startswith(REST)]


def _of(owners: tuple[str, ...], with_id: bool | None) -> list[str]:
    return [
        route
        for route, owner in DOORS.items()
        if owner in owners and (with_id is None or with_id is ("<uuid" in route))
    ]


def address(route: str, ids: dict[str, UUID]) -> str:
    return "/" + re.sub(
        r"<(\w+):(\w+)>", lambda match: "tiny-chat" if match[1] == "slug" else str(ids[match[2]]), route
    )


def methods(route: str) -> list[str]:
    view = routes()[route].callback
    view_class = getattr(view, "cls", None) or getattr(view, "view_class", None)
    return [method for method in ALL_METHODS if hasattr(view_class, method)]


def ask(client: APIClient, method: str, route: str, ids: dict[str, UUID]) -> Any:
    body = BODIES.get(route, {}) if method != "get" else None
    key = {"HTTP_IDEMPOTENCY_KEY": str(uuid4())} if method == "post" else {}
    return getattr(client, method)(
        address(route, ids), body, format="json" if body is not None else None, **key
    )


def changes(before: dict[str, int]) -> dict[str, int]:
    """Rows that came or went; the memory of an answered request is not a change of anything."""
    after = row_counts()
    return {
        name: after[name] - count
        for name, count in before.items()
        if after[name] != count and name != "api.IdempotencyRecord"
    }


def test_every_address_says_here_whose_it_is() -> None:
    assert set(routes()) == set(DOORS)


def owner_of(house: House, route: str) -> Party:
    return {ACME: house.acme, HYPERION: house.hyperion, OPERATOR: house.operator}.get(
        DOORS[route], house.acme
    )


@pytest.mark.parametrize("route", rest(ACME, HYPERION, EACH, PUBLIC, OPERATOR))
def test_the_owner_sees_it(house: House, route: str) -> None:
    """Else the refusals below would prove nothing."""
    if "get" in methods(route):
        client = owner_of(house, route).api if DOORS[route] != PUBLIC else APIClient()
        answer = client.get(address(route, house.ids))
        assert answer.status_code == 200, answer.getvalue()


@pytest.mark.parametrize("route", rest(ACME, HYPERION, with_id=True))
def test_mallory_is_told_that_there_is_no_such_object(house: House, secrets: Secrets, route: str) -> None:
    before = row_counts()
    nobody = dict.fromkeys(house.ids, uuid4())
    for method in methods(route):
        answer = ask(house.mallory.api, method, route, house.ids)
        assert (answer.status_code, answer["Content-Type"]) == (404, PROBLEM_TYPE), (method, answer.content)
        # Not even the difference between another's object and none.
        assert answer.json() == ask(house.mallory.api, method, route, nobody).json()
        assert not secrets.found_in(answer.content.decode())
    assert not changes(before)


@pytest.mark.parametrize(
    "route", rest(EACH, ACME, HYPERION, PUBLIC, with_id=False) + rest(PUBLIC, with_id=True)
)
def test_mallorys_lists_hold_nothing_of_others(house: House, secrets: Secrets, route: str) -> None:
    if "get" not in methods(route):
        return
    answer = house.mallory.api.get(address(route, house.ids))
    assert answer.status_code == 200, answer.content
    assert not secrets.found_in(answer.getvalue().decode(), route)


@pytest.mark.parametrize("route", rest(OPERATOR))
def test_the_operators_addresses_are_closed_alike_for_any_id(house: House, route: str) -> None:
    nobody = dict.fromkeys(house.ids, uuid4())
    for method in methods(route):
        answer = ask(house.mallory.api, method, route, house.ids)
        assert answer.status_code == 403, answer.content
        assert answer.json() == ask(house.mallory.api, method, route, nobody).json()


@pytest.mark.parametrize("route", rest(ACME, HYPERION, EACH, OPERATOR, SIGNED))
def test_without_an_api_key_or_signature_there_is_no_answer(house: House, route: str) -> None:
    for method in methods(route):
        answer = ask(APIClient(), method, route, house.ids)
        assert answer.status_code == UNSIGNED.get(route, 401), (method, answer.content)
        assert answer["Content-Type"] == PROBLEM_TYPE


def test_publishing_a_grade_is_not_public(house: House) -> None:
    assert APIClient().post("/api/v1/grades", {}, format="json").status_code == 401
    assert house.mallory.api.post("/api/v1/grades", {}, format="json").status_code == 403


@pytest.mark.parametrize("route", [*rest(ACME, HYPERION, EACH, OPERATOR), "api/v1/grades"])
def test_an_api_key_that_may_read_changes_nothing(house: House, route: str) -> None:
    changing = [method for method in methods(route) if method != "get"]
    if route == "api/v1/usage" or not changing:
        return  # Handed in by hosts, under their signature.
    owner = house.operator if route == "api/v1/grades" else owner_of(house, route)
    reader = house.reader_of(owner)
    before = row_counts()
    for method in changing:
        answer = ask(reader, method, route, house.ids)
        assert (answer.status_code, answer.json()["code"]) == (403, "scope_missing"), (method, answer.content)
    assert not changes(before)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("usage?contract_id={contract_id}", 404),
        ("usage?api_key_id={api_key_id}", 200),
        ("usage?host_id={host_id}&role=provider&group_by=host", 200),
        ("usage?offering_id={offering_id}&group_by=bucket", 200),
        ("usage/events?contract_id={contract_id}", 200),
        ("usage/events?offering_id={offering_id}&role=provider", 200),
        ("exports/focus?invoice_id={invoice_id}&role=buyer", 404),
        ("exports/focus?statement_id={statement_id}&role=provider", 404),
        ("usage/kappa?contract_id={contract_id}", 404),
        ("charges?contract_id={contract_id}", 200),
        ("charges?invoice_line_id={line_id}", 200),
        ("delivery-outcomes?contract_id={contract_id}", 200),
        ("delivery-outcomes?offering_id={offering_id}", 200),
        ("service-periods?contract_id={contract_id}", 200),
        ("service-periods?offering_id={offering_id}", 200),
    ],
)
def test_filters_with_other_peoples_ids_find_nothing(
    house: House, secrets: Secrets, path: str, status: int
) -> None:
    answer = house.mallory.api.get("/api/v1/" + path.format(**house.ids))
    assert answer.status_code == status
    assert not secrets.found_in(answer.content.decode())
    assert answer.json().get("items", []) == []


@pytest.mark.parametrize(
    "route", ["charges", "contracts", "audit", "api-keys", "ledger/transfers", "invoices"]
)
def test_a_cursor_from_another_list_reaches_no_other_rows(house: House, secrets: Secrets, route: str) -> None:
    newest = "f" * 32
    answer = house.mallory.api.get(f"/api/v1/{route}?cursor={newest}")
    assert answer.status_code == 200
    assert not secrets.found_in(answer.content.decode())


def test_nothing_can_be_offered_on_anothers_host(house: House, secrets: Secrets) -> None:
    before = row_counts()
    prices = dict.fromkeys(("spot_floor", "firm_rate", "list_rate"), 1)
    offer: dict[str, Any] = {f"{name}_micros_per_mtok": rate for name, rate in prices.items()}
    offer["grade"] = "tiny-chat"
    answers = [
        house.mallory.api.post("/api/v1/offerings", {**offer, "host_id": str(host_id)}, format="json")
        for host_id in (house.ids["host_id"], uuid4())
    ]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].json() == answers[1].json()
    assert not secrets.found_in(answers[0].content.decode())
    assert not changes(before)


def test_an_api_key_whose_default_is_anothers_contract_buys_nothing(house: House) -> None:
    """Keys lie below contracts and cannot know them; the contract is looked up where it would pay."""
    for contract_id in (house.day.committed.id, house.day.on_demand.id, uuid4()):
        body = {"scopes": ["inference"], "default_contract_id": str(contract_id)}
        made = house.mallory.api.post("/api/v1/api-keys", body, format="json")
        assert made.status_code == 201, made.content
        before = row_counts()
        opened = open_hold(
            id=uuid7(NOW),
            organization_id=house.mallory.id,
            api_key_id=UUID(made.json()["id"]),
            contract_id=contract_id,
            grade_ids=[house.day.grade.id],
            numerators=[10**9],
            now=NOW,
        )
        assert (opened.outcome, opened.contract_id) == ("contract_not_found", None)
        assert not changes(before)


@pytest.mark.parametrize("route", portal(ACME, HYPERION, with_id=True))
def test_mallorys_browser_finds_no_page_of_others(
    house: House, secrets: Secrets, browser: Client, route: str
) -> None:
    before = row_counts()
    path = address(route, house.ids)
    seen = {browser.get(path).status_code, browser.post(path, {}).status_code}
    # A page that is only read answers 405 to POST, a button's address 405 to GET; never anything else.
    assert 404 in seen
    assert seen <= {404, 405}
    assert not changes(before)


@pytest.mark.parametrize("route", portal(ACME, HYPERION, PUBLIC, with_id=False))
def test_mallorys_pages_hold_nothing_of_others(
    house: House, secrets: Secrets, browser: Client, route: str
) -> None:
    if route == "signout":
        return
    answer = browser.get(address(route, house.ids), follow=True)
    assert answer.status_code in (200, 405, 422)
    assert not secrets.found_in(answer.getvalue().decode(), route)


@pytest.mark.parametrize("route", portal(OPERATOR))
def test_there_are_no_operators_pages_for_others(house: House, browser: Client, route: str) -> None:
    path = address(route, house.ids)
    assert {browser.get(path).status_code, browser.post(path).status_code} <= {404, 405}


@pytest.mark.parametrize("route", portal(ACME, HYPERION, OPERATOR))
def test_a_stranger_is_sent_to_the_sign_in(house: House, route: str) -> None:
    path = address(route, house.ids)
    for answer in (Client().get(path), Client().post(path, {})):
        if answer.status_code == 405:
            continue
        assert answer.status_code == 302
        target = urlsplit(answer["Location"])
        assert target.path == "/signin"
        assert parse_qs(target.query).keys() == {"next"}


def test_mallory_cannot_choose_another_organization(house: House, browser: Client) -> None:
    assert browser.post("/organization", {"organization": str(house.acme.id)}).status_code == 404
    assert browser.post("/organization", {"organization": str(house.mallory.id)}).status_code == 302


def test_what_nobody_serves_is_a_problem_document(house: House) -> None:
    for path in ("/api/v1/nothing", "/api/v1/charges/1", "/api/v1/../v2", "/api/v1/charges/"):
        answer = house.mallory.api.get(path)
        assert (answer.status_code, answer["Content-Type"]) == (404, PROBLEM_TYPE)


def test_the_audit_trail_keeps_no_trace_of_refused_changes(house: House) -> None:
    mallory = {str(house.mallory.api_key_id), str(house.mallory.user.id)}
    made = AuditEntry.objects.exclude(organization_id=house.mallory.id).values_list("actor_id", flat=True)
    assert mallory.isdisjoint(map(str, made))
