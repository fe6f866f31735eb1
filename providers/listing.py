"""Offerings: grades on hosts, with their prices. Part of this room's services: `providers.services` exports it."""

from __future__ import annotations

from datetime import datetime
from typing import Final
from uuid import UUID

from django.db import transaction
from django.db.models import F

from marketplace.accounts.services import Actor, record_audit
from marketplace.errors import Conflict, InvalidInput, NotFound
from marketplace.ids import uuid7
from metering.services import set_dependable_limit
from pricing.models import Grade, Rate
from pricing.selectors import grade_in_force
from pricing.services import MAX_RATE_MICROS_PER_MTOK, publish_rate
from providers.benching import dependable_numerator_per_s
from providers.claims import check_integer
from providers.derating import rebench_sold
from providers.models import Bench, Host, Offering
from providers.selectors import find_offering

ANY_REGION: Final = "global"


@transaction.atomic
def list_offering(
    *,
    host_id: UUID,
    grade_slug: str,
    spot_floor_micros_per_mtok: int,
    firm_rate_micros_per_mtok: int,
    list_rate_micros_per_mtok: int,
    now: datetime,
    actor: Actor,
) -> Offering:
    """Offer the grade in force on the host at these prices, or change the prices of what is offered already.

    Saying the same again changes nothing; a new price is a new Rate; the latest bench counts, and where it came out
    otherwise, what is sold of the host takes another share of it. A paused offering stays paused. Raises InvalidInput,
    NotFound (grade) or Conflict (no bench, so nothing dependable to sell).
    """
    check_integer("spot_floor_micros_per_mtok", spot_floor_micros_per_mtok, 0, MAX_RATE_MICROS_PER_MTOK)
    check_integer("firm_rate_micros_per_mtok", firm_rate_micros_per_mtok, 1, MAX_RATE_MICROS_PER_MTOK)
    check_integer("list_rate_micros_per_mtok", list_rate_micros_per_mtok, 1, MAX_RATE_MICROS_PER_MTOK)
    host = Host.objects.select_for_update(no_key=True).filter(pk=host_id).first()
    if host is None:
        raise NotFound("There is no such host.")
    if host.status not in (Host.Status.ENROLLED, Host.Status.PAUSED):
        raise Conflict("The host is not enrolled yet, so it cannot serve.")
    grade = grade_in_force(slug=grade_slug, at=now)
    if grade is None:
        raise NotFound("There is no such grade in force.", field="grade")
    _check_fits(host, grade)
    bench = host.benches.order_by("-measured_at", "-pk").first()
    if bench is None:
        raise Conflict("The host has no bench yet: only measured capacity can be sold.")
    dependable = dependable_numerator_per_s(bench, grade)

    offering = host.offerings.filter(grade=grade).exclude(status=Offering.Status.WITHDRAWN).first()
    offering_id = offering.pk if offering is not None else uuid7()
    _take_up_bench(host, bench, now)
    values = {
        "bench": bench,
        "dependable_numerator_per_s": dependable,
        "list_rate": _rate(offering, "list_rate", offering_id, grade, list_rate_micros_per_mtok, now),
        "firm_rate": _rate(offering, "firm_rate", offering_id, grade, firm_rate_micros_per_mtok, now),
        "spot_floor_micros_per_mtok": spot_floor_micros_per_mtok,
    }
    if offering is None:
        changed = True
        offering = Offering.objects.create(id=offering_id, host=host, grade=grade, created_at=now, **values)
    else:
        changed = any(getattr(offering, name) != value for name, value in values.items())
        for name, value in values.items():
            setattr(offering, name, value)
        if changed:
            offering.save(update_fields=list(values))
    if changed:
        _set_limit(host, now)
        _audit(
            offering,
            "offering.listed",
            actor,
            now,
            grade=grade_slug,
            spot_floor_micros_per_mtok=spot_floor_micros_per_mtok,
            firm_rate_micros_per_mtok=firm_rate_micros_per_mtok,
            list_rate_micros_per_mtok=list_rate_micros_per_mtok,
        )
    return offering


