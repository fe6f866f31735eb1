"""Provider bonds: what a provider must have deposited for the firm volume he sold, and what that lets him sell more.

    required = ceil(bond share x the most at any time of the sum of (firm lots x delivery periods of 30 days x rate))

The money lies in his ledger account of kind `bond`. A quote chooses nobody whose bond would not cover it, and
acceptance looks again under the lock of his profile, where withdrawals wait too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db.models import F, Sum
from django.db.models.fields import DecimalField
from django.db.models.functions import Cast

from marketplace.contracts.models import Allocation, Contract, ContractKind
from marketplace.errors import DomainError
from marketplace.ledger.models import AccountKind
from marketplace.ledger.selectors import available_by_organization
from pricing.units import NUMERATOR_PER_LOT, NUMERATOR_PER_MTOK, PPM, div_ceil
from providers.models import Offering
from providers.services import lock_providers

# From, until, how much.
Interval = tuple[datetime, datetime, int]
BOND_SPAN: Final = timedelta(days=30)
# What ended this recently may still come to remedies, so its part is not given back yet.
SETTLING: Final = timedelta(days=2)


class BondNotCovered(DomainError):
    """A provider's bond does not cover what he would have sold."""

    code = "bond_not_covered"
    http_status = 409
    title = "The provider's bond does not cover it"


@dataclass(frozen=True, slots=True)
class Bond:
    """In micros. `firm_value` is 30 days of what is sold firm; `bound` is what may not be withdrawn now.

    `room` is how much more of such value the bond covers; None where no bond is asked.
    """

    firm_value_micros: int
    required_micros: int
    bound_micros: int
    held_micros: int
    room_micros: int | None

    @property
    def free_micros(self) -> int:
        """What may be withdrawn."""
        return max(0, self.held_micros - self.bound_micros)

    @property
    def missing_micros(self) -> int:
        return max(0, self.required_micros - self.held_micros)


def bond_of(organization_id: UUID, *, now: datetime) -> Bond:
    """A provider's bond as it stands."""
    [lots_rate] = firm_lots_times_rate([organization_id], now=now).values()
    [still] = firm_lots_times_rate([organization_id], now=now - SETTLING, ended_too=True).values()
    [held] = available_by_organization(
        [organization_id], kind=AccountKind.BOND, currency=settings.MARKET_CURRENCY
    ).values()
    covered = covered_lots_times_rate(held)
    return Bond(
        firm_value_micros=firm_value_micros(lots_rate),
        required_micros=required_micros(lots_rate),
        bound_micros=required_micros(still),
        held_micros=held,
        room_micros=None
        if covered is None
        else max(0, covered - lots_rate) * _numerators() // NUMERATOR_PER_MTOK,
    )


def firm_lots_times_rate(
    organization_ids: Iterable[UUID],
    *,
    now: datetime,
    ended_too: bool = False,
    term: tuple[datetime, datetime] | None = None,
    but_for: UUID | None = None,
) -> dict[UUID, int]:
    """By provider: the most that firm lots x own rate of his committed contracts come to at any time from `now` on.

    What follows one another is owed in its own time, so it is not added up (`peak`). With `ended_too` also of contracts
    that ended before the term they were made for; with `term` the most within that time; `but_for` is a contract that
    does not count. One query.
    """
    found: dict[UUID, list[Interval]] = {organization: [] for organization in organization_ids}
    since, until = term or (now, None)
    allocations = Allocation.objects.filter(
        period_start__isnull=True,
        contract__kind=ContractKind.COMMITTED,
        contract__ends_at__gt=max(now, since),
        offering__host__provider__organization_id__in=list(found),
    )
    if until is not None:
        allocations = allocations.filter(contract__starts_at__lt=until)
    if not ended_too:
        allocations = allocations.exclude(contract__status=Contract.Status.ENDED)
    if but_for is not None:
        allocations = allocations.exclude(contract=but_for)
    rows = (
        allocations.values(
            "offering__host__provider__organization_id", "contract__starts_at", "contract__ends_at"
        )
        .annotate(
            # A sum of products of two bigints: exact, as numeric.
            worth=Sum(
                Cast(F("firm_lots"), DecimalField(max_digits=38, decimal_places=0))
                * Cast(F("rate_micros_per_mtok"), DecimalField(max_digits=38, decimal_places=0))
            )
        )
        .order_by()
    )
    for row in rows:
        # Of what has begun only the end matters: before `since` nothing is asked.
        start = max(since, row["contract__starts_at"])
        end = row["contract__ends_at"]
        assert end is not None, "a committed contract has a term"
        found[row["offering__host__provider__organization_id"]].append((start, end, int(row["worth"])))
    return {organization: peak(intervals) for organization, intervals in found.items()}


