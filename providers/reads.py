"""The engines' registers, read by the market. Part of this room's services: `providers.services` exports it."""

from __future__ import annotations

import logging
import time
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
from django.db import transaction
from django.db.models import Q

from marketplace.errors import DomainError
from providers.asking import Answer, Question, ask_hosts, passed_over
from providers.heartbeats import record_registers, register_slot
from providers.models import Host, Outage
from providers.wire import METER_REGISTERS

logger = logging.getLogger(__name__)

ANSWER_S: Final = 5.0
ASK_AGAIN: Final = timedelta(seconds=20)
_OK: Final = 200


def read_registers(*, now: datetime) -> int:
    """Ask every host that is alive for its engine's counters, once in each minute; returns how many reads were kept.

    The market chooses the moment, and each answer is signed. A host that does not answer is asked again a little later,
    and after a while its heartbeats are taken for reads.
    """
    due = _claim(now)
    started = time.monotonic()
    answers = ask_hosts([Question.to(host, METER_REGISTERS) for host in due], timeout_s=ANSWER_S)
    read_at = now + timedelta(seconds=time.monotonic() - started)
    kept = 0
    for host, answer in zip(due, answers, strict=True):
        with passed_over(logger, "a register read failed", host_id=host.pk):
            kept += _keep(host, answer, read_at)
    return kept


@transaction.atomic
def _claim(now: datetime) -> list[Host]:
    """The hosts whose read of this minute is due, for this caller to ask; other callers pass them over meanwhile."""
    slot = register_slot(now)
    due = list(
        Host.objects.select_for_update(skip_locked=True, no_key=True, of=("self",))
        .filter(
            Q(registers_read_at__isnull=True) | Q(registers_read_at__lt=slot),
            Q(registers_asked_at__isnull=True)
            | Q(registers_asked_at__lt=slot)
            | Q(registers_asked_at__lte=now - ASK_AGAIN),
            status__in=(Host.Status.ENROLLED, Host.Status.PAUSED),
            last_heartbeat_at__isnull=False,
            public_key__isnull=False,
        )
        # What fell silent long ago is asked when it is back.
        .exclude(outages__kind=Outage.Kind.HEARTBEAT, outages__ended_at__isnull=True)
        .order_by("pk")
    )
    Host.objects.filter(pk__in=[host.pk for host in due]).update(registers_asked_at=now)
    return due


class _Said(msgspec.Struct, frozen=True):
    """An agent's answer; `record_registers` checks what is in it."""

    registers: dict[str, Any] | None = None
    energy_millijoules: int | None = None


def _keep(host: Host, answer: Answer | None, read_at: datetime) -> bool:
    if answer is None or answer.status != _OK:
        return False
    try:
        said = msgspec.json.decode(answer.body, type=_Said)
        return record_registers(
            host_id=host.pk,
            registers=said.registers or {},
            energy_millijoules=said.energy_millijoules,
            now=read_at,
        )
    # Text that is no UTF-8 is a ValueError of another kind than msgspec's own.
    except (ValueError, RecursionError, DomainError) as error:
        logger.warning("a register read is not one", extra={"host_id": str(host.pk), "reason": str(error)})
        return False
