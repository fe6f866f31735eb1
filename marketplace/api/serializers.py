"""Strict input: unknown names refused, no value converted from another kind, sizes bounded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from django.utils.dateparse import parse_datetime
from rest_framework import serializers
from rest_framework.exceptions import ErrorDetail, ValidationError

from marketplace.api.parsing import printable

# A thousand million currency units: any sum of them over a year still fits 64 bits with room to spare.
MAX_MICROS: Final = 10**15
MAX_LOTS: Final = 10**9
PPM: Final = 10**6
# Far enough from both ends of what a datetime can be, that adding a term or a period to it never overflows.
_YEARS: Final = range(1970, 3000)
_UUID_FORM: Final = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII
)


class StrictSerializer(serializers.Serializer[Any]):
    """A body with exactly the declared names."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, Mapping):
            writable = {name for name, field in self.fields.items() if not field.read_only}
            unknown = sorted(printable(str(name)) for name in data if name not in writable)
            if unknown:
                detail = [ErrorDetail("this field is not known here", code="unknown_field")]
                raise ValidationError(dict.fromkeys(unknown[:10], detail))
        return super().to_internal_value(data)


class StrictIntegerField(serializers.IntegerField):
    """A JSON integer: not true, not 1.0, not "1"."""

    default_error_messages = {"invalid": "must be a whole number"}

    def to_internal_value(self, data: Any) -> int:
        if type(data) is not int:
            self.fail("invalid")
        return data


class MicrosField(StrictIntegerField):
    """An amount in micros of the market's currency; at least 1 unless said otherwise."""

    def __init__(self, *, min_value: int = 1, max_value: int = MAX_MICROS, **kwargs: Any) -> None:
        super().__init__(min_value=min_value, max_value=max_value, **kwargs)


class MicrosPerMtokField(MicrosField):
    """A rate, in micros per million standard tokens."""


class LotsField(StrictIntegerField):
    """A quantity in lots of 1,000 standard tokens."""

    def __init__(self, *, min_value: int = 1, max_value: int = MAX_LOTS, **kwargs: Any) -> None:
        super().__init__(min_value=min_value, max_value=max_value, **kwargs)


class PpmField(StrictIntegerField):
    """A share in parts per million."""

    def __init__(self, *, min_value: int = 0, max_value: int = PPM, **kwargs: Any) -> None:
        super().__init__(min_value=min_value, max_value=max_value, **kwargs)


class UuidField(serializers.UUIDField):
    """The 36 characters of a UUID, nothing else that Python would take for one."""

    def to_internal_value(self, data: Any) -> UUID:
        if not isinstance(data, str) or not _UUID_FORM.fullmatch(data):
            self.fail("invalid", value=printable(str(data)))
        return UUID(data)


class TextField(serializers.CharField):
    """Text of a bounded length; numbers and booleans are not text."""

    def __init__(self, *, max_length: int, **kwargs: Any) -> None:
        super().__init__(max_length=max_length, **kwargs)

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return super().to_internal_value(data)


class StrictBooleanField(serializers.BooleanField):
    """true or false; not "yes", not 1."""

    def to_internal_value(self, data: Any) -> bool:
        if not isinstance(data, bool):
            self.fail("invalid", input=printable(str(data)))
        return data


class StrictChoiceField(serializers.ChoiceField):
    """One of the named words."""

    def to_internal_value(self, data: Any) -> Any:
        if not isinstance(data, str):
            self.fail("invalid_choice", input=printable(str(data)))
        if data not in self.choices:
            self.fail("invalid_choice", input=printable(data))
        return data


class TimestampField(serializers.DateTimeField):
    """RFC 3339 with an offset, converted to UTC; a time without an offset is refused, not guessed."""

    default_error_messages = {
        "invalid": "must be a time with an offset, like 2026-03-10T12:00:00Z",
        "out_of_range": "must lie between the years 1970 and 2999",
    }

    def to_internal_value(self, value: Any) -> datetime:
        parsed = None
        if isinstance(value, str) and "T" in value and len(value) <= 40:
            try:
                parsed = parse_datetime(value)
            except ValueError:
                parsed = None
        if parsed is None or parsed.tzinfo is None:
            self.fail("invalid", format="")
        try:
            moment = parsed.astimezone(UTC)
        except OverflowError:
            self.fail("invalid", format="")
        if moment.year not in _YEARS:
            self.fail("out_of_range")
        return moment
