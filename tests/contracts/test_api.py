"""Quotes and contracts over REST: prices, acceptance once, strict input, and nothing for mallory."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from marketplace.accounts.services import SYSTEM
from marketplace.contracts.models import Contract, Quote
from marketplace.contracts.quoting import NotOffered, QuoteExpired
from marketplace.contracts.services import accept_quote, request_quote
from marketplace.errors import InvalidInput
from marketplace.ids import uuid7
from marketplace.ledger.services import InsufficientFunds
from providers.models import HostHour
from tests.cast import make_party, make_plant
from tests.contracts.world import World, available, commit, give_money, make_world

TERMS: dict[str, Any] = {"grade": "tiny-chat", "firm_lots": 10, "volume_lots": 100, "months": 1}


@pytest.fixture
def world(db: None) -> World:
    from marketplace import clock

    return make_world(clock.now())


def test_a_quote_is_accepted_once_and_takes_money_and_capacity(world: World) -> None:
    from marketplace import clock

    give_money(world, 10_000_000, clock.now())
    api = world.acme.api
    quote = api.post("/api/v1/quotes", TERMS, format="json")
    assert quote.status_code == 201, quote.content
    body = quote.json()
    assert (body["rate_micros_per_mtok"], body["month_price_micros"]) == (500_000, 50_000)
    address = f"/api/v1/quotes/{body['id']}/accept"
    assert api.post(address).status_code == 400
    first = api.post(address, HTTP_IDEMPOTENCY_KEY="one")
    assert first.status_code == 201, first.content
    assert api.post(address, HTTP_IDEMPOTENCY_KEY="one").content == first.content
    assert api.post(address, HTTP_IDEMPOTENCY_KEY="two").status_code == 409
    assert Contract.objects.count() == 1
    assert available(world) == 10_000_000 - 50_000
    assert HostHour.objects.filter(sold_ppm__gt=0).exists()
    shown = api.get(f"/api/v1/contracts/{first.json()['id']}").json()
    assert shown["entitlements"][0]["entitled_lots"] == 100
    assert len(api.get("/api/v1/contracts").json()["items"]) == 1
    assert api.get("/api/v1/usage").json() == {"items": [], "next": None}


def test_mallory_sees_nothing(world: World) -> None:
    from marketplace import clock

    now = clock.now()
    give_money(world, 10_000_000, now)
    contract = commit(world, now)
    mallory = make_party("Mallory", ["buyer", "provider"], now).api
    for path in (f"quotes/{contract.quote_id}", f"contracts/{contract.id}", f"generations/{uuid7()}"):
        assert mallory.get(f"/api/v1/{path}").status_code == 404
    assert mallory.get("/api/v1/contracts").json()["items"] == []
    assert mallory.get("/api/v1/quotes").json()["items"] == []
    assert mallory.get(f"/api/v1/usage?contract_id={contract.id}").status_code == 404
    accept = mallory.post(f"/api/v1/quotes/{contract.quote_id}/accept", HTTP_IDEMPOTENCY_KEY="m")
    assert accept.status_code == 404


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"firm_lots": 0}, "firm_lots"), ({"firm_lots": "5"}, "firm_lots"), ({"firm_lots": 1.5}, "firm_lots"),
        ({"firm_lots": True}, "firm_lots"), ({"volume_lots": -1}, "volume_lots"), ({"months": 13}, "months"),
        ({"volume_lots": 10**9}, "volume_lots"), ({"take_share_ppm": 1_000_001}, "take_share_ppm"),
        ({"overage_policy": "maybe"}, "overage_policy"), ({"payment": None}, "payment"),
        ({"starts_at": "2026-01-01T00:00:00Z"}, "starts_at"), ({"surprise": 1}, "surprise"),
        ({"max_rate_micros_per_mtok": 0}, "max_rate_micros_per_mtok"),
        ({"max_rate_micros_per_mtok": 10**12 + 1}, "max_rate_micros_per_mtok"),
        ({"max_rate_micros_per_mtok": "1"}, "max_rate_micros_per_mtok"),
        ({"max_rate_micros_per_mtok": 1, "overage_policy": "stop"}, "max_rate_micros_per_mtok"),
        ({"grade": "no\0"}, "grade"), ({"grade": "nobody"}, "grade"), ({"firm_lots": 10**8}, "firm_lots"),
    ],
)  # fmt: skip
def test_bad_terms_name_the_field(world: World, change: dict[str, Any], field: str) -> None:
    answer = world.acme.api.post("/api/v1/quotes", TERMS | change, format="json")
    assert 400 <= answer.status_code < 500
    assert answer.json()["field"] == field
    assert not Quote.objects.exists()


def test_the_highest_rate_of_overage_is_a_term_of_quote_and_contract(world: World, now: datetime) -> None:
    give_money(world, 10**9, now)
    terms = TERMS | {"overage_policy": "spot", "max_rate_micros_per_mtok": 550_000}
    quote = world.acme.api.post("/api/v1/quotes", terms, format="json").json()
    assert quote["max_rate_micros_per_mtok"] == 550_000
    accepted = world.acme.api.post(f"/api/v1/quotes/{quote['id']}/accept", HTTP_IDEMPOTENCY_KEY="a")
    assert accepted.status_code == 201, accepted.content
    shown = world.acme.api.get(f"/api/v1/contracts/{accepted.json()['id']}").json()
    assert (shown["overage_policy"], shown["max_rate_micros_per_mtok"]) == ("spot", 550_000)
    none = world.acme.api.post("/api/v1/quotes", TERMS, format="json").json()
    assert none["max_rate_micros_per_mtok"] is None


def _quote(world: World, now: datetime, **changes: Any) -> Quote:
    terms: dict[str, Any] = {
        "firm_lots": 10, "volume_lots": 100, "months": 1, "starts_at": None, "take_share_ppm": 0,
        "overage_policy": "stop", "payment": "prepaid",
    }  # fmt: skip
    return request_quote(organization_id=world.acme.id, grade_slug="tiny-chat", **(terms | changes), now=now)


def test_the_rate_is_the_weighted_average_of_the_cheapest_that_fill(db: None, now: datetime) -> None:
    world = make_world(now)
    dear = make_plant(world.hyperion, world.grade, now, name="h2", firm_rate=800_000)
    # 850 standard tokens a second, 95% of them: 242 whole lots in 300 s at the cheaper host.
    quote = _quote(world, now, firm_lots=300)
    assert [share["firm_lots"] for share in quote.shares] == [242, 58]
    assert quote.shares[1]["offering_id"] == str(dear.offering.id)
    assert quote.rate_micros_per_mtok == (242 * 500_000 + 58 * 800_000) // 300
    with pytest.raises(NotOffered):
        _quote(world, now, firm_lots=500)
    with pytest.raises(InvalidInput):
        _quote(world, now, volume_lots=10**8)


def test_an_expired_quote_or_an_empty_balance_changes_nothing(db: None, now: datetime) -> None:
    world = make_world(now)
    quote = _quote(world, now, starts_at=now + timedelta(hours=2))
    for at, error in ((now, InsufficientFunds), (now + timedelta(minutes=15), QuoteExpired)):
        with pytest.raises(error):
            accept_quote(
                organization_id=world.acme.id, quote_id=quote.id, operation_id=uuid7(), now=at, actor=SYSTEM
            )
    assert not Contract.objects.exists()
    assert not HostHour.objects.filter(sold_ppm__gt=0).exists()
