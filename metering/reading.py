"""Usage as people ask for it: filtered, cut into slices of time, grouped; from roll-ups alone.

Rows come newest slice first, then in order of their group, so that any row says exactly where the next page begins.
A page aggregates no more than it shows: time is read downwards in spans that end where slices begin, and each span
that does not fill the page is followed by a longer one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import islice
from typing import Any, Final
from uuid import UUID

from django.db import connection

from metering.models import MeterKind

# A question longer than usage events are kept is a mistake, and a long one.
MOST_RANGE: Final = timedelta(days=400)
_NIL: Final = UUID(int=0)
_EXPORT_ROWS: Final = 2_000


class Slice(StrEnum):
    """How time is cut, in UTC; `period` is the delivery period, the finest there is."""

    PERIOD = "period"
    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


class Group(StrEnum):
    """What usage can be told apart by."""

    CONTRACT = "contract"
    API_KEY = "api_key"
    PROJECT = "project"
    MODEL = "model"
    GRADE = "grade"
    HOST = "host"
    OFFERING = "offering"
    BUCKET = "bucket"


# Group to (name in a row, SQL of a value that is never null). What is unknown is the nil UUID or empty in SQL, so
# that rows have one order; it is None in a row.
_COLUMNS: Final[Mapping[Group, tuple[str, str]]] = {
    Group.CONTRACT: ("contract_id", "r.contract_id"),
    Group.API_KEY: ("api_key_id", "r.api_key_id"),
    Group.PROJECT: ("project", "coalesce(k.project, '')"),
    Group.MODEL: ("model", "f.model"),
    Group.GRADE: ("grade", "f.slug"),
    Group.HOST: ("host_id", "coalesce(h.host_id, '00000000-0000-0000-0000-000000000000')"),
    Group.OFFERING: ("offering_id", "r.offering_id"),
    Group.BUCKET: ("bucket", "r.bucket"),
}
_IDS: Final = frozenset({Group.CONTRACT, Group.API_KEY, Group.HOST, Group.OFFERING})
_STARTS: Final[Mapping[Slice, str]] = {
    Slice.PERIOD: "r.period_start",
    Slice.HOUR: "date_trunc('hour', r.period_start, 'UTC')",
    Slice.DAY: "date_trunc('day', r.period_start, 'UTC')",
    Slice.MONTH: "date_trunc('month', r.period_start, 'UTC')",
}
# The first span that is read, and how much longer the next one may be at most.
_SPANS: Final[Mapping[Slice, timedelta]] = {
    Slice.PERIOD: timedelta(hours=1),
    Slice.HOUR: timedelta(hours=6),
    Slice.DAY: timedelta(days=4),
    Slice.MONTH: timedelta(days=62),
}
_GROWTH: Final = 4
_LEAST_SPAN: Final = timedelta(hours=1)

Key = UUID | str


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageQuery:
    """What is asked. `None` for a filter means any; an empty list means nothing at all. Times: `[since, until)`.

    `hosts` says which offering is at which host, for grouping by host: metering does not know it.
    """

    since: datetime
    until: datetime
    slice_by: Slice = Slice.HOUR
    groups: tuple[Group, ...] = ()
    meter: str = MeterKind.GATEWAY
    contract_ids: Sequence[UUID] | None = None
    offering_ids: Sequence[UUID] | None = None
    api_key_id: UUID | None = None
    project: str | None = None
    model: str | None = None
    grade: str | None = None
    bucket: str | None = None
    hosts: Mapping[UUID, UUID] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        """Names of what rows are grouped by, in their order."""
        return [_COLUMNS[group][0] for group in self.groups]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row stands among all rows of its query: what the next page begins after."""

    start: datetime
    keys: tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class UsageRow:
    """Exact sums of one slice and group. A bucket that nobody reported has no row, which is not a row of zero.

    `events`: those that reported the bucket; where rows are not grouped by bucket, the most that any one bucket of
    the same roll-up has. `estimated_*` is the part of them that was estimated or recovered, not reported.
    """

    place: Place
    columns: Mapping[str, Key | None]
    events: int
    native_tokens: int
    numerator: int
    estimated_events: int
    estimated_numerator: int


def usage_page(query: UsageQuery, *, after: Place | None, size: int) -> tuple[list[UsageRow], bool]:
    """At most `size` rows after `after`, and whether more follow."""
    rows = list(islice(_rows(query, after, size + 1), size + 1))
    return rows[:size], len(rows) > size


