"""Changing a bid and asking for cover in the browser."""

from __future__ import annotations

from datetime import datetime

import pytest
from django.test import Client

from marketplace.ids import uuid7
from marketplace.orders.models import Bid, BidRevision
from tests.cast import Party, fund, make_grade
from tests.orders.world import available, bid_of, held
from tests.portal.conftest import SignIn


@pytest.fixture
def buyer(acme: Party, hyperion: Party, grade: object, clock_at: datetime, sign_in: SignIn) -> Client:
    fund(acme, 100_000, clock_at)
    return sign_in(acme)


def as_shown(bid: Bid, **changes: str) -> dict[str, str]:
    shown = {"revision": str(bid.revision), "rate_0": "0.45", "lots_0": "40", "rate_1": "0.3", "lots_1": "20"}
    return {**shown, **changes}


def test_a_bid_is_changed_with_its_hold_and_shows_its_receipts(
    buyer: Client, acme: Party, clock_at: datetime
) -> None:
    bid = bid_of(acme, clock_at)
    page = f"/buyer/bids/{bid.id}"
    text = buyer.get(page).content.decode()
    for shown in ('value="0.45"', 'value="40"', 'value="0.3"', "placed", str(bid.id)):
        assert shown in text
    form = as_shown(bid, lots_0="100", min_fill_lots="5", valid_until="2026-03-12T10:00:00")
    assert buyer.post(page, form).status_code == 302
    bid.refresh_from_db()
    assert (bid.revision, bid.min_fill_lots, held(acme)) == (2, 5, 45_000)
    assert bid.valid_until is not None
    assert bid.valid_until.isoformat() == "2026-03-12T10:00:00+00:00"
    stale = buyer.post(page, {**form, "lots_0": "101"})
    assert stale.status_code == 422
    assert "revision 2: read it again" in stale.content.decode()
    assert 'value="2026-03-12T10:00:00"' in buyer.get(page).content.decode()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rate_0", "NaN"),
        ("rate_0", "Infinity"),
        ("rate_0", "1e-30"),
        ("rate_0", "0." + "1" * 400),
        ("rate_0", "9" * 400),
        ("rate_0", "-1"),
        ("rate_1", "0.46"),
        ("lots_0", "0"),
        ("lots_0", "1.5"),
        ("lots_0", "1000000001"),
        ("min_fill_lots", "61"),
        ("valid_until", "2020-01-01T00:00:00"),
        ("valid_until", "soon"),
    ],
)
def test_a_bad_change_is_named_at_its_field(
    buyer: Client, acme: Party, clock_at: datetime, name: str, value: str
) -> None:
    bid = bid_of(acme, clock_at)
    answer = buyer.post(f"/buyer/bids/{bid.id}", as_shown(bid, **{name: value}))
    assert answer.status_code == 422
    assert f"id_{name}_error" in answer.content.decode()
    assert BidRevision.objects.count() == 1
    assert held(acme) == 18_000


def test_money_that_is_not_there_is_said_and_changes_nothing(
    buyer: Client, acme: Party, clock_at: datetime
) -> None:
    bid = bid_of(acme, clock_at)
    answer = buyer.post(f"/buyer/bids/{bid.id}", as_shown(bid, lots_0="10000"))
    assert answer.status_code == 422
    assert (held(acme), available(acme)) == (18_000, 82_000)


def test_what_has_ended_and_who_only_reads_gets_no_form(
    buyer: Client, acme: Party, viewer_of: object, clock_at: datetime
) -> None:
    bid = bid_of(acme, clock_at)
    page = f"/buyer/bids/{bid.id}"
    viewer = viewer_of(acme)  # type: ignore[operator]
    assert "Change the bid" not in viewer.get(page).content.decode()
    assert viewer.post(page, as_shown(bid, lots_0="41")).status_code == 403
    buyer.post(f"{page}/cancel")
    ended = buyer.get(page).content.decode()
    assert "Change the bid" not in ended
    assert "cancelled" in ended