def peak(intervals: Iterable[Interval]) -> int:
    """The most that amounts owed from one time to another, half-open, come to together at any time."""
    steps: dict[datetime, int] = defaultdict(int)
    for start, end, amount in intervals:
        steps[start] += amount
        steps[end] -= amount
    most = running = 0
    for at in sorted(steps):
        running += steps[at]
        most = max(most, running)
    return most


def firm_value_micros(lots_times_rate: int) -> int:
    """30 days of it, up to the next micro."""
    return div_ceil(lots_times_rate * _numerators(), NUMERATOR_PER_MTOK)


def required_micros(lots_times_rate: int) -> int:
    """The bond for firm lots x rate, up to the next micro: rounded once, over all that is sold."""
    return div_ceil(lots_times_rate * _numerators() * settings.PROVIDER_BOND_PPM, NUMERATOR_PER_MTOK * PPM)


def covered_lots_times_rate(bond_micros: int) -> int | None:
    """The most firm lots x rate that a bond covers: the largest whose `required_micros` is within it. None: any."""
    if settings.PROVIDER_BOND_PPM == 0:
        return None
    return bond_micros * NUMERATOR_PER_MTOK * PPM // (_numerators() * settings.PROVIDER_BOND_PPM)


def require_bonds(contract: Contract, *, now: datetime) -> None:
    """Refuse a contract, allocated in the caller's transaction, that a provider's bond does not cover.

    Locks the profiles of its providers until the transaction ends: of two acceptances that one bond covers singly the
    second sees the first. Raises BondNotCovered.
    """
    if settings.PROVIDER_BOND_PPM == 0:
        return
    allocations = contract.allocations.filter(period_start__isnull=True)
    sellers = set(allocations.values_list("offering__host__provider__organization_id", flat=True))
    lock_providers(sellers)
    held = available_by_organization(sellers, kind=AccountKind.BOND, currency=contract.currency)
    for organization_id, worth in firm_lots_times_rate(sellers, now=now).items():
        if required_micros(worth) > held[organization_id]:
            raise BondNotCovered("A provider's bond no longer covers it; ask for a new quote.")


def room_for_firm(
    offerings: Iterable[Offering],
    *,
    term: tuple[datetime, datetime],
    amends_id: UUID | None = None,
    now: datetime,
) -> dict[UUID, int] | None:
    """By provider organization: the firm lots x rate that his bond lets him sell more over a term.

    None where no bond is asked. The contract that an amendment takes the place of ends when its term begins.
    """
    if settings.PROVIDER_BOND_PPM == 0:
        return None
    sellers = {offering.host.provider.organization_id for offering in offerings}
    held = available_by_organization(sellers, kind=AccountKind.BOND, currency=settings.MARKET_CURRENCY)
    sold = firm_lots_times_rate(sellers, now=now)
    within = firm_lots_times_rate(sellers, now=now, term=term, but_for=amends_id)
    room = {}
    for seller in sellers:
        covered = covered_lots_times_rate(held[seller]) or 0
        # Whose bond does not cover what he has sold sells nothing more, at whatever time.
        room[seller] = covered - within[seller] if sold[seller] <= covered else 0
    return room


def _numerators() -> int:
    """What one firm lot comes to over 30 days: DELIVERY_PERIOD_S divides an hour, so in whole periods."""
    return NUMERATOR_PER_LOT * (BOND_SPAN // timedelta(seconds=settings.DELIVERY_PERIOD_S))
