"""What a committed contract would have cost a buyer on what he really used, beside what he paid for that (reads only).

The rules are `pricing.simulating`; here is read what was used, what volume beyond a contract cost then, and what was
charged (docs/simulator.md).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Min

from marketplace.accounts.models import Organization, OrganizationRole
from marketplace.billing.models import ChargeKind
from marketplace.billing.simulation_reading import Seen, in_order, paid_of, usage_of
from marketplace.contracts.models import Contract, OveragePolicy, Payment
from marketplace.contracts.quoting import MAX_LOTS, MAX_MONTHS, average_rate, fill_firm, first_open_start
from marketplace.errors import Forbidden, InvalidInput, NotFound
from marketplace.orders.asking import count_question
from marketplace.periods import settlement_period
from pricing.models import Grade
from pricing.months import Period, contract_month, last_term_before
from pricing.selectors import grade_in_force
from pricing.services import MAX_RATE_MICROS_PER_MTOK
from pricing.simulating import (
    Overage,
    Refusal,
    SimulatedMonth,
    Terms,
    check_volume,
    simulate,
)
from pricing.units import NUMERATOR_PER_MTOK, div_half_even

MOST_PER_WINDOW: Final = 30
DEFAULT_MONTHS: Final = 3
# Given back for what failed or was slow, or earned with what was released: a simulated contract has none of it.
_NOT_SIMULATED: Final = (
    ChargeKind.REMEDY,
    ChargeKind.SERVICE_CREDIT,
    ChargeKind.RELEASE,
    ChargeKind.TERMINATION,
)
_SUMMED: Final = (
    "volume", "used", "delivered", "rolled_in", "rolled_in_used", "unused", "rolled_out", "true_up", "beyond_firm",
    "overage", "overage_at_list", "refused_in_all", "fee_micros", "usage_micros", "true_up_micros", "overage_micros",
    "amount_micros",
)  # fmt: skip
_FIELDS: Final = {"rate": "rate_micros_per_mtok", "max_rate": "max_rate_micros_per_mtok"}


@dataclass(frozen=True, slots=True)
class Note:
    """Something that the figures do not say by themselves: a word for programs, a sentence for people."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """A month, or all of them: what the contract would have charged, and what was paid, by kind. Before tax.

    `sums` are the figures of `SimulatedMonth` by name, summed over `months`: numerators, or micros of the currency.
    """

    months: Sequence[SimulatedMonth]
    sums: Mapping[str, int]
    refused: Mapping[Refusal, int]
    paid: Mapping[str, int]

    @property
    def period_start(self) -> datetime:
        return self.months[0].period.start

    @property
    def period_end(self) -> datetime:
        return self.months[-1].period.end

    @property
    def amount_micros(self) -> int:
        return self.sums["amount_micros"]

    @property
    def paid_micros(self) -> int:
        return sum(self.paid.values())

    @property
    def saving_micros(self) -> int:
        """Negative where the contract would have cost more."""
        return self.paid_micros - self.amount_micros

    @property
    def served(self) -> int:
        return self.sums["used"] - self.sums["refused_in_all"]

    @property
    def per_mtok_micros(self) -> int | None:
        """What a Mtok that the contract serves would have cost, all in; None where it serves none."""
        return _per_mtok(self.amount_micros, self.served)

    @property
    def paid_per_mtok_micros(self) -> int | None:
        """What a Mtok did cost, all in."""
        return _per_mtok(self.paid_micros, self.sums["used"])


@dataclass(frozen=True, slots=True)
class Simulation:
    """The answer. `is_quoted`: the rate is today's price of the firm lots, not a number of the buyer's."""

    grade: Grade
    terms: Terms
    is_quoted: bool
    by_month: list[Comparison]
    total: Comparison
    notes: list[Note]


def simulate_contract(
    *,
    organization_id: UUID,
    grade_slug: str,
    firm_lots: int,
    volume_lots: int,
    now: datetime,
    starts_at: datetime | None = None,
    months: int | None = None,
    rate_micros_per_mtok: int | None = None,
    payment: str = Payment.PREPAID,
    take_share_ppm: int = 1_000_000,
    rollover_share_ppm: int = 0,
    rollover_cap_lots: int = 0,
    overage_policy: str = OveragePolicy.STOP,
    max_rate_micros_per_mtok: int | None = None,
) -> Simulation:
    """A contract of these terms, in months from `starts_at` on, on what the organization used of the grade then.

    By default the last three months that are settled, or as many as his usage has. Without a rate it is today's price
    of the firm lots, for as many months. Writes nothing but the count of questions. Raises InvalidInput naming the
    field, NotFound (grade), Forbidden, NotOffered, TooManyQuestions, CannotCount.
    """
    organization = Organization.objects.filter(pk=organization_id).first()
    if organization is None:
        raise NotFound("There is no such organization.")
    if not organization.has_role(OrganizationRole.BUYER):
        raise Forbidden("Only a buyer has usage to try a contract on.")
    grade = grade_in_force(slug=grade_slug, at=now)
    if grade is None:
        raise NotFound("There is no grade of this name in force.", field="grade")
    _check_ranges(firm_lots, volume_lots, months, rate_micros_per_mtok, max_rate_micros_per_mtok)
    if payment not in Payment.values:
        raise InvalidInput(f"It must be one of {', '.join(Payment.values)}.", field="payment")
    if overage_policy not in OveragePolicy.values:
        raise InvalidInput(f"It must be one of {', '.join(OveragePolicy.values)}.", field="overage_policy")
    tried = {
        "firm_lots": firm_lots,
        "volume_lots": volume_lots,
        "is_prepaid": payment == Payment.PREPAID,
        "take_share_ppm": take_share_ppm,
        "rollover_share_ppm": rollover_share_ppm,
        "rollover_cap_lots": rollover_cap_lots,
        "overage": Overage(overage_policy),
        "max_rate": max_rate_micros_per_mtok,
    }
    _terms(tried, rate_micros_per_mtok or 0)
    term = _term(organization_id, grade, starts_at, months, now)
    terms = _terms(tried, rate_micros_per_mtok or 0, term)
    count_question(f"simulation:{organization_id}", most=MOST_PER_WINDOW, what="simulations")
    if rate_micros_per_mtok is None:
        # As a quote would be: in arrears, which grants may pay, nobody supplies himself.
        never_of = organization_id if payment == Payment.ARREARS else None
        terms = _terms(tried, _price_today(grade, firm_lots, len(term), now, never_of=never_of))
    seen = Seen()
    with transaction.atomic():
        usage = usage_of(organization_id, grade, terms, term, seen)
        simulated = simulate(terms, term, usage, settlement_s=settings.SETTLEMENT_PERIOD_S)
        paid = paid_of(organization_id, grade, term, seen)
    by_month = [_compared([month], kinds) for month, kinds in zip(simulated, paid, strict=True)]
    total = _compared(simulated, _added(paid))
    is_quoted = rate_micros_per_mtok is None
    return Simulation(
        grade, terms, is_quoted, by_month, total, _notes(terms, total, seen, is_quoted=is_quoted)
    )


def _check_ranges(
    firm_lots: int, volume_lots: int, months: int | None, rate: int | None, max_rate: int | None
) -> None:
    for name, value, most in (
        ("firm_lots", firm_lots, MAX_LOTS),
        ("volume_lots", volume_lots, MAX_LOTS * 1_000),
        ("months", months, MAX_MONTHS),
        ("rate_micros_per_mtok", rate, MAX_RATE_MICROS_PER_MTOK),
        ("max_rate_micros_per_mtok", max_rate, MAX_RATE_MICROS_PER_MTOK),
    ):
        if value is not None and not 1 <= value <= most:
            raise InvalidInput(f"It must be from 1 to {most}.", field=name)


def _terms(tried: Mapping[str, Any], rate: int, term: Sequence[Period] = ()) -> Terms:
    """Raises InvalidInput for what `pricing.simulating` does not take, with the names of the outside."""
    try:
        terms = Terms(rate=rate, **tried)
        if term:
            check_volume(terms, term, delivery_s=settings.DELIVERY_PERIOD_S)
    except ValueError as error:
        name, _, reason = str(error).partition(": ")
        raise InvalidInput(f"{reason[:1].upper()}{reason[1:]}.", field=_FIELDS.get(name, name)) from None
    return terms


def _term(
    organization_id: UUID, grade: Grade, starts_at: datetime | None, months: int | None, now: datetime
) -> list[Period]:
    """The contract months to try: whole, settled, and none from before the organization's first contract."""
    first = Contract.objects.filter(
        organization_id=organization_id, grade__family_id=grade.family_id, starts_at__lt=now
    ).aggregate(first=Min("starts_at"))["first"]
    if first is None:
        raise InvalidInput("You have used nothing of this grade yet.", field="grade")
    begins = settlement_period(first).start
    settled = settlement_period(
        now - timedelta(seconds=grade.max_request_s + settings.SETTLEMENT_GRACE_S)
    ).start
    counts = [months] if months is not None else list(range(DEFAULT_MONTHS, 0, -1))
    if starts_at is None:
        for count in counts:
            start = last_term_before(settled, count)
            if start >= begins:
                return [contract_month(start, number) for number in range(count)]
        field_at_fault = "starts_at" if months in (None, 1) else "months"
    else:
        _check_start(starts_at, begins, now)
        for count in counts:
            if contract_month(starts_at, count - 1).end <= settled:
                return [contract_month(starts_at, number) for number in range(count)]
        begins, field_at_fault = starts_at, "starts_at" if months in (None, 1) else "months"
    end = contract_month(begins, counts[-1] - 1).end
    raise InvalidInput(
        f"From {begins.isoformat()} on, {counts[-1]} month{'s' if counts[-1] > 1 else ''} of usage will be settled "
        f"after {end.isoformat()}.",
        field=field_at_fault,
    )


