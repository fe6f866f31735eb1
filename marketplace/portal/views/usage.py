"""Usage as buyers and providers look at it: filtered, grouped, page by page, and as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from django.core.exceptions import BadRequest
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.views.decorators.http import require_safe

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.accounts.selectors import api_keys_of
from marketplace.api.exporting import Format, export
from marketplace.billing.focus.reading import FocusRange, buyer_rows, provider_rows
from marketplace.billing.focus.rows import COLUMNS
from marketplace.contracts.selectors import contracts_of, own_kappas
from marketplace.contracts.usage import (
    SUMS,
    UsageTerms,
    cursor_of,
    read_cursor,
    usage_cells,
    usage_query,
)
from marketplace.errors import DomainError
from marketplace.portal.access import SeatedRequest, page
from marketplace.portal.forms import UsageForm
from marketplace.portal.paging import PAGE_SIZE
from metering.reading import Group, Slice, UsageQuery, UsageRow, place_of, usage_page, usage_rows
from providers.models import Host, Offering

_DAY = timedelta(days=1)
_DEFAULT_DAYS = 7
_FORMATS: Mapping[str, Format] = {"csv": "csv", "ndjson": "ndjson"}


@dataclass(frozen=True)
class Line:
    """A row of the table: what it is about in words, and its sums."""

    start: datetime
    labels: list[str]
    row: UsageRow


@require_safe
@page(OrganizationRole.BUYER)
def buyer(request: SeatedRequest) -> HttpResponseBase:
    return _usage(request, OrganizationRole.BUYER)


@require_safe
@page(OrganizationRole.PROVIDER)
def provider(request: SeatedRequest) -> HttpResponseBase:
    return _usage(request, OrganizationRole.PROVIDER)


@require_safe
@page(OrganizationRole.BUYER)
def buyer_focus(request: SeatedRequest) -> HttpResponseBase:
    """What was charged in a range, as rows of FOCUS."""
    wanted = _focus_range(request)
    return _focus_file(buyer_rows(request.seat.organization, wanted), wanted)


@require_safe
@page(OrganizationRole.PROVIDER)
def provider_focus(request: SeatedRequest) -> HttpResponseBase:
    """What was earned in a range, as rows of FOCUS."""
    wanted = _focus_range(request)
    return _focus_file(provider_rows(request.seat.organization, wanted), wanted)


def _usage(request: SeatedRequest, role: OrganizationRole) -> HttpResponseBase:
    today = clock.now().astimezone(UTC).date()
    asked = {"since": (today - (_DEFAULT_DAYS - 1) * _DAY).isoformat(), "until": today.isoformat()}
    asked |= {"slice": Slice.DAY.value, "by": Group.MODEL.value, "buckets": "on"} if not request.GET else {}
    asked |= {name: str(text) for name, text in request.GET.items() if name not in ("after", "format")}
    form = UsageForm(asked, role=role)
    context: dict[str, Any] = {"form": form, "role": role, "lines": [], "older": None}
    query = _query(request, role, form)
    if query is None:
        return render(request, "portal/usage.html", context, status=422)
    if (form_asked := _FORMATS.get(request.GET.get("format", ""))) is not None:
        name = f"usage-{query.since:%Y%m%d}-{query.until:%Y%m%d}"
        columns = ["start", *query.columns, *SUMS]
        cells = map(usage_cells, usage_rows(query))
        return export(cells, columns=columns, form=form_asked, filename=name)
    question = urlencode(sorted(asked.items()))
    rows, more = usage_page(query, after=_after(request, query, question), size=PAGE_SIZE)
    context |= {
        "lines": _lines(request, query, rows),
        "columns": [group.value.replace("_", " ") for group in query.groups],
        "older": cursor_of(question, query, rows[-1].place) if more else None,
        "is_first": "after" not in request.GET,
        "asked": urlencode(asked),
        "range": urlencode({name: asked[name] for name in ("since", "until")}),
        "slice": query.slice_by.value,
    }
    if role == OrganizationRole.BUYER:
        context["own_kappas"] = own_kappas(
            organization_id=request.seat.organization.id, since=query.since, until=query.until
        )
    return render(request, "portal/usage.html", context)


def _query(request: SeatedRequest, role: OrganizationRole, form: UsageForm) -> UsageQuery | None:
    """None when the form says what is wrong with it."""
    if not form.is_valid():
        return None
    data = form.cleaned_data
    groups = [Group(data["by"])] + ([Group.BUCKET] if data["buckets"] else [])
    try:
        return usage_query(
            request.seat.organization,
            role,
            UsageTerms(
                since=_midnight(data["since"]),
                until=_midnight(data["until"]) + _DAY,
                slice_by=Slice(data["slice"]),
                groups=tuple(dict.fromkeys(groups)),
                model=data["model"] or None,
                project=data.get("project") or None,
            ),
        )
    except DomainError as error:
        form.refuse(error)
        return None


def _after(request: SeatedRequest, query: UsageQuery, question: str) -> Any:
    cursor = request.GET.get("after")
    if cursor is None:
        return None
    try:
        mark = read_cursor(cursor, question)
        return place_of(query, mark.start, mark.keys)
    except ValueError:
        raise BadRequest("after: this is not a cursor of the list") from None


def _lines(request: SeatedRequest, query: UsageQuery, rows: Sequence[UsageRow]) -> list[Line]:
    names: dict[str, Mapping[Any, str]] = {
        name: _names(request, name, {row.columns[name] for row in rows if row.columns[name] is not None})
        for name in query.columns
    }
    return [
        Line(
            row.place.start,
            [_label(name, value, names[name]) for name, value in row.columns.items()],
            row,
        )
        for row in rows
    ]


def _label(name: str, value: Any, names: Mapping[Any, str]) -> str:
    if value is None:
        return "no project" if name == "project" else "unknown"
    return names.get(value) or (str(value).replace("_", " ") if name == "bucket" else str(value))


def _names(request: SeatedRequest, column: str, ids: set[Any]) -> Mapping[Any, str]:
    """What people call these, in one query; ids of others are never among them."""
    organization_id: UUID = request.seat.organization.id
    if column == "contract_id":
        return {
            contract.id: f"{contract.grade.family.title}, {contract.kind.replace('_', ' ')}"
            for contract in contracts_of(organization_id).filter(id__in=ids)
        }
    if column == "api_key_id":
        keys = api_keys_of(organization_id).filter(id__in=ids)
        return {key.id: key.label or f"ty_{key.key_id}_…" for key in keys}
    if column == "host_id":
        own = Host.objects.filter(id__in=ids, provider__organization_id=organization_id)
        return dict(own.values_list("id", "name"))
    if column == "offering_id":
        offerings = Offering.objects.filter(id__in=ids, host__provider__organization_id=organization_id)
        return {
            offering.id: f"{offering.grade.family.title} on {offering.host.name}"
            for offering in offerings.select_related("host", "grade__family")
        }
    return {}


def _midnight(day: Any) -> datetime:
    return datetime.combine(day, time.min, UTC)


def _focus_range(request: SeatedRequest) -> FocusRange:
    today = clock.now().astimezone(UTC).date()
    form = UsageForm(
        {
            "since": request.GET.get("since", today.replace(day=1).isoformat()),
            "until": request.GET.get("until", today.isoformat()),
            "slice": Slice.DAY.value,
            "by": Group.MODEL.value,
        },
        role=OrganizationRole.BUYER,
    )
    if not form.is_valid():
        raise BadRequest("since, until: days like 2026-03-01, at most 400 apart")
    return FocusRange(
        since=_midnight(form.cleaned_data["since"]), until=_midnight(form.cleaned_data["until"]) + _DAY
    )


def _focus_file(rows: Any, wanted: FocusRange) -> HttpResponseBase:
    last = wanted.until - _DAY
    name = f"focus-{wanted.since:%Y%m%d}-{last:%Y%m%d}"
    return export(rows, columns=COLUMNS, form="csv", filename=name)
