"""Whose usage an organization may read, and its questions in metering's terms.

A buyer reads what his contracts used, a provider what his offerings supplied (never who asked for it: contracts, API
keys and projects are the buyers'), the operator everything.
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from typing import Final
from uuid import UUID

from marketplace.accounts.models import Organization, OrganizationRole
from marketplace.api.exporting import Row, instant
from marketplace.contracts import selectors
from marketplace.errors import InvalidInput
from metering.models import MeterKind
from metering.reading import MOST_RANGE, Group, Place, Slice, UsageQuery, UsageRow
from providers.models import Offering

BUYERS_ALONE: Final = frozenset({Group.CONTRACT, Group.API_KEY, Group.PROJECT})
SUMS: Final = ("events", "native_tokens", "numerator", "estimated_events", "estimated_numerator")
DEFAULT_GROUPS: Final = {
    OrganizationRole.BUYER: (Group.CONTRACT, Group.API_KEY, Group.BUCKET),
    OrganizationRole.PROVIDER: (Group.HOST, Group.OFFERING, Group.BUCKET),
    OrganizationRole.OPERATOR: (Group.GRADE, Group.BUCKET),
}


@dataclass(frozen=True, slots=True)
class Reach:
    """Which contracts and offerings may be read; None for all. `sees_buyers`: whether it may know who asked."""

    contract_ids: Sequence[UUID] | None
    offering_ids: Sequence[UUID] | None
    sees_buyers: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageTerms:
    """A question as a reader puts it; None for a filter means any."""

    since: datetime
    until: datetime
    slice_by: Slice = Slice.HOUR
    groups: tuple[Group, ...] | None = None
    meter: str = MeterKind.GATEWAY
    contract_id: UUID | None = None
    api_key_id: UUID | None = None
    project: str | None = None
    model: str | None = None
    grade: str | None = None
    host_id: UUID | None = None
    offering_id: UUID | None = None
    bucket: str | None = None


def reader_role(organization: Organization, asked: str | None) -> OrganizationRole | None:
    """As what the organization reads: the role it asked for, else its first of buyer, provider, operator.

    None when it does not have that role.
    """
    order = (OrganizationRole.BUYER, OrganizationRole.PROVIDER, OrganizationRole.OPERATOR)
    wanted = [role for role in order if asked in (None, role.value)]
    return next((role for role in wanted if organization.has_role(role)), None)


def reach_of(organization: Organization, role: OrganizationRole) -> Reach:
    if role == OrganizationRole.BUYER:
        return Reach(list(selectors.contracts_of(organization.id).values_list("id", flat=True)), None)
    if role == OrganizationRole.PROVIDER:
        own = Offering.objects.filter(host__provider__organization_id=organization.id)
        return Reach(None, list(own.values_list("id", flat=True)), sees_buyers=False)
    return Reach(None, None)


def usage_query(organization: Organization, role: OrganizationRole, terms: UsageTerms) -> UsageQuery:
    """The question within what may be read. Raises InvalidInput naming the field, NotFound for a buyer's contract_id
    that is not his; every other filter with somebody else's id just finds nothing."""
    if terms.since >= terms.until:
        raise InvalidInput("must lie before until", field="since")
    if terms.until - terms.since > MOST_RANGE:
        raise InvalidInput(f"must lie at most {MOST_RANGE.days} days before until", field="since")
    groups = DEFAULT_GROUPS[role] if terms.groups is None else terms.groups
    reach = reach_of(organization, role)
    if not reach.sees_buyers:
        _refuse_buyers_data(groups, terms)
    offering_ids = _offerings(reach.offering_ids, terms)
    contract_ids = reach.contract_ids
    if terms.contract_id is not None:
        if role == OrganizationRole.BUYER:
            selectors.contract_of(organization_id=organization.id, contract_id=terms.contract_id)
        contract_ids = [terms.contract_id]
    return UsageQuery(
        since=terms.since,
        until=terms.until,
        slice_by=terms.slice_by,
        groups=groups,
        meter=terms.meter,
        contract_ids=contract_ids,
        offering_ids=offering_ids,
        api_key_id=terms.api_key_id,
        project=terms.project,
        model=terms.model,
        grade=terms.grade,
        bucket=terms.bucket,
        hosts=dict(Offering.objects.values_list("id", "host_id")) if Group.HOST in groups else {},
    )


def usage_cells(row: UsageRow) -> Row:
    """A row as an export has it."""
    return {
        "start": row.place.start,
        **row.columns,
        "events": row.events,
        "native_tokens": row.native_tokens,
        "numerator": row.numerator,
        "estimated_events": row.estimated_events,
        "estimated_numerator": row.estimated_numerator,
    }


# Cursors -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mark:
    """What a cursor holds: the range of its question, which may have been left to "now", and a row's place."""

    since: datetime
    until: datetime
    start: datetime
    keys: list[str]


def cursor_of(question: str, query: UsageQuery, place: Place) -> str:
    """Where the page after `place` begins; only good for the very same question."""
    times = [instant(at) for at in (query.since, query.until, place.start)]
    text = json.dumps([_digest(question), *times, *map(str, place.keys)], separators=(",", ":"))
    return urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_cursor(cursor: str, question: str) -> Mark:
    """Raises ValueError for what is not a cursor of this question."""
    try:
        parts = json.loads(urlsafe_b64decode(cursor.encode() + b"=" * (-len(cursor) % 4)).decode())
    except RecursionError:
        raise ValueError("nested") from None
    if not isinstance(parts, list) or len(parts) < 4 or not all(isinstance(part, str) for part in parts):
        raise ValueError("not a list of words")
    if parts[0] != _digest(question):
        raise ValueError("of another question")
    times = [datetime.fromisoformat(part) for part in parts[1:4]]
    if any(at.tzinfo is None or not 1970 <= at.year < 3000 for at in times):
        raise ValueError("no times")
    since, until, start = times
    return Mark(since, until, start, parts[4:])


def _digest(question: str) -> str:
    return blake2b(question.encode(), digest_size=8).hexdigest()


def _refuse_buyers_data(groups: Sequence[Group], terms: UsageTerms) -> None:
    for group in groups:
        if group in BUYERS_ALONE:
            raise InvalidInput(
                f"{group.value} is not shown to providers: it tells buyers apart", field="group_by"
            )
    for name in ("contract_id", "api_key_id", "project"):
        if getattr(terms, name) is not None:
            raise InvalidInput("is not known to providers: it tells buyers apart", field=name)


def _offerings(reach: Sequence[UUID] | None, terms: UsageTerms) -> Sequence[UUID] | None:
    """Those within reach that the filters by offering and host leave."""
    if terms.offering_id is None and terms.host_id is None:
        return reach
    rows = Offering.objects.all()
    if terms.host_id is not None:
        rows = rows.filter(host_id=terms.host_id)
    if terms.offering_id is not None:
        rows = rows.filter(id=terms.offering_id)
    if reach is not None:
        rows = rows.filter(id__in=reach)
    return list(rows.values_list("id", flat=True))