def _check_start(starts_at: datetime, begins: datetime, now: datetime) -> None:
    if starts_at.tzinfo is None:
        raise InvalidInput("It must carry a time zone.", field="starts_at")
    if starts_at >= now:
        raise InvalidInput("It must lie in the past.", field="starts_at")
    if settlement_period(starts_at).start != starts_at:
        raise InvalidInput("It must be the start of a settlement period (UTC).", field="starts_at")
    if starts_at < begins:
        raise InvalidInput(
            f"Your first contract of this grade began in the settlement period of {begins.isoformat()}.",
            field="starts_at",
        )


def _price_today(grade: Grade, firm_lots: int, months: int, now: datetime, *, never_of: UUID | None) -> int:
    """What a quote would say now, without writing one."""
    start = first_open_start(now)
    ends_at = contract_month(start, months - 1).end
    shares = fill_firm(
        grade_id=grade.id,
        firm_lots=firm_lots,
        starts_at=start,
        ends_at=ends_at,
        now=now,
        own={},
        never_of=never_of,
    )
    return average_rate(shares)


def _compared(months: Sequence[SimulatedMonth], paid: Mapping[str, int]) -> Comparison:
    sums = {name: sum(getattr(month, name) for month in months) for name in _SUMMED}
    refused = {reason: sum(month.refused.get(reason, 0) for month in months) for reason in Refusal}
    named = {reason: numerator for reason, numerator in refused.items() if numerator}
    return Comparison(months, sums, named, paid)


