"""What gateway, agent and engine say of one host in one settlement period, and whether they agree.

The comparisons are pure; the loaders read roll-ups, register reads and, where something is amiss, events.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, NamedTuple
from uuid import UUID

from django.conf import settings
from django.db import connection

from metering.models import MeterKind, MeterSource, UsageRollup
from metering.packing import FLAG_BITS
from metering.registers import register_delta
from metering.selectors import register_reads
from metering.usage import Flag
from pricing.units import PPM, Bucket, div_half_even, split_by_weight

# On reported counts (native tokens of input and of output), of the larger of two.
TOLERANCE_PPM: Final = 5_000
INPUT: Final = frozenset({Bucket.UNCACHED_INPUT, Bucket.CACHE_READ, Bucket.CACHE_WRITE})
OUTPUT: Final = frozenset({Bucket.OUTPUT, Bucket.REASONING})


class Cell(NamedTuple):
    """What a disputed count is about: the least that billing can tell apart."""

    contract_id: UUID
    rate_id: UUID
    offering_id: UUID
    period_start: datetime


@dataclass(frozen=True, slots=True)
class Counted:
    """Native tokens that one witness saw; None where it cannot tell."""

    input_tokens: int | None
    output_tokens: int | None


@dataclass(slots=True)
class Seen:
    """One meter's counts: native tokens and numerators by direction, and the numerator of all it saw by cell."""

    input_tokens: int = 0
    output_tokens: int = 0
    input_numerator: int = 0
    output_numerator: int = 0
    events: int = 0
    cells: dict[Cell, int] = field(default_factory=dict)

    @property
    def numerator(self) -> int:
        return sum(self.cells.values())

    @property
    def counted(self) -> Counted:
        return Counted(self.input_tokens, self.output_tokens)


@dataclass(frozen=True, slots=True)
class Register:
    """The engine's own counters over the period, the host's benches taken off; None where nobody knows."""

    counted: Counted
    read_until: datetime | None


@dataclass(frozen=True, slots=True)
class Withheld:
    """Of one cell: the gateway's numerator and that of the witness who saw least."""

    gateway: int
    lower: int


@dataclass(frozen=True, slots=True)
class Paired:
    """What became of the gateway's requests of one cell at the agent: numerators, and native (input, output) tokens.

    `missing` are those that no agent reported; estimated ones are those of which one of both meters had no usage of the
    engine's to report: theirs are no counts to be held against anybody. Of the agent's own events, `twice` are those
    that report a request once more (the highest counts), `alone` those of no request that the gateway carried: neither
    makes up for what another request lacks. Edited are requests of which the operator has corrected the gateway's
    event: what both meters had said of them is not compared any more.

    The agent knows nothing of parts: of an attempt in two, what it counted beyond the gateway's first part is `moved`
    from that part's cell to the second one's, so that what it counted less is taken off the second part first.
    """

    missing_events: int = 0
    missing: int = 0
    gateway_estimated: int = 0
    agent_estimated: int = 0
    gateway_tokens: tuple[int, int] = (0, 0)
    agent_tokens: tuple[int, int] = (0, 0)
    twice: int = 0
    twice_tokens: tuple[int, int] = (0, 0)
    alone: int = 0
    alone_tokens: tuple[int, int] = (0, 0)
    gateway_edited: int = 0
    gateway_edited_tokens: tuple[int, int] = (0, 0)
    agent_edited: int = 0
    agent_edited_tokens: tuple[int, int] = (0, 0)
    moved: int = 0


# Who has corrected an event where no person did: validation, estimation, editing.
VEE: Final = "vee"


def within(first: int, second: int, tolerance_ppm: int = TOLERANCE_PPM) -> bool:
    return abs(first - second) * PPM <= tolerance_ppm * max(first, second)


