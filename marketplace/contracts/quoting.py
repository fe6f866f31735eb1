"""Quotes: the price of a firm volume, good for a while. A quote fixes the price, not the capacity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Max

from marketplace.accounts.models import Organization, OrganizationRole
from marketplace.accounts.organization_clocks import billing_now
from marketplace.contracts.bonds import room_for_firm
from marketplace.contracts.models import OveragePolicy, Payment, Quote
from marketplace.errors import DomainError, Forbidden, InvalidInput, NotFound
from marketplace.periods import contract_month, delivery_period
from pricing.selectors import grade_in_force
from pricing.services import MAX_RATE_MICROS_PER_MTOK
from pricing.units import PPM, div_half_even
from providers.models import HostHour, Offering
from providers.selectors import dependable_lots, listed_offerings

QUOTE_LIFE: Final = timedelta(minutes=15)
MAX_MONTHS: Final = 12
MAX_START_AHEAD: Final = timedelta(days=31)
MAX_LOTS: Final = 10**9
GATE_PPM: Final = 900_000
_HOUR: Final = timedelta(hours=1)


class QuoteExpired(DomainError):
    """The quote's time is over; a new one has today's price."""

    code = "quote_expired"
    http_status = 409
    title = "The quote has expired"


class NotOffered(DomainError):
    """Nobody lists that much firm capacity."""

    code = "not_offered"
    http_status = 409
    title = "The capacity is not on offer"


@dataclass(frozen=True, slots=True)
class Share:
    """What one offering supplies of a firm quantity, at its own rate."""

    offering_id: UUID
    firm_lots: int
    rate_micros_per_mtok: int


def first_open_start(now: datetime) -> datetime:
    """The start of the next delivery period whose gate has not closed."""
    current = delivery_period(now)
    length = current.end - current.start
    gate_at = current.start + length * GATE_PPM // PPM
    return current.end if now < gate_at else current.end + length


@transaction.atomic
def request_quote(
    *,
    organization_id: UUID,
    grade_slug: str,
    firm_lots: int,
    volume_lots: int,
    months: int,
    starts_at: datetime | None,
    take_share_ppm: int,
    overage_policy: str,
    payment: str,
    now: datetime,
    rollover_share_ppm: int = 0,
    rollover_cap_lots: int = 0,
    max_rate_micros_per_mtok: int | None = None,
    amends_id: UUID | None = None,
    own: Mapping[UUID, int] | None = None,
    own_until: datetime | None = None,
    own_now: datetime | None = None,
) -> Quote:
    """The price of `firm_lots` per delivery period and `volume_lots` a month: the cheapest firm rates that fill it.

    The rate is the volume-weighted average of those rates, rounded half-even to a whole micro per Mtok; it is good
    for 15 minutes. `max_rate_micros_per_mtok` is the most that overage may cost. With `amends_id` it is the price of
    taking that contract's place (see `amending`), whose `own` shares, by host, count as free (until `own_until`, where
    that is given). `own_now` is the buyer's time where his clock is on its way there. Raises InvalidInput naming the
    field, NotFound (grade), Forbidden or NotOffered.
    """
    organization = Organization.objects.filter(pk=organization_id).first()
    if organization is None:
        raise NotFound("There is no such organization.")
    if not organization.has_role(OrganizationRole.BUYER):
        raise Forbidden("Only a buyer can ask for a quote.")
    grade = grade_in_force(slug=grade_slug, at=now)
    if grade is None:
        raise NotFound("There is no grade of this name in force.", field="grade")
    _check_range("firm_lots", firm_lots, 1, MAX_LOTS)
    _check_range("volume_lots", volume_lots, 1, MAX_LOTS * 1_000)
    _check_range("months", months, 1, MAX_MONTHS)
    _check_range("take_share_ppm", take_share_ppm, 0, PPM)
    if overage_policy not in OveragePolicy.values:
        raise InvalidInput(f"It must be one of {', '.join(OveragePolicy.values)}.", field="overage_policy")
    if max_rate_micros_per_mtok is not None:
        _check_range("max_rate_micros_per_mtok", max_rate_micros_per_mtok, 1, MAX_RATE_MICROS_PER_MTOK)
        if overage_policy == OveragePolicy.STOP:
            raise InvalidInput(
                "Only a contract that goes on beyond its volume has a highest rate of it.",
                field="max_rate_micros_per_mtok",
            )
    if payment not in Payment.values:
        raise InvalidInput(f"It must be one of {', '.join(Payment.values)}.", field="payment")
    _check_range("rollover_share_ppm", rollover_share_ppm, 0, PPM)
    _check_range("rollover_cap_lots", rollover_cap_lots, 0, MAX_LOTS * 1_000)
    if rollover_share_ppm and payment != Payment.PREPAID:
        raise InvalidInput("Only volume that is paid ahead can roll over.", field="rollover_share_ppm")
    if rollover_share_ppm and not rollover_cap_lots:
        raise InvalidInput("A share that rolls over needs a cap above zero.", field="rollover_cap_lots")
    # A term begins by the buyer's own time: what began before his test clock would be over before it was delivered.
    own_now = own_now or billing_now(organization_id, now)
    start = first_open_start(own_now) if starts_at is None else starts_at
    _check_start(start, own_now)
    month_ends = [contract_month(start, number).end for number in range(months)]
    _check_volume(volume_lots, firm_lots, start, months)
    shares = fill_firm(
        grade_id=grade.id,
        firm_lots=firm_lots,
        starts_at=start,
        ends_at=month_ends[-1],
        now=now,
        own=own or {},
        own_until=own_until,
        amends_id=amends_id,
        # Grants pay what is used in arrears: on the buyer's own hosts they would become money that is paid out.
        never_of=organization_id if payment == Payment.ARREARS else None,
    )
    return Quote.objects.create(
        organization_id=organization_id,
        grade=grade,
        firm_lots=firm_lots,
        volume_lots=volume_lots,
        months=months,
        starts_at=start,
        take_share_ppm=take_share_ppm,
        overage_policy=overage_policy,
        max_rate_micros_per_mtok=max_rate_micros_per_mtok,
        payment=payment,
        rollover_share_ppm=rollover_share_ppm,
        rollover_cap_lots=rollover_cap_lots,
        notice_days=settings.COMMITTED_NOTICE_DAYS,
        termination_fee_ppm=settings.TERMINATION_FEE_PPM,
        amends_id=amends_id,
        rate_micros_per_mtok=average_rate(shares),
        shares=[
            {
                "offering_id": str(share.offering_id),
                "firm_lots": share.firm_lots,
                "rate_micros_per_mtok": share.rate_micros_per_mtok,
            }
            for share in shares
        ],
        expires_at=now + QUOTE_LIFE,
        created_at=now,
    )


def fill_firm(
    *,
    grade_id: UUID,
    firm_lots: int,
    starts_at: datetime,
    ends_at: datetime,
    now: datetime,
    own: Mapping[UUID, int],
    own_until: datetime | None = None,
    amends_id: UUID | None = None,
    never_of: UUID | None = None,
) -> list[Share]:
    """Who would supply `firm_lots` per delivery period over the whole term, cheapest firm rate first.

    A host that lists several grades sells its share once: what the hours of the term have sold already is taken off,
    but for the shares by host that are the buyer's `own` in its hours before `own_until` (None: in all). Nobody
    supplies more than his bond covers, and the organization `never_of` supplies nothing. Raises NotOffered, telling
    how much there is.
    """
    offerings = sorted(
        (
            offering
            for offering in listed_offerings(grade_id, now)
            if offering.host.provider.organization_id != never_of
        ),
        key=lambda offering: (offering.firm_rate.micros_per_mtok, offering.id),
    )
    sold = _sold_to_others(
        [offering.host_id for offering in offerings],
        starts_at,
        ends_at,
        own=own,
        own_until=ends_at if own_until is None else own_until,
    )
    sellable = PPM - settings.OPERATING_MARGIN_PPM
    room = room_for_firm(offerings, term=(starts_at, ends_at), amends_id=amends_id, now=now)
    shares: list[Share] = []
    left = firm_lots
    for offering in offerings:
        free_lots = _free_lots(offering, sellable - sold[offering.host_id])
        lots = min(left, free_lots)
        rate, seller = offering.firm_rate.micros_per_mtok, offering.host.provider.organization_id
        if room is not None:
            lots = min(lots, room[seller] // rate)
            room[seller] -= max(0, lots) * rate
        if lots > 0:
            shares.append(Share(offering.id, lots, offering.firm_rate.micros_per_mtok))
            left -= lots
        if left == 0:
            return shares
    raise NotOffered(
        f"Firm capacity for {firm_lots} lots per delivery period is not on offer over this term; "
        f"{firm_lots - left} lots are.",
        field="firm_lots",
    )


def average_rate(shares: Sequence[Share]) -> int:
    """The volume-weighted average of the shares' rates, half-even to a whole micro per Mtok."""
    weighted = sum(share.firm_lots * share.rate_micros_per_mtok for share in shares)
    return div_half_even(weighted, sum(share.firm_lots for share in shares))


