"""What a buyer's contracts come to, by plain arithmetic: the other opinion that `test_contract_model` compares with.

It follows DESIGN 6 and 8 and the documents, and calls nothing of ours. Volumes are numerators (10^9 to a lot), money is
micros, rates are micros per 10^12 numerators. What only the market can know (who delivers, what a round clears at) is
told to it.
"""

from __future__ import annotations

import calendar
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from math import ceil, floor
from typing import Any
from uuid import UUID

LOT, MTOK, PPM = 10**9, 10**12, 10**6
SECOND, PERIOD, HOUR, DAY = (
    timedelta(seconds=1),
    timedelta(minutes=5),
    timedelta(hours=1),
    timedelta(days=1),
)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FEE_PPM = 50_000
# The longest request of the cast's grade, and the grace for what comes after it.
SETTLED_AFTER = timedelta(seconds=15 + 60)
SELLABLE_PPM = 950_000
Key = tuple[Any, ...]


def price(numerator: int, rate: int) -> int:
    return round(Fraction(numerator * rate, MTOK))  # Half to even.


def grid(at: datetime, length: timedelta) -> datetime:
    return EPOCH + (at - EPOCH) // length * length


def grid_up(at: datetime, length: timedelta) -> datetime:
    return -(-(at - EPOCH) // length) * length + EPOCH


def share_out(amount: int, weights: Mapping[UUID, int]) -> dict[UUID, int]:
    """By weight; what rounding leaves goes to the largest fractions, then to the lower id."""
    whole = sum(weights.values())
    exact = {key: Fraction(amount * weight, whole) for key, weight in weights.items()}
    parts = {key: floor(part) for key, part in exact.items()}
    by_fraction = sorted(weights, key=lambda key: (parts[key] - exact[key], key))
    for key in by_fraction[: amount - sum(parts.values())]:
        parts[key] += 1
    return parts


def months_after(start: datetime, months: int) -> datetime:
    years, month = divmod(start.month - 1 + months, 12)
    year = start.year + years
    return start.replace(
        year=year, month=month + 1, day=min(start.day, calendar.monthrange(year, month + 1)[1])
    )


class NoFunds(Exception):
    """Nothing was changed."""


class NoCapacity(Exception):
    """Nothing was changed."""


@dataclass
class Purse:
    """An account that never goes below its line."""

    posted: int = 0
    line: int = 0
    held: dict[Key, int] = field(default_factory=dict)

    @property
    def pending(self) -> int:
        return sum(self.held.values())

    @property
    def free(self) -> int:
        return self.posted + self.line - self.pending

    def hold(self, key: Key, amount: int) -> None:
        """In addition to what the key holds already."""
        if amount > 0 and amount > self.free:
            raise NoFunds
        self.held[key] = self.held.get(key, 0) + amount


@dataclass
class Bucket:
    rate_per_s: int
    depth: int
    level: int
    at: datetime

    def refilled(self, now: datetime) -> int:
        passed = max(timedelta(0), now - self.at) // timedelta(microseconds=1)
        return min(self.depth, self.level + self.rate_per_s * passed // 10**6)

    def take(self, numerator: int, now: datetime) -> bool:
        level = self.refilled(now)
        if level < min(self.depth, numerator):
            return False
        self.level, self.at = level - numerator, max(self.at, now)
        return True

    def give(self, rest: int) -> None:
        self.level = max(self.level, min(self.depth, self.level + rest))


@dataclass
class Lines:
    """An amount, and what of it each offering earned: gross and fee."""

    amount: int = 0
    shares: dict[UUID, tuple[int, int]] = field(default_factory=dict)

    @staticmethod
    def of(amount: int, weights: Mapping[UUID, int]) -> Lines:
        parts = share_out(amount, weights) if weights else {}
        return Lines(amount, {key: (part, part * FEE_PPM // PPM) for key, part in parts.items()})


@dataclass
class Right:
    """What one period of a contract entitles to: a committed month, or an award."""

    start: datetime
    end: datetime
    entitled: int
    bucket: Bucket
    held: int = 0
    used: int = 0
    is_settled: bool = False

    @property
    def left(self) -> int:
        return self.entitled - self.held - self.used


@dataclass
class Month(Right):
    id: UUID | None = None
    rolled: int = 0
    is_held: bool = False
    is_paid: bool = False
    paid_micros: int = 0
    # In arrears, what was charged and earned for the take that was not used.
    trued_up: Lines = field(default_factory=Lines)
    # What providers have earned of the fee by delivery: volume, gross, fee.
    earned: dict[UUID, list[int]] = field(default_factory=dict)

    @property
    def own_lots(self) -> int:
        return (self.entitled - self.rolled) // LOT

    @property
    def unearned(self) -> int:
        return self.paid_micros - sum(gross for _, gross, _ in self.earned.values())


@dataclass
class Award(Right):
    rate: int = 0
    lots: dict[UUID, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Supplier:
    firm_lots: int
    rate: int
    host: UUID
    share_ppm: int


@dataclass
class Committed:
    id: UUID
    payment: str
    policy: str
    firm_lots: int
    volume_lots: int
    take_ppm: int
    rollover_ppm: int
    rollover_cap: int
    max_rate: int | None
    termination_ppm: int
    notice: timedelta
    starts_at: datetime
    ends_at: datetime
    suppliers: dict[UUID, Supplier]
    status: str = "active"
    suspended_at: datetime | None = None
    freed_at: datetime | None = None
    months: list[Month] = field(default_factory=list)
    hours: set[datetime] = field(default_factory=set, repr=False)
    # The hour inside which another took its place, and of that one's first hour, by host, what is taken for both.
    handed_over: datetime = EPOCH
    is_amended: bool = False
    beyond: dict[tuple[UUID, datetime], int] = field(default_factory=dict)

    @property
    def rate(self) -> int:
        weighted = sum(one.firm_lots * one.rate for one in self.suppliers.values())
        return round(Fraction(weighted, self.firm_lots))

    @property
    def is_prepaid(self) -> bool:
        return self.payment == "prepaid"

    @property
    def weights(self) -> dict[UUID, int]:
        return {key: one.firm_lots * one.rate for key, one in self.suppliers.items()}

    def end_of_term(self, months: int) -> datetime:
        return months_after(self.starts_at, months)

    def term(self) -> Iterator[tuple[datetime, datetime, int]]:
        """Start, end and lots of the months of the term as it is now."""
        number = 0
        while (start := months_after(self.starts_at, number)) < self.ends_at:
            whole = months_after(self.starts_at, number + 1)
            end = min(whole, self.ends_at)
            yield start, end, self.volume_lots * ((end - start) // SECOND) // ((whole - start) // SECOND)
            number += 1

    def fee_for(self, lots_left: int) -> int:
        """What ending early costs of the lots that will never be due."""
        lots = lots_left * self.take_ppm // PPM
        return round(Fraction(lots * LOT * self.rate * self.termination_ppm, MTOK * PPM))

    @property
    def hosts(self) -> set[UUID]:
        return {one.host for one in self.suppliers.values()}

    def share_of(self, host: UUID) -> int:
        return sum(one.share_ppm for one in self.suppliers.values() if one.host == host)

    def taken(self, host: UUID, hour: datetime) -> int:
        return self.beyond.get((host, hour), 0) + (self.share_of(host) if hour in self.hours else 0)

    def least_take(self, month: Month) -> int:
        """What of a month's own volume is paid for even if nobody asks for it."""
        return month.own_lots * self.take_ppm // PPM * LOT

    def month_at(self, now: datetime) -> Month | None:
        return next((one for one in self.months if one.start <= now < one.end), None)


@dataclass(frozen=True)
class Used:
    """Delivered volume; `key` tells lines apart (the rate's id), None where a committed month or an award covers it."""

    contract: UUID
    at: datetime
    key: UUID | None
    rate: int
    offering: UUID
    numerator: int


@dataclass
class Open:
    """A request's hold: what it takes of a right, and of a purse for its contract and hour."""

    contract: UUID
    at: datetime
    key: UUID | None
    rate: int
    offering: UUID
    numerator: int
    micros: int
    purse: str | None
    right: Right | None


@dataclass
class Model:
    """acme's two purses, what he paid ahead, what providers and market earned, and all his contracts."""

    tax_ppm: int
    purses: dict[str, Purse] = field(default_factory=lambda: {"prepaid": Purse(), "receivable": Purse()})
    deferred: Counter[UUID] = field(default_factory=Counter)
    gross: Counter[UUID] = field(default_factory=Counter)
    fees: Counter[UUID] = field(default_factory=Counter)
    charged: int = 0
    committed: dict[UUID, Committed] = field(default_factory=dict)
    awards: dict[tuple[UUID, datetime], Award] = field(default_factory=dict)
    # On demand, prepaid or in arrears: which purse pays it.
    others: dict[UUID, str] = field(default_factory=dict)
    unsettled: list[Used] = field(default_factory=list)
    # What runs have seen, and what they charged for it, by contract and hour; the hours that looked at all of it.
    seen: dict[tuple[UUID, datetime], list[Used]] = field(default_factory=lambda: defaultdict(list))
    lines: dict[tuple[UUID, datetime, UUID | None], Lines] = field(default_factory=dict)
    runs: Counter[tuple[UUID, datetime]] = field(default_factory=Counter)
    looked_back: datetime | None = None
    # Late usage that is not covered: it waits.
    failed: set[tuple[UUID, datetime]] = field(default_factory=set)
    open: dict[UUID, Open] = field(default_factory=dict)

    def grossed(self, amount: int) -> int:
        return ceil(Fraction(amount * (PPM + self.tax_ppm), PPM))

    def worst(self, numerator: int, rate: int) -> int:
        return self.grossed(ceil(Fraction(numerator * rate, MTOK)))

    def purse_of(self, contract: UUID) -> str:
        if contract in self.committed:
            return "prepaid" if self.committed[contract].is_prepaid else "receivable"
        return self.others.get(contract, "prepaid")

    # Contracts

    def sold(self, host: UUID, hour: datetime) -> int:
        return sum(one.taken(host, hour) for one in self.committed.values())

    def accept(self, contract: Committed, now: datetime, *, follows: Committed | None = None) -> None:
        first, end, lots = next(contract.term())
        purse = self.purses["prepaid"]
        if contract.is_prepaid and self.grossed(price(lots * LOT, contract.rate)) > purse.free:
            raise NoFunds
        self.take_hours(contract, grid(first, HOUR), follows=follows)
        self.committed[contract.id] = contract
        self.make_month(contract, first, end, lots, now)

    def take_hours(self, contract: Committed, start: datetime, *, follows: Committed | None = None) -> None:
        hours, beyond = set(), {}
        if follows is not None and start < contract.starts_at:
            for host in contract.hosts | follows.hosts:
                beyond[host, start] = max(contract.share_of(host), follows.share_of(host))
            start += HOUR
        while start < contract.ends_at:
            hours.add(start)
            start += HOUR
        hours.discard(contract.handed_over)
        wanted = [(host, hour, contract.share_of(host)) for host in contract.hosts for hour in hours]
        wanted += [(*place, share) for place, share in beyond.items()]
        if any(self.sold(host, hour) + share > SELLABLE_PPM for host, hour, share in wanted):
            raise NoCapacity
        contract.hours |= hours
        contract.beyond |= beyond

    def give_hours(self, contract: Committed, since: datetime) -> None:
        contract.hours -= {hour for hour in contract.hours if hour >= since}

    def make_month(
        self, contract: Committed, start: datetime, end: datetime, lots: int, now: datetime
    ) -> Month:
        firm = contract.firm_lots * LOT
        bucket = Bucket(firm // 300, firm * 60 // 300, firm * 60 // 300, start)
        month = Month(start, end, lots * LOT, bucket)
        if contract.is_prepaid and end > now and contract.freed_at is None:
            try:
                held = self.grossed(price(lots * LOT, contract.rate))
                self.purses["prepaid"].hold(("month", contract.id, start), held)
                month.is_held = True
            except NoFunds:
                pass
        contract.months.append(month)
        return month

    def advance(self, now: datetime) -> None:
        """What passes by itself: terms end, suspended capacity is freed after a day, months begin."""
        for _, contract in sorted(self.committed.items()):
            if contract.status == "ended":
                continue
            if contract.ends_at <= now:
                contract.status = "ended"
                continue
            waits = contract.status == "suspended" and contract.is_prepaid and contract.freed_at is None
            if waits and contract.suspended_at is not None and contract.suspended_at <= now - DAY:
                self.give_hours(contract, grid_up(max(now, contract.starts_at), HOUR))
                contract.freed_at = now
            known = {month.start for month in contract.months}
            for start, end, lots in contract.term():
                if start <= now + PERIOD and start not in known:
                    self.make_month(contract, start, end, lots, now)

    def charge_months(self, now: datetime) -> None:
        due = [
            (month.start, str(month.id), contract, month)
            for contract in self.committed.values()
            for month in contract.months
            if contract.is_prepaid and month.start <= now and not month.is_paid
            if month.is_held or (month.end > now and contract.status != "ended")
        ]
        for _, _, contract, month in sorted(due, key=lambda one: one[:2]):
            try:
                self.charge_month(contract, month, now)
            except (NoFunds, NoCapacity):
                self.suspend(contract, now)

    def charge_month(self, contract: Committed, month: Month, now: datetime) -> None:
        purse, lots, freed_at = self.purses["prepaid"], month.own_lots, contract.freed_at
        begins = grid_up(now, PERIOD)
        if freed_at is not None and month.start < begins:
            rest = max(timedelta(0), month.end - begins)
            lots = lots * (rest // SECOND) // ((month.end - month.start) // SECOND)
        key = ("month", contract.id, month.start)
        due = price(lots * LOT, contract.rate)
        if due > purse.free + purse.held.get(key, 0):
            # Whether there is no capacity or no money, nothing changes.
            raise NoFunds
        if freed_at is not None:
            start = max(begins, grid_up(freed_at, HOUR))
            if start < contract.ends_at:
                self.take_hours(contract, grid(start, HOUR))
            contract.freed_at = None
            month.entitled = lots * LOT + month.rolled
        purse.held.pop(key, None)
        month.is_held, month.is_paid, month.paid_micros = False, True, due
        purse.posted -= due
        self.deferred[contract.id] += due
        self.charged += due
        self.set_tax_aside("prepaid", ("tax", contract.id, month.start), [due])
        self.resume(contract, now)

    def suspend(self, contract: Committed, now: datetime) -> None:
        if contract.status == "active":
            contract.status, contract.suspended_at = "suspended", now

    def resume(self, contract: Committed, now: datetime) -> None:
        if contract.is_prepaid:
            owed = any(one.start <= now < one.end and not one.is_paid for one in contract.months)
        else:
            owed = any(one.end <= now and not one.is_settled for one in contract.months)
        if contract.status == "suspended" and not owed:
            contract.status, contract.suspended_at, contract.freed_at = "active", None, None

    def first_end(self, contract: Committed, now: datetime) -> datetime:
        notice = max(DAY, contract.notice)
        return max(grid_up(now + notice, PERIOD), grid(contract.starts_at, PERIOD) + PERIOD)

    def terminate(self, contract: Committed, end: datetime, event: UUID) -> tuple[int, int]:
        """The fee and the refund; all or nothing."""
        was = contract.ends_at
        before = sum(lots for _, _, lots in contract.term())
        contract.ends_at = end
        left = before - sum(lots for _, _, lots in contract.term())
        cut = next((one for one in contract.months if one.start < end < one.end), None)
        entitled, refund = 0, 0
        if cut is not None:
            by_time = next(lots for start, _, lots in contract.term() if start == cut.start)
            gone = ceil(Fraction(max(0, cut.held + cut.used - cut.rolled), LOT))
            entitled = min(cut.own_lots, max(by_time, gone)) * LOT
            if cut.is_paid:
                refund = max(0, min(cut.unearned, cut.paid_micros - price(entitled, contract.rate)))
        fee = contract.fee_for(left)
        name = self.purse_of(contract.id)
        purse = self.purses[name]
        if fee and fee > purse.free + refund:
            contract.ends_at = was
            raise NoFunds
        if cut is not None:
            cut.end, cut.entitled = end, entitled + cut.rolled
            cut.paid_micros -= refund
        self.deferred[contract.id] -= refund
        purse.posted += refund
        self.charged -= refund
        self.charge_fee(contract, fee, event)
        if contract.freed_at is None:
            self.give_hours(contract, grid_up(end, HOUR))
        return fee, refund

    def charge_fee(self, contract: Committed, fee: int, event: UUID) -> None:
        if not fee:
            return
        name = self.purse_of(contract.id)
        self.purses[name].posted -= fee
        self.charged += fee
        for offering, part in share_out(fee, contract.weights).items():
            self.earn(offering, part, part * FEE_PPM // PPM)
        self.set_tax_aside(name, ("tax", event), [fee])

    def amend(self, contract: Committed, successor: Committed, event: UUID, now: datetime) -> int:
        """The fee for what is committed less than before; all or nothing."""
        was, hours = contract.ends_at, set(contract.hours)
        before = sum(lots for _, _, lots in contract.term())
        contract.ends_at = successor.starts_at
        left = before - sum(lots for _, _, lots in contract.term())
        fee = contract.fee_for(max(0, left - sum(lots for _, _, lots in successor.term())))
        if contract.freed_at is None:
            self.give_hours(contract, grid(contract.ends_at, HOUR))
        try:
            self.accept(successor, now, follows=contract)
            if fee and fee > self.purses[self.purse_of(contract.id)].free:
                del self.committed[successor.id]
                self.purses["prepaid"].held.pop(("month", successor.id, successor.starts_at), None)
                raise NoFunds
        except (NoFunds, NoCapacity):
            contract.ends_at, contract.hours = was, hours
            raise
        self.charge_fee(contract, fee, event)
        contract.is_amended = True
        if successor.beyond:
            contract.handed_over = grid(successor.starts_at, HOUR)
        return fee

    # Requests

    def running(self, contract: UUID, now: datetime) -> Right | None:
        """What may be used of a contract at a moment: an award, or a month that is paid or sure to be."""
        if contract not in self.committed:
            return self.awards.get((contract, grid(now, PERIOD)))
        one = self.committed[contract]
        month = one.month_at(now)
        if month is None or (one.is_prepaid and not (month.is_paid or month.is_held)):
            return None
        return month

    def admits(self, contract: UUID, right: Right, numerator: int, now: datetime) -> str:
        """What a request on a right comes to, without doing it."""
        if right.left < numerator:
            return "contract_exhausted"
        if right.bucket.refilled(now) < min(right.bucket.depth, numerator):
            return "rate_limited"
        one = self.committed.get(contract)
        if one is None or one.is_prepaid:
            return "ok"
        fits = self.worst(numerator, one.rate) <= self.purses["receivable"].free
        return "ok" if fits else "insufficient_funds"

    def open_hold(self, id_: UUID, hold: Open) -> None:
        if hold.right is not None:
            assert hold.right.bucket.take(hold.numerator, hold.at)
            hold.right.held += hold.numerator
        if hold.purse is not None:
            hour = grid(hold.at, HOUR)
            self.purses[hold.purse].hold(("accrual", hold.contract, hour), hold.micros)
        self.open[id_] = hold

    def end_hold(self, id_: UUID, numerator: int) -> None:
        hold = self.open.pop(id_)
        if hold.right is not None:
            hold.right.held -= hold.numerator
            hold.right.used += numerator
            hold.right.bucket.give(hold.numerator - numerator)
        if hold.purse is not None:
            used = min(hold.micros, self.worst(numerator, hold.rate))
            key = ("accrual", hold.contract, grid(hold.at, HOUR))
            self.purses[hold.purse].held[key] -= hold.micros - used
        if numerator:
            self.unsettled.append(Used(hold.contract, hold.at, hold.key, hold.rate, hold.offering, numerator))

    # Settlement

    def settle(self, now: datetime) -> None:
        """What is late is looked for among the last five hours, and once an hour among all that there was."""
        since = EPOCH if self.looked_back != grid(now, HOUR) else now - 5 * HOUR
        self.looked_back = grid(now, HOUR)
        self.failed = set()
        due = {
            (grid(used.at, HOUR), used.contract)
            for used in self.unsettled
            if any(
                grid(one.at, PERIOD) >= since
                for one in [used, *self.seen[used.contract, grid(used.at, HOUR)]]
            )
        }
        for purse in self.purses.values():
            due |= {(key[2], key[1]) for key in purse.held if key[0] == "accrual"}
        due |= {
            (grid(start, HOUR), contract)
            for (contract, start), award in self.awards.items()
            if not award.is_settled
        }
        due |= {
            (grid(month.end - SECOND, HOUR), contract.id)
            for contract in self.committed.values()
            for month in contract.months
            if not month.is_settled and (month.is_paid or not contract.is_prepaid)
        }
        for hour, contract in sorted(due):
            if hour + HOUR + SETTLED_AFTER <= now:
                self.settle_hour(contract, hour, now)

    def settle_hour(self, contract: UUID, hour: datetime, now: datetime) -> None:
        new = [one for one in self.unsettled if one.contract == contract and grid(one.at, HOUR) == hour]
        name, committed = self.purse_of(contract), self.committed.get(contract)
        purse, every = self.purses[name], [*self.seen[contract, hour], *new]
        awards = [
            award
            for number in range(12)
            if (award := self.awards.get((contract, hour + number * PERIOD))) is not None
        ]
        by_key: dict[UUID | None, list[Used]] = defaultdict(list)
        for one in every:
            by_key[one.key].append(one)
        covered = by_key.pop(None, [])
        desired = {key: self.line(used, used[0].rate) for key, used in by_key.items()}
        if committed is not None and not committed.is_prepaid and covered:
            own = {key: one.rate for key, one in committed.suppliers.items()}
            desired[None] = self.line(covered, committed.rate, own)
        known = {key: self.lines.get((contract, hour, key), Lines()) for key in desired}
        amounts = [line.amount - known[key].amount for key, line in desired.items()]
        accrual = purse.held.pop(("accrual", contract, hour), None)
        if accrual is None and not awards and sum(amounts) > max(0, purse.free):
            self.failed.add((contract, hour))
            return
        self.unsettled = [one for one in self.unsettled if one not in new]
        self.seen[contract, hour] = every
        for key, line in desired.items():
            self.earn_more(line, known[key])
            self.lines[contract, hour, key] = line
        for award in awards:
            if not award.is_settled:
                purse.held.pop(("award", contract, award.start))
                used = [one for one in covered if grid(one.at, PERIOD) == award.start]
                amounts += self.settle_award(award, used)
        if committed is not None and committed.is_prepaid:
            for month in committed.months:
                inside = [one for one in new if one.key is None and month.start <= one.at < month.end]
                self.deliver(committed, month, inside)
        purse.posted -= sum(amounts)
        self.charged += sum(amounts)
        self.runs[contract, hour] += 1
        self.set_tax_aside(name, ("tax", contract, hour, self.runs[contract, hour]), amounts)
        if committed is not None:
            self.square_months(committed, hour, now, again=bool(new))

    def square_months(self, contract: Committed, hour: datetime, now: datetime, *, again: bool) -> None:
        """The month that ends in an hour; with new usage also those that were squared up."""
        for month in contract.months:
            if not month.is_settled:
                if hour < month.end <= hour + HOUR:
                    self.square(contract, month, now)
            elif again and month.start < hour + HOUR and hour < month.end:
                self.square(contract, month, now)

    def metered(self, contract: Committed, month: Month) -> int:
        """All that was delivered in a month, whether it could be charged already or not."""
        used = [*self.unsettled, *(one for seen in self.seen.values() for one in seen)]
        return sum(
            one.numerator
            for one in used
            if one.contract == contract.id and one.key is None and month.start <= one.at < month.end
        )

    def settle_award(self, award: Award, used: list[Used]) -> list[int]:
        """`rate x max(U, ceil(A / 2))` in one sum; what was not used of it goes to who was awarded."""
        award.is_settled = True
        volume, rate = by_offering(used), award.rate
        taken = sum(volume.values())
        least = max(taken, ceil(Fraction(award.entitled, 2)))
        amounts = []
        if taken:
            line = self.line(used, rate)
            self.earn_more(line, Lines())
            amounts.append(line.amount)
        if least > taken:
            rest = price(least, rate) - price(taken, rate)
            parts = share_out(least - taken, {key: lots * LOT for key, lots in award.lots.items()})
            self.split(rest, {key: part for key, part in parts.items() if part})
            amounts.append(rest)
        return amounts

    def line(self, used: Iterable[Used], rate: int, own: Mapping[UUID, int] | None = None) -> Lines:
        volume = by_offering(used)
        amount = price(sum(volume.values()), rate)
        weights = {key: part * (own.get(key, rate) if own else 1) for key, part in volume.items()}
        return Lines.of(amount, weights)

    def earn_more(self, line: Lines, known: Lines) -> None:
        """The differences to what was earned already."""
        for offering in line.shares.keys() | known.shares.keys():
            gross, fee = line.shares.get(offering, (0, 0))
            had_gross, had_fee = known.shares.get(offering, (0, 0))
            self.earn(offering, gross - had_gross, fee - had_fee)

    def split(self, amount: int, weights: Mapping[UUID, int]) -> None:
        for offering, part in share_out(amount, weights).items():
            self.earn(offering, part, part * FEE_PPM // PPM)

    def earn(self, offering: UUID, gross: int, fee: int) -> None:
        self.gross[offering] += gross
        self.fees[offering] += fee

    def deliver(self, contract: Committed, month: Month, used: list[Used]) -> None:
        """Who delivers of a paid month has earned his own rate for all he delivered, while its fee lasts."""
        if month.is_settled:
            return  # All of it is paid out.
        owed = {}
        for offering, volume in by_offering(used).items():
            past = month.earned.setdefault(offering, [0, 0, 0])
            past[0] += volume
            own = contract.suppliers[offering].rate if offering in contract.suppliers else contract.rate
            owed[offering] = max(0, price(past[0], own) - past[1])
        if not sum(owed.values()):
            return
        for offering, part in share_out(min(sum(owed.values()), month.unearned), owed).items():
            past = month.earned[offering]
            fee = (past[1] + part) * FEE_PPM // PPM - past[2]
            past[1] += part
            past[2] += fee
            self.deferred[contract.id] -= part
            self.earn(offering, part, fee)

    def square(self, contract: Committed, month: Month, now: datetime) -> None:
        if contract.is_prepaid:
            waits = any(
                one.contract == contract.id and one.key is None and month.start <= one.at < month.end
                for one in self.unsettled
            )
            if not month.is_paid or month.is_settled or waits:
                return
            rest = month.unearned
            for offering, part in share_out(rest, contract.weights).items():
                self.earn(offering, part, part * FEE_PPM // PPM)
            self.deferred[contract.id] -= rest
            month.is_settled = True
            self.roll_over(contract, month, now)
            return
        purse, known = self.purses["receivable"], month.trued_up
        used = min(self.metered(contract, month), month.own_lots * LOT)
        owed = max(0, contract.least_take(month) - used)
        parts = share_out(owed, {key: one.firm_lots for key, one in contract.suppliers.items()})
        weights = {key: part * contract.suppliers[key].rate for key, part in parts.items() if part}
        line = Lines.of(price(owed, contract.rate), weights)
        more = line.amount - known.amount
        if more > max(0, purse.free):
            self.suspend(contract, now)
            return
        self.earn_more(line, known)
        purse.posted -= more
        self.charged += more
        self.runs[contract.id, month.start] += 1
        key = ("tax", contract.id, "end", month.start, self.runs[contract.id, month.start])
        self.set_tax_aside("receivable", key, [more])
        month.trued_up, month.is_settled = line, True
        self.resume(contract, now)

    def roll_over(self, contract: Committed, month: Month, now: datetime) -> None:
        own = month.own_lots * LOT
        unused = own - min(own, max(0, self.metered(contract, month) - month.rolled))
        lots = min(unused * contract.rollover_ppm // (PPM * LOT), contract.rollover_cap)
        following = next((one for one in contract.term() if one[0] == month.end), None)
        if not lots or following is None:
            return
        target = next((one for one in contract.months if one.start == month.end), None)
        if target is None:
            target = self.make_month(contract, *following, now)
        target.entitled += lots * LOT
        target.rolled = lots * LOT

    def set_tax_aside(self, purse: str, key: Key, amounts: Iterable[int]) -> None:
        """Of each amount, rounded up; nothing where there is no money for it: it is due with the invoice."""
        tax = sum(ceil(Fraction(amount * self.tax_ppm, PPM)) for amount in amounts if amount > 0)
        if tax and tax <= self.purses[purse].free:
            self.purses[purse].hold(key, tax)


def by_offering(used: Iterable[Used]) -> dict[UUID, int]:
    volume: dict[UUID, int] = defaultdict(int)
    for one in used:
        volume[one.offering] += one.numerator
    return dict(volume)