def _added(paid: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = defaultdict(int)
    for kinds in paid:
        for kind, amount in kinds.items():
            total[kind] += amount
    return in_order(total)


def _per_mtok(amount: int, numerator: int) -> int | None:
    return div_half_even(amount * NUMERATOR_PER_MTOK, numerator) if numerator else None


def _notes(terms: Terms, total: Comparison, seen: Seen, *, is_quoted: bool) -> list[Note]:
    """Always the same ones, and then those that this answer needs."""
    has_others = any(total.paid.get(kind) for kind in _NOT_SIMULATED)
    said: list[tuple[bool, str, str]] = [
        (
            True,
            "pace",
            "Usage above the firm lots of a delivery period counts as beyond the contract. A real contract is paced by "
            "the second: it lets a minute's worth more pass after a pause, and refuses shorter bursts.",
        ),
        (
            True,
            "capacity",
            "Whether the firm capacity was free then, or is now, is not checked."
            if not is_quoted
            else "The rate is today's price; whether the capacity is still free is decided when a quote is accepted.",
        ),
        (
            True,
            "failures",
            "Nothing fails and nothing is released: no refunds, remedies, service credits or proceeds are counted.",
        ),
        (True, "tax", "Both sides are before tax and before the discounts of invoices."),
        (
            total.sums["refused_in_all"] > 0,
            "refused",
            "What you paid includes what you paid for volume that this contract would have refused: compare the cost "
            "per Mtok.",
        ),
        (
            not terms.is_prepaid,
            "routing",
            "In arrears, requests above the take go on demand where that is cheaper at the moment; here all go to the "
            "contract while it has volume.",
        ),
        (
            terms.overage is Overage.LIST and total.sums["overage"] > 0,
            "list_rate",
            "Overage is at the lowest list rate in force then, of offerings that are not withdrawn today.",
        ),
        (
            terms.overage is Overage.SPOT and total.sums["overage_at_list"] > 0,
            "no_period_rate",
            "Where the spot market left no rate for a period, overage is at the lowest list rate in force then.",
        ),
        (
            seen.prorated,
            "prorated",
            "Charges for a period that lies partly outside a month are counted pro rata by time.",
        ),
        (
            seen.another_version,
            "versions",
            "Part of the usage came under another version of the grade, and is counted as it was metered then.",
        ),
        (
            has_others,
            "other_charges",
            "What you paid includes remedies, credits, proceeds of releases or fees for ending early, which the "
            "simulated contract has none of.",
        ),
    ]
    return [Note(code, detail) for applies, code, detail in said if applies]
