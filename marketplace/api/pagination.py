"""Lists by id, newest first: `{"items": [...], "next": cursor or null}`. Ids carry their time, so pages never shift."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeVar
from uuid import UUID

from rest_framework.exceptions import ErrorDetail, ValidationError
from rest_framework.pagination import BasePagination
from rest_framework.request import Request
from rest_framework.response import Response

PAGE_SIZE: Final = 50
MOST_PAGE_SIZE: Final = 200

Row = TypeVar("Row")


class Window(NamedTuple):
    """What the client asked for: `size` rows whose id lies below `before`."""

    before: UUID | None
    size: int


def page_size_of(request: Request) -> int:
    """Reads `page_size`. Raises ValidationError naming it."""
    text = request.query_params.get("page_size", str(PAGE_SIZE))
    # The length first: int() of a megabyte of digits is work for nothing.
    if len(text) > 3 or not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= MOST_PAGE_SIZE:
        detail = ErrorDetail(f"must be a whole number between 1 and {MOST_PAGE_SIZE}", code="invalid")
        raise ValidationError({"page_size": [detail]})
    return int(text)


def window_of(request: Request) -> Window:
    """Reads `cursor` and `page_size`. Raises ValidationError naming the one at fault."""
    size = page_size_of(request)
    cursor = request.query_params.get("cursor")
    if not cursor:
        return Window(None, size)
    try:
        before = UUID(hex=cursor) if len(cursor) == 32 else None
    except ValueError:
        before = None
    if before is None:
        raise ValidationError({"cursor": [ErrorDetail("is not a cursor of this list", code="invalid")]})
    return Window(before, size)


def page_of(
    rows: Sequence[Row], window: Window, id_of: Callable[[Row], UUID]
) -> tuple[list[Row], str | None]:
    """Of `size + 1` rows fetched: those to show, and the cursor that goes on after them."""
    shown = list(rows[: window.size])
    return shown, id_of(shown[-1]).hex if len(rows) > window.size else None


class CursorPagination(BasePagination):
    """For querysets of models whose primary key is a UUIDv7 (or derived from one)."""

    next_cursor: str | None = None

    def paginate_queryset(self, queryset: Any, request: Request, view: Any = None) -> list[Any]:
        window = window_of(request)
        rows = queryset.order_by("-pk")
        if window.before is not None:
            rows = rows.filter(pk__lt=window.before)
        fetched: list[Any] = list(rows[: window.size + 1])
        shown, self.next_cursor = page_of(fetched, window, lambda row: row.pk)
        return shown

    def get_paginated_response(self, data: Any) -> Response:
        return Response({"items": data, "next": self.next_cursor})

    def get_paginated_response_schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        return {
            "type": "object",
            "required": ["items", "next"],
            "properties": {
                "items": schema,
                "next": {"type": "string", "nullable": True, "description": "pass it as `cursor`"},
            },
        }

    def get_schema_operation_parameters(self, view: Any) -> list[dict[str, Any]]:
        return [
            {
                "name": "cursor",
                "in": "query",
                "required": False,
                "description": "`next` of the page before.",
                "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
            },
            {
                "name": "page_size",
                "in": "query",
                "required": False,
                "schema": {
                    "type": "integer",
                    "minimum": 1,
                    "maximum": MOST_PAGE_SIZE,
                    "default": PAGE_SIZE,
                },
            },
        ]