def hours_of(starts_at: datetime, ends_at: datetime) -> list[datetime]:
    """The starts of the UTC hours that the term touches."""
    hour = starts_at.replace(minute=0, second=0, microsecond=0)
    hours = []
    while hour < ends_at:
        hours.append(hour)
        hour += _HOUR
    return hours


def _free_lots(offering: Offering, free_ppm: int) -> int:
    return max(0, free_ppm) * dependable_lots(offering, settings.DELIVERY_PERIOD_S) // PPM


def _sold_to_others(
    host_ids: Sequence[UUID],
    starts_at: datetime,
    ends_at: datetime,
    *,
    own: Mapping[UUID, int],
    own_until: datetime,
) -> dict[UUID, int]:
    """By host, the most in any hour of the term that is not the buyer's own, whose shares end at `own_until`."""
    until = min(own_until, ends_at)
    with_own = _firm_sold_ppm(host_ids, starts_at, until) if starts_at < until else {}
    without = _firm_sold_ppm(host_ids, until, ends_at) if until < ends_at else {}
    return {
        host_id: max(with_own.get(host_id, 0) - own.get(host_id, 0), without.get(host_id, 0))
        for host_id in host_ids
    }


def _firm_sold_ppm(host_ids: Sequence[UUID], starts_at: datetime, ends_at: datetime) -> dict[UUID, int]:
    """The most that each host has sold firm in any hour of the term."""
    rows = (
        HostHour.objects.filter(
            host_id__in=host_ids, hour_start__gt=starts_at - _HOUR, hour_start__lt=ends_at
        )
        .values("host_id")
        .annotate(most=Max("sold_ppm"))
    )
    return {row["host_id"]: row["most"] for row in rows}


