"""Everything that writes providers, hosts and offerings. Capacity is written in `providers.capacity`, exported here."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import F, Q

from marketplace.accounts.models import Organization, OrganizationRole
from marketplace.accounts.services import Actor, record_audit
from marketplace.errors import Conflict, DomainError, Forbidden, InvalidInput, NotFound
from marketplace.ids import uuid7
from metering.models import MeterKind
from metering.services import (
    close_source,
    record_register_read,
    register_source,
    remember_nonce,
    set_dependable_limit,
)
from pricing.models import Grade, Rate
from pricing.rating import standard_numerator
from pricing.selectors import grade_in_force, standard_ppm_of
from pricing.services import MAX_RATE_MICROS_PER_MTOK, publish_rate
from pricing.units import Bucket
from providers.capacity import (
    CapacityGone,
    give_back_firm_share,
    give_back_period_share,
    open_capacity,
    take_firm_share,
    take_period_share,
)
from providers.claims import (
    MAX_COUNTER,
    MAX_DEPENDABLE_NUMERATOR_PER_S,
    BenchFigures,
    check_document,
    check_integer,
    check_text,
)
from providers.egress import check_base_url
from providers.models import Bench, EnrolmentCode, Host, Offering, Outage, Provider
from providers.selectors import find_host, find_offering
from providers.wire import SignatureRefused, signing_key_id, verify_signed_request

__all__ = [
    "CapacityGone",
    "EnrolmentCodeRefused",
    "HostSignatureRefused",
    "authenticate_host",
    "check_heartbeats",
    "create_host",
    "enrol_host",
    "ensure_provider",
    "give_back_firm_share",
    "give_back_period_share",
    "issue_enrolment_code",
    "list_offering",
    "open_capacity",
    "pause_host",
    "pause_offering",
    "record_bench",
    "record_heartbeat",
    "resume_host",
    "resume_offering",
    "take_firm_share",
    "take_period_share",
    "verify_enrolment_signature",
    "withdraw_offering",
]

ENROLMENT_CODE_VALID: Final = timedelta(hours=1)
HEARTBEAT_LATE: Final = timedelta(seconds=15)
REGISTER_READ_EVERY: Final = timedelta(seconds=60)
MAX_HOSTS_PER_PROVIDER: Final = 10_000
ANY_REGION: Final = "global"
_CODE_PREFIX: Final = "tye_"


class EnrolmentCodeRefused(InvalidInput):
    """Unknown, used or expired: the three are not told apart, so that a guesser learns nothing."""

    code = "enrolment_code_refused"
    title = "The enrolment code is not valid"

    def __init__(self) -> None:
        super().__init__("It is unknown, used or expired; ask for a new one in the portal.", field="code")


class HostSignatureRefused(DomainError):
    """An agent's call that its host's key did not sign, or that was seen before."""

    code = "signature_refused"
    http_status = 401
    title = "The request's signature is not valid"


# Providers and hosts -------------------------------------------------------------------------------------------


@transaction.atomic
def ensure_provider(*, organization_id: UUID, display_name: str, now: datetime) -> Provider:
    """The selling profile of an organization with the provider role, made at the first call. Raises Forbidden."""
    organization = Organization.objects.filter(pk=organization_id).first()
    if organization is None or not organization.has_role(OrganizationRole.PROVIDER):
        raise Forbidden("Only an organization with the role provider can sell.")
    name = check_text("display_name", display_name, most=120)
    provider, _ = Provider.objects.get_or_create(
        organization=organization, defaults={"display_name": name, "created_at": now}
    )
    return provider


@transaction.atomic
def create_host(
    *, organization_id: UUID, name: str, region: str, site: str, now: datetime, actor: Actor
) -> Host:
    """A host that waits for its agent. Raises InvalidInput, Conflict (the name is taken) or Forbidden."""
    provider = Provider.objects.filter(organization_id=organization_id).first()
    if provider is None:
        organization = Organization.objects.filter(pk=organization_id).first()
        display_name = organization.name if organization is not None else "unknown"
        provider = ensure_provider(organization_id=organization_id, display_name=display_name[:120], now=now)
    values = {
        "name": check_text("name", name, most=64),
        "region": check_text("region", region, most=32),
        "site": check_text("site", site, most=120, required=False),
    }
    if provider.hosts.count() >= MAX_HOSTS_PER_PROVIDER:
        raise Conflict(f"A provider has at most {MAX_HOSTS_PER_PROVIDER} hosts.")
    try:
        with transaction.atomic():
            host = Host.objects.create(provider=provider, created_at=now, **values)
    except IntegrityError as error:
        if "providers_host_name_unique" not in str(error):
            raise
        raise Conflict("There is a host of this name already.", field="name") from error
    _audit(host, "host.created", actor, now, name=host.name, region=host.region)
    return host


def pause_host(*, organization_id: UUID, host_id: UUID, now: datetime, actor: Actor) -> Host:
    """Nothing more is sold of this host or sent to it until it is resumed; what is sold stays owed."""
    return _move_host(organization_id, host_id, Host.Status.ENROLLED, Host.Status.PAUSED, now, actor)


def resume_host(*, organization_id: UUID, host_id: UUID, now: datetime, actor: Actor) -> Host:
    """Undo `pause_host`."""
    return _move_host(organization_id, host_id, Host.Status.PAUSED, Host.Status.ENROLLED, now, actor)


@transaction.atomic
def _move_host(
    organization_id: UUID, host_id: UUID, before: str, after: str, now: datetime, actor: Actor
) -> Host:
    host = find_host(organization_id, host_id)
    if host.status == after:
        return host
    if not Host.objects.filter(pk=host.pk, status=before).update(status=after):
        raise Conflict(f"A host that is {host.status} cannot become {after}.", field="status")
    _audit(host, f"host.{after}", actor, now)
    return find_host(organization_id, host_id)


# Enrolment -----------------------------------------------------------------------------------------------------


@transaction.atomic
def issue_enrolment_code(*, organization_id: UUID, host_id: UUID, now: datetime, actor: Actor) -> str:
    """A code with which an agent claims the host, once, within an hour. Shown once; codes issued before are void.

    For a host that is enrolled it allows a new key (the old one is lost): the old one holds until the code is used.
    """
    host = find_host(organization_id, host_id)
    if host.status == Host.Status.RETIRED:
        raise Conflict("A retired host cannot be enrolled.", field="host_id")
    Host.objects.select_for_update(no_key=True).get(pk=host.pk)
    host.enrolment_codes.filter(used_at__isnull=True).delete()
    code = _CODE_PREFIX + secrets.token_urlsafe(24)
    EnrolmentCode.objects.create(
        host=host, code_sha256=_sha256(code), expires_at=now + ENROLMENT_CODE_VALID, created_at=now
    )
    _audit(host, "host.enrolment_code_issued", actor, now)
    return code


@transaction.atomic
def enrol_host(
    *,
    code: str,
    public_key: bytes,
    base_url: str,
    hardware: Mapping[str, object],
    engine: Mapping[str, object],
    now: datetime,
) -> Host:
    """Bind an agent's Ed25519 key and address to the host of the code, and register its meter.

    Raises EnrolmentCodeRefused, or InvalidInput naming the field; a code is used up only by success,
    and the agent that used it may ask again for the same answer.
    """
    if len(public_key) != 32:
        raise InvalidInput("It must be 32 bytes, an Ed25519 public key.", field="public_key")
    # The code first: whoever has none must not make us look up names. The lock: of two agents with one, one wins.
    found = (
        EnrolmentCode.objects.select_for_update(of=("self",))
        .filter(code_sha256=_sha256(code), expires_at__gt=now)
        .first()
    )
    if found is None:
        raise EnrolmentCodeRefused
    host = Host.objects.select_for_update(no_key=True).get(pk=found.host_id)
    if found.used_at is not None:
        if (
            host.public_key is not None
            and bytes(host.public_key) == public_key
            and host.enrolled_at == found.used_at
        ):
            return host  # The same agent again: our first answer was lost on its way.
        raise EnrolmentCodeRefused
    if host.status == Host.Status.RETIRED:
        raise EnrolmentCodeRefused
    values = {
        "base_url": check_base_url(base_url, settings.ALLOW_PRIVATE_HOSTS),
        "hardware": check_document("hardware", hardware),
        "engine": check_document("engine", engine),
    }
    EnrolmentCode.objects.filter(pk=found.pk).update(used_at=now)
    if host.source_id is not None:
        close_source(source_id=host.source_id)
    source = register_source(kind=MeterKind.AGENT, host_id=host.pk, public_key=public_key, now=now)
    status = Host.Status.ENROLLED if host.status == Host.Status.PENDING else host.status
    Host.objects.filter(pk=host.pk).update(
        status=status,
        public_key=public_key,
        source=source,
        enrolled_at=now,
        ready=False,
        boot_id="",
        **values,
    )
    host.refresh_from_db()
    _audit(host, "host.enrolled", Actor("host", host.pk), now, base_url=host.base_url)
    return host


def verify_enrolment_signature(
    *, method: str, url: str, headers: Mapping[str, str], body: bytes, public_key: bytes, now: datetime
) -> None:
    """The enrolling agent owns the private key of the public one it brings. Raises HostSignatureRefused."""
    _verify(method, url, headers, body, public_key, now)


def authenticate_host(
    *, method: str, url: str, headers: Mapping[str, str], body: bytes, now: datetime
) -> Host:
    """The enrolled host whose key signed this request, once. `keyid` is the host's id, or its source's.

    Raises HostSignatureRefused for an unknown host, a wrong or stale signature, and a request seen before.
    """
    try:
        key_id = UUID(signing_key_id(headers))
    except SignatureRefused as error:
        raise HostSignatureRefused(str(error)) from None
    except ValueError:
        raise HostSignatureRefused("signature: keyid must be the id of a host.") from None
    host = (
        Host.objects.select_related("provider")
        .filter(Q(pk=key_id) | Q(source_id=key_id), status__in=(Host.Status.ENROLLED, Host.Status.PAUSED))
        .first()
    )
    if host is None or host.public_key is None:
        raise HostSignatureRefused("signature: no host with this key is enrolled.")
    nonce = _verify(method, url, headers, body, bytes(host.public_key), now)
    if not remember_nonce(key_id=host.pk, nonce=nonce, now=now):
        raise HostSignatureRefused("signature: this request was seen before.")
    return host


def _verify(
    method: str, url: str, headers: Mapping[str, str], body: bytes, public_key: bytes, now: datetime
) -> str:
    try:
        key = Ed25519PublicKey.from_public_bytes(public_key)
        return verify_signed_request(
            method=method, url=url, headers=headers, body=body, public_key=key, now=now
        )
    except (SignatureRefused, ValueError) as error:
        raise HostSignatureRefused(str(error)) from None


# Heartbeats and benches ----------------------------------------------------------------------------------------


@transaction.atomic
def record_heartbeat(
    *,
    host_id: UUID,
    boot_id: str,
    ready: bool,
    in_flight: int,
    registers: Mapping[str, object],
    energy_millijoules: int | None,
    now: datetime,
) -> None:
    """The host is alive at `now`: ends an outage of missed heartbeats, keeps the engine's counters once a minute.

    `registers` are the engine's running counters by our names (`prompt_tokens_total`, cached included,
    `cached_tokens_total`, `output_tokens_total`), None where it has none; `engine_boot` changes when it restarts.
    """
    boot = check_text("boot_id", boot_id, most=64)
    check_integer("in_flight", in_flight, 0, 2**31 - 1)
    counters = {
        name: _counter(registers, name)
        for name in ("prompt_tokens_total", "cached_tokens_total", "output_tokens_total")
    }
    engine_boot = check_text("registers.engine_boot", registers.get("engine_boot") or boot, most=64)
    if energy_millijoules is not None:
        check_integer("energy_millijoules", energy_millijoules, 0, 2**63 - 1)
    host = Host.objects.select_for_update(no_key=True).filter(pk=host_id).first()
    if host is None or host.status in (Host.Status.PENDING, Host.Status.RETIRED):
        raise NotFound("There is no such enrolled host.")
    before, boot_before = host.last_heartbeat_at, host.boot_id
    if before is not None and before > now:
        return  # An older beat that was overtaken says nothing new.
    Host.objects.filter(pk=host_id).update(
        boot_id=boot, ready=ready, in_flight=in_flight, last_heartbeat_at=now
    )
    Outage.objects.filter(
        host_id=host_id, kind=Outage.Kind.HEARTBEAT, ended_at__isnull=True, started_at__lte=now
    ).update(ended_at=now)
    known = any(value is not None for value in counters.values()) or energy_millijoules is not None
    every = min(REGISTER_READ_EVERY, timedelta(seconds=settings.SETTLEMENT_PERIOD_S) / 2)
    if known and (boot != boot_before or before is None or _slot(before, every) != _slot(now, every)):
        record_register_read(
            host_id=host_id,
            boot_id=engine_boot,
            read_at=now,
            input_tokens=counters["prompt_tokens_total"],
            cache_read_tokens=counters["cached_tokens_total"],
            output_tokens=counters["output_tokens_total"],
            energy_millijoules=energy_millijoules,
        )


@transaction.atomic
def check_heartbeats(*, now: datetime) -> int:
    """Hosts that have been silent for 15 s are not ready, and down since then. Returns how many were found."""
    silent = list(
        Host.objects.select_for_update(skip_locked=True, no_key=True)
        .filter(
            status__in=(Host.Status.ENROLLED, Host.Status.PAUSED),
            last_heartbeat_at__lte=now - HEARTBEAT_LATE,
        )
        .exclude(outages__kind=Outage.Kind.HEARTBEAT, outages__ended_at__isnull=True)
        .order_by("pk")
    )
    Outage.objects.bulk_create(
        [
            Outage(host=host, kind=Outage.Kind.HEARTBEAT, started_at=host.last_heartbeat_at + HEARTBEAT_LATE)
            for host in silent
            if host.last_heartbeat_at is not None
        ],
        ignore_conflicts=True,
    )
    Host.objects.filter(pk__in=[host.pk for host in silent]).update(ready=False)
    return len(silent)


@transaction.atomic
def record_bench(
    *,
    host_id: UUID,
    figures: BenchFigures | Mapping[str, int],
    now: datetime,
    conditions: Mapping[str, object] | None = None,
) -> Bench:
    """What a bench of the host counted. It counts for offerings listed from now on. Raises InvalidInput."""
    counted = BenchFigures.of(figures)
    if not Host.objects.filter(pk=host_id, public_key__isnull=False).exists():
        raise NotFound("There is no such enrolled host.")
    return Bench.objects.create(
        host_id=host_id,
        duration_ms=counted.duration_ms,
        requests=counted.requests,
        concurrency=counted.concurrency,
        input_tokens=counted.input_tokens,
        output_tokens=counted.output_tokens,
        first_byte_p50_ms=counted.first_byte_p50_ms,
        first_byte_p95_ms=counted.first_byte_p95_ms,
        conditions=check_document("conditions", dict(conditions or {})),
        measured_at=now,
    )


# Offerings -----------------------------------------------------------------------------------------------------


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

    Saying the same again changes nothing; a new price is a new Rate; the latest bench counts. A paused offering stays
    paused. Raises InvalidInput, NotFound (grade) or Conflict (no bench, so nothing dependable to sell).
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
        _audit_offering(
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


def dependable_numerator_per_s(bench: Bench, grade: Grade) -> int:
    """Standard tokens a second, x 1e6, that the bench shows at the grade's weights. Raises Conflict, InvalidInput."""
    numerator = standard_numerator(
        {Bucket.UNCACHED_INPUT: bench.input_tokens, Bucket.OUTPUT: bench.output_tokens},
        standard_ppm_of(grade.pk),
    )
    per_s = numerator * 1_000 // bench.duration_ms
    if per_s < 1:
        raise Conflict("The bench shows no dependable capacity in this grade.", field="grade")
    if per_s > MAX_DEPENDABLE_NUMERATOR_PER_S:
        raise InvalidInput("The bench shows more than any host can make.", field="output_tokens")
    return int(per_s)


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
    _audit_offering(offering, f"offering.{after}", actor, now)
    return find_offering(organization_id, offering_id)


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


def _counter(registers: Mapping[str, object], name: str) -> int | None:
    value = registers.get(name)
    if value is None:
        return None
    check_integer(f"registers.{name}", value, 0, MAX_COUNTER)
    assert isinstance(value, int)
    return value


def _slot(at: datetime, every: timedelta) -> int:
    return int(at.timestamp() // every.total_seconds())


def _sha256(code: str) -> bytes:
    return hashlib.sha256(code.encode(errors="replace")).digest()


def _audit(host: Host, action: str, actor: Actor, now: datetime, **detail: object) -> None:
    record_audit(
        organization_id=host.provider.organization_id,
        actor=actor,
        action=action,
        object_kind="host",
        object_id=host.pk,
        detail=detail,
        now=now,
    )


def _audit_offering(offering: Offering, action: str, actor: Actor, now: datetime, **detail: object) -> None:
    record_audit(
        organization_id=offering.host.provider.organization_id,
        actor=actor,
        action=action,
        object_kind="offering",
        object_id=offering.pk,
        detail=detail,
        now=now,
    )
