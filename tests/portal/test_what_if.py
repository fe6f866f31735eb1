"""Asking, on a page, what another order of one's own would have got."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
import time_machine
from django.core.cache import cache
from django.test import Client

from marketplace.orders.models import Auction, Bid
from marketplace.orders.services.replaying import replay_auction
from marketplace.orders.services.what_if import MOST_PER_WINDOW
from tests.cast import Party, Plant, fund, make_grade, make_plant
from tests.orders.test_substitutes import crowd, run
from tests.orders.world import PERIOD, bid_of, run_round
from tests.portal.conftest import SignIn

CHANGED = {"rate_0": "0.45", "lots_0": "20"}


@pytest.fixture
def bids(acme: Party, mallory: Party, plant: Plant, now: datetime) -> dict[str, Bid]:
    """242 lots are asked at 0.20; acme and mallory want 300 together."""
    for party in (acme, mallory):
        fund(party, 10_000_000, now)
    return {
        "acme": bid_of(acme, now, steps=((450_000, 150), (300_000, 50))),
        "mallory": bid_of(mallory, now, steps=((400_000, 100),)),
    }


@pytest.fixture
def auction(bids: dict[str, Bid], plant: Plant, now: datetime) -> Auction:
    return run_round(plant, now)


@pytest.fixture
def a_day_later(auction: Auction, now: datetime) -> Iterator[datetime]:
    """The curves are public."""
    cache.clear()
    at = now + PERIOD + timedelta(days=1)
    with time_machine.travel(at, tick=False):
        yield at


def page_of(auction: Auction, bid: Bid | None = None) -> str:
    return f"/buyer/auctions/{auction.id}/what-if" + (f"?bid={bid.id}" if bid else "")


def rows_of(answer: Any) -> dict[str, tuple[str, str]]:
    """The table of the answer: by its first column, before and after."""
    text = re.sub(r"<(?!/?t[rhd]\b)[^>]*>", "", answer.content.decode())
    found = re.findall(r'<th scope="row">(.*?)</th><td class="n">(.*?)</td><td class="n">(.*?)</td>', text)
    return {name: (before, after) for name, before, after in found}


def test_it_is_reached_from_the_bid_and_from_the_grade_and_shows_the_order_as_it_stood(
    acme: Party, bids: dict[str, Bid], auction: Auction, a_day_later: datetime, sign_in: SignIn
) -> None:
    buyer = sign_in(acme)
    assert page_of(auction, bids["acme"]) in buyer.get(f"/buyer/bids/{bids['acme'].id}").content.decode()
    assert f'"{page_of(auction)}"' in buyer.get("/market/tiny-chat").content.decode()
    assert "what-if" not in Client().get("/market/tiny-chat").content.decode()
    shown = buyer.get(page_of(auction, bids["acme"])).content.decode()
    for value in ("0.45", "150", "0.3", "50"):
        assert f'value="{value}"' in shown
    assert str(bids["mallory"].id) not in shown


def test_before_and_after_are_shown_as_rest_tells_them_and_nothing_changes(
    acme: Party, bids: dict[str, Bid], auction: Auction, a_day_later: datetime, sign_in: SignIn
) -> None:
    page = page_of(auction, bids["acme"])
    answer = sign_in(acme).post(page, {**CHANGED, "bid_id": str(bids["acme"].id)})
    assert answer.status_code == 200
    assert rows_of(answer) == {
        "Rate per Mtok": ("0.40", "0.20"),
        "Lots of the whole auction": ("242", "120"),
        "Your lots": ("150", "20"),
        "Your cost, without tax": ("0.06\u00a0USD", "0.004\u00a0USD"),
        "Lots of this order": ("150", "20"),
    }
    assert 'value="20"' in answer.content.decode(), "what was typed stays"
    assert replay_auction(auction_id=auction.id)["matches"]


def test_an_order_that_was_never_placed_stands_beside_ones_own(
    acme: Party, bids: dict[str, Bid], auction: Auction, a_day_later: datetime, sign_in: SignIn
) -> None:
    answer = sign_in(acme).post(page_of(auction), {"rate_0": "0.44", "lots_0": "10", "bid_id": ""})
    rows = rows_of(answer)
    assert rows["Lots of the order added"] == ("0", "10")
    assert rows["Your lots"] == ("150", "160")
    [own] = [name for name in rows if name.startswith("Lots of the order of")]
    assert rows[own] == ("150", "150")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rate_0": "5.000001"}, "rate_0"),
        ({"rate_1": "0.46", "lots_1": "1"}, "rate_1"),
        ({"lots_0": "0"}, "lots_0"),
        ({"lots_0": "1000000001"}, "lots_0"),
        ({"rate_0": "NaN"}, "rate_0"),
        ({"rate_0": ""}, "rate_0"),
        ({"min_fill_lots": "21"}, "min_fill_lots"),
        ({"min_fill_lots": "-1"}, "min_fill_lots"),
    ],
)
def test_a_bad_order_is_named_at_its_field(
    acme: Party,
    bids: dict[str, Bid],
    auction: Auction,
    a_day_later: datetime,
    sign_in: SignIn,
    changes: dict[str, str],
    named: str,
) -> None:
    data = {**CHANGED, "bid_id": str(bids["acme"].id), **changes}
    answer = sign_in(acme).post(page_of(auction, bids["acme"]), data)
    assert answer.status_code == 422
    assert f"id_{named}_error" in answer.content.decode()
    assert not rows_of(answer)


def test_it_is_refused_as_rest_refuses_it(
    acme: Party, mallory: Party, bids: dict[str, Bid], auction: Auction, now: datetime, sign_in: SignIn
) -> None:
    cache.clear()
    with time_machine.travel(now + PERIOD, tick=False):
        early = sign_in(acme).post(page_of(auction), CHANGED)
        assert early.status_code == 422
        assert "A book can be asked about once its curves are public" in early.content.decode()
        assert sign_in(acme).get(f"/buyer/auctions/{uuid4()}/what-if").status_code == 404
    with time_machine.travel(now + PERIOD + timedelta(days=1), tick=False):
        other = sign_in(mallory).post(page_of(auction), {**CHANGED, "bid_id": str(bids["acme"].id)})
        assert other.status_code == 422
        assert "You had no such order in this book" in other.content.decode()
        cache.set(f"what-if:{acme.id}", MOST_PER_WINDOW, 60)
        assert sign_in(acme).post(page_of(auction), CHANGED).status_code == 422


def test_another_organizations_order_is_neither_shown_nor_filled_in(
    acme: Party,
    mallory: Party,
    bids: dict[str, Bid],
    auction: Auction,
    a_day_later: datetime,
    sign_in: SignIn,
) -> None:
    shown = sign_in(mallory).get(page_of(auction, bids["acme"])).content.decode()
    assert "did not stand in this book" in shown
    assert 'value="150"' not in shown
    assert f'?bid={bids["acme"].id}"' not in shown.split("<form method")[0]
    assert acme.organization.name not in shown


def test_an_unpublished_auction_has_no_such_page_and_a_viewer_no_form(
    acme: Party,
    bids: dict[str, Bid],
    auction: Auction,
    a_day_later: datetime,
    sign_in: SignIn,
    viewer_of: Callable[[Party], Client],
) -> None:
    viewer = viewer_of(acme)
    assert "Clear it again" not in viewer.get(page_of(auction)).content.decode()
    assert viewer.post(page_of(auction), CHANGED).status_code == 403
    Auction.objects.filter(pk=auction.pk).update(status=Auction.Status.CLEARED)
    assert sign_in(acme).get(page_of(auction)).status_code == 404
    assert sign_in(acme).post(page_of(auction), CHANGED).status_code == 404


def test_other_grades_are_named_and_what_they_gave_is_told(
    acme: Party,
    mallory: Party,
    hyperion: Party,
    plant: Plant,
    now: datetime,
    sign_in: SignIn,
) -> None:
    cache.clear()
    other = make_grade(now, slug="tiny-other", model="tiny-other")
    plants = [plant, make_plant(hyperion, other, now, name="h2", spot_floor=300_000)]
    for party in (acme, mallory):
        fund(party, 10_000_000, now)
    bid, _ = crowd(acme, mallory, now)
    home = run(plants, now)["tiny-chat"]
    with time_machine.travel(now + PERIOD + timedelta(days=1), tick=False):
        buyer = sign_in(acme)
        shown = buyer.get(page_of(home, bid)).content.decode()
        assert '<option value="tiny-other" selected>' in shown
        assert 'value="-0.05"' in shown
        as_it_stood = {
            "bid_id": str(bid.id),
            "rate_0": "0.5",
            "lots_0": "200",
            "substitute_0": "tiny-other",
            "adjustment_0": "-0.05",
        }
        same = buyer.post(page_of(home, bid), as_it_stood)
        assert rows_of(same)["Lots of this order"] == ("42", "42")
        assert same.content.decode().count("158 lots of") == 2
        dropped = buyer.post(page_of(home, bid), {**as_it_stood, "substitute_0": "", "adjustment_0": ""})
        assert rows_of(dropped)["Lots of this order"] == ("42", "200")
        assert dropped.content.decode().count("158 lots of") == 1
        wrong = buyer.post(page_of(home, bid), {**as_it_stood, "adjustment_0": "-0.5"})
        assert wrong.status_code == 422
        assert "id_adjustment_0_error" in wrong.content.decode()
        whole = buyer.post(page_of(home, bid), {**as_it_stood, "all_or_none": "on"})
        assert whole.status_code == 422
        assert "id_all_or_none_error" in whole.content.decode()