def seen_by(rollups: Iterable[UsageRollup]) -> dict[str, Seen]:
    """Roll-ups summed for each meter."""
    seen = {MeterKind.GATEWAY.value: Seen(), MeterKind.AGENT.value: Seen()}
    for row in rollups:
        meter, bucket = seen.setdefault(row.meter, Seen()), Bucket(row.bucket)
        if bucket in INPUT:
            meter.input_tokens += row.native_tokens
            meter.input_numerator += row.numerator
        elif bucket in OUTPUT:
            meter.output_tokens += row.native_tokens
            meter.output_numerator += row.numerator
        meter.events += row.events
        cell = Cell(row.contract_id, row.rate_id, row.offering_id, row.period_start)
        meter.cells[cell] = meter.cells.get(cell, 0) + row.numerator
    return seen


def lower_by_agent(
    gateway: Seen, agent: Seen, pairs: Mapping[Cell, Paired], *, is_complete: bool
) -> dict[Cell, Withheld]:
    """Where the agent counted less of what the gateway carried. What it may yet report, or only estimated, is no lower
    count."""
    found = {}
    for cell, numerator in gateway.cells.items():
        counted = agent.cells.get(cell, 0)
        pair = pairs.get(cell)
        if pair is not None:
            counted += pair.gateway_estimated - pair.agent_estimated - pair.twice - pair.alone
            counted += pair.gateway_edited - pair.agent_edited + pair.moved
            counted += 0 if is_complete else pair.missing
        lower = max(0, min(numerator, counted))
        if lower < numerator:
            found[cell] = Withheld(numerator, lower)
    return found


def reported(seen: Seen, pairs: Iterable[Paired], meter: MeterKind) -> Counted:
    """The native tokens of requests that both meters have reported, each once, or that the other has not (yet) seen."""
    if meter == MeterKind.GATEWAY:
        return _without(
            seen, [tokens for pair in pairs for tokens in (pair.gateway_tokens, pair.gateway_edited_tokens)]
        )
    return _without(seen, [tokens for pair in pairs for tokens in _no_reports(pair)])


def matched(agent: Seen, pairs: Iterable[Paired]) -> Counted:
    """What is `reported` by the agent of requests that the gateway carried."""
    off = [tokens for pair in pairs for tokens in (*_no_reports(pair), pair.alone_tokens)]
    return _without(agent, off)


def _no_reports(pair: Paired) -> tuple[tuple[int, int], ...]:
    return pair.agent_tokens, pair.twice_tokens, pair.agent_edited_tokens


def without_edited(carried: Counted, pairs: Iterable[Paired]) -> Counted:
    """What the gateway carried, less requests that the operator has corrected."""
    off = [pair.gateway_edited_tokens for pair in pairs]
    assert carried.input_tokens is not None
    assert carried.output_tokens is not None
    return Counted(
        carried.input_tokens - sum(tokens[0] for tokens in off),
        carried.output_tokens - sum(tokens[1] for tokens in off),
    )


def _without(seen: Seen, off: Sequence[tuple[int, int]]) -> Counted:
    return Counted(
        seen.input_tokens - sum(tokens[0] for tokens in off),
        seen.output_tokens - sum(tokens[1] for tokens in off),
    )


def lower_by_register(
    gateway: Seen, over: Counted, register: Counted, withheld: Mapping[Cell, Withheld]
) -> dict[Cell, Withheld]:
    """What is withheld when the engine saw less than the gateway carried: the host's excess over the cells.

    `over` are the gateway's tokens of requests that were over when the register was read. A register knows no
    contracts, so the excess is split by numerator (largest remainder). Where the agent saw less still, its count
    stands: the excess is only what is not withheld already.
    """
    excess = _excess(over.input_tokens, register.input_tokens, gateway.input_numerator, gateway.input_tokens)
    excess += _excess(
        over.output_tokens, register.output_tokens, gateway.output_numerator, gateway.output_tokens
    )
    excess -= sum(one.gateway - one.lower for one in withheld.values())
    found = dict(withheld)
    cells = sorted(gateway.cells)
    left = [found[cell].lower if cell in found else gateway.cells[cell] for cell in cells]
    if excess <= 0 or not sum(left):
        return found
    parts = split_by_weight(min(excess, sum(left)), left)
    for cell, lower, part in zip(cells, left, parts, strict=True):
        if part:
            found[cell] = Withheld(gateway.cells[cell], lower - part)
    return found


