"""JSON as strict as RFC 8259 and I-JSON (RFC 7493) allow: what two readers could read differently is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import IO, Any, Final

from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from rest_framework.exceptions import ErrorDetail, ParseError, ValidationError
from rest_framework.parsers import BaseParser

_MOST_DEPTH: Final = 32


class StrictJSONParser(BaseParser):
    """Refuses NaN, Infinity, duplicate names, NUL, lone surrogates, other encodings than UTF-8, and deep nesting."""

    media_type = "application/json"

    def parse(
        self,
        stream: IO[Any],
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> Any:
        most_bytes = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
        body = stream.read(most_bytes + 1)
        if len(body) > most_bytes:
            raise RequestDataTooBig
        return parse_json(body)


def parse_json(body: bytes) -> Any:
    """The value. Raises ParseError (400): not JSON; ValidationError (422): a field that is not text,
    or NaN or Infinity, named."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_Constant, object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise ParseError("The body is not UTF-8.") from error
    except RecursionError as error:
        raise ParseError("The body is nested too deeply.") from error
    except ValueError as error:
        # Python also refuses integers of more than 4,300 digits here.
        raise ParseError(f"The body is not JSON: {str(error)[:120]}.") from error
    _check_value(value, "", 0)
    return value


def printable(name: str) -> str:
    """A name from outside, short and safe to repeat in an answer."""
    return name.encode("ascii", "backslashreplace").decode()[:80].replace("\x00", "\\x00")


class _Constant:
    """NaN or Infinity where a value stands: kept until it can be refused by the name of its field."""

    def __init__(self, name: str) -> None:
        self.name = name


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice in one object")
    return found


def _check_value(value: Any, path: str, depth: int) -> None:
    if depth > _MOST_DEPTH:
        raise ParseError("The body is nested too deeply.")
    if isinstance(value, _Constant):
        detail = ErrorDetail(f"{value.name} is not a number in JSON", code="not_a_number")
        raise ValidationError({path or "non_field_errors": [detail]})
    if isinstance(value, str):
        if not _is_text(value):
            detail = ErrorDetail("must not contain NUL or half of a surrogate pair", code="not_text")
            raise ValidationError({path or "non_field_errors": [detail]})
    elif isinstance(value, dict):
        for name, inner in value.items():
            step = f"{path}.{printable(name)}" if path else printable(name)
            _check_value(name, step, depth + 1)
            _check_value(inner, step, depth + 1)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check_value(inner, f"{path}.{index}" if path else str(index), depth + 1)


def _is_text(value: str) -> bool:
    if "\x00" in value:
        return False
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
