"""Providers and their hosts. Part of this room's services: `providers.services` exports it."""

from __future__ import annotations

from datetime import datetime
from typing import Final
from uuid import UUID

from django.db import IntegrityError, transaction

from marketplace.accounts.models import Organization, OrganizationRole
from marketplace.accounts.services import Actor, record_audit
from marketplace.errors import Conflict, Forbidden
from providers.claims import check_text
from providers.models import Host, Outage, Provider
from providers.outages import end_outage, open_outage
from providers.selectors import find_host

MAX_HOSTS_PER_PROVIDER: Final = 10_000


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
    audit_host(host, "host.created", actor, now, name=host.name, region=host.region)
    return host


@transaction.atomic
def pause_host(*, organization_id: UUID, host_id: UUID, now: datetime, actor: Actor) -> Host:
    """Nothing more is sold of this host or sent to it until it is resumed; what is sold stays owed, and fails."""
    host = _move_host(organization_id, host_id, Host.Status.ENROLLED, Host.Status.PAUSED, now, actor)
    open_outage(host_id=host.pk, kind=Outage.Kind.WITHDRAWN, started_at=now, now=now)
    return host


@transaction.atomic
def resume_host(*, organization_id: UUID, host_id: UUID, now: datetime, actor: Actor) -> Host:
    """Undo `pause_host`."""
    host = _move_host(organization_id, host_id, Host.Status.PAUSED, Host.Status.ENROLLED, now, actor)
    end_outage(host_id=host.pk, kind=Outage.Kind.WITHDRAWN, now=now)
    return host


def audit_host(host: Host, action: str, actor: Actor, now: datetime, **detail: object) -> None:
    record_audit(
        organization_id=host.provider.organization_id,
        actor=actor,
        action=action,
        object_kind="host",
        object_id=host.pk,
        detail=detail,
        now=now,
    )


@transaction.atomic
def _move_host(
    organization_id: UUID, host_id: UUID, before: str, after: str, now: datetime, actor: Actor
) -> Host:
    host = find_host(organization_id, host_id)
    if host.status == after:
        return host
    if not Host.objects.filter(pk=host.pk, status=before).update(status=after):
        raise Conflict(f"A host that is {host.status} cannot become {after}.", field="status")
    audit_host(host, f"host.{after}", actor, now)
    return find_host(organization_id, host_id)