def _check_start(start: datetime, now: datetime) -> None:
    if start.tzinfo is None:
        raise InvalidInput("It must carry a time zone.", field="starts_at")
    if delivery_period(start).start != start:
        raise InvalidInput("It must be the start of a delivery period (UTC).", field="starts_at")
    if start < first_open_start(now):
        raise InvalidInput("The gate of that delivery period has closed.", field="starts_at")
    if start > now + MAX_START_AHEAD:
        raise InvalidInput(f"It may lie at most {MAX_START_AHEAD.days} days ahead.", field="starts_at")


def _check_volume(volume_lots: int, firm_lots: int, start: datetime, months: int) -> None:
    for number in range(months):
        month = contract_month(start, number)
        periods = (month.end - month.start) // timedelta(seconds=settings.DELIVERY_PERIOD_S)
        if volume_lots > firm_lots * periods:
            raise InvalidInput(
                f"A month of {periods} delivery periods of {firm_lots} lots holds {firm_lots * periods} lots.",
                field="volume_lots",
            )


def _check_range(field: str, value: int, least: int, most: int) -> None:
    if type(value) is not int:
        raise InvalidInput("It must be an integer.", field=field)
    if not least <= value <= most:
        raise InvalidInput(f"It must be from {least} to {most}.", field=field)