def _excess(metered: int | None, counted: int | None, numerator: int, tokens: int) -> int:
    if metered is None or counted is None or counted >= metered or within(counted, metered):
        return 0
    return div_half_even(numerator * (metered - counted), tokens)


# Loaders -------------------------------------------------------------------------------------------------------


def load_rollups(offering_ids: Sequence[UUID], start: datetime, end: datetime) -> list[UsageRollup]:
    return list(
        UsageRollup.objects.filter(
            offering_id__in=list(offering_ids), period_start__gte=start, period_start__lt=end
        )
    )


_DIGEST: Final = """
bit_xor(hashtextextended(concat_ws('|', r.contract_id, r.rate_id, r.api_key_id, r.offering_id, r.bucket, r.meter,
                                   extract(epoch FROM r.period_start), r.events, r.native_tokens, r.numerator), 0))
"""


def digest_of(offering_ids: Sequence[UUID], start: datetime, end: datetime) -> int:
    """Of all roll-ups of these offerings in `[start, end)`: another one when any of them changes."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"""SELECT coalesce({_DIGEST}, 0) FROM metering_usagerollup r
                 WHERE r.offering_id = ANY (%s) AND r.period_start >= %s AND r.period_start < %s""",  # noqa: S608
            [list(offering_ids), start, end],
        )
        return int(cursor.fetchone()[0])


def stale_periods(
    hosts: Mapping[UUID, UUID], *, since: datetime, until: datetime, period_s: int
) -> list[tuple[UUID, datetime]]:
    """(host, settlement start) of which nobody has compared the meters' present sums; `hosts` is by offering."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"""WITH usage AS (
                    SELECT host.host_id,
                           date_bin(make_interval(secs => %(period)s), r.period_start, 'epoch'::timestamptz)
                               AS settlement_start,
                           {_DIGEST} AS digest
                      FROM metering_usagerollup r
                      JOIN unnest(%(offerings)s::uuid[], %(hosts)s::uuid[]) AS host (offering_id, host_id)
                           USING (offering_id)
                     WHERE r.period_start >= %(since)s AND r.period_start < %(until)s
                     GROUP BY 1, 2
                )
                SELECT usage.host_id, usage.settlement_start
                  FROM usage LEFT JOIN metering_reconciliation done USING (host_id, settlement_start)
                 WHERE done.usage_digest IS DISTINCT FROM usage.digest
                 ORDER BY 2, 1""",  # noqa: S608
            {
                "period": period_s,
                "offerings": list(hosts),
                "hosts": list(hosts.values()),
                "since": since,
                "until": until,
            },
        )
        return list(cursor.fetchall())


def load_register(host_id: UUID, start: datetime, end: datetime) -> Register:
    """The counters over the reads that enclose the period. Unknown when the engine restarted inside, or was not read.

    A restart starts the counters anew: what ran between its last read and the restart is known to nobody.
    """
    reads = register_reads(host_id, since=start, until=end)
    if len(reads) < 2 or reads[0].read_at > start or reads[-1].read_at < end:
        return Register(Counted(None, None), None)
    delta = register_delta(reads)
    if not delta.is_complete:
        return Register(Counted(None, None), None)
    return Register(Counted(delta.input_tokens, delta.output_tokens), reads[-1].read_at)


def agent_sources(host_id: UUID) -> list[MeterSource]:
    """Every agent's meter that the host ever had."""
    return list(MeterSource.objects.filter(host_id=host_id, kind=MeterKind.AGENT, is_editor=False))


_BATCHES_BEFORE: Final = timedelta(days=1)
# A batch that waits or died, an event refused, a number skipped: also one that somebody has given up waiting for.
_HOLES: Final = """
SELECT EXISTS (
    SELECT FROM (
        SELECT status, exceptions, received_at, sequence_from,
               max(sequence_to) OVER (PARTITION BY source_id ORDER BY sequence_from, sequence_to
                                      ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS reached
          FROM metering_usagebatch WHERE source_id = ANY (%(sources)s) AND received_at >= %(before)s
    ) AS batch
     WHERE received_at >= %(start)s
       AND (status = 'dead' OR (status = 'pending' AND received_at < %(due)s) OR sequence_from > reached + 1
            OR exceptions @> '[{"result": "quarantined"}]')
)
"""


