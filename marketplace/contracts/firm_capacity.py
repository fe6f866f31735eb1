"""The hosts' capacity that a committed contract has bought, hour by hour: taken and given back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.conf import settings

from marketplace.contracts.models import Allocation, Contract, Quote
from marketplace.contracts.quoting import hours_of
from providers.models import Offering
from providers.selectors import share_ppm_of
from providers.services import give_back_firm_share, lock_hours, take_firm_share

_HOUR: Final = timedelta(hours=1)


def quoted_shares(quote: Quote) -> dict[UUID, int]:
    """By offering, the share of its host that the quoted lots take. Raises CapacityGone."""
    offerings = Offering.objects.in_bulk([UUID(share["offering_id"]) for share in quote.shares])
    return {
        offering: share_ppm_of(lots, offerings[offering], settings.DELIVERY_PERIOD_S)
        for offering, lots in ((UUID(share["offering_id"]), share["firm_lots"]) for share in quote.shares)
    }


def taken_by_host(contract_id: UUID) -> dict[UUID, int]:
    """The share of every host that a contract took; of one made before that was kept, what it would take now."""
    shares: dict[UUID, int] = defaultdict(int)
    rows = Allocation.objects.filter(contract_id=contract_id, period_start__isnull=True)
    for item in rows.select_related("offering"):
        shares[item.offering.host_id] += item.share_ppm or share_ppm_of(
            item.firm_lots, item.offering, settings.DELIVERY_PERIOD_S
        )
    return dict(shares)


def by_host(shares: dict[UUID, int]) -> dict[UUID, int]:
    hosts = dict(Offering.objects.filter(pk__in=list(shares)).values_list("pk", "host_id"))
    summed: dict[UUID, int] = defaultdict(int)
    for offering, share in shares.items():
        summed[hosts[offering]] += share
    return dict(summed)


def lock_term(hosts: Iterable[UUID], starts_at: datetime, ends_at: datetime) -> None:
    """Lock the hours of all these hosts in one step, where some are given back and others taken."""
    lock_hours(sorted(set(hosts)), hours_of(starts_at, ends_at))


def take(shares: dict[UUID, int], starts_at: datetime, ends_at: datetime, *, now: datetime) -> None:
    """Shares by host in every hour of the term, host by host in id order. Raises CapacityGone."""
    _take(shares, hours_of(starts_at, ends_at), now=now, starts_at=starts_at)


def take_after(
    amended_id: UUID, shares: dict[UUID, int], starts_at: datetime, ends_at: datetime, *, now: datetime
) -> None:
    """As `take`, for the contract that takes another's place. An hour inside which the one ends and the other begins
    is the new one's from now on, with the larger of both shares of each host.
    """
    first, *rest = hours_of(starts_at, ends_at)
    if first == starts_at:
        take(shares, starts_at, ends_at, now=now)
        return
    before = taken_by_host(amended_id)
    both = {host: max(shares.get(host, 0), before.get(host, 0)) for host in shares.keys() | before.keys()}
    _take(both, [first], now=now, starts_at=starts_at)
    _take(shares, rest, now=now)


def take_again(contract: Contract, since: datetime, *, now: datetime) -> None:
    """What was given back of a contract's hours from `since` on. Raises CapacityGone."""
    assert contract.ends_at is not None
    shared = _shared_hour(contract)
    hours = [hour for hour in hours_of(since, contract.ends_at) if hour != shared]
    _take(taken_by_host(contract.id), hours, now=now, starts_at=since)


def take_following(
    shares: dict[UUID, int],
    starts_at: datetime,
    ends_at: datetime,
    *,
    before: dict[UUID, int],
    now: datetime,
) -> None:
    """As `take`, for a contract that begins where another one, with these shares, ends.

    An hour is sold as a whole, so where that is inside an hour both have it: each in its own time. Of that hour only
    what the second one takes more of a host is taken. Raises CapacityGone.
    """
    whole = first_whole_hour(starts_at)
    if whole == starts_at:
        take(shares, starts_at, ends_at, now=now)
        return
    shared = [whole - _HOUR]
    rest = hours_of(whole, ends_at)
    for host_id in sorted(shares):
        more = max(0, shares[host_id] - before.get(host_id, 0))
        if more:
            take_firm_share(host_id=host_id, hours=shared, share_ppm=more, now=now, starts_at=starts_at)
        if rest:
            take_firm_share(host_id=host_id, hours=rest, share_ppm=shares[host_id], now=now)


def give_back(contract: Contract, since: datetime, ends_at: datetime, *, now: datetime) -> Sequence[datetime]:
    """What the contract took of the whole hours from `since` to the end of its term: on sale again.

    The hour that `since` lies in stays the contract's: an hour is sold as a whole. Returns the hours.
    """
    shared = _shared_hour(contract)
    hours = [hour for hour in hours_of(since, ends_at) if hour >= since and hour != shared]
    if hours:
        for host_id, share in sorted(taken_by_host(contract.id).items()):
            give_back_firm_share(host_id=host_id, hours=hours, share_ppm=share, now=now)
    return hours


def _take(
    shares: dict[UUID, int], hours: Sequence[datetime], *, now: datetime, starts_at: datetime | None = None
) -> None:
    for host_id in sorted(shares) if hours else ():
        take_firm_share(host_id=host_id, hours=hours, share_ppm=shares[host_id], now=now, starts_at=starts_at)


def _shared_hour(contract: Contract) -> datetime | None:
    """The hour of its end that is the contract's that took its place (`take_after`)."""
    starts_at = Contract.objects.filter(amends=contract).values_list("starts_at", flat=True).first()
    if starts_at is None:
        return None
    hour: datetime = hours_of(starts_at, starts_at + _HOUR)[0]
    return hour if hour < starts_at else None


def first_whole_hour(at: datetime) -> datetime:
    """The start of the first UTC hour that does not begin before `at`."""
    hour = at.replace(minute=0, second=0, microsecond=0)
    return hour if hour == at else hour + _HOUR