def pause_offering(*, organization_id: UUID, offering_id: UUID, now: datetime, actor: Actor) -> Offering:
    """Sell nothing more of it until it is resumed; contracts that hold it go on."""
    return _move_offering(
        organization_id, offering_id, (Offering.Status.LISTED,), Offering.Status.PAUSED, now, actor
    )


def resume_offering(*, organization_id: UUID, offering_id: UUID, now: datetime, actor: Actor) -> Offering:
    """Undo `pause_offering`."""
    return _move_offering(
        organization_id, offering_id, (Offering.Status.PAUSED,), Offering.Status.LISTED, now, actor
    )


def withdraw_offering(*, organization_id: UUID, offering_id: UUID, now: datetime, actor: Actor) -> Offering:
    """End it for good; listing the grade on the host again makes a new offering."""
    before = (Offering.Status.LISTED, Offering.Status.PAUSED)
    return _move_offering(organization_id, offering_id, before, Offering.Status.WITHDRAWN, now, actor)


@transaction.atomic
def _move_offering(
    organization_id: UUID,
    offering_id: UUID,
    before: tuple[str, ...],
    after: str,
    now: datetime,
    actor: Actor,
) -> Offering:
    offering = find_offering(organization_id, offering_id)
    if offering.status == after:
        return offering
    if not Offering.objects.filter(pk=offering.pk, status__in=before).update(status=after):
        raise Conflict(f"An offering that is {offering.status} cannot become {after}.", field="status")
    _audit(offering, f"offering.{after}", actor, now)
    return find_offering(organization_id, offering_id)


def _take_up_bench(host: Host, bench: Bench, now: datetime) -> None:
    """The first listing by a new bench makes it count for what is sold of the host, whichever grade it lists."""
    active = host.offerings.exclude(status=Offering.Status.WITHDRAWN)
    known = active.select_related("grade").order_by("pk").first()
    if known is not None and not active.filter(bench=bench).exists():
        rebench_sold(
            host_id=host.pk,
            before=known.dependable_numerator_per_s,
            after=dependable_numerator_per_s(bench, known.grade),
            now=now,
        )


def _check_fits(host: Host, grade: Grade) -> None:
    """The host may serve the grade: the region is part of the good, and so is the context."""
    if grade.family.region not in (ANY_REGION, host.region):
        raise InvalidInput(
            f"The grade is delivered from {grade.family.region}, the host stands in {host.region}.",
            field="grade",
        )
    context = host.engine.get("context_tokens")
    if type(context) is int and context < grade.family.context_tokens:
        raise InvalidInput(
            f"The grade promises {grade.family.context_tokens} tokens of context, the engine has {context}.",
            field="grade",
        )


def _rate(
    offering: Offering | None, name: str, offering_id: UUID, grade: Grade, micros_per_mtok: int, now: datetime
) -> Rate:
    current: Rate | None = getattr(offering, name) if offering is not None else None
    if current is not None and current.micros_per_mtok == micros_per_mtok:
        return current
    kind = Rate.Kind.LIST if name == "list_rate" else Rate.Kind.FIRM_LIST
    return publish_rate(
        grade_id=grade.pk, kind=kind, micros_per_mtok=micros_per_mtok, source_id=offering_id, now=now
    )


def _set_limit(host: Host, now: datetime) -> None:
    """Metering's impossible-rate check needs to know the most the host can make in any of its grades."""
    figures = (
        host.offerings.exclude(status=Offering.Status.WITHDRAWN)
        .order_by("-dependable_numerator_per_s")
        .values_list(F("dependable_numerator_per_s"), flat=True)
    )
    limit = figures.first()
    if limit is not None and host.source_id is not None:
        set_dependable_limit(source_id=host.source_id, numerator_per_s=limit, now=now)


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
