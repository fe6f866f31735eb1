"""Reads of hosts, offerings and capacity. What belongs to another organization does not exist."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from django.db.models import Count, Exists, Min, OuterRef, Q, QuerySet, Sum

from marketplace.errors import NotFound
from marketplace.periods import delivery_period
from metering.reconciling import reconciled_shares, reconciliation_ppm
from pricing.units import NUMERATOR_PER_LOT, PPM, div_ceil
from providers.capacity import CapacityGone, hour_of, sellable_ppm
from providers.list_rates import (
    RateSpan,
    coming_day,
    comparable_list_rate,
    list_rate_schedule,
    month_tariffs,
)
from providers.models import Bench, Host, HostHour, HostPeriod, ListTariff, Offering, Outage, Provider


@dataclass(frozen=True, slots=True)
class PeriodCapacity:
    """The share of a host in one delivery period."""

    sellable_ppm: int
    sold_ppm: int

    @property
    def unsold_ppm(self) -> int:
        return self.sellable_ppm - self.sold_ppm


def hosts_of(organization_id: UUID) -> QuerySet[Host]:
    """The organization's hosts, newest first."""
    return (
        Host.objects.filter(provider__organization_id=organization_id)
        .select_related("provider")
        .order_by("-pk")
    )


def find_host(organization_id: UUID, host_id: UUID) -> Host:
    """Raises NotFound, also for a host of another organization."""
    host = hosts_of(organization_id).filter(pk=host_id).first()
    if host is None:
        raise NotFound("There is no such host.")
    return host


def planned_outages_of(host: Host) -> QuerySet[Outage]:
    """What its provider announced, the latest start first; one that was withdrawn ends where it starts."""
    return Outage.objects.filter(host=host, kind=Outage.Kind.PLANNED).order_by("-started_at", "-pk")


def offerings_of(organization_id: UUID) -> QuerySet[Offering]:
    """The organization's offerings, withdrawn ones too, newest first."""
    return _with_all(Offering.objects.filter(host__provider__organization_id=organization_id)).order_by("-pk")


def find_offering(organization_id: UUID, offering_id: UUID) -> Offering:
    """Raises NotFound, also for an offering of another organization."""
    offering = offerings_of(organization_id).filter(pk=offering_id).first()
    if offering is None:
        raise NotFound("There is no such offering.")
    return offering


def offerings_by_id(offering_ids: Iterable[UUID]) -> dict[UUID, Offering]:
    """These offerings, whoever's and in whatever state."""
    return Offering.objects.in_bulk(list(offering_ids))


def listed_offerings(grade_id: UUID, now: datetime) -> QuerySet[Offering]:
    """What can be sold of a grade at `now`: listed, on an enrolled and ready host that is not down, in id order.

    A host that fell silent stops being ready within 15 s and the next check of heartbeats.
    """
    return _with_all(_listed(now).filter(grade_id=grade_id)).order_by("pk")


def offerings_on_sale(grade: str | None = None) -> QuerySet[Offering]:
    """Every offering that is listed, whether its host is up now or not, oldest first; `grade` is a family's slug."""
    offerings = Offering.objects.filter(
        status=Offering.Status.LISTED, host__provider__status=Provider.Status.ACTIVE
    )
    if grade is not None:
        offerings = offerings.filter(grade__family__slug=grade)
    return offerings.select_related("host__provider", "grade__family", "list_rate", "bench").order_by("pk")


def dependable_lots(offering: Offering, seconds: int) -> int:
    """Whole lots that the offering can make in so many seconds with the whole host."""
    return offering.dependable_numerator_per_s * seconds // NUMERATOR_PER_LOT


def share_ppm_of(lots: int, offering: Offering, seconds: int) -> int:
    """The host's share that so many lots in so many seconds take, rounded up. Raises CapacityGone."""
    assert lots >= 0
    if lots == 0:
        return 0
    whole = dependable_lots(offering, seconds)
    if whole == 0:
        raise CapacityGone("The offering cannot make a single lot in that time.")
    return div_ceil(PPM * lots, whole)


def period_capacity(host_id: UUID, period_start: datetime) -> PeriodCapacity:
    """Sellable and sold share of a host in the period, whether its row is made already or not."""
    period = HostPeriod.objects.filter(host_id=host_id, period_start=period_start).first()
    if period is not None:
        return PeriodCapacity(period.sellable_ppm, period.sold_ppm)
    hour = HostHour.objects.filter(host_id=host_id, hour_start=hour_of(period_start)).first()
    if hour is not None:
        return PeriodCapacity(hour.sellable_ppm, hour.sold_ppm)
    return PeriodCapacity(sellable_ppm(), 0)


def running_capacity(host_id: UUID, now: datetime) -> PeriodCapacity:
    """`period_capacity` of the delivery period that holds `now`."""
    return period_capacity(host_id, delivery_period(now).start)


def unsold_ppm(host_id: UUID, period_start: datetime) -> int:
    """The share of the host that nobody bought in the period."""
    return period_capacity(host_id, period_start).unsold_ppm


def latest_bench(host_id: UUID) -> Bench | None:
    return Bench.objects.filter(host_id=host_id).order_by("-measured_at", "-pk").first()


def latest_benches(host_ids: list[UUID]) -> dict[UUID, Bench]:
    """The newest bench of each of these hosts that has one, in one query."""
    rows = (
        Bench.objects.filter(host_id__in=host_ids)
        .order_by("host_id", "-measured_at", "-pk")
        .distinct("host_id")
    )
    return {bench.host_id: bench for bench in rows}


