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

from marketplace.accounts.services import Actor, record_audit
from marketplace.errors import Conflict, InvalidInput, NotFound
from marketplace.periods import delivery_period
from pricing.models import Rate
from pricing.services import MAX_RATE_MICROS_PER_MTOK, publish_rate
from pricing.tariffs import DAY_S, TimeOfUse, Window
from providers.claims import check_integer
from providers.list_rates import slots_of, tariffs_of
from providers.models import ListTariff, ListTariffSlot, Offering
from providers.selectors import find_offering

MAX_WINDOWS: Final = 24
# Versions of one offering that are still to come.
MAX_ANNOUNCED: Final = 20
HORIZON: Final = timedelta(days=366)

# Seconds of the UTC day from and until, and the rate between.
Slot = tuple[int, int, int]


@transaction.atomic
def announce_tariff(
    *,
    organization_id: UUID,
    offering_id: UUID,
    kind: str,
    valid_from: datetime,
    rate_micros_per_mtok: int,
    windows: Sequence[Window] = (),
    now: datetime,
    actor: Actor,
) -> ListTariff:
    """Let the offering's list price be this from `valid_from` on: one rate, or by time of use other rates in windows.

    It begins with a delivery period, a whole one ahead at least, and its windows lie on bounds of delivery periods. The
    same again is the same version. Raises InvalidInput naming the field, Conflict (withdrawn offering, another version
    begins then, too many to come), NotFound for an offering of another organization.
    """
    _check_terms(kind, rate_micros_per_mtok, windows)
    _check_start(valid_from, now)
    offering = find_offering(organization_id, offering_id)
    # Versions of one offering are announced one after the other.
    Offering.objects.select_for_update(no_key=True).get(pk=offering.pk)
    offering.refresh_from_db(fields=["status"])
    if offering.status == Offering.Status.WITHDRAWN:
        raise Conflict("The offering is withdrawn: nothing is sold of it any more.")
    try:
        slots = list(_slots(TimeOfUse(rate_micros_per_mtok, tuple(windows))))
    except ValueError as error:
        field, _, reason = str(error).partition(": ")
        raise InvalidInput(f"{reason[:1].upper()}{reason[1:]}.", field=field) from error
    standing = tariffs_of(offering.pk).filter(withdrawn_at__isnull=True)
    same = standing.filter(valid_from=valid_from).first()
    if same is not None:
        if same.kind == kind and slots_of(same) == slots:
            return same
        raise Conflict("Another version begins then; withdraw it first.", field="valid_from")
    if standing.filter(valid_from__gt=now).count() >= MAX_ANNOUNCED:
        raise Conflict(f"At most {MAX_ANNOUNCED} versions may be to come.", field="valid_from")
    tariff = ListTariff.objects.create(offering=offering, kind=kind, valid_from=valid_from, created_at=now)
    _record_slots(tariff, offering, slots, now)
    _audit(
        offering,
        "offering.tariff_announced",
        actor,
        now,
        tariff_id=str(tariff.pk),
        kind=kind,
        valid_from=valid_from.isoformat(),
        slots=[list(slot) for slot in slots],
    )
    return tariff


@transaction.atomic
def withdraw_tariff(
    *, organization_id: UUID, offering_id: UUID, tariff_id: UUID, now: datetime, actor: Actor
) -> None:
    """Take a version back, a whole delivery period before it begins. Doing it again changes nothing.

    Raises NotFound, Conflict (it has begun, or is about to).
    """
    offering = find_offering(organization_id, offering_id)
    tariff = tariffs_of(offering.pk).select_for_update(of=("self",)).filter(pk=tariff_id).first()
    if tariff is None:
        raise NotFound("There is no such version.")
    if tariff.withdrawn_at is not None:
        return
    if tariff.valid_from - now < notice():
        raise Conflict("The version has begun or is about to; announce another one.")
    tariff.withdrawn_at = now
    tariff.save(update_fields=["withdrawn_at"])
    _audit(offering, "offering.tariff_withdrawn", actor, now, tariff_id=str(tariff.pk))


def notice() -> timedelta:
    """How far ahead a version is announced: when a period is auctioned, its list rates must be known."""
    return timedelta(seconds=settings.DELIVERY_PERIOD_S)


def _check_terms(kind: str, rate_micros_per_mtok: int, windows: Sequence[Window]) -> None:
    if kind not in ListTariff.Kind.values:
        raise InvalidInput("It is not a kind of tariff.", field="kind")
    check_integer("rate_micros_per_mtok", rate_micros_per_mtok, 1, MAX_RATE_MICROS_PER_MTOK)
    if kind == ListTariff.Kind.PER_UNIT and windows:
        raise InvalidInput("One rate per unit has no windows.", field="windows")
    if kind == ListTariff.Kind.TIME_OF_USE and not 1 <= len(windows) <= MAX_WINDOWS:
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
