"""Halt, breaker, administered rate, cap review and the rule of few sellers, through the services and the doors."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import time_machine
from django.db import IntegrityError, transaction
from django.test import Client
from hypothesis import given
from hypothesis import strategies as st

from marketplace.accounts.models import AuditEntry
from marketplace.accounts.services import SYSTEM
from marketplace.contracts.models import PeriodRate
from marketplace.contracts.services import accept_quote, open_hold, request_quote
from marketplace.errors import Conflict, InvalidInput
from marketplace.ids import uuid7
from marketplace.ledger.selectors import balance, check_ledger
from marketplace.orders.book import Book, BookAsk, BookBid, SealedBook
from marketplace.orders.controls_selectors import cap_of, figures_of, state_of
from marketplace.orders.models import Ask, Auction, Bid, CapReview, MarketControl, MarketControlChange, Trade
from marketplace.orders.services import controls as services
from marketplace.orders.services.bids import MarketClosed, cancel_bid
from marketplace.orders.services.clearing import BookChanged, clear_auction
from marketplace.orders.services.replaying import replay_auction
from marketplace.orders.services.rounds import advance_auctions, close_due_auctions
from pricing.book import FIRST_RULE, Clearing
from pricing.clearing_reference import EnginesDisagree
from pricing.models import Grade
from providers.models import HostPeriod
from providers.selectors import unsold_ppm
from providers.services import open_capacity, take_period_share
from tests.cast import Party, Plant, fund, make_party, make_plant
from tests.orders.world import PERIOD, beat, bid_of, run_round

GATE_PASSED, CLEARING = 0.92, 0.93


def halt(operator: Party, grade: Grade, now: datetime) -> MarketControl:
    return services.halt_market(
        operator_id=operator.id, grade=grade, reason="A meter fails.", now=now, actor=SYSTEM
    )


def resume(operator: Party, grade: Grade, now: datetime) -> MarketControl:
    return services.resume_market(
        operator_id=operator.id, grade=grade, reason="Mended.", now=now, actor=SYSTEM
    )


def past(grade: Grade, start: datetime, rate: int | None) -> Auction:
    """An auction that was published, with this clearing rate."""
    return Auction.objects.create(
        grade=grade,
        period_start=start,
        period_end=start + PERIOD,
        opens_at=start - PERIOD,
        no_cancel_at=start - PERIOD * 0.2,
        gate_at=start - PERIOD * 0.1,
        status=Auction.Status.SETTLED,
        quantity_lots=10 if rate else 0,
        clearing_rate_micros_per_mtok=rate,
        published_at=start,
    )


def pasts(grade: Grade, before: datetime, rates: list[int]) -> None:
    """These rates in the periods just before `before`, the last one next to it."""
    for number, rate in enumerate(reversed(rates), start=1):
        past(grade, before - number * PERIOD, rate)


def through(plant: Plant, start: datetime, *shares: float) -> Auction:
    for share in shares:
        beat(plant, start + PERIOD * share)
        advance_auctions(now=start + PERIOD * share)
    return Auction.objects.get(period_start=start + PERIOD)


# Halt ----------------------------------------------------------------------------------------------------------------


def test_a_halted_gate_trades_nothing_and_says_so_and_bids_enter_again_after_it(
    acme: Party, operator: Party, plant: Plant, grade: Grade, now: datetime, client: Client
) -> None:
    fund(acme, 1_000_000, now)
    bid = bid_of(acme, now)
    advance_auctions(now=now)
    halt(operator, grade, now)
    auction = run_round(plant, now)
    assert (auction.status, auction.halted, auction.quantity_lots) == ("published", "operator", 0)
    assert auction.book is not None
    assert auction.book["halted"] == "operator"
    assert not Trade.objects.exists()
    assert not Ask.objects.exists()
    # The capacity stays with its host, for requests on demand.
    assert HostPeriod.objects.get(host=plant.host, period_start=auction.period_start).sold_ppm == 0
    assert replay_auction(auction_id=auction.id)["matches"]
    with time_machine.travel(now + PERIOD, tick=False):
        assert client.get(f"/api/v1/auctions/{auction.id}").json()["halted"] == "operator"
        told = client.get("/api/v1/market/tiny-chat").json()["control"]
        assert (told["status"], told["halted_because"]) == ("halted", "operator")
        assert "Trading in this grade is halted" in client.get("/market/tiny-chat").content.decode()
    bid.refresh_from_db()
    assert (bid.status, bid.skip_reason) == (Bid.Status.OPEN, "")
    resume(operator, grade, now + PERIOD)
    assert run_round(plant, now + PERIOD).quantity_lots == 60
    assert not check_ledger()


def test_firm_contracts_and_requests_on_demand_run_on_while_the_market_is_halted(
    acme: Party, operator: Party, plant: Plant, grade: Grade, now: datetime
) -> None:
    fund(acme, 100_000_000, now)
    halt(operator, grade, now)
    run_round(plant, now)
    beat(plant, now + PERIOD)
    opened = open_hold(
        id=uuid7(now),
        organization_id=acme.id,
        grade_ids=[grade.id],
        numerators=[10**9],
        contract_id=None,
        exclude=(),
        now=now + PERIOD,
    )
    assert opened.outcome == "ok"
    quote = request_quote(
        organization_id=acme.id,
        grade_slug="tiny-chat",
        firm_lots=10,
        volume_lots=2_000,
        months=1,
        starts_at=None,
        take_share_ppm=0,
        overage_policy="list",
        payment="prepaid",
        now=now + PERIOD,
    )
    bought = accept_quote(
        organization_id=acme.id, quote_id=quote.id, operation_id=uuid7(), now=now + PERIOD, actor=SYSTEM
    )
    assert bought.kind == "committed"


def test_a_book_sealed_before_the_halt_trades_nothing_either_and_keeps_its_orders(
    acme: Party, operator: Party, plant: Plant, grade: Grade, now: datetime
) -> None:
    fund(acme, 1_000_000, now)
    bid_of(acme, now)
    advance_auctions(now=now)
    beat(plant, now + PERIOD * GATE_PASSED)
    assert close_due_auctions(now=now + PERIOD * GATE_PASSED) == 1
    sealed_first = Auction.objects.get(status="closed")
    halt(operator, grade, now + PERIOD * GATE_PASSED)
    auction = through(plant, now, CLEARING)
    assert (auction.status, auction.halted, auction.quantity_lots) == ("published", "operator", 0)
    [change] = MarketControlChange.objects.all()
    assert change.evidence == {"sealed_book_digests": {str(auction.pk): sealed_first.book_digest}}
    assert auction.book_digest != sealed_first.book_digest
    assert auction.book is not None
    assert len(auction.book["bids"]) == len(auction.book["asks"]) == 1
    # What the gate took from the host went back.
    assert HostPeriod.objects.get(host=plant.host, period_start=auction.period_start).sold_ppm == 0
    assert replay_auction(auction_id=auction.id)["matches"]


def test_bids_are_cancelled_in_the_no_cancel_phase_while_the_market_is_halted(
    acme: Party, operator: Party, plant: Plant, grade: Grade, now: datetime
) -> None:
    fund(acme, 1_000_000, now)
    bid = bid_of(acme, now)
    advance_auctions(now=now)
    late = now + PERIOD * 0.85
    with pytest.raises(MarketClosed):
        cancel_bid(organization_id=acme.id, bid_id=bid.id, now=late, actor=SYSTEM)
    halt(operator, grade, late)
    cancelled = cancel_bid(organization_id=acme.id, bid_id=bid.id, now=late, actor=SYSTEM)
    assert cancelled.status == Bid.Status.CANCELLED
    assert balance(organization_id=acme.id, kind="prepaid", currency="USD").pending_micros == 0


def test_a_result_that_is_not_published_yet_still_binds_its_bids(
    acme: Party, operator: Party, plant: Plant, grade: Grade, now: datetime
) -> None:
    """Publication carves the award out of the bid's hold: it must be there."""
    fund(acme, 1_000_000, now)
    bid = bid_of(acme, now)
    advance_auctions(now=now)
    beat(plant, now + PERIOD * GATE_PASSED)
    close_due_auctions(now=now + PERIOD * GATE_PASSED)
    auction = Auction.objects.get(period_start=now + PERIOD)
    assert clear_auction(auction_id=auction.id, now=now + PERIOD * GATE_PASSED)
    halt(operator, grade, now + PERIOD * GATE_PASSED)
    with pytest.raises(MarketClosed):
        cancel_bid(organization_id=acme.id, bid_id=bid.id, now=now + PERIOD * GATE_PASSED, actor=SYSTEM)
    published = through(plant, now, CLEARING)
    assert (published.halted, published.quantity_lots) == ("", 60)


