"""Three witnesses of a host in a settlement period: gateway, agent, engine registers. Tolerance 0.5%."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from uuid import UUID

from django.db.models import QuerySet, Sum

from metering.models import Discrepancy, MeterKind, RegisterRead, UsageRollup
from pricing.units import Bucket

TOLERANCE_PPM = 5_000
_INPUT = (Bucket.UNCACHED_INPUT, Bucket.CACHE_READ, Bucket.CACHE_WRITE)
_OUTPUT = (Bucket.OUTPUT, Bucket.REASONING)


@dataclass(frozen=True, slots=True)
class Counted:
    """Native tokens that one witness saw; None where it cannot tell."""

    input_tokens: int | None
    output_tokens: int | None


def reconcile_host(
    *,
    host_id: UUID,
    offering_ids: Sequence[UUID],
    settlement_start: datetime,
    settlement_end: datetime,
    now: datetime,
) -> Discrepancy | None:
    """Compare what gateway, agent and engine counted; beyond tolerance a Discrepancy with all three is opened.

    The engine's registers also count benches and health probes, so they only convict when they saw less.
    """
    rollups = UsageRollup.objects.filter(
        offering_id__in=offering_ids, period_start__gte=settlement_start, period_start__lt=settlement_end
    )
    gateway = _counted(rollups, MeterKind.GATEWAY)
    agent = _counted(rollups, MeterKind.AGENT)
    engine = _register_delta(host_id, settlement_start, settlement_end)
    disputed = [
        name
        for name in ("input_tokens", "output_tokens")
        if not _within(getattr(gateway, name), getattr(agent, name))
        or not _not_less(getattr(engine, name), getattr(gateway, name))
    ]
    if not disputed:
        return None
    evidence = {
        "tolerance_ppm": TOLERANCE_PPM,
        "disputed": disputed,
        "gateway": asdict(gateway),
        "agent": asdict(agent),
        "engine": asdict(engine),
    }
    discrepancy, created = Discrepancy.objects.get_or_create(
        host_id=host_id, settlement_start=settlement_start, defaults={"evidence": evidence, "created_at": now}
    )
    if not created and discrepancy.evidence != evidence:
        # Late usage changes what is disputed, but never what somebody has already ruled on.
        Discrepancy.objects.filter(pk=discrepancy.pk, status=Discrepancy.Status.OPEN).update(
            evidence=evidence
        )
        discrepancy.refresh_from_db()
    return discrepancy


def _counted(rollups: QuerySet[UsageRollup], meter: MeterKind) -> Counted:
    sums = dict(
        rollups.filter(meter=meter).values_list("bucket").annotate(total=Sum("native_tokens")).order_by()
    )
    return Counted(sum(sums.get(b.value, 0) for b in _INPUT), sum(sums.get(b.value, 0) for b in _OUTPUT))


def _register_delta(host_id: UUID, start: datetime, end: datetime) -> Counted:
    """Counters over the reads that enclose the period; None when the engine restarted inside it or was not read.

    A restart starts the counters anew: what ran between its last read and the restart is known to nobody.
    """
    reads = RegisterRead.objects.filter(host_id=host_id)
    before = reads.filter(read_at__lte=start).order_by("-read_at").first()
    after = reads.filter(read_at__gte=end).order_by("read_at").first()
    if before is None or after is None:
        return Counted(None, None)
    between = reads.filter(read_at__gt=before.read_at, read_at__lt=after.read_at)
    if before.boot_id != after.boot_id or between.exclude(boot_id=before.boot_id).exists():
        return Counted(None, None)
    return Counted(
        _delta(before.input_tokens, after.input_tokens), _delta(before.output_tokens, after.output_tokens)
    )


def _delta(before: int | None, after: int | None) -> int | None:
    if before is None or after is None or after < before:
        return None
    return after - before


def _within(first: int, second: int) -> bool:
    return abs(first - second) * 1_000_000 <= TOLERANCE_PPM * max(first, second)


def _not_less(register: int | None, metered: int | None) -> bool:
    if register is None or metered is None:
        return True
    return register >= metered or _within(register, metered)
