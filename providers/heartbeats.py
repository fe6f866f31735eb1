"""What hosts say of themselves, and their silence. Part of this room's services: `providers.services` exports it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Self
from uuid import UUID

from django.conf import settings
from django.db import transaction

from marketplace.errors import NotFound
from metering.services import record_register_read
from providers.claims import MAX_COUNTER, check_integer, check_text
from providers.derating import note_engine_share
from providers.models import Host, Outage
from providers.outages import end_outage, open_outage, record_silence

HEARTBEAT_LATE: Final = timedelta(seconds=15)
REGISTER_READ_EVERY: Final = timedelta(seconds=60)
# Of an engine that tells no boot id: only a counter that goes down shows that it was restarted.
UNMARKED_BOOT: Final = "unmarked"
_COUNTERS: Final = ("prompt_tokens_total", "cached_tokens_total", "output_tokens_total")


@dataclass(frozen=True, slots=True)
class _Registers:
    """An engine's counters as checked; `boot` changes when they begin anew."""

    boot: str
    counters: Mapping[str, int | None]
    bench_input_tokens: int
    bench_output_tokens: int
    energy_millijoules: int | None

    @classmethod
    def of(cls, registers: Mapping[str, object], energy_millijoules: int | None) -> Self:
        """Raises InvalidInput naming the register."""
        if energy_millijoules is not None:
            check_integer("energy_millijoules", energy_millijoules, 0, 2**63 - 1)
        return cls(
            boot=check_text("registers.engine_boot", registers.get("engine_boot") or UNMARKED_BOOT, most=64),
            counters={name: _counter(registers, name) for name in _COUNTERS},
            bench_input_tokens=_counter(registers, "bench_input_tokens") or 0,
            bench_output_tokens=_counter(registers, "bench_output_tokens") or 0,
            energy_millijoules=energy_millijoules,
        )

    @property
    def have_counters(self) -> bool:
        return any(value is not None for value in self.counters.values())


@transaction.atomic
def record_heartbeat(
    *,
    host_id: UUID,
    boot_id: str,
    ready: bool,
    in_flight: int,
    registers: Mapping[str, object],
    energy_millijoules: int | None,
    clock_skew_ms: int | None = None,
    available_ppm: int | None = None,
    now: datetime,
) -> None:
    """The host is alive at `now`: ends an outage of missed heartbeats. While it is not `ready` it is down all the same.

    `registers` are as for `record_registers`: kept at once when the engine was restarted, else only when the market's
    own reading of them fails. `clock_skew_ms` is how far the host's clock is ahead of the market's. `available_ppm` is
    what the engine can supply, in millionths of its dependable capacity; nothing changes where it is not said.
    """
    boot = check_text("boot_id", boot_id, most=64)
    check_integer("in_flight", in_flight, 0, 2**31 - 1)
    if clock_skew_ms is not None:
        check_integer("at", clock_skew_ms, -(2**53), 2**53)
    read = _Registers.of(registers, energy_millijoules)
    host = _lock(host_id)
    if host.last_heartbeat_at is not None and host.last_heartbeat_at > now:
        return  # An older beat that was overtaken says nothing new.
    Host.objects.filter(pk=host_id).update(
        boot_id=boot, ready=ready, in_flight=in_flight, last_heartbeat_at=now, clock_skew_ms=clock_skew_ms
    )
    end_outage(host_id=host_id, kind=Outage.Kind.HEARTBEAT, now=now)
    if host.last_heartbeat_at is not None and now > host.last_heartbeat_at + HEARTBEAT_LATE:
        record_silence(host, started_at=host.last_heartbeat_at + HEARTBEAT_LATE, now=now)
    if ready:
        end_outage(host_id=host_id, kind=Outage.Kind.REFUSED, now=now)
    else:
        # Nothing is sent to a host that says so: it refuses before it is asked.
        open_outage(host_id=host_id, kind=Outage.Kind.REFUSED, started_at=now, now=now)
    if available_ppm is not None:
        note_engine_share(host_id=host_id, available_ppm=available_ppm, now=now)
    overdue = host.registers_read_at is None or now - host.registers_read_at > 1.5 * _read_every()
    was_restarted = read.have_counters and read.boot != host.engine_boot
    if overdue or was_restarted:
        _keep(host, read, now)


@transaction.atomic
def record_registers(
    *, host_id: UUID, registers: Mapping[str, object], energy_millijoules: int | None, now: datetime
) -> bool:
    """Keep an engine's running counters at `now`; False when this minute's are kept already, or there are none.

    `registers` go by our names: `prompt_tokens_total` (cached included), `cached_tokens_total`, `output_tokens_total`,
    None where the engine has none; `engine_boot`, which changes when they begin anew; `bench_input_tokens` and
    `bench_output_tokens`, which the host's own benches have used of them. Raises InvalidInput, NotFound.
    """
    read = _Registers.of(registers, energy_millijoules)
    host = _lock(host_id)
    if host.registers_read_at is not None and host.registers_read_at >= register_slot(now):
        return False
    return _keep(host, read, now)


def register_slot(now: datetime) -> datetime:
    """The start of the minute (or shorter: half a settlement period) that `now` is in, and that gets one read."""
    every_s = _read_every().total_seconds()
    return datetime.fromtimestamp(now.timestamp() // every_s * every_s, UTC)


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
            Outage(
                host=host,
                kind=Outage.Kind.HEARTBEAT,
                started_at=host.last_heartbeat_at + HEARTBEAT_LATE,
                created_at=now,
            )
            for host in silent
            if host.last_heartbeat_at is not None
        ],
        ignore_conflicts=True,
    )
    Host.objects.filter(pk__in=[host.pk for host in silent]).update(ready=False)
    return len(silent)


def _lock(host_id: UUID) -> Host:
    host = Host.objects.select_for_update(no_key=True).filter(pk=host_id).first()
    if host is None or host.status in (Host.Status.PENDING, Host.Status.RETIRED):
        raise NotFound("There is no such enrolled host.")
    return host


def _keep(host: Host, read: _Registers, now: datetime) -> bool:
    if not read.have_counters and read.energy_millijoules is None:
        return False
    # An engine that did not answer was not restarted by that.
    boot = read.boot if read.have_counters else host.engine_boot or UNMARKED_BOOT
    record_register_read(
        host_id=host.pk,
        boot_id=boot,
        read_at=now,
        input_tokens=read.counters["prompt_tokens_total"],
        cache_read_tokens=read.counters["cached_tokens_total"],
        output_tokens=read.counters["output_tokens_total"],
        energy_millijoules=read.energy_millijoules,
        bench_input_tokens=read.bench_input_tokens,
        bench_output_tokens=read.bench_output_tokens,
    )
    Host.objects.filter(pk=host.pk).update(registers_read_at=now, engine_boot=boot)
    return True


def _read_every() -> timedelta:
    return min(REGISTER_READ_EVERY, timedelta(seconds=settings.SETTLEMENT_PERIOD_S) / 2)


def _counter(registers: Mapping[str, object], name: str) -> int | None:
    value = registers.get(name)
    if value is None:
        return None
    check_integer(f"registers.{name}", value, 0, MAX_COUNTER)
    assert isinstance(value, int)
    return value
