"""What hosts say of themselves, and their silence. Part of this room's services: `providers.services` exports it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from django.conf import settings
from django.db import transaction

from marketplace.errors import NotFound
from metering.services import record_register_read
from providers.claims import MAX_COUNTER, check_integer, check_text
from providers.models import Host, Outage

HEARTBEAT_LATE: Final = timedelta(seconds=15)
REGISTER_READ_EVERY: Final = timedelta(seconds=60)


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


def _counter(registers: Mapping[str, object], name: str) -> int | None:
    value = registers.get(name)
    if value is None:
        return None
    check_integer(f"registers.{name}", value, 0, MAX_COUNTER)
    assert isinstance(value, int)
    return value


def _slot(at: datetime, every: timedelta) -> int:
    return int(at.timestamp() // every.total_seconds())
