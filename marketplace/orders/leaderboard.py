"""How well each listed offering delivers for its price, from metered and settled data only. Names no host."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import connection
from django.db.models import Case, Count, F, Q, Sum, When

from marketplace.contracts.models import Contract, ContractKind
from marketplace.orders.models import Ask, Auction
from marketplace.periods import Period, settlement_period
from metering.models import MeterKind, UsageRollup
from pricing.units import NUMERATOR_PER_LOT, PPM
from providers.list_rates import comparable_list_rate
from providers.models import Offering, Outage
from providers.selectors import offerings_on_sale

WINDOW: Final = timedelta(days=7)
MOST_OFFERINGS: Final = 200

# Energy counters are cumulative per host; one that goes down was started anew at nought (`metering.registers`).
_ENERGY = """
WITH reads AS (
    SELECT host_id, read_at, energy_millijoules AS energy,
           lag(energy_millijoules) OVER (PARTITION BY host_id ORDER BY read_at, id) AS before
      FROM metering_registerread
     WHERE host_id = ANY (%(hosts)s) AND read_at >= %(since)s AND read_at < %(until)s
       AND energy_millijoules IS NOT NULL
), spent AS (
    SELECT host_id, min(read_at) AS since, max(read_at) AS until,
           sum(CASE WHEN before IS NULL THEN 0 WHEN energy >= before THEN energy - before ELSE energy END) AS energy
      FROM reads GROUP BY host_id
)
SELECT spent.host_id, spent.energy::bigint, coalesce(sum(rollup.numerator), 0)::bigint
  FROM spent
  JOIN providers_offering offering ON offering.host_id = spent.host_id
  LEFT JOIN metering_usagerollup rollup
    ON rollup.offering_id = offering.id AND rollup.meter = 'gateway'
   AND rollup.period_start >= spent.since
   AND rollup.period_start + make_interval(secs => %(period_s)s) <= spent.until
 WHERE spent.energy > 0
 GROUP BY spent.host_id, spent.energy