def test_halting_twice_and_resuming_twice_are_conflicts_that_change_nothing(
    operator: Party, grade: Grade, now: datetime
) -> None:
    with pytest.raises(Conflict):
        resume(operator, grade, now)
    halt(operator, grade, now)
    with pytest.raises(Conflict):
        halt(operator, grade, now)
    resume(operator, grade, now)
    moves = MarketControlChange.objects.order_by("pk").values_list("from_status", "to_status", "reason")
    assert list(moves) == [("normal", "halted", "A meter fails."), ("halted", "normal", "Mended.")]
    assert list(AuditEntry.objects.filter(action__startswith="market.").values_list("action", flat=True)) == [
        "market.halt",
        "market.resume",
    ]
    with pytest.raises(InvalidInput) as refused:
        services.halt_market(operator_id=operator.id, grade=grade, reason=" ", now=now, actor=SYSTEM)
    assert refused.value.field == "reason"


@pytest.mark.parametrize(
    ("changes", "constraint"),
    [
        ({"status": "capped"}, "orders_marketcontrol_cap_while_capped"),
        ({"status": "halted"}, "orders_marketcontrol_halted_says_why"),
        ({"halted_because": "operator"}, "orders_marketcontrol_halted_says_why"),
        ({"administered_cap_micros_per_mtok": 1}, "orders_marketcontrol_cap_while_capped"),
        ({"administered_rate_micros_per_mtok": 0}, "orders_marketcontrol_rate_positive"),
        ({"status": "asleep"}, "orders_marketcontrol_status_known"),
    ],
)
def test_the_table_refuses_states_that_make_no_sense(
    grade: Grade, now: datetime, changes: dict[str, Any], constraint: str
) -> None:
    control = services.control_of(grade.id, now=now)
    with pytest.raises(IntegrityError, match=constraint), transaction.atomic():
        MarketControl.objects.filter(pk=control.pk).update(**changes)


