"""Usage that never came: asked for at the host that metered it, and an alarm while it stays away.

Part of this room's services: `providers.services` exports it. What an answer brings goes the way of every batch, so
that asking twice, or for what comes by itself meanwhile, changes nothing.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final
from uuid import UUID

import msgspec
from django.db import transaction

from marketplace.accounts.services import Actor
from marketplace.errors import DomainError
from metering.models import MeterSource
from metering.selectors import overdue_gaps, sequence_gaps, sources_with_gaps
from metering.services import accept_batch, close_filled_gaps
from metering.services import accept_gap as accept_gap_of_source
from metering.usage import MAX_COUNT
from providers.asking import Answer, Question, ask_hosts, passed_over
from providers.claims import check_text
from providers.hosting import audit_host
from providers.models import Host
from providers.wire import METER_USAGE

logger = logging.getLogger(__name__)

# Of each host in one call; the next call goes on.
MAX_BATCHES: Final = 50
MAX_REASON_CHARACTERS: Final = 500
_OK: Final = 200
_GONE: Final = 410


@dataclass(slots=True)
class _Chase:
    """A host's meter with a gap, and the number after which it is asked next."""

    host: Host
    source: MeterSource
    after: int


def pull_missing_usage(*, now: datetime) -> int:
    """Ask each host whose numbered usage has gaps for what is missing; returns how many batches came.

    Gaps that are filled are closed; for those that stay longer than METERING_GAP_ALARM_S an error is logged.
    """
    try:
        return _pull(now)
    finally:
        for source in sources_with_gaps():
            with passed_over(logger, "gaps were not closed", host_id=source.host_id):
                close_filled_gaps(source_id=source.pk)
        _raise_alarm(now)


def _pull(now: datetime) -> int:
    came = 0
    chases = _chases()
    for _ in range(MAX_BATCHES):
        answers = ask_hosts([Question.to(each.host, f"{METER_USAGE}?after={each.after}") for each in chases])
        ongoing = []
        for chase, answer in zip(chases, answers, strict=True):
            with passed_over(logger, "an answer about missing usage failed", host_id=chase.host.pk):
                until = _take(chase, answer, now)
                if until is None:
                    continue
                came += until.came
                after = _next_after(chase.source, until.number)
                if after is not None:
                    ongoing.append(_Chase(chase.host, chase.source, after))
        chases = ongoing
        if not chases:
            break
    return came


@transaction.atomic
def accept_gap(*, source_id: UUID, first: int, last: int, reason: str, now: datetime, actor: Actor) -> None:
    """The operator takes the meter's earliest missing numbers for lost, and says why; the alarm ends.

    Raises NotFound, Conflict, or InvalidInput naming the field.
    """
    text = check_text("reason", reason, most=MAX_REASON_CHARACTERS)
    accept_gap_of_source(source_id=source_id, first=first, last=last, now=now)
    host_id = MeterSource.objects.get(pk=source_id).host_id
    assert host_id is not None, "only hosts' meters number what they send"
    host = Host.objects.select_related("provider").get(pk=host_id)
    audit_host(
        host, "host.gap_accepted", actor, now, source_id=str(source_id), first=first, last=last, reason=text
    )


def _chases() -> list[_Chase]:
    """Meters that a host still signs with: one that was enrolled anew has no key to the old ones any more."""
    sources = {source.pk: source for source in sources_with_gaps()}
    hosts = Host.objects.filter(
        source_id__in=sources, status__in=(Host.Status.ENROLLED, Host.Status.PAUSED)
    ).order_by("pk")
    found = []
    for host in hosts:
        assert host.source_id is not None
        source = sources[host.source_id]
        after = _next_after(source, 0)
        if after is not None:
            found.append(_Chase(host, source, after))
    return found


def _next_after(source: MeterSource, number: int) -> int | None:
    """The number before the first missing one that is greater than `number`; None where nothing is missing."""
    for first, last in sequence_gaps(source):
        if last > number:
            return max(first - 1, number)
    return None


@dataclass(frozen=True, slots=True)
class _Until:
    """How far an answer settled the matter, and whether it brought a batch."""

    number: int
    came: bool


def _take(chase: _Chase, answer: Answer | None, now: datetime) -> _Until | None:
    """None when there is no use in asking this host on for now."""
    if answer is None:
        return None
    if answer.status == _GONE:
        kept_from = _kept_from(answer.body)
        return None if kept_from is None or kept_from <= chase.after + 1 else _Until(kept_from - 1, False)
    if answer.status != _OK:
        return None
    try:
        batch = accept_batch(source=chase.source, body=answer.body, now=now)
    except DomainError as error:
        logger.warning(
            "missing usage came and was refused", extra={"host_id": str(chase.host.pk), "reason": str(error)}
        )
        return None
    if batch.sequence_to is None or batch.sequence_to <= chase.after:
        return None
    return _Until(batch.sequence_to, True)


class _Kept(msgspec.Struct, frozen=True):
    kept_from: Annotated[int, msgspec.Meta(gt=0, le=MAX_COUNT)]


def _kept_from(body: bytes) -> int | None:
    """From where on a host that no longer has it all still has something."""
    try:
        return msgspec.json.decode(body, type=_Kept).kept_from
    # Text that is no UTF-8 is a ValueError of another kind.
    except (ValueError, RecursionError):
        return None


def _raise_alarm(now: datetime) -> None:
    for source in overdue_gaps(now):
        assert source.gap_since is not None
        logger.error(
            "usage is missing and does not come",
            extra={
                "source_id": str(source.pk),
                "host_id": str(source.host_id),
                "since": source.gap_since.isoformat(),
                "numbers": sequence_gaps(source)[:10],
            },
        )