"""


@dataclass(frozen=True, slots=True)
class Standing:
    """One offering's figures over the window; None where the data do not exist.

    `delivered_numerator_per_s` is over the delivery periods in which it delivered anything. Per currency unit means
    per unit of the list price of an Mtok. Energy is the host's, over all that it served.
    """

    provider: str
    grade: str
    region: str
    list_rate_micros_per_mtok: int
    dependable_numerator_per_s: int
    delivered_numerator: int
    delivered_numerator_per_s: int | None
    tokens_per_currency_unit: int
    millitokens_per_s_per_currency_unit: int | None
    microtokens_per_joule: int | None
    spot_awarded_lots: int
    spot_delivered_numerator: int
    delivered_of_awarded_ppm: int | None
    uptime_ppm: int | None
    first_byte_p50_ms: int
    first_byte_p95_ms: int


def window_of(now: datetime) -> Period:
    """The last seven days up to the newest settlement period that no late usage can reach any more."""
    late = timedelta(seconds=settings.MAX_REQUEST_S + settings.SETTLEMENT_GRACE_S)
    end = settlement_period(now - late).start
    return Period(end - WINDOW, end)


def standings(*, now: datetime, grade: str | None = None) -> list[Standing]:
    """Listed offerings but those sold in packages, best throughput for the price first; at most `MOST_OFFERINGS`.

    Seven queries.
    """
    offerings = list(
        offerings_on_sale(grade)
        .annotate(listed_micros_per_mtok=comparable_list_rate(now))
        .filter(listed_micros_per_mtok__isnull=False)[:MOST_OFFERINGS]
    )
    window = window_of(now)
    ids = [offering.id for offering in offerings]
    hosts = sorted({offering.host_id for offering in offerings})
    delivered = _delivered(ids, window)
    awarded = _awarded(ids, window)
    energy = _energy(hosts, window)
    down = _down(hosts, window)
    found = [
        _standing(
            offering,
            offering.listed_micros_per_mtok,
            delivered.get(offering.id, (0, 0, 0)),
            awarded.get(offering.id, 0),
            energy.get(offering.host_id),
            down.get(offering.host_id, []),
            window,
        )
        for offering in offerings
    ]
    return sorted(
        found, key=lambda one: (-(one.millitokens_per_s_per_currency_unit or 0), one.provider, one.grade)
    )


def _standing(
    offering: Offering,
    list_rate_micros_per_mtok: int,
    delivered: tuple[int, int, int],
    awarded_lots: int,
    energy: tuple[int, int] | None,
    down: Sequence[tuple[datetime, datetime]],
    window: Period,
) -> Standing:
    numerator, spot_numerator, periods = delivered
    rate = max(1, list_rate_micros_per_mtok)
    per_s = numerator // (periods * settings.DELIVERY_PERIOD_S) if periods else None
    return Standing(
        provider=offering.host.provider.display_name,
        grade=offering.grade.family.slug,
        region=offering.host.region,
        list_rate_micros_per_mtok=list_rate_micros_per_mtok,
        dependable_numerator_per_s=offering.dependable_numerator_per_s,
        delivered_numerator=numerator,
        delivered_numerator_per_s=per_s,
        # An Mtok costs rate / 1e6 units, so one unit buys 1e6 x 1e6 / rate tokens.
        tokens_per_currency_unit=10**12 // rate,
        # Numerators are millionths of a token and rates millionths of a unit: they cancel.
        millitokens_per_s_per_currency_unit=None if per_s is None else 1_000 * per_s // rate,
        # Millionths of a token per thousandth of a joule.
        microtokens_per_joule=None if energy is None else 1_000 * energy[1] // energy[0],
        spot_awarded_lots=awarded_lots,
        spot_delivered_numerator=spot_numerator,
        delivered_of_awarded_ppm=PPM * spot_numerator // (awarded_lots * NUMERATOR_PER_LOT)
        if awarded_lots
        else None,
        uptime_ppm=uptime_ppm(down, since=max(window.start, offering.created_at), until=window.end),
        first_byte_p50_ms=offering.bench.first_byte_p50_ms,
        first_byte_p95_ms=offering.bench.first_byte_p95_ms,
    )


def uptime_ppm(down: Iterable[tuple[datetime, datetime]], *, since: datetime, until: datetime) -> int | None:
    """The share of `[since, until)` that lies in none of the intervals, which may overlap; None of an empty one."""
    if until <= since:
        return None
    lost, reached = timedelta(0), since
    for start, end in sorted(down):
        begin, finish = max(start, reached), min(end, until)
        if finish > begin:
            lost += finish - begin
            reached = finish
    return PPM - PPM * lost // (until - since)


def _delivered(offering_ids: list[UUID], window: Period) -> dict[UUID, tuple[int, int, int]]:
    """Numerator, the part of it on spot contracts, and delivery periods with any, by the gateway's meter."""
    spot = Q(contract_id__in=Contract.objects.filter(kind=ContractKind.SPOT).values("pk"))
    rows = (
        UsageRollup.objects.filter(
            offering_id__in=offering_ids,
            meter=MeterKind.GATEWAY,
            period_start__gte=window.start,
            period_start__lt=window.end,
        )
        .values_list("offering_id")
        .annotate(
            whole=Sum("numerator"),
            spot=Sum(Case(When(spot, then=F("numerator")), default=0)),
            periods=Count("period_start", distinct=True),
        )
        .order_by()
    )
    return {offering_id: (int(whole), int(spot), periods) for offering_id, whole, spot, periods in rows}


def _awarded(offering_ids: list[UUID], window: Period) -> dict[UUID, int]:
    asks = Ask.objects.filter(
        offering_id__in=offering_ids,
        auction__period_start__gte=window.start,
        auction__period_start__lt=window.end,
        auction__status__in=(Auction.Status.PUBLISHED, Auction.Status.DELIVERED, Auction.Status.SETTLED),
    )
    rows = asks.values_list("offering_id").annotate(lots=Sum("awarded_lots")).order_by()
    return {offering_id: int(lots) for offering_id, lots in rows}


def _energy(host_ids: list[UUID], window: Period) -> dict[UUID, tuple[int, int]]:
    """Millijoules spent and numerator delivered between the first and the last read that told energy, by host."""
    with connection.cursor() as cursor:
        cursor.execute(
            _ENERGY,
            {
                "hosts": host_ids,
                "since": window.start,
                "until": window.end,
                "period_s": settings.DELIVERY_PERIOD_S,
            },
        )
        return {host_id: (energy, numerator) for host_id, energy, numerator in cursor.fetchall()}


def _down(host_ids: list[UUID], window: Period) -> dict[UUID, list[tuple[datetime, datetime]]]:
    """Outages that were not planned. One that lasts reaches to the window's end."""
    outages = Outage.objects.filter(host_id__in=host_ids, started_at__lt=window.end).exclude(
        kind=Outage.Kind.PLANNED
    )
    rows = outages.filter(Q(ended_at__isnull=True) | Q(ended_at__gt=window.start))
    found: dict[UUID, list[tuple[datetime, datetime]]] = defaultdict(list)
    for host_id, start, end in rows.values_list("host_id", "started_at", "ended_at"):
        found[host_id].append((start, end or window.end))
    return found
