"""Whole results as files, streamed: CSV (RFC 4180) for spreadsheets, NDJSON for programs.

Spreadsheets run cells that look like formulas. Text that begins like one gets an apostrophe in front; numbers, also
negative ones, stay numbers.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal
from uuid import UUID

from django.http import StreamingHttpResponse
from rest_framework.exceptions import ErrorDetail, ValidationError
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request

Format = Literal["json", "csv", "ndjson"]
MEDIA_TYPES: Final[Mapping[Format, str]] = {
    "json": "application/json",
    "csv": "text/csv",
    "ndjson": "application/x-ndjson",
}
# Also full-width: input methods of East Asian languages write these, and spreadsheets read them as the narrow ones.
_FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
# What is sent at once: small enough for flat memory, large enough not to pay for every row.
_CHUNK_ROWS: Final = 200


class Exact(str):
    """A number in exact decimal notation: what a float could not hold, and no text."""


Cell = Exact | str | int | bool | datetime | UUID | Mapping[str, Any] | None
Row = Mapping[str, Cell]


class ExportNegotiation(DefaultContentNegotiation):
    """Lets `Accept: text/csv` and `application/x-ndjson` through; problems are JSON as everywhere."""

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        choices = list(renderers)
        if _accepted(request) in ("csv", "ndjson"):
            return choices[0], str(choices[0].media_type)
        chosen: tuple[BaseRenderer, str] = super().select_renderer(request, choices, format_suffix)
        return chosen


def format_of(request: Request) -> Format:
    """What was asked for: `?format=` before `Accept`, else JSON. Raises ValidationError naming `format`."""
    asked = request.query_params.get("format")
    if asked is None:
        return _accepted(request)
    for name in MEDIA_TYPES:
        if asked == name:
            return name
    raise ValidationError({"format": [ErrorDetail("must be json, csv or ndjson", code="invalid_choice")]})


def export(
    rows: Iterable[Row], *, columns: Sequence[str], form: Format, filename: str
) -> StreamingHttpResponse:
    """The rows as a download, made while it is sent. An error on the way ends the connection short of its end."""
    assert form != "json", "pages are JSON"
    lines = _csv_lines(rows, columns) if form == "csv" else _ndjson_lines(rows)
    content_type = "text/csv; charset=utf-8; header=present" if form == "csv" else MEDIA_TYPES[form]
    response = StreamingHttpResponse(_chunks(lines), content_type=content_type)
    response["Content-Disposition"] = f'attachment; filename="{filename}.{form}"'
    return response


def text_cell(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(_FORMULA_STARTS) else text


def instant(at: datetime) -> str:
    """RFC 3339 in UTC, as all answers have it."""
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _accepted(request: Request) -> Format:
    best: tuple[float, Format] = (0.0, "json")
    for part in request.META.get("HTTP_ACCEPT", "*/*").split(",")[:20]:
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    weight = float(parameter[2:])
                except ValueError:
                    weight = 0.0
        for name, media_type in MEDIA_TYPES.items():
            if media == media_type and weight > best[0]:
                best = (weight, name)
    return best[1]


def _csv_lines(rows: Iterable[Row], columns: Sequence[str]) -> Iterator[str]:
    line = _Line()
    writer = csv.writer(line, lineterminator="\r\n")
    writer.writerow(columns)
    yield line.text
    for row in rows:
        writer.writerow([_csv_cell(row[column]) for column in columns])
        yield line.text


def _csv_cell(cell: Cell) -> str | int:
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, Exact | int):
        return cell
    if isinstance(cell, str):
        return text_cell(cell)
    return text_cell(str(_json_value(cell)) if not isinstance(cell, Mapping) else _json(cell))


def _ndjson_lines(rows: Iterable[Row]) -> Iterator[str]:
    for row in rows:
        yield f"{_json({name: _json_value(cell) for name, cell in row.items()})}\n"


def _json_value(cell: Cell) -> Any:
    if isinstance(cell, datetime):
        return instant(cell)
    return str(cell) if isinstance(cell, UUID) else cell


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _chunks(lines: Iterator[str]) -> Iterator[bytes]:
    waiting: list[str] = []
    for line in lines:
        waiting.append(line)
        if len(waiting) == _CHUNK_ROWS:
            yield "".join(waiting).encode()
            waiting.clear()
    if waiting:
        yield "".join(waiting).encode()


class _Line:
    """What the csv writer wrote last."""

    text = ""

    def write(self, text: str) -> int:
        self.text = text
        return len(text)
