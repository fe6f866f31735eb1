"""Reads of list rates, each at its time: in force now, in a period to come, over the coming day."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from heapq import merge
from itertools import pairwise
from operator import itemgetter
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connection
from django.db.models import (
    BigIntegerField,
    Case,
    DateTimeField,
    Exists,
    F,
    FilteredRelation,
    Func,
    OuterRef,
    Prefetch,
    Q,
    QuerySet,
    UUIDField,
    Value,
    When,
)  # fmt: skip
from django.db.models.expressions import Combinable

from marketplace.periods import delivery_period
from pricing.models import Rate
from pricing.rate_tariffs import tariff_of
from pricing.tariffs import DAY_S, Tariff
from pricing.units import MicrosPerMtok
from providers.models import ListTariff, ListTariffSlot, Offering

_RATES = """
SELECT asked.id, listed.rate_id, listed.micros_per_mtok, listed.comparable_micros_per_mtok
  FROM unnest(%s::uuid[], %s::uuid[]) AS asked (id, plain)
 CROSS JOIN LATERAL providers_list_rate(asked.id, asked.plain, %s) AS listed
"""


class ListRate(NamedTuple):
    """`comparable` is the rate, but None of packages: what a few tokens come to has nothing to do with it."""

    rate_id: UUID
    micros_per_mtok: MicrosPerMtok
    comparable: MicrosPerMtok | None


class RateSpan(NamedTuple):
    """`rate` is micros per Mtok over `[start, end)`."""

    start: datetime
    end: datetime
    rate: int


class _Slot(NamedTuple):
    start_s: int
    end_s: int
    # None of packages: as `ListRate.comparable`.
    rate: int | None


def list_rates_at(offerings: Iterable[Offering], at: datetime) -> dict[UUID, ListRate]:
    """What each of these offerings costs on demand at a moment, by its id, in one query."""
    asked = list(offerings)
    with connection.cursor() as cursor:
        cursor.execute(
            _RATES, ([offering.pk for offering in asked], [offering.list_rate_id for offering in asked], at)
        )
        return {
            offering_id: ListRate(rate_id, MicrosPerMtok(micros), comparable)
            for offering_id, rate_id, micros, comparable in cursor.fetchall()
        }


class _ListRate(Func):
    """A column of `providers_list_rate` of a query's offerings."""

    template = "(SELECT listed.%(column)s FROM providers_list_rate(%(expressions)s) AS listed)"


def list_rate_micros(at: datetime) -> Combinable:
    """An expression of a query over offerings: micros per Mtok on demand at a moment."""
    return _ListRate(*_arguments(at), column="micros_per_mtok", output_field=BigIntegerField())


def comparable_list_rate(at: datetime) -> Combinable:
    """`list_rate_micros`, but null of packages: what cheapest rates are made of."""
    return _ListRate(*_arguments(at), column="comparable_micros_per_mtok", output_field=BigIntegerField())


def with_list_rate(offerings: QuerySet[Offering], at: datetime) -> QuerySet[Offering]:
    """Each with `listed_rate_id` and `listed_micros_per_mtok`: what it costs on demand at a moment."""
    return offerings.annotate(
        listed_rate_id=_ListRate(*_arguments(at), column="rate_id", output_field=UUIDField()),
        listed_micros_per_mtok=list_rate_micros(at),
    )


def _arguments(at: datetime) -> tuple[F, F, Value]:
    return F("pk"), F("list_rate_id"), Value(at, output_field=DateTimeField())


def tariffs_of(offering_id: UUID) -> QuerySet[ListTariff]:
    """An offering's versions with their slots, withdrawn ones too, the newest first."""
    return _with_slots(ListTariff.objects.filter(offering_id=offering_id)).order_by("-valid_from", "-pk")


def tariff_in_force(offering_id: UUID, at: datetime) -> ListTariff | None:
    """The version that holds at a moment; None before the first one."""
    return tariffs_of(offering_id).filter(withdrawn_at__isnull=True, valid_from__lte=at).first()


def slots_of(tariff: ListTariff) -> list[tuple[int, int, int]]:
    """Seconds of the UTC day from and until, and the rate between, in order."""
    return [(slot.start_s, slot.end_s, slot.rate.micros_per_mtok) for slot in tariff.slots.all()]