def test_the_history_refuses_moves_that_are_not_allowed_and_changes_of_what_was(
    operator: Party, grade: Grade, now: datetime
) -> None:
    control = halt(operator, grade, now)
    with pytest.raises(IntegrityError, match="orders_controlchange_move_allowed"), transaction.atomic():
        MarketControlChange.objects.create(
            control=control, action="released", from_status="halted", to_status="normal", reason="x",
            actor_kind="rule", created_at=now,
        )  # fmt: skip
    with pytest.raises(Exception, match=r"permission denied|append-only"), transaction.atomic():
        MarketControlChange.objects.update(reason="y")


# What a halted period settles at -------------------------------------------------------------------------------------


def test_a_halted_period_settles_at_the_operators_rate_else_at_the_median_never_above_list(
    operator: Party, plant: Plant, grade: Grade, now: datetime
) -> None:
    """The list rate is 600,000; the median of 210,000, 250,000 and 900,000 is 250,000."""
    advance_auctions(now=now)
    halt(operator, grade, now)
    run_round(plant, now)

    def overage(period_start: datetime) -> int:
        return PeriodRate.objects.get(period_start=period_start).overage_rate.micros_per_mtok

    # Nothing has ever traded: the list rate.
    assert overage(now + PERIOD) == 600_000
    pasts(grade, now - PERIOD, [210_000, 900_000, 250_000])
    run_round(plant, now + PERIOD)
    assert overage(now + 2 * PERIOD) == 250_000
    for number, (figure, settled) in enumerate(((330_000, 330_000), (700_000, 600_000), (None, 250_000)), 2):
        services.set_administered_rate(
            operator_id=operator.id,
            grade=grade,
            rate_micros_per_mtok=figure,
            reason="So ruled.",
            now=now,
            actor=SYSTEM,
        )
        run_round(plant, now + number * PERIOD)
        assert overage(now + (number + 1) * PERIOD) == settled
    assert MarketControlChange.objects.filter(action="rate_set").count() == 3