def published_providers() -> QuerySet[Provider]:
    """Those that sell, newest first: their names are public, their hosts are not."""
    selling = Host.objects.filter(provider=OuterRef("pk")).exclude(status=Host.Status.PENDING)
    return Provider.objects.filter(Exists(selling), status=Provider.Status.ACTIVE).order_by("-pk")


@dataclass(frozen=True, slots=True)
class Profile:
    """What everybody may know of a provider."""

    display_name: str
    since: datetime
    grades: list[str]
    settled_numerator: int
    # The share of that, in periods whose meters agreed; null without usage.
    reconciliation_ppm: int | None


def profiles_of(providers: Iterable[Provider], *, now: datetime) -> list[Profile]:
    """In the same order, in a constant number of queries."""
    found = list(providers)
    host_ids: dict[UUID, list[UUID]] = {provider.pk: [] for provider in found}
    for host_id, provider_id in Host.objects.filter(provider__in=found).values_list("pk", "provider_id"):
        host_ids[provider_id].append(host_id)
    grades: dict[UUID, list[str]] = {provider.pk: [] for provider in found}
    offered = Offering.objects.filter(host__provider__in=found, status=Offering.Status.LISTED)
    names = offered.values_list("host__provider_id", "grade__family__title").distinct()
    for provider_id, title in names.order_by("grade__family__title"):
        grades[provider_id].append(title)
    shares = reconciled_shares([host_id for own in host_ids.values() for host_id in own], now=now)
    profiles = []
    for provider in found:
        own = [shares[host_id] for host_id in host_ids[provider.pk] if host_id in shares]
        settled = sum(share.settled_numerator for share in own)
        agreed = sum(share.agreed_numerator for share in own)
        ppm = PPM * agreed // settled if settled else None
        profiles.append(
            Profile(provider.display_name, provider.created_at, grades[provider.pk], settled, ppm)
        )
    return profiles


def reconciliation_ppm_of(organization_id: UUID, *, now: datetime) -> int | None:
    """What is published of the organization's hosts; None without settled usage."""
    host_ids = Host.objects.filter(provider__organization_id=organization_id).values_list("pk", flat=True)
    return reconciliation_ppm(list(host_ids), now=now)


def _with_all(offerings: QuerySet[Offering]) -> QuerySet[Offering]:
    return offerings.select_related(
        "host__provider__organization", "grade__family", "list_rate", "firm_rate", "bench"
    ).prefetch_related("grade__buckets")


def _listed(now: datetime) -> QuerySet[Offering]:
    down = Outage.objects.filter(host_id=OuterRef("host_id"), started_at__lte=now).filter(
        Q(ended_at__isnull=True) | Q(ended_at__gt=now)
    )
    return Offering.objects.filter(
        status=Offering.Status.LISTED,
        host__status=Host.Status.ENROLLED,
        host__ready=True,
        host__provider__status=Provider.Status.ACTIVE,
    ).exclude(Exists(down))


@dataclass(frozen=True, slots=True)
class Supply:
    """What is on offer of a grade now: the cheapest rates, and what all listed hosts make together.

    No list rate where all of it is sold in packages.
    """

    list_rate_micros_per_mtok: int | None
    firm_rate_micros_per_mtok: int
    offerings: int
    dependable_numerator_per_s: int


def supply_of(grade_ids: list[UUID], now: datetime) -> dict[UUID, Supply]:
    """The supply of each of these grades that anyone lists, in one query."""
    rows = (
        _listed(now)
        .filter(grade_id__in=grade_ids)
        .values("grade_id")
        .annotate(
            cheapest_list=Min(comparable_list_rate(now)),
            cheapest_firm=Min("firm_rate__micros_per_mtok"),
            count=Count("pk"),
            dependable=Sum("dependable_numerator_per_s"),
        )
        .order_by()
    )
    return {
        row["grade_id"]: Supply(
            row["cheapest_list"], row["cheapest_firm"], row["count"], int(row["dependable"])
        )
        for row in rows
    }


def list_rate_schedules(grade_ids: Iterable[UUID], now: datetime) -> dict[UUID, list[RateSpan]]:
    """`list_rate_schedule` of what is on offer of each of these grades, for a day from the running delivery period on.

    One query.
    """
    return list_rate_schedule(_listed(now).filter(grade_id__in=list(grade_ids)), *coming_day(now))


def month_tariffs_of(grade_id: UUID, now: datetime) -> QuerySet[ListTariff]:
    """Prices of a calendar month's volume that are on offer of a grade, now or announced for the coming day."""
    return month_tariffs(_listed(now).filter(grade_id=grade_id), *coming_day(now))


def all_hosts() -> QuerySet[Host]:
    """Every provider's hosts, newest first: for the operator."""
    return Host.objects.select_related("provider__organization").order_by("-pk")


def period_capacities(host_ids: list[UUID], period_start: datetime) -> dict[UUID, PeriodCapacity]:
    """`period_capacity` of many hosts, in two queries."""
    hours = HostHour.objects.filter(host_id__in=host_ids, hour_start=hour_of(period_start))
    periods = HostPeriod.objects.filter(host_id__in=host_ids, period_start=period_start)
    found = {host_id: PeriodCapacity(sellable_ppm(), 0) for host_id in host_ids}
    for hour in hours:
        found[hour.host_id] = PeriodCapacity(hour.sellable_ppm, hour.sold_ppm)
    for period in periods:
        found[period.host_id] = PeriodCapacity(period.sellable_ppm, period.sold_ppm)
    return found
