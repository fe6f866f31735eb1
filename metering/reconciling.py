"""Three witnesses of a host in a settlement period: gateway, agent, engine registers. Tolerance 0.5%.

What is billed is what the gateway carried. Where another witness saw less, beyond tolerance, the lower count settles
and the rest waits for a ruling (`disputing`). A period that the agent reported nothing of is estimated from the
gateway: a missing count is not a lower one. So is one of which the agent only reported estimates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from django.db import transaction
from django.db.models import Q, Sum

from metering.disputing import open_discrepancy, settle_agreement
from metering.estimating import check_meters
from metering.models import Discrepancy, MeterKind, Reconciliation
from metering.witnesses import (
    TOLERANCE_PPM,
    Cell,
    Counted,
    Paired,
    Register,
    Seen,
    Withheld,
    agent_is_complete,
    agent_sources,
    digest_of,
    load_register,
    load_rollups,
    lower_by_agent,
    lower_by_register,
    matched,
    pair_requests,
    reported,
    seen_by,
    stale_periods,
    unfinished_at,
    within,
    without_edited,
)
from pricing.units import PPM

Outcome = Reconciliation.Outcome
# What is not agreed yet is looked at again this often, for as long: a gap may be filled, a host may come back.
_LOOK_AGAIN: Final = timedelta(minutes=5)
_LOOK_AGAIN_FOR: Final = timedelta(days=1)
# Over which a host's share of reconciled usage is published.
PUBLISHED_OVER: Final = timedelta(days=30)
_MOST: Final = 2**63 - 1


def periods_to_reconcile(
    hosts: Mapping[UUID, UUID], *, since: datetime, until: datetime, period_s: int, now: datetime
) -> list[tuple[UUID, datetime]]:
    """(host, settlement start) of usage in `[since, until)` whose meters were not compared as they are now.

    `hosts` is by offering. Also what did not agree and was compared more than five minutes ago, for a day.
    """
    found = stale_periods(hosts, since=since, until=until, period_s=period_s)
    again = Reconciliation.objects.filter(
        ~Q(outcome=Outcome.AGREED),
        settlement_start__gte=max(since, now - _LOOK_AGAIN_FOR),
        settlement_start__lt=until,
        reconciled_at__lte=now - _LOOK_AGAIN,
        host_id__in=set(hosts.values()),
    )
    return sorted({*found, *again.values_list("host_id", "settlement_start")}, key=lambda one: one[::-1])


def reconcile_host(
    *,
    host_id: UUID,
    offering_ids: Sequence[UUID],
    settlement_start: datetime,
    settlement_end: datetime,
    now: datetime,
    clock_skew_ms: int | None = None,
) -> Discrepancy | None:
    """Compare what gateway, agent and engine counted; beyond tolerance a Discrepancy with all three is opened.

    An engine also counts what is nobody's request (its own benches are taken off), so it only convicts when it saw
    less. `clock_skew_ms` is what the host's heartbeats say of its clock (ahead of the market's, null unknown), for
    validation. Doing it again with the same usage changes nothing. Returns the period's discrepancy; None where all
    agree.
    """
    # Before the sums: what changes in between has another digest, and is compared again.
    digest = digest_of(offering_ids, settlement_start, settlement_end)
    seen = seen_by(load_rollups(offering_ids, settlement_start, settlement_end))
    gateway, agent = seen[MeterKind.GATEWAY], seen[MeterKind.AGENT]
    register = load_register(host_id, settlement_start, settlement_end)
    over = _over_when_read(gateway, register)
    engine_saw_less = _less(over, register.counted)
    evidence: dict[str, Any] = {
        "tolerance_ppm": TOLERANCE_PPM,
        "gateway": asdict(gateway.counted),
        "agent": asdict(agent.counted if agent.events else Counted(None, None)),
        "engine": asdict(register.counted),
    }
    agent_differs: list[str] = []
    withheld: dict[Cell, Withheld] = {}
    pairs: Mapping[Cell, Paired] = {}
    estimated = 0
    if agent.events or engine_saw_less:
        # Always by request: sums alone may agree where one request makes up for what another lacks.
        pairs = pair_requests({*gateway.cells, *agent.cells})
        # The engine cannot have counted what the operator has made of a request since.
        over = without_edited(over, pairs.values())
        engine_saw_less = _less(over, register.counted)
    if agent.events:
        estimated = sum(pair.gateway_estimated for pair in pairs.values())
        of_gateway = reported(gateway, pairs.values(), MeterKind.GATEWAY)
        agent_differs = _differing(of_gateway, reported(agent, pairs.values(), MeterKind.AGENT))
        agent_differs += _less(of_gateway, matched(agent, pairs.values()))
    if agent_differs:
        is_complete = agent_is_complete(
            agent_sources(host_id), offering_ids, settlement_start, settlement_end
        )
        evidence["agent_is_complete"] = is_complete
        evidence["agent_missing_events"] = sum(pair.missing_events for pair in pairs.values())
        evidence["agent_of_carried_requests"] = asdict(matched(agent, pairs.values()))
        withheld = lower_by_agent(gateway, agent, pairs, is_complete=is_complete)
    if engine_saw_less:
        withheld = lower_by_register(gateway, over, register.counted, withheld)
    evidence["disputed"] = [name for name in _DIRECTIONS if name in agent_differs or name in engine_saw_less]
    with transaction.atomic():
        check_meters(
            host_id=host_id,
            gateway=gateway,
            agent=agent,
            register=register,
            engine_saw_less=engine_saw_less,
            clock_skew_ms=clock_skew_ms,
            settlement_start=settlement_start,
            settlement_end=settlement_end,
            now=now,
        )
        discrepancy = None
        is_estimated = not agent.events or estimated * PPM > TOLERANCE_PPM * gateway.numerator
        outcome = Outcome.ESTIMATED if gateway.events and is_estimated else Outcome.AGREED
        if evidence["disputed"]:
            discrepancy = open_discrepancy(
                host_id=host_id,
                settlement_start=settlement_start,
                kind=Discrepancy.Kind.COUNTS,
                evidence=evidence,
                withheld=withheld,
                now=now,
            )
            upheld = discrepancy.ruling == Discrepancy.Ruling.HIGHER
            outcome = Outcome.AGREED if upheld else Outcome.DISPUTED
        else:
            settle_agreement(host_id=host_id, settlement_start=settlement_start, now=now)
        Reconciliation.objects.update_or_create(
            host_id=host_id,
            settlement_start=settlement_start,
            defaults={
                "outcome": outcome,
                # What a host makes up may exceed the column.
                "gateway_numerator": min(gateway.numerator, _MOST),
                "agent_numerator": min(agent.numerator, _MOST),
                "usage_digest": digest,
                "reconciled_at": now,
            },
        )
    return discrepancy


_DIRECTIONS: Final = ("input_tokens", "output_tokens")


def _differing(gateway: Counted, agent: Counted) -> list[str]:
    return [name for name in _DIRECTIONS if not within(getattr(gateway, name), getattr(agent, name))]


def _over_when_read(gateway: Seen, register: Register) -> Counted:
    """What the engine must have counted: the gateway's requests that were over at the register's last read."""
    if register.read_until is None or not _less(gateway.counted, register.counted):
        return gateway.counted
    running = unfinished_at(gateway.cells, register.read_until)
    assert running.input_tokens is not None
    assert running.output_tokens is not None
    return Counted(gateway.input_tokens - running.input_tokens, gateway.output_tokens - running.output_tokens)


def _less(metered: Counted, register: Counted) -> list[str]:
    found = []
    for name in _DIRECTIONS:
        carried, counted = getattr(metered, name), getattr(register, name)
        if counted is not None and counted < carried and not within(counted, carried):
            found.append(name)
    return found


@dataclass(frozen=True, slots=True)
class Share:
    """Of a host's usage of the last 30 days, as the gateway carried it, what lies in periods whose meters agreed."""

    settled_numerator: int
    agreed_numerator: int


def reconciled_shares(host_ids: Sequence[UUID], *, now: datetime) -> dict[UUID, Share]:
    """By host; hosts without usage in reconciled periods are left out."""
    rows = (
        Reconciliation.objects.filter(
            host_id__in=list(host_ids), settlement_start__gte=now - PUBLISHED_OVER, settlement_start__lte=now
        )
        .values("host_id")
        .annotate(
            settled=Sum("gateway_numerator"),
            agreed=Sum("gateway_numerator", filter=Q(outcome=Outcome.AGREED)),
        )
        .order_by()
    )
    return {
        row["host_id"]: Share(int(row["settled"]), int(row["agreed"] or 0)) for row in rows if row["settled"]
    }


def reconciliation_ppm(host_ids: Sequence[UUID], *, now: datetime) -> int | None:
    """The published share of these hosts together; None without usage."""
    shares = reconciled_shares(host_ids, now=now).values()
    settled = sum(share.settled_numerator for share in shares)
    return PPM * sum(share.agreed_numerator for share in shares) // settled if settled else None