# The breaker ---------------------------------------------------------------------------------------------------------


def test_the_breaker_caps_at_twice_the_median_and_lets_go_by_rule(
    acme: Party, plant: Plant, grade: Grade, now: datetime
) -> None:
    """Cap 5,000,000: 90 periods at it are allowed, and one more micro trips. 100 periods at 210,000 make the median."""
    target = now + PERIOD
    for number in range(100):
        past(grade, target - timedelta(days=10) - number * PERIOD, 210_000)
    pasts(grade, target, [5_000_000] * 90)
    advance_auctions(now=now)
    control = MarketControl.objects.get(grade=grade)
    assert control.status == "normal"
    newest = Auction.objects.get(period_start=target - PERIOD)
    Auction.objects.filter(pk=past(grade, target - 91 * PERIOD, 1).pk).update(status="published")
    fund(acme, 10_000_000, now)
    bid_of(acme, now, steps=((450_000, 40),))
    auction = through(plant, now, 0.85, GATE_PASSED)
    control.refresh_from_db()
    assert (control.status, control.administered_cap_micros_per_mtok) == ("capped", 420_000)
    assert auction.book is not None
    assert auction.book["cap"] == 420_000
    [tripped] = MarketControlChange.objects.all()
    assert (tripped.action, tripped.actor_kind, tripped.actor_id) == ("tripped", "rule", None)
    assert tripped.evidence["rolling_sum_micros_per_mtok"] == 450_000_001
    assert tripped.evidence["threshold_micros_per_mtok"] == 450_000_000
    assert tripped.evidence["median_micros_per_mtok"] == 210_000
    assert state_of(grade, now=now).book_cap == 420_000
    # One of the dear periods leaves the window: the next book is open under the grade's own cap again.
    Auction.objects.filter(pk=newest.pk).update(clearing_rate_micros_per_mtok=1)
    through(plant, now + PERIOD, 0.0)
    control.refresh_from_db()
    assert (control.status, control.administered_cap_micros_per_mtok) == ("normal", None)
    assert MarketControlChange.objects.order_by("-pk")[0].action == "released"


def test_the_breaker_leaves_a_halted_market_alone(
    operator: Party, plant: Plant, grade: Grade, now: datetime
) -> None:
    pasts(grade, now + PERIOD, [5_000_000] * 91)
    halt(operator, grade, now)
    run_round(plant, now)
    assert MarketControl.objects.get().status == "halted"
    resume(operator, grade, now + PERIOD)
    through(plant, now + PERIOD, 0.0)
    assert MarketControl.objects.get().status == "capped"


def test_the_window_is_the_week_before_the_period(grade: Grade, now: datetime) -> None:
    for start in (now - timedelta(days=7), now - timedelta(days=7) - PERIOD, now - PERIOD, now):
        past(grade, start, 100)
    past(grade, now - 2 * PERIOD, None)
    figures = figures_of([grade.id], before=now)[grade.id]
    assert (figures.rolling_sum, figures.traded_periods, figures.median) == (200, 2, 100)


