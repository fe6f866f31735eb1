"""Committed contracts, spot awards and requests on demand, in any order, against a model that only does arithmetic."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from uuid import UUID

import pytest
from django.db import connections
from django.db.models import Sum
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from pytest_django import Settings

from marketplace.accounts.services import SYSTEM
from marketplace.billing.models import Charge, Earning
from marketplace.billing.services.credit_lines import give_credit_line
from marketplace.billing.services.settling import settle_due_periods
from marketplace.billing.services.terminating import EndedEarly, amend, terminate_contract
from marketplace.contracts.ending import quote_amendment
from marketplace.contracts.models import Contract, Entitlement, PeriodRate, Quote
from marketplace.contracts.models import Hold as DeliveryHold
from marketplace.contracts.quoting import NotOffered
from marketplace.contracts.services import (
    accept_quote,
    advance_contracts,
    capture_hold,
    open_hold,
    request_quote,
    sweep_holds,
    void_hold,
)
from marketplace.errors import Conflict, InvalidInput
from marketplace.ledger.checking import check_ledger
from marketplace.ledger.models import AccountKind, LedgerAccount
from marketplace.ledger.selectors import balance
from marketplace.ledger.services import InsufficientFunds
from marketplace.models import FailingItem
from marketplace.orders.models import Bid, Trade
from marketplace.orders.services.bids import place_bid
from marketplace.orders.services.rounds import advance_auctions
from marketplace.orders.terms import BidTerms
from metering.models import UsageBatch
from metering.services import gateway_source
from pricing.models import Rate
from providers.capacity import CapacityGone
from providers.models import Host, HostHour
from tests.billing.world import meter, set_tax
from tests.cast import Party, Plant, make_grade, make_party, make_plant
from tests.conftest import TestDatabase
from tests.contracts.world import World, give_money
from tests.database import Services
from tests.ledger.contract_model import (
    DAY,
    FEE_PPM,
    HOUR,
    LOT,
    PERIOD,
    SECOND,
    Award,
    Bucket,
    Committed,
    Model,
    NoCapacity,
    NoFunds,
    Open,
    Right,
    Supplier,
    Used,
    grid,
    grid_up,
)

NOW = datetime(2026, 3, 10, 12, 0, tzinfo=UTC)
DEPENDABLE_LOTS = 255
LIST, FIRM = (600_001, 612_347), (499_999, 523_457)
# Nothing divides by it, so that every amount has to be rounded.
PIECE = 123_456_789


@dataclass(frozen=True)
class Place:
    """The database of each run, a copy of the template with the world in it."""

    services: Services
    name: str
    template: str
    world: World
    plants: list[Plant]


class ContractMachine(RuleBasedStateMachine):
    """One buyer, two hosts, time that only goes forward. Each run has a database of its own, with real commits."""

    place: ClassVar[Place]
    tax_ppm: ClassVar[int]

    @initialize()
    def start(self) -> None:
        connections.close_all()
        self.place.services.clone(self.place.name, template=self.place.template)
        self.world, self.acme = self.place.world, self.place.world.acme
        self.by_offering = {plant.offering.id: plant for plant in self.place.plants}
        self.source_id = gateway_source(NOW).id
        self.model = Model(self.tax_ppm)
        set_tax(self.acme, self.tax_ppm)
        self.now = NOW
        self.made = self.bids = 0
        self.paid = 0
        self.pay_in(amount=40_000)
        self.lend(amount=0)

    def new_id(self) -> UUID:
        """UUIDv7s of which a run has always the same, and so the same order of what is done by id."""
        self.made += 1
        return UUID(int=int(self.now.timestamp() * 1000) << 80 | 7 << 76 | 2 << 62 | self.made)

    # Money

    @rule(amount=st.sampled_from([3_001, 20_003, 100_000]))
    def pay_in(self, amount: int) -> None:
        give_money(self.world, amount, self.now)
        self.model.purses["prepaid"].posted += amount
        self.paid += amount

    @rule(amount=st.sampled_from([1_999, 25_000]))
    def pay_back(self, amount: int) -> None:
        """What is owed in arrears, or ahead of it."""
        give_money(self.world, amount, self.now, kind=AccountKind.RECEIVABLE)
        self.model.purses["receivable"].posted += amount
        self.paid += amount

    @rule(amount=st.sampled_from([0, 5_000, 60_000]))
    def lend(self, amount: int) -> None:
        give_credit_line(organization_id=self.acme.id, limit_micros=amount, now=self.now, actor=SYSTEM)
        self.model.purses["receivable"].line = amount

    # Committed contracts

    @precondition(lambda self: len(self.model.committed) < 4)
    @rule(
        firm=st.sampled_from([10, 90, 200]),
        volume=st.integers(1, 60),
        months=st.integers(1, 3),
        payment=st.sampled_from(["prepaid", "arrears"]),
        policy=st.sampled_from(["stop", "list", "spot"]),
        take=st.sampled_from([0, 333_333, 1_000_000]),
        rollover=st.sampled_from([0, 500_000, 1_000_000]),
        cap=st.integers(1, 30),
        max_rate=st.sampled_from([None, 605_000]),
        ahead=st.sampled_from([None, 1, 30]),
    )
    def commit(
        self,
        firm: int,
        volume: int,
        months: int,
        payment: str,
        policy: str,
        take: int,
        rollover: int,
        cap: int,
        max_rate: int | None,
        ahead: int | None,
    ) -> None:
        kept = rollover if payment == "prepaid" else 0
        try:
            quote = request_quote(
                organization_id=self.acme.id,
                grade_slug="tiny-chat",
                firm_lots=firm,
                volume_lots=volume,
                months=months,
                starts_at=None if ahead is None else grid_up(self.now, PERIOD) + ahead * PERIOD,
                take_share_ppm=take,
                overage_policy=policy,
                payment=payment,
                rollover_share_ppm=kept,
                rollover_cap_lots=cap if kept else 0,
                max_rate_micros_per_mtok=None if policy == "stop" else max_rate,
                now=self.now,
            )
        except NotOffered:
            # Of two hosts that sell 242 lots each the term's fullest hours leave too little.
            assert (
                sum(242 * LOT - self.most_sold(plant) for plant in self.place.plants) < firm * LOT + 2 * LOT
            )
            return
        contract = self.contract_of(quote)
        operation_id = self.new_id()

        def accept() -> Contract:
            return accept_quote(
                organization_id=self.acme.id,
                quote_id=quote.id,
                operation_id=operation_id,
                now=self.now,
                actor=SYSTEM,
            )

        try:
            self.model.accept(contract, self.now)
        except (NoFunds, NoCapacity):
            with pytest.raises((InsufficientFunds, CapacityGone)):
                accept()
            return
        made = accept()
        assert accept().id == made.id
        self.learn_id(contract, made.id)

    def learn_id(self, contract: Committed, id_: UUID) -> None:
        del self.model.committed[contract.id]
        held = self.model.purses["prepaid"].held
        month = held.pop(("month", contract.id, contract.starts_at), None)
        if month is not None:
            held["month", id_, contract.starts_at] = month
        contract.id = id_
        self.model.committed[id_] = contract
        self.learn_months()

    def contract_of(self, quote: Quote) -> Committed:
        suppliers = {}
        for share in quote.shares:
            plant = self.by_offering[UUID(share["offering_id"])]
            lots = share["firm_lots"]
            rate = FIRM[self.place.plants.index(plant)]
            assert share["rate_micros_per_mtok"] == rate
            suppliers[plant.offering.id] = Supplier(
                lots, rate, plant.host.id, -(-(10**6) * lots // DEPENDABLE_LOTS)
            )
        assert sum(one.firm_lots for one in suppliers.values()) == quote.firm_lots
        contract = Committed(
            quote.id,
            quote.payment,
            quote.overage_policy,
            quote.firm_lots,
            quote.volume_lots,
            quote.take_share_ppm,
            quote.rollover_share_ppm,
            quote.rollover_cap_lots,
            quote.max_rate_micros_per_mtok,
            quote.termination_fee_ppm,
            timedelta(days=quote.notice_days),
            quote.starts_at,
            quote.starts_at,
            suppliers,
        )
        contract.ends_at = contract.end_of_term(quote.months)
        assert contract.rate == quote.rate_micros_per_mtok
        return contract

    def most_sold(self, plant: Plant) -> int:
        """The most lots (numerators) of a host that contracts have in any hour to come."""
        hours = {
            hour for one in self.model.committed.values() for hour in one.hours if hour >= self.now - HOUR
        }
        return max((self.model.sold(plant.host.id, hour) for hour in hours), default=0) * 255 * LOT // 10**6

    @precondition(lambda self: self.model.committed)
    @rule(data=st.data(), later=st.sampled_from([None, None, 1, 29]))
    def terminate(self, data: st.DataObject, later: int | None) -> None:
        contract = self.model.committed[data.draw(st.sampled_from(list(self.model.committed)))]
        if contract.status == "ended":
            return
        end = self.model.first_end(contract, self.now)
        end += timedelta(0) if later is None else later * DAY
        operation_id = self.new_id()

        def end_it() -> tuple[int, int]:
            done = terminate_contract(
                organization_id=self.acme.id,
                contract_id=contract.id,
                ends_at=None if later is None else end,
                reason="enough",
                operation_id=operation_id,
                now=self.now,
                actor=SYSTEM,
            )
            return done.fee_micros, done.refund_micros

        if end >= contract.ends_at:
            with pytest.raises(InvalidInput):
                end_it()
            return
        try:
            expected = self.model.terminate(contract, end, operation_id)
        except NoFunds:
            with pytest.raises(InsufficientFunds):
                end_it()
            return
        assert end_it() == expected
        assert end_it() == expected

    @precondition(lambda self: 0 < len(self.model.committed) < 5)
    @rule(
        data=st.data(),
        firm=st.sampled_from([10, 90, 200]),
        volume=st.integers(1, 60),
        months=st.integers(1, 2),
    )
    def amend(self, data: st.DataObject, firm: int, volume: int, months: int) -> None:
        """Other lots, volume or months from the start of one of its later months on."""
        contract = self.model.committed[data.draw(st.sampled_from(list(self.model.committed)))]
        turns = [start for start, _, _ in contract.term()][1:]
        turns = [start for start in turns if self.now + DAY <= start <= self.now + 31 * DAY]
        if contract.status == "ended" or not turns:
            return

        def ask() -> Quote:
            return quote_amendment(
                organization_id=self.acme.id,
                contract_id=contract.id,
                starts_at=turns[0],
                firm_lots=firm,
                volume_lots=volume,
                months=months,
                now=self.now,
            )

        if contract.is_amended:
            with pytest.raises(Conflict):
                ask()
            return
        try:
            quote = ask()
        except NotOffered:
            return
        successor, operation_id = self.contract_of(quote), self.new_id()

        def do() -> EndedEarly:
            return amend(
                organization_id=self.acme.id,
                contract_id=contract.id,
                quote_id=quote.id,
                operation_id=operation_id,
                now=self.now,
                actor=SYSTEM,
            )

        try:
            fee = self.model.amend(contract, successor, operation_id, self.now)
        except (NoFunds, NoCapacity):
            with pytest.raises((InsufficientFunds, CapacityGone)):
                do()
            return
        done = do()
        assert done.successor is not None
        assert (done.fee_micros, done.refund_micros) == (fee, 0)
        self.learn_id(successor, done.successor.id)
        again = do()
        assert (again.successor, again.fee_micros, again.refund_micros) == (done.successor, fee, 0)

    # Requests

    def contracts(self) -> list[UUID]:
        return list(dict.fromkeys([*self.model.committed, *(contract for contract, _ in self.model.awards)]))

    @precondition(lambda self: self.contracts())
    @rule(data=st.data(), pieces=st.integers(1, 150), end=st.sampled_from(["all", "part", "none", "later"]))
    def use(self, data: st.DataObject, pieces: int, end: str) -> None:
        """A request that names its contract: mostly one that something is left of."""
        usable = [one for one in self.contracts() if self.model.running(one, self.now)]
        contract = data.draw(st.sampled_from(usable or self.contracts()))
        self.ask(pieces * PIECE, contract, end)

    @rule(pieces=st.integers(1, 80), end=st.sampled_from(["all", "part", "later"]))
    def use_any(self, pieces: int, end: str) -> None:
        """A request that leaves it to the market which contract pays."""
        self.ask(pieces * PIECE, None, end)

    def ask(self, numerator: int, contract: UUID | None, end: str) -> None:
        self.beat_hosts()
        hold_id = self.new_id()
        opened = open_hold(
            id=hold_id,
            organization_id=self.acme.id,
            grade_ids=[self.world.grade.id],
            numerators=[numerator],
            contract_id=contract,
            now=self.now,
        )
        outcome, right, over = self.expected(contract, numerator)
        if right is None and outcome == "ok":
            # On demand, or overage: at whose rate is the market's to say, and whether he has it unsold.
            if opened.outcome == "capacity_unavailable":
                return
            outcome = self.expected_on_demand(opened, over, numerator)
        assert opened.outcome == outcome
        if outcome != "ok":
            return
        assert opened.contract_id is not None
        assert opened.offering_id is not None
        assert opened.rate_micros_per_mtok is not None
        arrears = self.model.purse_of(opened.contract_id) == "receivable"
        is_paid = right is not None and not arrears
        micros = 0 if is_paid else self.model.worst(numerator, opened.rate_micros_per_mtok)
        assert opened.amount_micros == micros
        if right is not None:
            assert self.model.running(opened.contract_id, self.now) is right
        self.model.open_hold(
            hold_id,
            Open(
                opened.contract_id,
                self.now,
                None if right is not None else opened.rate_id,
                opened.rate_micros_per_mtok,
                opened.offering_id,
                numerator,
                micros,
                None if is_paid else self.model.purse_of(opened.contract_id),
                right,
            ),
        )
        if end == "none":
            self.finish(hold_id, 0)
        elif end != "later":
            self.finish(hold_id, numerator if end == "all" else numerator // 3 + 1)

    def expected(self, contract: UUID | None, numerator: int) -> tuple[str, Right | None, Committed | None]:
        """What a request comes to: its outcome, the right that pays it, or whose overage it is."""
        if contract is None:
            return self.expected_of_any(numerator)
        committed = self.model.committed.get(contract)
        if committed is not None and committed.status == "suspended":
            return "contract_suspended", None, None
        right = self.model.running(contract, self.now)
        outcome = (
            "contract_exhausted" if right is None else self.model.admits(contract, right, numerator, self.now)
        )
        if committed is None or committed.policy == "stop":
            return outcome, right, None
        if outcome in ("contract_exhausted", "rate_limited") and (right or committed.policy == "list"):
            return "ok", None, committed
        return outcome, right, None

    def expected_of_any(self, numerator: int) -> tuple[str, Right | None, Committed | None]:
        """Committed with unmet take first, then awards, then committed above its take; at last, what goes on beyond."""
        ranked: list[tuple[Any, ...]] = []
        for contract in self.contracts():
            right = self.model.running(contract, self.now)
            committed = self.model.committed.get(contract)
            if right is None or (committed is not None and committed.status != "active"):
                continue
            if committed is None:
                rank, ends, rate = 1, datetime.max.replace(tzinfo=UTC), self.award_at(contract).rate
            else:
                unmet = right.used + right.held < right.entitled * committed.take_ppm // 10**6
                rank, ends, rate = 0 if unmet else 2, committed.ends_at, committed.rate
            ranked.append((rank, ends, right.end, rate, str(self.right_id(contract, right)), contract, right))
        refused, beyond = None, None
        for *_, contract, right in sorted(ranked, key=lambda one: one[:5]):
            outcome = self.model.admits(contract, right, numerator, self.now)
            if outcome == "ok":
                return outcome, right, None
            committed = self.model.committed.get(contract)
            if committed is None or outcome not in ("contract_exhausted", "rate_limited"):
                continue
            if committed.policy == "stop":
                refused = outcome
            else:
                beyond = beyond or committed
        if refused:
            return refused, None, None
        return "ok", None, beyond

    def expected_on_demand(self, opened: Any, over: Committed | None, numerator: int) -> str:
        rate = opened.rate_micros_per_mtok
        if opened.outcome == "overage_above_max_rate":
            assert over is not None
            assert over.max_rate is not None
            assert rate > over.max_rate
            return "overage_above_max_rate"
        assert opened.contract_id is not None
        at_spot = opened.contract_id in self.model.committed
        if at_spot:
            assert over is not None
            assert over.policy == "spot"
        else:
            self.model.others.setdefault(opened.contract_id, "prepaid")
        if opened.offering_id is not None:
            listed = LIST[self.place.plants.index(self.by_offering[opened.offering_id])]
            published = PeriodRate.objects.filter(period_start=grid(self.now, PERIOD)).first()
            assert rate == (
                min(listed, published.overage_rate.micros_per_mtok) if at_spot and published else listed
            )
        if over is not None and over.max_rate is not None:
            assert rate <= over.max_rate
        purse = self.model.purses[self.model.purse_of(opened.contract_id)]
        return "ok" if self.model.worst(numerator, rate) <= purse.free else "insufficient_funds"

    def award_at(self, contract: UUID) -> Award:
        return self.model.awards[contract, grid(self.now, PERIOD)]

    def right_id(self, contract: UUID, right: Right) -> UUID:
        return Entitlement.objects.values_list("id", flat=True).get(
            contract=contract, period_start=right.start
        )

    @precondition(lambda self: self.model.open)
    @rule(data=st.data(), share=st.integers(0, 4))
    def end_later(self, data: st.DataObject, share: int) -> None:
        hold_id = data.draw(st.sampled_from(list(self.model.open)))
        self.finish(hold_id, self.model.open[hold_id].numerator * share // 4)

    def finish(self, hold_id: UUID, numerator: int) -> None:
        """Captured, or voided when nothing was delivered; twice, as a caller that lost the answer does."""
        hold = self.model.open[hold_id]
        for _ in range(2):
            if numerator:
                capture_hold(
                    id=hold_id, numerator=numerator, event=b"{}\n", source_id=self.source_id, now=self.now
                )
            else:
                void_hold(id=hold_id, now=self.now)
        self.model.end_hold(hold_id, numerator)
        if numerator:
            # As ingestion leaves it.
            stored = DeliveryHold.objects.select_related("contract", "rate").get(pk=hold_id)
            meter(
                stored.contract, stored.rate, self.by_offering[hold.offering], numerator, stored.period_start
            )

    def late_ones(self) -> list[Used]:
        """What was delivered and charged, but for awards, whose holds are closed by what they say."""
        spot = {contract for contract, _ in self.model.awards}
        return [one for seen in self.model.seen.values() for one in seen if one.contract not in spot]

    @precondition(lambda self: self.late_ones())
    @rule(data=st.data(), pieces=st.integers(1, 40))
    def comes_late(self, data: st.DataObject, pieces: int) -> None:
        """More usage of an hour that was settled long ago: an adjustment, as far as there is money for it."""
        late = self.late_ones()
        one = late[data.draw(st.integers(0, len(late) - 1))]
        contract = Contract.objects.get(pk=one.contract)
        rate = contract.rate if one.key is None else Rate.objects.get(pk=one.key)
        assert rate is not None
        numerator = pieces * PIECE
        meter(contract, rate, self.by_offering[one.offering], numerator, grid(one.at, PERIOD))
        self.model.unsettled.append(replace(one, numerator=numerator))
        self.pass_to(grid(self.now, HOUR) + HOUR)

    # The spot market

    @rule(
        steps=st.lists(
            st.tuples(st.integers(190_000, 480_000), st.integers(1, 40)),
            min_size=1,
            max_size=3,
            unique_by=lambda one: one[0],
        )
    )
    def bid(self, steps: list[tuple[int, int]]) -> None:
        """A bid for the period after the next, its round, and the moment its award begins."""
        steps = sorted(steps, reverse=True)
        self.pass_to(grid_up(self.now, PERIOD))
        begins = self.now + PERIOD
        lots, worst = 0, 0
        for rate, more in steps:
            lots += more
            worst = max(worst, rate * lots)
        held = self.model.grossed(-(-worst // 1000))
        self.bids += 1
        terms = BidTerms("tiny-chat", f"b{self.bids}", steps, period_start=begins)
        operation_id = self.new_id()

        def place() -> Bid:
            return place_bid(
                organization_id=self.acme.id,
                terms=terms,
                operation_id=operation_id,
                now=self.now,
                actor=SYSTEM,
            )

        purse = self.model.purses["prepaid"]
        if held > purse.free:
            with pytest.raises(InsufficientFunds):
                place()
            return
        bid = place()
        assert place().id == bid.id
        purse.hold(("bid", bid.id), held)
        self.books_and_model_agree()
        for share in (0.0, 0.85, 0.92, 0.93):
            self.now = begins - PERIOD + share * PERIOD
            self.beat_hosts()
            advance_auctions(now=self.now)
        purse.held.pop(("bid", bid.id))
        self.learn_award(bid, steps, begins)
        self.pass_to(begins)
        self.beat_hosts()
        advance_auctions(now=self.now)

    def learn_award(self, bid: Bid, steps: list[tuple[int, int]], begins: datetime) -> None:
        trades = list(Trade.objects.filter(bid=bid).select_related("ask__offering", "auction"))
        if not trades:
            return
        rate = trades[0].auction.clearing_rate_micros_per_mtok
        assert rate is not None
        lots: dict[UUID, int] = {}
        for trade in trades:
            offering = trade.ask.offering_id
            lots[offering] = lots.get(offering, 0) + trade.lots
        whole = sum(lots.values())
        assert whole <= sum(more for value, more in steps if value >= rate)
        assert whole >= min(1, sum(more for value, more in steps if value > rate))
        per_s = whole * LOT // 300
        depth = min(whole * LOT, per_s * 60)
        award = Award(
            begins, begins + PERIOD, whole * LOT, Bucket(per_s, depth, depth, begins), rate=rate, lots=lots
        )
        contract = Entitlement.objects.get(
            contract__organization=self.acme.id, contract__kind="spot", period_start=begins
        ).contract_id
        self.model.awards[contract, begins] = award
        cost = self.model.grossed(-(-rate * whole // 1000))
        self.model.purses["prepaid"].hold(("award", contract, begins), cost)

    # Time

    @rule(
        step=st.sampled_from([7 * SECOND, 40 * SECOND, PERIOD, PERIOD, HOUR, 5 * HOUR, DAY, DAY, 8 * DAY]),
    )
    def time_passes(self, step: timedelta) -> None:
        self.pass_to(self.now + step)

    @precondition(lambda self: self.model.committed)
    @rule(
        data=st.data(),
        off=st.sampled_from(
            [-PERIOD, -PERIOD, -SECOND, 0 * SECOND, 0 * SECOND, 40 * SECOND, HOUR + 76 * SECOND]
        ),
    )
    def month_turns(self, data: st.DataObject, off: timedelta) -> None:
        """To the moment about which a month of a contract begins or ends."""
        turns = {
            at + off
            for contract in self.model.committed.values()
            for start, end, _ in contract.term()
            for at in (start, end)
            if self.now < at + off
        }
        if turns:
            self.pass_to(data.draw(st.sampled_from(sorted(turns)[:2])))

    def pass_to(self, at: datetime) -> None:
        """Everything that beat wakes up has its turn, twice."""
        self.now = at
        UsageBatch.objects.all().delete()
        for _ in range(2):
            sweep_holds(now=at)
            self.sweep_model()
            advance_contracts(now=at)
            self.model.advance(at)
            self.learn_months()
            result = settle_due_periods(now=at)
            assert {why for _, why in result.waiting} <= {"not_due"}
            self.model.charge_months(at)
            self.model.settle(at)
            assert {why.partition(":")[0] for _, why in result.failed} <= {"insufficient_funds"}
            assert {(due.contract_id, due.settlement_start) for due, _ in result.failed} == self.model.failed
            self.learn_months()

    def sweep_model(self) -> None:
        for hold_id, hold in list(self.model.open.items()):
            if grid(hold.at, HOUR) + HOUR + 45 * SECOND <= self.now:
                self.model.end_hold(hold_id, 0)

    def learn_months(self) -> None:
        """The ids of months: in their order those are charged that begin at one moment."""
        ids = {
            (contract, start): id_
            for id_, contract, start in Entitlement.objects.filter(contract__kind="committed").values_list(
                "id", "contract_id", "period_start"
            )
        }
        for contract in self.model.committed.values():
            for month in contract.months:
                month.id = ids.get((contract.id, month.start))

    def beat_hosts(self) -> None:
        """They have been there all the time."""
        Host.objects.update(last_heartbeat_at=self.now, ready=True)

    # What always holds

    @invariant()
    def books_and_model_agree(self) -> None:
        if not hasattr(self, "bids"):
            return
        model = self.model
        assert check_ledger() == []
        assert not FailingItem.objects.exists()
        for kind, purse in model.purses.items():
            found = balance(organization_id=self.acme.id, kind=kind, currency="USD")
            assert (kind, found.posted_micros, found.pending_micros, found.available_micros) == (
                kind,
                purse.posted,
                purse.pending,
                max(0, purse.free),
            )
        deferred = LedgerAccount.objects.filter(organization=self.acme.id, kind="deferred")
        assert {
            one.reference_id: one.credits_posted_micros - one.debits_posted_micros
            for one in deferred
            if one.credits_posted_micros != one.debits_posted_micros
        } == {contract: left for contract, left in model.deferred.items() if left}
        earned = Earning.objects.values_list("offering").annotate(
            gross=Sum("gross_micros"), fee=Sum("fee_micros")
        )
        assert {offering: (gross, fee) for offering, gross, fee in earned if gross} == {
            offering: (gross, model.fees[offering]) for offering, gross in model.gross.items() if gross
        }
        gross, fees = sum(model.gross.values()), sum(model.fees.values())
        assert self.posted(self.world.hyperion, "payable") == gross - fees
        assert self.posted(self.world.operator, "fees") == fees
        assert (Charge.objects.aggregate(sum=Sum("amount_micros"))["sum"] or 0) == model.charged
        assert model.charged == gross + sum(model.deferred.values())
        accounts = LedgerAccount.objects.all()
        assert sum(one.credits_posted_micros - one.debits_posted_micros for one in accounts) == 0
        self.contracts_and_model_agree()

    def contracts_and_model_agree(self) -> None:
        rows = Contract.objects.filter(kind="committed").values_list(
            "id", "status", "suspended_at", "freed_at", "ends_at"
        )
        assert sorted(rows) == sorted(
            (one.id, one.status, one.suspended_at, one.freed_at, one.ends_at)
            for one in self.model.committed.values()
        )
        rights = {
            (contract.id, month.start): (month, month.rolled, month.is_paid)
            for contract in self.model.committed.values()
            for month in contract.months
        } | {place: (award, 0, False) for place, award in self.model.awards.items()}
        assert {
            (one.contract_id, one.period_start): (
                one.period_end,
                one.entitled_numerator,
                one.held_numerator,
                one.used_numerator,
                one.rollover_numerator,
                one.paid_at is not None,
                one.settled_at is not None,
            )
            for one in Entitlement.objects.all()
        } == {
            place: (right.end, right.entitled, right.held, right.used, rolled, paid, right.is_settled)
            for place, (right, rolled, paid) in rights.items()
        }
        sold = HostHour.objects.filter(sold_ppm__gt=0).values_list("host_id", "hour_start", "sold_ppm")
        expected: Counter[tuple[UUID, datetime]] = Counter()
        for contract in self.model.committed.values():
            expected.update(contract.beyond)
            for host in contract.hosts:
                expected.update(
                    dict.fromkeys(((host, hour) for hour in contract.hours), contract.share_of(host))
                )
        assert {(host, hour): share for host, hour, share in sold} == {
            place: share for place, share in expected.items() if share
        }

    def posted(self, party: Party, kind: str) -> int:
        return balance(organization_id=party.id, kind=kind, currency="USD").posted_micros


def make_place(services: Services, database: TestDatabase, worker_name: str) -> Place:
    template = f"tokenyard_contracts_world_{worker_name}"
    operator, acme, hyperion = (
        make_party("Operator", ["operator"], NOW),
        make_party("Acme", ["buyer"], NOW),
        make_party("Hyperion", ["provider"], NOW),
    )
    grade = make_grade(NOW)
    plants = [
        make_plant(
            hyperion,
            grade,
            NOW,
            name=f"h{number}",
            list_rate=listed,
            firm_rate=firm,
            spot_floor=200_001 + number,
        )
        for number, (listed, firm) in enumerate(zip(LIST, FIRM, strict=True))
    ]
    connections.close_all()
    services.clone(template, template=database.name)
    return Place(services, database.name, template, World(operator, acme, hyperion, grade, plants[0]), plants)


@pytest.mark.parametrize("tax_ppm", [0, 190_000])
def test_contracts_come_to_what_the_model_says(
    committed_db: TestDatabase,
    services: Services,
    worker_name: str,
    settings: Settings,
    tax_ppm: int,
) -> None:
    settings.COMMITTED_NOTICE_DAYS = 1
    assert settings.MARKET_FEE_PPM == FEE_PPM
    place = make_place(services, committed_db, worker_name)

    class Machine(ContractMachine):
        pass

    Machine.place, Machine.tax_ppm = place, tax_ppm
    try:
        run_state_machine_as_test(
            Machine,
            settings=hypothesis_settings(
                max_examples=5, stateful_step_count=40, deadline=None, derandomize=True
            ),
        )
    finally:
        services.drop(place.template)
