"""Long lists, newest first, by keyset: a page costs the same at ten rows and at ten million."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar
from uuid import UUID

from django.core.exceptions import BadRequest
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest

Row = TypeVar("Row", bound=Model)
PAGE_SIZE = 25


@dataclass(frozen=True)
class Page(Generic[Row]):
    """`older` is the cursor of the next page, None on the last one; `is_first` tells whether newer rows exist."""

    rows: list[Row]
    older: UUID | None
    is_first: bool


def page_of(rows: QuerySet[Row], request: HttpRequest, *, by: str | None = None) -> Page[Row]:
    """The page below `?before=<id>` of a queryset that is ordered by `-id`, or by `-by` and then `-id`.

    A cursor that is none, or of a row that is not in the queryset, is a bad request.
    """
    size = PAGE_SIZE
    text = request.GET.get("before")
    if text is not None:
        rows = _below(rows, cursor_of(text), by)
    shown = list(rows[: size + 1])
    older: UUID | None = shown[size - 1].pk if len(shown) > size else None
    return Page(shown[:size], older, text is None)


def _below(rows: QuerySet[Row], cursor: UUID, by: str | None) -> QuerySet[Row]:
    if by is None:
        return rows.filter(pk__lt=cursor)
    value = rows.filter(pk=cursor).values_list(by, flat=True).first()
    if value is None:
        raise BadRequest("before: this is not a cursor of the list")
    return rows.filter(Q(**{f"{by}__lt": value}) | Q(**{by: value, "pk__lt": cursor}))


def cursor_of(text: str) -> UUID:
    """Raises BadRequest."""
    try:
        if len(text) != 36:
            raise ValueError
        return UUID(text)
    except ValueError:
        raise BadRequest("before: this is not a cursor of the list") from None