@given(rates=st.lists(st.integers(1, 10**9), min_size=1, max_size=12))
def test_the_book_of_no_halt_has_the_form_it_always_had(rates: list[int]) -> None:
    moment = datetime.fromisoformat("2026-03-10T12:00:00+00:00")
    ids = [uuid7() for _ in range(4)]
    bids = [BookBid(ids[1], ids[2], moment, [(max(rates), 10)])]
    book = Book(ids[0], moment, max(rates), bids, [])
    assert "halted" not in book.to_json()
    assert list(book.to_json()) == [
        "rule_version",
        "grade_id",
        "period_start",
        "cap",
        "missed",
        "bids",
        "asks",
    ]
    halted = Book(ids[0], moment, max(rates), bids, [], halted="operator")
    assert Book.from_json(halted.to_json()) == halted
    assert Book.from_json(book.to_json()) == book
    assert halted.sealed().digest() != book.sealed().digest()
    assert halted.sealed().clear().quantity_lots == 0


def test_a_digest_of_before_there_were_halts_still_comes_out() -> None:
    moment = datetime.fromisoformat("2026-03-10T12:00:00+00:00")
    bid = BookBid(UUID(int=2), UUID(int=3), moment, [(450_000, 40), (300_000, 20)], min_fill_lots=5)
    ask = BookAsk(UUID(int=4), UUID(int=5), UUID(int=6), moment, 200_000, 255)
    sealed = Book(UUID(int=1), moment, 5_000_000, [bid], [ask]).sealed()
    book = SealedBook({**sealed.data, "rule_version": FIRST_RULE})
    assert book.digest() == "a1ab8c74446cb59fe150e5a3dc515c49976f321d7800605fe46b34163a52ce04"
    result = "c1ee60ca7561ee2a42904252748f148d0917907957d801e66bbe968141df2a0e"
    assert book.result_digest(book.clear()) == result


# Few sellers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sellers", "asked"), [(2, 500_000), (3, 550_000)])
def test_with_fewer_than_three_sellers_nobody_asks_above_his_own_firm_rate(
    operator: Party, grade: Grade, now: datetime, sellers: int, asked: int
) -> None:
    plants = [
        make_plant(
            make_party(f"Seller{n}", ["provider"], now), grade, now, name=f"s{n}", firm_rate=500_000,
            spot_floor=550_000,
        )
        for n in range(sellers)
    ]  # fmt: skip
    assert asks_of(plants, now) == {asked}


def test_three_hosts_of_one_organization_are_one_seller(hyperion: Party, grade: Grade, now: datetime) -> None:
    plants = [make_plant(hyperion, grade, now, name=f"h{n}", spot_floor=550_000) for n in range(3)]
    assert asks_of(plants, now) == {500_000}
    assert Ask.objects.count() == 3


def test_a_seller_who_is_sold_out_competes_with_nobody(operator: Party, grade: Grade, now: datetime) -> None:
    plants = [
        make_plant(
            make_party(f"Seller{n}", ["provider"], now), grade, now, name=f"s{n}", firm_rate=500_000,
            spot_floor=550_000,
        )
        for n in range(3)
    ]  # fmt: skip
    advance_auctions(now=now)
    open_capacity(now=now)
    start = now + PERIOD
    gone = plants.pop()
    take_period_share(host_id=gone.host.id, period_start=start, share_ppm=unsold_ppm(gone.host.id, start))
    beat(gone, now + PERIOD * GATE_PASSED)
    # Three are listed, two have something to sell.
    assert asks_of(plants, now) == {500_000}