def usage_rows(query: UsageQuery) -> Iterator[UsageRow]:
    """All rows, a few at a time: memory stays flat whatever the length, and no transaction is kept open meanwhile.

    Usage that arrives during a long export may be in or not, as it is with pages.
    """
    return _rows(query, None, _EXPORT_ROWS)


def place_of(query: UsageQuery, start: datetime, keys: Sequence[str]) -> Place:
    """A place of this query's rows from its parts as text. Raises ValueError for what cannot be one."""
    # What has no UTF-8 form (half a surrogate pair) is a ValueError, too.
    if len(keys) != len(query.groups) or start.tzinfo is None or any(b"\0" in key.encode() for key in keys):
        raise ValueError("not a place of this query")
    return Place(
        start.astimezone(UTC),
        tuple(UUID(hex=key) if group in _IDS else key for group, key in zip(query.groups, keys, strict=True)),
    )


def _rows(query: UsageQuery, after: Place | None, size: int) -> Iterator[UsageRow]:
    if any(ids is not None and not ids for ids in (query.contract_ids, query.offering_ids)):
        return
    span = _SPANS[query.slice_by]
    upper = query.until if after is None else min(query.until, _end(after.start, query.slice_by))
    wanted = size
    while upper > query.since:
        lower = max(query.since, _floor(max(query.since, upper - span), query.slice_by))
        rows = _fetch(query, lower, upper, after, size)
        yield from rows
        if len(rows) == size:
            after = rows[-1].place
            upper = min(upper, _end(after.start, query.slice_by))
            continue
        wanted = wanted - len(rows) if len(rows) < wanted else size
        span = _next_span(upper - lower, len(rows), wanted)
        upper = lower