def agent_is_complete(
    sources: Sequence[MeterSource], offering_ids: Sequence[UUID], start: datetime, end: datetime
) -> bool:
    """Whether the agent's record of the period has no hole: what is not in it, the agent never saw.

    Its numbers are in order, so it is whole when none is missing, none was quarantined and something of a later
    delivery period has come.
    """
    if any(source.gap_since is not None for source in sources):
        return False
    source_ids = [source.pk for source in sources]
    # What came later and waits is of later periods: else the answer would depend on when it is asked for.
    due = end + timedelta(seconds=settings.MAX_REQUEST_S + settings.SETTLEMENT_GRACE_S)
    with connection.cursor() as cursor:
        cursor.execute(
            _HOLES,
            {"sources": source_ids, "start": start, "before": start - _BATCHES_BEFORE, "due": due},
        )
        if cursor.fetchone()[0]:
            return False
    return UsageRollup.objects.filter(
        offering_id__in=list(offering_ids), meter=MeterKind.AGENT, period_start__gte=end
    ).exists()


def pair_requests(cells: Iterable[Cell]) -> dict[Cell, Paired]:
    """The gateway's requests of these cells' offerings and the agent's events of the same, by cell."""
    cells = list(cells)
    asked = sorted({(cell.contract_id, cell.period_start) for cell in cells})
    if not asked:
        return {}
    contracts, starts = zip(*asked, strict=True)
    with connection.cursor() as cursor:
        cursor.execute(
            _PAIRED,
            {
                "contracts": list(contracts),
                "starts": list(starts),
                "offerings": list({cell.offering_id for cell in cells}),
                "estimated": _ESTIMATED,
                "vee": VEE,
            },
        )
        return {Cell(*row[:4]): _paired(*map(int, row[4:])) for row in cursor.fetchall()}


def _paired(missing_events: int, missing: int, moved: int, *sums: int) -> Paired:
    """The sums come as numerator, input and output tokens of one kind after the other."""
    gateway, agent, twice, alone, gateway_edited, agent_edited = (
        (sums[at], (sums[at + 1], sums[at + 2])) for at in range(0, len(sums), 3)
    )
    return Paired(
        missing_events=missing_events,
        missing=missing,
        moved=moved,
        gateway_estimated=gateway[0],
        gateway_tokens=gateway[1],
        agent_estimated=agent[0],
        agent_tokens=agent[1],
        twice=twice[0],
        twice_tokens=twice[1],
        alone=alone[0],
        alone_tokens=alone[1],
        gateway_edited=gateway_edited[0],
        gateway_edited_tokens=gateway_edited[1],
        agent_edited=agent_edited[0],
        agent_edited_tokens=agent_edited[1],
    )