def asks_of(plants: list[Plant], now: datetime) -> set[int]:
    advance_auctions(now=now)
    open_capacity(now=now)
    for plant in plants:
        beat(plant, now + PERIOD * GATE_PASSED)
    advance_auctions(now=now + PERIOD * GATE_PASSED)
    assert Ask.objects.count() == len(plants)
    return set(Ask.objects.values_list("rate_micros_per_mtok", flat=True))


# Halts by rule -------------------------------------------------------------------------------------------------------


def test_a_book_changed_after_the_gate_halts_the_grade_and_the_rounds_go_on(
    acme: Party, operator: Party, plant: Plant, grade: Grade, now: datetime, client: Client
) -> None:
    fund(acme, 1_000_000, now)
    bid_of(acme, now)
    auction = sealed(plant, now)
    assert auction.book is not None
    auction.book["bids"][0]["steps"] = [[450_000, 41]]
    Auction.objects.filter(pk=auction.pk).update(book=auction.book)
    with pytest.raises(BookChanged):
        clear_auction(auction_id=auction.pk, now=now + PERIOD * CLEARING)
    control = MarketControl.objects.get()
    assert (control.status, control.halted_because) == ("halted", "book_changed")
    after = through(plant, now, CLEARING)
    assert (after.status, after.halted, after.quantity_lots) == ("published", "book_changed", 0)
    following = run_round(plant, now + PERIOD)
    assert (following.status, following.halted) == ("published", "book_changed")
    assert "tokenyard_market_halted_by_rule 1.0" in client.get("/metrics").content.decode()
    client.force_login(operator.user)
    assert "1 halted" in client.get("/operator").content.decode()
    assert not check_ledger()