def _next_span(read: timedelta, found: int, wanted: int) -> timedelta:
    """As far as what is still wanted should reach, if usage goes on being as dense as in the span just read."""
    reach = read * _GROWTH if not found else min(read * _GROWTH, read * (wanted + wanted // 4 + 1) // found)
    return max(_LEAST_SPAN, reach)


def _fetch(
    query: UsageQuery, lower: datetime, upper: datetime, after: Place | None, size: int
) -> list[UsageRow]:
    names = [f"g{number}" for number in range(len(query.groups))]
    keys = [f"{_COLUMNS[group][1]} AS {name}" for group, name in zip(query.groups, names, strict=True)]
    conditions, values = _conditions(query, lower, upper)
    rows = f"""SELECT {", ".join([f"{_STARTS[query.slice_by]} AS start", *keys, _SUMS_READ])}
                 FROM {_source(query)} {_joins(query)} WHERE {" AND ".join(conditions) or "true"}"""  # noqa: S608
    grouping = ", ".join(["start", *names])
    if Group.BUCKET not in query.groups:
        # An event stands in a roll-up of each bucket it reported: count it once.
        rows = f"""SELECT {grouping}, max(events) AS events, max(estimated_events) AS estimated_events,
                          sum(native_tokens) AS native_tokens, sum(numerator) AS numerator,
                          sum(estimated_numerator) AS estimated_numerator
                     FROM ({rows}) AS read
                    GROUP BY {grouping}, contract_id, period_start, rate_id, api_key_id, offering_id"""  # noqa: S608
    following = "true"
    if after is not None:
        following = "start < %(after)s"
        values["after"] = after.start
        if names:
            marks = ", ".join(
                f"%(after_{name})s::{'uuid' if group in _IDS else 'text'}"
                for group, name in zip(query.groups, names, strict=True)
            )
            following = f"({following} OR (start = %(after)s AND ({', '.join(names)}) > ({marks})))"
            values |= {f"after_{name}": key for name, key in zip(names, after.keys, strict=True)}
    order = ", ".join(["start DESC", *names])
    sums = ", ".join(f"sum({name})::bigint" for name in _SUMS)
    with connection.cursor() as cursor:
        cursor.execute(
            f"""SELECT {grouping}, {sums} FROM ({rows}) AS counted WHERE {following}
                 GROUP BY {grouping} ORDER BY {order} LIMIT %(size)s""",  # noqa: S608
            values | {"size": size},
        )
        found = cursor.fetchall()
    columns, width = query.columns, len(names)
    return [
        UsageRow(
            Place(row[0], row[1 : 1 + width]),
            {name: _shown(key) for name, key in zip(columns, row[1 : 1 + width], strict=True)},
            *row[1 + width :],
        )
        for row in found
    ]


_SUMS: Final = ("events", "native_tokens", "numerator", "estimated_events", "estimated_numerator")
_SUMS_READ: Final = "r.contract_id, r.period_start, r.rate_id, r.api_key_id, r.offering_id, " + ", ".join(
    f"r.{name}" for name in _SUMS
)


def _source(query: UsageQuery) -> str:
    """The roll-ups in question, one owner after the other: whatever others used meanwhile is never looked at.

    Asked for all owners at once, the planner prefers the index of time alone, and reads the whole market's.
    """
    # A roll-up whose events were all voided stands for nothing reported.
    conditions = [
        "r.meter = %(meter)s", "r.period_start >= %(lower)s", "r.period_start < %(upper)s", "r.events > 0",
    ]  # fmt: skip
    for column, asked in (("api_key_id", query.api_key_id), ("bucket", query.bucket)):
        if asked is not None:
            conditions.append(f"r.{column} = %({column})s")
    by_contract = query.contract_ids is not None
    if query.offering_ids is not None and by_contract:
        conditions.append("r.offering_id = ANY (%(offering_ids)s::uuid[])")
    if query.offering_ids is None and not by_contract:
        owner = ""
    else:
        column = "contract_id" if by_contract else "offering_id"
        owner = f"unnest(%({column}s)s::uuid[]) AS owner (id) CROSS JOIN LATERAL"
        conditions.insert(0, f"r.{column} = owner.id")
    # OFFSET 0 keeps the planner from taking the owners together again.
    return f"{owner} (SELECT * FROM metering_usagerollup r WHERE {' AND '.join(conditions)} OFFSET 0) AS r"  # noqa: S608


def _conditions(query: UsageQuery, lower: datetime, upper: datetime) -> tuple[list[str], dict[str, Any]]:
    """What is asked of the rooms that the roll-ups are joined with, and all values."""
    values: dict[str, Any] = {"lower": lower, "upper": upper, "meter": query.meter}
    values |= {"api_key_id": query.api_key_id, "bucket": query.bucket}
    values |= {"contract_ids": list(query.contract_ids or ()), "offering_ids": list(query.offering_ids or ())}
    conditions = []
    for name, column, asked in (
        ("project", "k.project", query.project),
        ("model", "f.model", query.model),
        ("grade", "f.slug", query.grade),
    ):
        if asked is not None:
            conditions.append(f"{column} = %({name})s")
            values[name] = asked
    if Group.HOST in query.groups:
        values["hosts"] = list(query.hosts.values())
        values["hosted"] = list(query.hosts)
    return conditions, values


def _joins(query: UsageQuery) -> str:
    joins = ""
    if Group.PROJECT in query.groups or query.project is not None:
        joins += " LEFT JOIN accounts_apikey k ON k.id = r.api_key_id"
    if {Group.MODEL, Group.GRADE} & set(query.groups) or query.model is not None or query.grade is not None:
        joins += " JOIN pricing_grade g ON g.id = r.grade_id JOIN pricing_gradefamily f ON f.id = g.family_id"
    if Group.HOST in query.groups:
        joins += (
            " LEFT JOIN unnest(%(hosted)s::uuid[], %(hosts)s::uuid[]) AS h (offering_id, host_id)"
            " ON h.offering_id = r.offering_id"
        )
    return joins


def _shown(key: Key) -> Key | None:
    return None if key in (_NIL, "") else key


def _floor(at: datetime, slice_by: Slice) -> datetime:
    """The start of the slice that holds `at`."""
    at = at.astimezone(UTC)
    if slice_by == Slice.PERIOD:
        return at
    at = at.replace(minute=0, second=0, microsecond=0)
    if slice_by == Slice.HOUR:
        return at
    return at.replace(hour=0, day=at.day if slice_by == Slice.DAY else 1)


def _end(start: datetime, slice_by: Slice) -> datetime:
    """Where the slice that begins at `start` ends."""
    if slice_by == Slice.MONTH:
        return (start.replace(day=1) + timedelta(days=32)).replace(day=1)
    steps = {Slice.HOUR: timedelta(hours=1), Slice.DAY: timedelta(days=1)}
    return start + steps.get(slice_by, timedelta(microseconds=1))