# Without usage of the engine's: counted by the meter itself, taken over from the other one, or of no provable sense.
_ESTIMATED: Final = sum(FLAG_BITS[flag] for flag in (Flag.ESTIMATED, Flag.RECOVERED, Flag.UNPROVABLE))
# A corrected event is in no roll-up any more; its replacement is. An agent's sums may exceed a bigint.
_PAIRED: Final = """
WITH asked AS (
    SELECT * FROM unnest(%(contracts)s::uuid[], %(starts)s::timestamptz[]) AS k (contract_id, period_start)
), counted AS (
    SELECT e.contract_id, e.rate_id, e.offering_id, e.period_start, e.request_id, e.attempt, e.part, s.kind,
           e.numerator, coalesce(e.uncached_input_tokens, 0) + coalesce(e.cache_read_tokens, 0) +
               coalesce(e.cache_write_tokens, 0) AS input,
           coalesce(e.output_tokens, 0) + coalesce(e.reasoning_tokens, 0) AS output,
           e.flags & %(estimated)s <> 0 AS estimated,
           row_number() OVER (PARTITION BY e.contract_id, e.period_start, e.request_id, e.attempt, e.part, s.kind
                              ORDER BY e.numerator DESC, e.id) AS nth
      FROM asked JOIN metering_usageevent e USING (contract_id, period_start)
      JOIN metering_metersource s ON s.id = e.source_id AND s.kind IN ('gateway', 'agent')
     WHERE e.offering_id = ANY (%(offerings)s)
       AND NOT EXISTS (SELECT FROM metering_usagecorrection c
                        WHERE c.target_id = e.id AND c.target_source_id = e.source_id)
), over AS (
    SELECT last.contract_id, last.rate_id, last.offering_id, last.period_start, last.request_id, last.attempt,
           coalesce(first.numerator, 0) AS numerator, coalesce(first.input, 0) AS input,
           coalesce(first.output, 0) AS output
      FROM counted last LEFT JOIN counted first
        ON first.kind = 'gateway' AND first.part = 0 AND first.nth = 1 AND first.offering_id = last.offering_id
       AND first.period_start = last.period_start AND first.request_id = last.request_id
       AND first.attempt = last.attempt
     WHERE last.kind = 'gateway' AND last.part = 1 AND last.nth = 1
), shared AS (
    SELECT c.contract_id, c.rate_id, c.offering_id, c.period_start, c.request_id, c.attempt, c.part, c.kind,
           least(c.numerator, over.numerator) AS numerator, least(c.input, over.input) AS input,
           least(c.output, over.output) AS output, c.estimated, c.nth,
           least(c.numerator, over.numerator) - c.numerator AS moved
      FROM counted c LEFT JOIN over
        ON c.kind = 'agent' AND c.part = 0 AND c.nth = 1 AND over.offering_id = c.offering_id
       AND over.period_start = c.period_start AND over.request_id = c.request_id AND over.attempt = c.attempt
    UNION ALL
    SELECT over.contract_id, over.rate_id, c.offering_id, c.period_start, c.request_id, c.attempt, 1, c.kind,
           greatest(0, c.numerator - over.numerator), greatest(0, c.input - over.input),
           greatest(0, c.output - over.output), c.estimated, c.nth, greatest(0, c.numerator - over.numerator)
      FROM counted c JOIN over USING (offering_id, period_start, request_id, attempt)
     WHERE c.kind = 'agent' AND c.part = 0 AND c.nth = 1
), edited AS (
    SELECT DISTINCT e.offering_id, e.period_start, e.request_id, e.attempt, true AS is_edited
      FROM asked JOIN metering_usageevent e USING (contract_id, period_start)
      JOIN metering_metersource s ON s.id = e.source_id AND s.kind = 'gateway'
      JOIN metering_usagecorrection c ON (c.target_id = e.id AND c.target_source_id = e.source_id)
                                      OR (c.replacement_id = e.id AND c.replacement_source_id = e.source_id)
     WHERE e.offering_id = ANY (%(offerings)s) AND c.actor <> %(vee)s
), request AS (
    SELECT *, count(*) FILTER (WHERE kind = 'gateway') OVER same = 0 AS alone,
           count(*) FILTER (WHERE kind = 'agent') OVER same = 0 AS missing,
           coalesce(bool_or(estimated) FILTER (WHERE kind = 'agent' AND nth = 1) OVER same, false) AS a_estimated,
           max(numerator) FILTER (WHERE kind = 'agent' AND nth = 1) OVER same AS a_numerator,
           max(input) FILTER (WHERE kind = 'agent' AND nth = 1) OVER same AS a_input,
           max(output) FILTER (WHERE kind = 'agent' AND nth = 1) OVER same AS a_output
      FROM shared WINDOW same AS (PARTITION BY contract_id, period_start, request_id, attempt, part)
), told AS (
    SELECT *, CASE WHEN is_edited THEN 'edited'
                   WHEN kind = 'agent' AND nth > 1 THEN 'twice' WHEN kind = 'agent' AND alone THEN 'alone'
                   WHEN kind = 'gateway' AND missing THEN 'missing'
                   WHEN kind = 'gateway' AND (estimated OR a_estimated) THEN 'estimated' END AS what
      FROM request LEFT JOIN edited USING (offering_id, period_start, request_id, attempt)
)
SELECT contract_id, rate_id, offering_id, period_start,
       count(*) FILTER (WHERE what = 'missing'),
       coalesce(sum(numerator) FILTER (WHERE what = 'missing'), 0),
       coalesce(sum(moved), 0),
       coalesce(sum(numerator) FILTER (WHERE what = 'estimated'), 0),
       coalesce(sum(input) FILTER (WHERE what = 'estimated'), 0),
       coalesce(sum(output) FILTER (WHERE what = 'estimated'), 0),
       coalesce(sum(a_numerator) FILTER (WHERE what = 'estimated'), 0),
       coalesce(sum(a_input) FILTER (WHERE what = 'estimated'), 0),
       coalesce(sum(a_output) FILTER (WHERE what = 'estimated'), 0),
       coalesce(sum(numerator) FILTER (WHERE what = 'twice'), 0),
       coalesce(sum(input) FILTER (WHERE what = 'twice'), 0),
       coalesce(sum(output) FILTER (WHERE what = 'twice'), 0),
       coalesce(sum(numerator) FILTER (WHERE what = 'alone'), 0),
       coalesce(sum(input) FILTER (WHERE what = 'alone'), 0),
       coalesce(sum(output) FILTER (WHERE what = 'alone'), 0),
       coalesce(sum(numerator) FILTER (WHERE what = 'edited' AND kind = 'gateway'), 0),
       coalesce(sum(input) FILTER (WHERE what = 'edited' AND kind = 'gateway'), 0),
       coalesce(sum(output) FILTER (WHERE what = 'edited' AND kind = 'gateway'), 0),
       coalesce(sum(numerator) FILTER (WHERE what = 'edited' AND kind = 'agent'), 0),
       coalesce(sum(input) FILTER (WHERE what = 'edited' AND kind = 'agent'), 0),
       coalesce(sum(output) FILTER (WHERE what = 'edited' AND kind = 'agent'), 0)
  FROM told GROUP BY 1, 2, 3, 4
"""