def test_engines_that_disagree_halt_the_grade_with_the_evidence(
    acme: Party, plant: Plant, grade: Grade, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first engine is given a fault; the second one is as it is, and finds it."""
    fund(acme, 1_000_000, now)
    bid_of(acme, now)
    auction = sealed(plant, now)
    honest = SealedBook.clear

    def faulty(book: SealedBook) -> Clearing:
        found = honest(book)
        if found.price is None:
            return found
        facts = {name: getattr(found, name) for name in found.__slots__}
        return Clearing(**{**facts, "price": found.price + 1})

    monkeypatch.setattr(SealedBook, "clear", faulty)
    with pytest.raises(EnginesDisagree):
        clear_auction(auction_id=auction.pk, now=now + PERIOD * CLEARING)
    [change] = MarketControlChange.objects.all()
    assert (change.action, change.actor_kind) == ("halted", "rule")
    assert change.evidence["auction_id"] == str(auction.pk)
    assert change.evidence["sealed_book_digests"] == {str(auction.pk): auction.book_digest}
    after = through(plant, now, CLEARING)
    assert (after.status, after.halted) == ("published", "engines_disagree")
    assert after.book is not None
    # The orders are kept: without the halt's name it is the book that was sealed, digest and all.
    kept = {name: value for name, value in after.book.items() if name != "halted"}
    assert SealedBook(kept).digest() == auction.book_digest
    assert HostPeriod.objects.get(host=plant.host, period_start=auction.period_start).sold_ppm == 0


def sealed(plant: Plant, now: datetime) -> Auction:
    advance_auctions(now=now)
    beat(plant, now + PERIOD * GATE_PASSED)
    assert close_due_auctions(now=now + PERIOD * GATE_PASSED) == 1
    return Auction.objects.get(period_start=now + PERIOD)


# The cap and its reviews ---------------------------------------------------------------------------------------------


def test_a_cap_changes_with_notice_and_only_from_its_day_on(
    acme: Party, operator: Party, plant: Plant, grade: Grade, now: datetime
) -> None:
    fund(acme, 10**9, now)
    terms: dict[str, Any] = {
        "operator_id": operator.id, "grade": grade, "cap_micros_per_mtok": 6_000_000, "reason": "Dearer.",
        "now": now, "actor": SYSTEM,
    }  # fmt: skip
    with pytest.raises(InvalidInput) as refused:
        services.schedule_cap(**terms, effective_from=now + timedelta(days=28) - PERIOD)
    assert refused.value.field == "effective_from"
    day = now + timedelta(days=28)
    review = services.schedule_cap(**terms, effective_from=day)
    assert (cap_of(grade, at=day - PERIOD), cap_of(grade, at=day)) == (5_000_000, 6_000_000)
    with pytest.raises(Conflict):
        services.schedule_cap(**terms, effective_from=day)
    with pytest.raises(InvalidInput, match="cap of 5000000"):
        bid_of(acme, now, steps=((5_000_001, 1),))
    assert bid_of(acme, day, steps=((6_000_000, 1),)).status == "open"
    with pytest.raises(Conflict):
        decline(operator, review, day)


def decline(operator: Party, review: CapReview, now: datetime) -> CapReview:
    return services.decline_cap(
        operator_id=operator.id, review_id=review.id, reason="Not yet.", now=now, actor=SYSTEM
    )


def test_rates_near_the_cap_on_two_days_propose_a_quarter_more_once_and_the_operator_declines(
    operator: Party, plant: Plant, grade: Grade, now: datetime
) -> None:
    past(grade, now - timedelta(days=29), 3_499_999)
    past(grade, now - timedelta(days=3), 3_500_000)
    past(grade, now - timedelta(days=3) + PERIOD, 3_600_000)
    advance_auctions(now=now)
    assert not CapReview.objects.exists()
    # Before the day in which periods without an auction are recorded as missed.
    past(grade, now - timedelta(hours=30), 5_000_000)
    run_round(plant, now + PERIOD)
    run_round(plant, now + 2 * PERIOD)
    [review] = CapReview.objects.all()
    assert (review.actor_kind, review.cap_micros_per_mtok) == ("rule", 6_250_000)
    assert review.effective_from == review.created_at + timedelta(days=28)
    assert review.evidence["days"] == ["2026-03-07", "2026-03-09"]
    assert cap_of(grade, at=review.effective_from) == 6_250_000
    decline(operator, review, now + 3 * PERIOD)
    assert cap_of(grade, at=review.effective_from) == 5_000_000
    run_round(plant, now + 3 * PERIOD)
    assert CapReview.objects.count() == 1


# The doors -----------------------------------------------------------------------------------------------------------


def test_the_operator_halts_prices_and_resumes_over_rest(
    acme: Party, operator: Party, grade: Grade, now: datetime
) -> None:
    with time_machine.travel(now, tick=False):
        door = "/api/v1/controls/tiny-chat"
        [listed] = operator.api.get("/api/v1/controls").json()["items"]
        assert (listed["grade"], listed["status"], listed["cap_micros_per_mtok"]) == (
            "tiny-chat", "normal", 5_000_000,
        )  # fmt: skip
        assert operator.api.post(f"{door}/halt", {"reason": "A"}, format="json").json()["status"] == "halted"
        again = operator.api.post(f"{door}/halt", {"reason": "A"}, format="json")
        assert (again.status_code, again.json()["code"]) == (409, "conflict")
        rate = {"rate_micros_per_mtok": 300_000, "reason": "B"}
        told = operator.api.post(f"{door}/administered-rate", rate, format="json").json()
        assert told["administered_rate_micros_per_mtok"] == 300_000
        assert (
            operator.api.post(f"{door}/resume", {"reason": "C"}, format="json").json()["status"] == "normal"
        )
        history = operator.api.get(f"{door}/history").json()["items"]
        assert [change["action"] for change in history] == ["resumed", "rate_set", "halted"]
        assert {change["actor_kind"] for change in history} == {"api_key"}
        assert operator.api.get("/api/v1/controls/nothing").status_code == 404
        for party in (acme,):
            assert party.api.post(f"{door}/halt", {"reason": "A"}, format="json").status_code == 403
