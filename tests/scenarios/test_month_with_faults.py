"""A month of the market under faults by a seed: repeated, killed and late steps, and every figure comes out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from uuid import UUID

import pytest
from django.db import transaction
from django.db.models import Sum
from msgspec.structs import replace

from marketplace.accounts.services import SYSTEM
from marketplace.billing.auditing import check_charges
from marketplace.billing.models import Charge, Earning, Invoice, Payout, Statement, TopUp
from marketplace.billing.services.committed_months import charge_committed_months
from marketplace.billing.services.invoicing import issue_invoices
from marketplace.billing.services.payouts import pay_out_statements
from marketplace.billing.services.settling import settle_due_periods, settle_period
from marketplace.billing.services.statements import issue_statements
from marketplace.billing.services.top_ups import top_up
from marketplace.billing.verifying import verify_document
from marketplace.contracts.models import Contract, Entitlement
from marketplace.ids import uuid7
from marketplace.ledger.models import LedgerAccount
from marketplace.ledger.selectors import check_ledger
from metering.auditing import check_usage
from metering.models import UsageEvent as StoredEvent
from metering.services import accept_batch, gateway_source, ingest_batches
from metering.usage import UsageEvent, encode_event, encode_lines
from pricing.models import Grade, Rate
from pricing.units import Bucket
from providers.models import Provider
from tests.billing.test_committed import buy
from tests.billing.test_disputes import event_of, supply
from tests.billing.world import DUE_AFTER, HOUR, PERIOD, accrue, award, identify, money, on_demand, set_tax
from tests.cast import WEIGHTS, Party, Plant, make_plant

MARCH, APRIL = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC)
APRIL_2, MAY_2 = datetime(2026, 4, 2, tzinfo=UTC), datetime(2026, 5, 2, tzinfo=UTC)
HOURS = 24
KAPPA_DIVISOR = 4  # The cast's grade: a quarter of a standard token per native one.
COUNTED = (Bucket.UNCACHED_INPUT, Bucket.CACHE_READ, Bucket.OUTPUT, Bucket.REASONING)


class Killed(Exception):
    """The process ended here: what it had not committed never was."""


@dataclass
class Month:
    """What happens comes from `chance` alone; `faults` counts what went wrong on the way."""

    chance: Random
    acme: Party
    grade: Grade
    plants: list[Plant]
    faults: Counter[str] = field(default_factory=Counter)
    sent: dict[UUID, tuple[UUID, int]] = field(default_factory=dict)
    paid_in_micros: int = 0
    late: list[tuple[Contract, Rate, Plant, datetime]] = field(default_factory=list)
    supplied: set[tuple[UUID, UUID]] = field(default_factory=set)

    def step(self, work: Callable[[], object], *, again: bool = True) -> None:
        """Until it was committed once; then perhaps again, as a broker delivers twice or a caller asks once more."""
        while True:
            try:
                with transaction.atomic():
                    work()
                    if self.chance.random() < 0.2:
                        raise Killed
                break
            except Killed:
                self.faults["killed"] += 1
        if again and self.chance.random() < 0.3:
            self.faults["repeated"] += 1
            work()

    def pay_in(self, now: datetime) -> None:
        operation_id, amount = uuid7(now), self.chance.randrange(1, 9) * 1_000_000
        self.step(
            lambda: top_up(
                organization_id=self.acme.id, amount_micros=amount, operation_id=operation_id, now=now,
                actor=SYSTEM,
            )
        )  # fmt: skip
        self.paid_in_micros += amount

    def use(self, contract: Contract, rate: Rate, plant: Plant, period: datetime, now: datetime) -> int:
        """One to four requests of a delivery period, reported at `now`, once or more; their volume in numerators."""
        if (contract.id, plant.offering.id) not in self.supplied:
            supply(contract, plant, MARCH)
            self.supplied.add((contract.id, plant.offering.id))
        events = [self._event(contract, rate, plant, period) for _ in range(self.chance.randrange(1, 5))]
        volume = 0
        for event in events:
            numerator = sum(
                (count or 0) * WEIGHTS[bucket] // KAPPA_DIVISOR for bucket, count in event.buckets.items()
            )
            self.sent[event.id] = (contract.id, numerator)
            volume += numerator
        self._report(events, now)
        return volume

    def _event(self, contract: Contract, rate: Rate, plant: Plant, period: datetime) -> UsageEvent:
        buckets = {bucket: self.chance.randrange(0, 40_000) for bucket in COUNTED}
        event = event_of(contract, plant, period, 1)
        return replace(event, rate_id=rate.id, request_id=uuid7(period), buckets=buckets)

    def _report(self, events: list[UsageEvent], now: datetime) -> None:
        """In any order; some lines twice, some in a later batch once more, and something that nobody can count."""
        source, lines = gateway_source(now), [encode_event(event) for event in events]
        batches = [[*lines, *self.chance.sample(lines, self.chance.randrange(len(lines) + 1))]]
        if self.chance.random() < 0.4:
            self.faults["replayed"] += 1
            batches.append(self.chance.sample(lines, len(lines)))
        if self.chance.random() < 0.2:
            self.faults["nonsense"] += 1
            batches.append([b'{"id": 7}'])
        self.chance.shuffle(batches)
        for batch in batches:
            self.chance.shuffle(batch)
            body = encode_lines(batch)
            self.step(lambda body=body: accept_batch(source=source, body=body, now=now))  # type: ignore[misc]
        self.step(lambda: ingest_batches(now=now))

    def settle(self, hour: datetime, *, now: datetime | None = None) -> None:
        def work() -> None:
            assert settle_period(settlement_start=hour, now=now or hour + DUE_AFTER).failed == []

        self.step(work)

    def report_late(self, now: datetime) -> None:
        """Usage of periods that were settled long ago; each of them settles again."""
        for contract, rate, plant, period in self.late:
            self.faults["late"] += 1
            self.use(contract, rate, plant, period, now)
            self.settle(period.replace(minute=0), now=now)
        self.late = []


def hour_of(month: Month, spot: list[Contract], month_paid: Entitlement, hour: datetime) -> None:
    """One hour: money in, requests on demand, a spot award used in part, committed volume, settlement."""
    chance = month.chance
    if chance.random() < 0.3:
        month.pay_in(hour)
    plant = chance.choice(month.plants)
    contract = on_demand(month.acme, month.grade, hour)
    period = hour + chance.randrange(12) * PERIOD
    if chance.random() < 0.8:
        month.use(contract, plant.offering.list_rate, plant, period, period)
        accrue(contract, hour, 1_000_000, hour)
    if chance.random() < 0.5:
        shares = [(one, chance.randrange(200, 500)) for one in month.plants]
        won = award(
            month.acme, month.grade, shares, chance.randrange(200_000, 600_000), period, hour,
            spot[0] if spot else None,
        )  # fmt: skip
        spot[:] = [won.contract]
        if chance.random() < 0.7:
            month.use(won.contract, won.rate, chance.choice(month.plants), period, period)
    if chance.random() < 0.5 and month_paid.period_start <= hour:
        month.use(month_paid.contract, month_paid.rate, month.plants[0], period, period)
    month.settle(hour)
    if chance.random() < 0.2:
        month.late.append((contract, plant.offering.list_rate, plant, period))
    if chance.random() < 0.3:
        month.report_late(hour + DUE_AFTER)


def documents(month: Month, month_start: datetime, now: datetime) -> None:
    def settle_all() -> None:
        assert settle_due_periods(now=now).failed == []

    month.step(settle_all)
    month.step(lambda: issue_invoices(month_start=month_start, now=now))
    month.step(lambda: issue_statements(month_start=month_start, now=now))
    month.step(lambda: pay_out_statements(now=now))


@pytest.mark.parametrize("seed", [20260310, 7, 4711])
def test_a_month_of_faults_is_charged_once_and_every_document_verifies(
    acme: Party, hyperion: Party, operator: Party, grade: Grade, plant: Plant, now: datetime, seed: int
) -> None:
    print(f"seed {seed}")  # noqa: T201  (pytest shows it when this fails)
    month = Month(Random(seed), acme, grade, [plant, make_plant(hyperion, grade, now, name="h2")])
    set_tax(acme, 190_000)
    identify(hyperion)
    Provider.objects.filter(organization_id=hyperion.id).update(
        self_billing_consent_at=now, payout_destination="iban-1"
    )
    for _ in range(8):
        month.pay_in(now)
    committed = buy(acme, grade, now, now + HOUR)
    month.step(lambda: charge_committed_months(now=now + HOUR))
    month_paid = Entitlement.objects.select_related("rate", "contract").get(contract=committed)
    spot: list[Contract] = []
    for number in sorted(month.chance.sample(range(1, 20 * 24), HOURS)):
        hour_of(month, spot, month_paid, now + number * HOUR)
    documents(month, MARCH, APRIL_2)
    month.late.append((on_demand(acme, grade, now), plant.offering.list_rate, plant, now + 2 * HOUR))
    month.report_late(APRIL_2 + HOUR)
    documents(month, APRIL, MAY_2)

    assert {"killed", "repeated", "replayed", "late"} <= set(month.faults), month.faults
    stored = Counter(StoredEvent.objects.values_list("id", flat=True))
    assert stored == Counter(list(month.sent))
    by_contract: Counter[UUID] = Counter()
    for contract_id, numerator in month.sent.values():
        by_contract[contract_id] += numerator
    usage = Charge.objects.filter(contract=on_demand(acme, grade, now)).aggregate(sum=Sum("numerator"))
    assert usage["sum"] == by_contract[on_demand(acme, grade, now).id]
    assert sum(TopUp.objects.values_list("amount_micros", flat=True)) == month.paid_in_micros

    assert check_usage(since=MARCH) == []
    charges = check_charges(since=MARCH)
    assert (charges.differences, charges.unsettled) == ([], 0)
    assert check_ledger() == []
    accounts = LedgerAccount.objects.all()
    assert sum(one.credits_posted_micros - one.debits_posted_micros for one in accounts) == 0
    invoices = Invoice.objects.exclude(number=None)
    assert {invoice.period_start for invoice in invoices} == {MARCH, APRIL}
    for invoice in invoices:
        assert verify_document(number=str(invoice.number)).difference is None
    assert not Charge.objects.filter(invoiced_as__isnull=True).exists()
    charged = sum(invoice.subtotal_micros for invoice in invoices)
    assert charged == sum(Charge.objects.values_list("amount_micros", flat=True))
    earned = sum(one.gross_micros - one.fee_micros for one in Earning.objects.all())
    assert sum(Statement.objects.values_list("net_micros", flat=True)) == earned
    paid_out = sum(Payout.objects.filter(status="paid").values_list("amount_micros", flat=True))
    assert 0 <= earned - paid_out == money(hyperion, "payable") < 10_000
