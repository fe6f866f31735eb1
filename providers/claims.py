"""Checks of what providers and their agents claim: documents, texts, figures. Pure: no database, no clock."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final, Self

from marketplace.errors import InvalidInput

MAX_DOCUMENT_BYTES: Final = 16_384
MAX_DOCUMENT_DEPTH: Final = 6
MAX_TOKENS: Final = 10**12
MAX_COUNT: Final = 10**6
MAX_DURATION_MS: Final = 3_600_000
# A thousand million standard tokens a second; an hour of it still fits a bigint of numerator.
MAX_DEPENDABLE_NUMERATOR_PER_S: Final = 10**15
MAX_COUNTER: Final = 2**53


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchFigures:
    """What a bench counted: `input_tokens` and `output_tokens` of all requests together in `duration_ms`."""

    duration_ms: int
    requests: int
    concurrency: int
    input_tokens: int
    output_tokens: int
    first_byte_p50_ms: int
    first_byte_p95_ms: int

    def __post_init__(self) -> None:
        """Raises InvalidInput naming the figure."""
        check_integer("duration_ms", self.duration_ms, 1, MAX_DURATION_MS)
        check_integer("requests", self.requests, 1, MAX_COUNT)
        check_integer("concurrency", self.concurrency, 1, MAX_COUNT)
        check_integer("input_tokens", self.input_tokens, 0, MAX_TOKENS)
        check_integer("output_tokens", self.output_tokens, 1, MAX_TOKENS)
        check_integer("first_byte_p50_ms", self.first_byte_p50_ms, 0, MAX_DURATION_MS)
        check_integer("first_byte_p95_ms", self.first_byte_p95_ms, self.first_byte_p50_ms, MAX_DURATION_MS)

    @classmethod
    def of(cls, figures: Self | Mapping[str, int]) -> Self:
        if isinstance(figures, cls):
            return figures
        assert not isinstance(figures, BenchFigures)
        names = [field.name for field in fields(cls)]
        for name in figures:
            if name not in names:
                raise InvalidInput("There is no such figure.", field=str(name)[:64])
        for name in names:
            if name not in figures:
                raise InvalidInput("This figure is required.", field=name)
        return cls(**figures)


def check_integer(field: str, value: object, least: int, most: int) -> None:
    if type(value) is not int:
        raise InvalidInput("It must be an integer.", field=field)
    if not least <= value <= most:
        raise InvalidInput(f"It must be from {least} to {most}.", field=field)


def check_text(field: str, value: object, *, most: int, required: bool = True) -> str:
    """The text without blanks at its ends: printable, at most so many characters."""
    if not isinstance(value, str):
        raise InvalidInput("It must be text.", field=field)
    text = value.strip()
    if required and not text:
        raise InvalidInput("It must not be empty.", field=field)
    if len(text) > most:
        raise InvalidInput(f"It must not be longer than {most} characters.", field=field)
    if not text.isprintable():
        raise InvalidInput("It must be printable text.", field=field)
    return text


def check_document(field: str, value: object) -> dict[str, object]:
    """A JSON object that PostgreSQL can keep: bounded in bytes and depth, no NUL, no lone surrogate, no NaN."""
    if not isinstance(value, dict):
        raise InvalidInput("It must be an object.", field=field)
    _check_depth(field, value, MAX_DOCUMENT_DEPTH)
    try:
        encoded = json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError):
        raise InvalidInput("It holds something that is not JSON.", field=field) from None
    if len(encoded) > MAX_DOCUMENT_BYTES:
        raise InvalidInput(f"It must not be larger than {MAX_DOCUMENT_BYTES} bytes.", field=field)
    if b"\\u0000" in encoded:
        raise InvalidInput("It holds a NUL character.", field=field)
    return value


def _check_depth(field: str, value: object, left: int) -> None:
    if not isinstance(value, (dict, list)):
        return
    if left == 0:
        raise InvalidInput(f"It must not be nested deeper than {MAX_DOCUMENT_DEPTH}.", field=field)
    for item in value.values() if isinstance(value, dict) else value:
        _check_depth(field, item, left - 1)