def test_cover_is_previewed_and_placed_once(buyer: Client, acme: Party) -> None:
    form = {"grade": "tiny-chat", "rate": "0.45", "tokens_per_second": "10", "operation": str(uuid7())}
    assert "Keep me covered" in buyer.get("/buyer/cover").content.decode()
    fragment = buyer.post("/buyer/cover/worst-case", form).content.decode()
    assert "0.00135\u00a0USD" in fragment
    assert not Bid.objects.exists()
    for _ in range(2):
        assert buyer.post("/buyer/cover", form).status_code == 302
    bid = Bid.objects.get()
    assert [(step.rate_micros_per_mtok, step.lots) for step in bid.steps.all()] == [(450_000, 3)]
    assert bid.standing
    assert held(acme) == 1_350


@pytest.mark.parametrize(
    ("name", "value"),
    [("rate", "5.000001"), ("rate", "x"), ("tokens_per_second", "0"), ("tokens_per_second", "9" * 11)],
)
def test_a_bad_cover_is_named_at_its_field(buyer: Client, acme: Party, name: str, value: str) -> None:
    form = {"grade": "tiny-chat", "rate": "0.45", "tokens_per_second": "10", "operation": str(uuid7())}
    answer = buyer.post("/buyer/cover", {**form, name: value})
    assert answer.status_code == 422
    assert f"id_{name}_error" in answer.content.decode()
    assert not Bid.objects.exists()


def test_other_grades_are_previewed_placed_shown_and_changed(
    buyer: Client, acme: Party, clock_at: datetime
) -> None:
    make_grade(clock_at, slug="tiny-other", model="tiny-other")
    form = {
        "grade": "tiny-chat",
        "period_start": "",
        "operation": str(uuid7()),
        "rate_0": "0.45",
        "lots_0": "40",
        "substitute_1": "tiny-other",
        "adjustment_1": "0.05",
    }
    # (450,000 + 50,000) x 40 / 1000, and two micros for an award of its own.
    assert "0.020002\u00a0USD" in buyer.post("/buyer/bid/worst-case", form).content.decode()
    assert buyer.post("/buyer/bid", form).status_code == 302
    bid = Bid.objects.get()
    assert held(acme) == 20_002
    page = f"/buyer/bids/{bid.id}"
    text = buyer.get(page).content.decode()
    assert '<option value="tiny-other" selected>' in text
    assert 'value="0.05"' in text
    changed = {
        "revision": "1",
        "rate_0": "0.45",
        "lots_0": "40",
        "substitute_0": "tiny-other",
        "adjustment_0": "-0.05",
    }
    assert buyer.post(page, changed).status_code == 302
    assert held(acme) == 18_002
    assert 'value="-0.05"' in buyer.get(page).content.decode()
    assert "or Tiny chat" in buyer.get("/buyer/bid").content.decode()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"substitute_2": "tiny-chat"}, "substitute_2"),
        ({"substitute_0": "nothing"}, "substitute_0"),
        ({"adjustment_3": "1"}, "substitute_3"),
        ({"substitute_1": "tiny-other", "adjustment_1": "-0.45"}, "adjustment_1"),
        ({"substitute_1": "tiny-other", "adjustment_1": "x"}, "adjustment_1"),
        ({"substitute_1": "tiny-other", "adjustment_1": "--1"}, "adjustment_1"),
        ({"substitute_1": "tiny-other", "substitute_4": "tiny-other"}, "substitute_4"),
        ({"substitute_1": "tiny-other", "all_or_none": "on"}, "all_or_none"),
    ],
)
def test_a_bad_other_grade_is_named_at_its_field(
    buyer: Client, acme: Party, clock_at: datetime, changes: dict[str, str], named: str
) -> None:
    make_grade(clock_at, slug="tiny-other", model="tiny-other")
    bid = bid_of(acme, clock_at)
    answer = buyer.post(f"/buyer/bids/{bid.id}", as_shown(bid, **changes))
    assert answer.status_code == 422
    text = answer.content.decode()
    assert f"id_{named}_error" in text or (named == "all_or_none" and "has no minimum" in text)
    assert (BidRevision.objects.count(), held(acme)) == (1, 18_000)