def unfinished_at(cells: Iterable[Cell], at: datetime) -> Counted:
    """Native tokens of the gateway's requests that still ran then: a read of the register has not seen all of them."""
    cells = list(cells)
    if not cells:
        return Counted(0, 0)
    with connection.cursor() as cursor:
        cursor.execute(
            _UNFINISHED,
            {
                "contracts": [cell.contract_id for cell in cells],
                "starts": [cell.period_start for cell in cells],
                "offerings": [cell.offering_id for cell in cells],
                "at": at,
            },
        )
        input_tokens, output_tokens = cursor.fetchone()
        return Counted(int(input_tokens), int(output_tokens))


_UNFINISHED: Final = """
SELECT coalesce(sum(coalesce(uncached_input_tokens, 0) + coalesce(cache_read_tokens, 0)
                    + coalesce(cache_write_tokens, 0)), 0),
       coalesce(sum(coalesce(output_tokens, 0) + coalesce(reasoning_tokens, 0)), 0)
  FROM (SELECT DISTINCT contract_id, period_start
          FROM unnest(%(contracts)s::uuid[], %(starts)s::timestamptz[]) AS k (contract_id, period_start)) AS asked
  JOIN metering_usageevent g USING (contract_id, period_start)
  JOIN metering_metersource s ON s.id = g.source_id AND s.kind = 'gateway'
 WHERE g.offering_id = ANY (%(offerings)s)
   AND g.occurred_at + make_interval(secs => coalesce(g.duration_ms, 0) / 1000.0) > %(at)s
   AND NOT EXISTS (SELECT FROM metering_usagecorrection c
                    WHERE c.target_id = g.id AND c.target_source_id = g.source_id)
"""