def month_tariff_of(tariff: ListTariff) -> Tariff | None:
    """The tiers, volume price or packages of a version; None where every token of a moment costs the same."""
    for slot in tariff.slots.all():
        row = getattr(slot.rate, "tariff", None)
        if row is not None:
            return tariff_of(row)
    return None


def month_tariffs(offerings: QuerySet[Offering], start: datetime, end: datetime) -> QuerySet[ListTariff]:
    """Versions of these offerings that price a month's volume, in force at `start` or to begin before `end`."""
    followed = ListTariff.objects.filter(
        offering_id=OuterRef("offering_id"),
        withdrawn_at__isnull=True,
        valid_from__lte=start,
        valid_from__gt=OuterRef("valid_from"),
    )
    standing = ListTariff.objects.filter(
        ~Exists(followed),
        offering__in=offerings,
        withdrawn_at__isnull=True,
        valid_from__lt=end,
        kind__in=ListTariff.OF_A_MONTH,
    )
    return _with_slots(standing).order_by("valid_from", "pk")


def coming_day(now: datetime) -> tuple[datetime, datetime]:
    """From the start of the running delivery period, where rates may have changed last, for 24 hours."""
    start = delivery_period(now).start
    return start, start + timedelta(seconds=DAY_S)


def list_rate_schedule(
    offerings: QuerySet[Offering], start: datetime, end: datetime
) -> dict[UUID, list[RateSpan]]:
    """The cheapest of these offerings on demand over `[start, end)`, as announced by now, by their grade's id.

    Cut only where the rate changes. One query, and work in proportion to its rows: whoever reads a page asks for it.
    """
    plain: dict[UUID, dict[UUID, int]] = defaultdict(dict)
    versions: dict[UUID, dict[datetime, list[_Slot]]] = defaultdict(lambda: defaultdict(list))
    for pk, grade_id, rate, valid_from, *slot in _announced(offerings, start, end):
        plain[grade_id][pk] = rate
        if valid_from is not None:
            versions[pk][valid_from].append(_Slot(*slot))
    first, last = start.astimezone(UTC), end.astimezone(UTC)
    return {
        grade_id: _cheapest([_steps(rate, versions[pk], first, last) for pk, rate in own.items()], last)
        for grade_id, own in plain.items()
    }


def list_rate_moves(
    offerings: QuerySet[Offering], start: datetime, end: datetime
) -> Iterator[tuple[datetime, UUID, ListRate]]:
    """Each offering's list rate as it moved before `end`, in the order of time; what held at `start` among them.

    Plain rates from the beginning on, days of versions from the day of `start`. Memory of one step an offering.
    """
    ids = list(offerings.values_list("pk", flat=True))
    versions: dict[UUID, list[ListTariff]] = defaultdict(list)
    standing = ListTariff.objects.filter(offering_id__in=ids, withdrawn_at__isnull=True, valid_from__lt=end)
    for version in _with_slots(standing).order_by("valid_from"):
        versions[version.offering_id].append(version)
    return merge(
        _plain_moves(ids, {pk: own[0].valid_from for pk, own in versions.items()}, end),
        *(_tariff_moves(own, start, end) for own in versions.values()),
        key=itemgetter(0),
    )


def _plain_moves(
    ids: Sequence[UUID], tariffs_from: Mapping[UUID, datetime], end: datetime
) -> Iterator[tuple[datetime, UUID, ListRate]]:
    """Plain rates, which hold until an offering's first version."""
    rates = Rate.objects.filter(kind=Rate.Kind.LIST, source_id__in=ids, valid_from__lt=end)
    plain = rates.exclude(Exists(ListTariffSlot.objects.filter(rate_id=OuterRef("pk"))))
    rows = plain.order_by("valid_from", "pk").values_list("valid_from", "source_id", "pk", "micros_per_mtok")
    for valid_from, offering_id, rate_id, micros in rows.iterator(chunk_size=1_000):
        if offering_id not in tariffs_from or valid_from < tariffs_from[offering_id]:
            yield valid_from, offering_id, ListRate(rate_id, MicrosPerMtok(micros), MicrosPerMtok(micros))


