"""List tariffs: what an offering costs on demand, in announced, dated versions (docs/tariffs.md).

Part of this room's services: `providers.services` exports it. Which rate holds at a moment is one SQL function,
`providers_list_rate`; `providers.list_rates` reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import QuerySet

from marketplace.accounts.services import Actor, record_audit
from marketplace.errors import Conflict, InvalidInput, NotFound
from marketplace.periods import delivery_period
from pricing.models import Rate
from pricing.month_tiers import admission, check_list_tariff
from pricing.months import calendar_month
from pricing.rate_tariffs import invalid_tariff
from pricing.rating import lots_numerator
from pricing.services import MAX_RATE_MICROS_PER_MTOK, publish_rate, publish_tariff_rate
from pricing.tariffs import DAY_S, Kind, Tariff, Tier, TimeOfUse, Window, graduated, package, volume
from pricing.units import NUMERATOR_PER_LOT
from providers.claims import check_integer
from providers.list_rates import month_tariff_of, slots_of, tariffs_of
from providers.models import ListTariff, ListTariffSlot, Offering
from providers.selectors import find_offering

MAX_WINDOWS: Final = 24
# Versions of one offering that are still to come.
MAX_ANNOUNCED: Final = 20
HORIZON: Final = timedelta(days=366)
MIN_TIERS: Final = 2
# Nine trillion standard tokens: what a bigint of numerators holds.
MAX_NUMERATOR: Final = 9 * 10**18
_FIELDS: Final = {
    ListTariff.Kind.PER_UNIT: {"rate_micros_per_mtok"},
    ListTariff.Kind.TIME_OF_USE: {"rate_micros_per_mtok", "windows"},
    ListTariff.Kind.GRADUATED: {"tiers"},
    ListTariff.Kind.VOLUME: {"tiers"},
    ListTariff.Kind.PACKAGE: {"package_lots", "package_micros"},
}

# Seconds of the UTC day from and until, and the rate between.
Slot = tuple[int, int, int]


@transaction.atomic
def announce_tariff(
    *,
    organization_id: UUID,
    offering_id: UUID,
    kind: str,
    valid_from: datetime,
    rate_micros_per_mtok: int | None = None,
    windows: Sequence[Window] = (),
    tiers: Sequence[Tier] = (),
    package_lots: int | None = None,
    package_micros: int | None = None,
    now: datetime,
    actor: Actor,
) -> ListTariff:
    """Let the offering's list price be this from `valid_from` on, by its kind.

    `per_unit` is one rate; `time_of_use` has other rates in windows; `graduated` and `volume` have tiers of what a
    buyer uses in a calendar month; `package` sells that in whole packages. It begins with a delivery period, a whole
    one ahead at least, and its windows lie on bounds of delivery periods. The same again is the same version. Raises
    InvalidInput naming the field, Conflict (withdrawn offering, another version begins then, too many to come, a
    month's price would end within the month), NotFound for an offering of another organization.
    """
    terms = _terms(
        kind,
        rate_micros_per_mtok=rate_micros_per_mtok,
        windows=windows,
        tiers=tiers,
        package_lots=package_lots,
        package_micros=package_micros,
    )
    _check_start(valid_from, now)
    offering = find_offering(organization_id, offering_id)
    # Versions of one offering are announced one after the other.
    Offering.objects.select_for_update(no_key=True).get(pk=offering.pk)
    offering.refresh_from_db(fields=["status"])
    if offering.status == Offering.Status.WITHDRAWN:
        raise Conflict("The offering is withdrawn: nothing is sold of it any more.")
    standing = tariffs_of(offering.pk).filter(withdrawn_at__isnull=True)
    same = standing.filter(valid_from=valid_from).first()
    if same is not None:
        if same.kind == kind and _is_of(same, terms):
            return same
        raise Conflict("Another version begins then; withdraw it first.", field="valid_from")
    _check_whole_months(kind, valid_from, *_neighbours(standing, valid_from))
    if standing.filter(valid_from__gt=now).count() >= MAX_ANNOUNCED:
        raise Conflict(f"At most {MAX_ANNOUNCED} versions may be to come.", field="valid_from")
    tariff = ListTariff.objects.create(offering=offering, kind=kind, valid_from=valid_from, created_at=now)
    if isinstance(terms, TimeOfUse):
        _record_slots(tariff, offering, list(_slots(terms)), now)
    else:
        rate = publish_tariff_rate(
            terms, grade_id=offering.grade_id, source_id=offering.pk, valid_from=valid_from, now=now
        )
        ListTariffSlot.objects.create(tariff=tariff, start_s=0, end_s=DAY_S, rate=rate)
    _audit(
        offering,
        "offering.tariff_announced",
        actor,
        now,
        tariff_id=str(tariff.pk),
        kind=kind,
        valid_from=valid_from.isoformat(),
        **_said(terms),
    )
    return tariff


@transaction.atomic
def withdraw_tariff(
    *, organization_id: UUID, offering_id: UUID, tariff_id: UUID, now: datetime, actor: Actor
) -> None:
    """Take a version back, a whole delivery period before it begins. Doing it again changes nothing.

    Raises NotFound, Conflict (it has begun, or is about to; or the one before it would end within a month).
    """
    offering = find_offering(organization_id, offering_id)
    tariff = tariffs_of(offering.pk).select_for_update(of=("self",)).filter(pk=tariff_id).first()
    if tariff is None:
        raise NotFound("There is no such version.")
    if tariff.withdrawn_at is not None:
        return
    if tariff.valid_from - now < notice():
        raise Conflict("The version has begun or is about to; announce another one.")
    before, after = _neighbours(tariffs_of(offering.pk).filter(withdrawn_at__isnull=True), tariff.valid_from)
    if _ends_within_a_month(before, after.valid_from if after else None):
        raise Conflict(
            "The version behind it would end a month's price within the month; withdraw that first."
        )
    tariff.withdrawn_at = now
    tariff.save(update_fields=["withdrawn_at"])
    _audit(offering, "offering.tariff_withdrawn", actor, now, tariff_id=str(tariff.pk))


def notice() -> timedelta:
    """How far ahead a version is announced: when a period is auctioned, its list rates must be known."""
    return timedelta(seconds=settings.DELIVERY_PERIOD_S)


def _neighbours(
    standing: QuerySet[ListTariff], valid_from: datetime
) -> tuple[ListTariff | None, ListTariff | None]:
    """The versions that begin before and after one that begins then."""
    before = standing.filter(valid_from__lt=valid_from).order_by("-valid_from").first()
    return before, standing.filter(valid_from__gt=valid_from).order_by("valid_from").first()


def _check_whole_months(
    kind: str, valid_from: datetime, before: ListTariff | None, after: ListTariff | None
) -> None:
    """What prices a month's volume holds until the month ends: or its count could begin anew at every version, and
    nobody would ever reach the tier that he was shown.
    """
    if _ends_within_a_month(before, valid_from):
        raise Conflict(
            "A month's volume is priced then: what follows begins with a calendar month (UTC).",
            field="valid_from",
        )
    if kind in ListTariff.OF_A_MONTH and after is not None and not _begins_a_month(after.valid_from):
        raise Conflict("Another version begins within its month; withdraw that first.", field="valid_from")


def _ends_within_a_month(tariff: ListTariff | None, end: datetime | None) -> bool:
    is_of_a_month = tariff is not None and tariff.kind in ListTariff.OF_A_MONTH
    return is_of_a_month and end is not None and not _begins_a_month(end)


def _begins_a_month(at: datetime) -> bool:
    return calendar_month(at).start == at


def _terms(
    kind: str,
    *,
    rate_micros_per_mtok: int | None,
    windows: Sequence[Window],
    tiers: Sequence[Tier],
    package_lots: int | None,
    package_micros: int | None,
) -> TimeOfUse | Tariff:
    """What is asked for, by its kind: nothing that the kind needs is missing, and nothing is named that it has not."""
    if kind not in ListTariff.Kind.values:
        raise InvalidInput("It is not a kind of tariff.", field="kind")
    named = {
        "rate_micros_per_mtok": rate_micros_per_mtok is not None,
        "windows": bool(windows),
        "tiers": bool(tiers),
        "package_lots": package_lots is not None,
        "package_micros": package_micros is not None,
    }
    for field, is_named in named.items():
        if is_named and field not in _FIELDS[ListTariff.Kind(kind)]:
            raise InvalidInput(f"A tariff of kind {kind} has none.", field=field)
        if not is_named and field in _FIELDS[ListTariff.Kind(kind)]:
            raise InvalidInput(f"A tariff of kind {kind} needs it.", field=field)
    try:
        if package_lots is not None and package_micros is not None:
            return _package(package_lots, package_micros)
        if tiers:
            _check_tiers(tiers)
            tariff = volume(tiers) if kind == ListTariff.Kind.VOLUME else graduated(tiers)
            check_list_tariff(tariff)
            return tariff
        assert rate_micros_per_mtok is not None, "what is left has a rate"
        check_integer("rate_micros_per_mtok", rate_micros_per_mtok, 1, MAX_RATE_MICROS_PER_MTOK)
        _check_windows(windows)
        return TimeOfUse(rate_micros_per_mtok, tuple(windows))
    except ValueError as error:
        raise invalid_tariff(error) from error


def _package(lots: int, price_micros: int) -> Tariff:
    check_integer("package_lots", lots, 1, MAX_NUMERATOR // NUMERATOR_PER_LOT)
    check_integer("package_micros", price_micros, 1, MAX_RATE_MICROS_PER_MTOK)
    tariff = package(lots_numerator(lots), price_micros)
    if admission(tariff).rate > MAX_RATE_MICROS_PER_MTOK:
        raise InvalidInput("It is too much for a package of this size.", field="package_micros")
    return tariff


def _check_tiers(tiers: Sequence[Tier]) -> None:
    if len(tiers) < MIN_TIERS:
        raise InvalidInput("One tier alone is a rate per unit.", field="tiers")
    for tier in tiers:
        check_integer("tiers", tier.rate, 0, MAX_RATE_MICROS_PER_MTOK)
        if tier.up_to is not None:
            check_integer("tiers", tier.up_to, 1, MAX_NUMERATOR)
            if tier.up_to % NUMERATOR_PER_LOT:
                raise InvalidInput("Bounds are whole lots of 1,000 standard tokens.", field="tiers")
    if not any(tier.rate for tier in tiers):
        raise InvalidInput("One of the rates must be above zero.", field="tiers")


def _check_windows(windows: Sequence[Window]) -> None:
    if len(windows) > MAX_WINDOWS:
        raise InvalidInput(f"There must be 1 to {MAX_WINDOWS} windows.", field="windows")
    for window in windows:
        check_integer("windows", window.rate, 1, MAX_RATE_MICROS_PER_MTOK)
        for at_s in (window.start_s, window.end_s):
            check_integer("windows", at_s, 0, DAY_S)
            if at_s % settings.DELIVERY_PERIOD_S:
                raise InvalidInput(
                    f"A window begins and ends with a delivery period of {settings.DELIVERY_PERIOD_S} s.",
                    field="windows",
                )
        if window.start_s == window.end_s:
            raise InvalidInput("A window of a whole day is the tariff's rate.", field="windows")


def _check_start(valid_from: datetime, now: datetime) -> None:
    if delivery_period(valid_from).start != valid_from:
        raise InvalidInput("It must be the start of a delivery period.", field="valid_from")
    if valid_from - now < notice():
        raise InvalidInput(
            "A version is announced a whole delivery period ahead at least.", field="valid_from"
        )
    if valid_from - now > HORIZON:
        raise InvalidInput("A version is announced a year ahead at most.", field="valid_from")


def _slots(terms: TimeOfUse) -> Iterator[Slot]:
    """The whole UTC day, cut only where the rate changes."""
    midnight = datetime(2000, 1, 1, tzinfo=UTC)
    start_s, end_s, rate = 0, 0, None
    for start, end, next_rate in terms.slices(midnight, midnight + timedelta(days=1)):
        if rate is not None and next_rate != rate:
            yield start_s, end_s, rate
            start_s = (start - midnight) // timedelta(seconds=1)
        rate = next_rate
        end_s = (end - midnight) // timedelta(seconds=1)
    assert rate is not None
    yield start_s, end_s, rate


def _is_of(tariff: ListTariff, terms: TimeOfUse | Tariff) -> bool:
    """Whether a version that stands has these terms."""
    if isinstance(terms, TimeOfUse):
        return slots_of(tariff) == list(_slots(terms))
    return month_tariff_of(tariff) == terms


def _said(terms: TimeOfUse | Tariff) -> dict[str, object]:
    """Terms for the audit trail."""
    if isinstance(terms, TimeOfUse):
        return {"slots": [list(slot) for slot in _slots(terms)]}
    if terms.kind is Kind.PACKAGE:
        return {"package_lots": terms.unit // NUMERATOR_PER_LOT, "package_micros": terms.package_micros}
    return {"tiers": [[tier.up_to, tier.rate] for tier in terms.tiers]}


def _record_slots(tariff: ListTariff, offering: Offering, slots: Sequence[Slot], now: datetime) -> None:
    rates: dict[int, Rate] = {}
    for _, _, micros_per_mtok in slots:
        if micros_per_mtok not in rates:
            rates[micros_per_mtok] = publish_rate(
                grade_id=offering.grade_id,
                kind=Rate.Kind.LIST,
                micros_per_mtok=micros_per_mtok,
                source_id=offering.pk,
                valid_from=tariff.valid_from,
                now=now,
            )
    ListTariffSlot.objects.bulk_create(
        ListTariffSlot(tariff=tariff, start_s=start_s, end_s=end_s, rate=rates[micros_per_mtok])
        for start_s, end_s, micros_per_mtok in slots
    )


def _audit(offering: Offering, action: str, actor: Actor, now: datetime, **detail: object) -> None:
    record_audit(
        organization_id=offering.host.provider.organization_id,
        actor=actor,
        action=action,
        object_kind="offering",
        object_id=offering.pk,
        detail=detail,
        now=now,
    )