def _tariff_moves(
    versions: Sequence[ListTariff], start: datetime, end: datetime
) -> Iterator[tuple[datetime, UUID, ListRate]]:
    first = start.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    for version, until in zip(versions, [*(one.valid_from for one in versions[1:]), end], strict=True):
        comparable = version.kind != ListTariff.Kind.PACKAGE
        slots = [
            (slot.start_s, slot.end_s, ListRate(slot.rate_id, micros, micros if comparable else None))
            for slot in version.slots.all()
            for micros in [MicrosPerMtok(slot.rate.micros_per_mtok)]
        ]
        begin = version.valid_from.astimezone(UTC)
        midnight = max(first, begin.replace(hour=0, minute=0, second=0, microsecond=0))
        while midnight < until:
            for start_s, end_s, rate in slots:
                since = max(begin, midnight + timedelta(seconds=start_s))
                if since < min(until, midnight + timedelta(seconds=end_s)):
                    yield since, version.offering_id, rate
            midnight += timedelta(seconds=DAY_S)


def _announced(offerings: QuerySet[Offering], start: datetime, end: datetime) -> Iterable[tuple[Any, ...]]:
    """Of each offering what holds at `start` and what begins before `end`: a row per slot, or one without any."""
    standing = FilteredRelation(
        "list_tariffs",
        condition=Q(list_tariffs__withdrawn_at__isnull=True, list_tariffs__valid_from__lt=end),
    )
    followed = ListTariff.objects.filter(
        offering_id=OuterRef("pk"),
        withdrawn_at__isnull=True,
        valid_from__lte=start,
        valid_from__gt=OuterRef("standing__valid_from"),
    )
    rows = offerings.annotate(standing=standing).filter(Q(standing__isnull=True) | ~Exists(followed))
    return rows.order_by("pk", "standing__valid_from", "standing__slots__start_s").values_list(
        "pk",
        "grade_id",
        "list_rate__micros_per_mtok",
        "standing__valid_from",
        "standing__slots__start_s",
        "standing__slots__end_s",
        Case(
            When(standing__kind=ListTariff.Kind.PACKAGE, then=None),
            default=F("standing__slots__rate__micros_per_mtok"),
        ),
    )


def _steps(
    plain: int, versions: Mapping[datetime, Sequence[_Slot]], start: datetime, end: datetime
) -> dict[datetime, int | None]:
    """One offering's rate from each moment on at which it may change, in order: `providers_list_rate` over again."""
    steps: dict[datetime, int | None] = {start: plain}
    for begin, follows in pairwise([*sorted(versions), end]):
        since, until = max(begin, start), min(follows, end)
        midnight = since.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        while midnight < until:
            for slot in versions[begin]:
                first = max(since, midnight + timedelta(seconds=slot.start_s))
                if first < min(until, midnight + timedelta(seconds=slot.end_s)):
                    steps[first] = slot.rate
            midnight += timedelta(seconds=DAY_S)
    return steps


def _cheapest(offerings: Sequence[Mapping[datetime, int | None]], end: datetime) -> list[RateSpan]:
    """The least of some offerings' steps, which all begin at one moment; no span where none of them has a rate."""
    changes: dict[datetime, list[tuple[int, int | None]]] = defaultdict(list)
    for place, steps in enumerate(offerings):
        for at, rate in steps.items():
            changes[at].append((place, rate))
    rates: list[int | None] = [None] * len(offerings)
    least: list[tuple[datetime, int | None]] = []
    for at in sorted(changes):
        for place, rate in changes[at]:
            rates[place] = rate
        lowest = min((rate for rate in rates if rate is not None), default=None)
        if not least or least[-1][1] != lowest:
            least.append((at, lowest))
    ends = [at for at, _ in least[1:]]
    return [
        RateSpan(at, until, rate)
        for (at, rate), until in zip(least, [*ends, end], strict=True)
        if rate is not None
    ]


def _with_slots(tariffs: QuerySet[ListTariff]) -> QuerySet[ListTariff]:
    slots = ListTariffSlot.objects.select_related("rate__tariff").prefetch_related("rate__tariff__tiers")
    slots = slots.order_by("start_s")
    return tariffs.prefetch_related(Prefetch("slots", queryset=slots))
