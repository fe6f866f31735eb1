"""What every adapter shares: the result, the refusal, and the strict reading of counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from pricing.units import INPUT_BUCKETS, OUTPUT_BUCKETS, Bucket

MAX_COUNT: Final = 2**53  # Beyond it JSON readers disagree about the value.

Raw = Mapping[str, object]
State = Literal["reported", "zero", "not_reported"]


class Unprovable(Exception):
    """The usage cannot be turned into disjoint buckets with certainty: quarantine it with its raw form,
    never guess.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class BucketCounts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Native tokens of one request, each in exactly one bucket; None where the source does not report the
    bucket.

    Tokens of a bucket that is not reported are inside its neighbour: unreported cache reads in `uncached_input`,
    unreported reasoning in `output`.
    """

    uncached_input: int | None = None
    cache_read: int | None = None
    cache_write: int | None = None
    output: int | None = None
    reasoning: int | None = None
    image_input: int | None = None
    audio_input: int | None = None
    audio_output: int | None = None

    def of(self, bucket: Bucket) -> int | None:
        count: int | None = getattr(self, bucket.value)
        return count

    def state(self, bucket: Bucket) -> State:
        count = self.of(bucket)
        if count is None:
            return "not_reported"
        return "reported" if count else "zero"

    def reported(self) -> dict[Bucket, int]:
        """The counts that rating needs: every bucket the source spoke of."""
        return {bucket: count for bucket in Bucket if (count := self.of(bucket)) is not None}

    @property
    def input_tokens(self) -> int:
        return sum(self.of(bucket) or 0 for bucket in INPUT_BUCKETS)

    @property
    def output_tokens(self) -> int:
        return sum(self.of(bucket) or 0 for bucket in OUTPUT_BUCKETS)

    @property
    def total_tokens(self) -> int:
        return self.input_tokens + self.output_tokens


def read_count(raw: Raw, name: str, *, parent: str = "") -> int | None:
    """A count, or None when the field is absent or null. Raises Unprovable naming the field for anything
    else.
    """
    value = raw.get(name)
    if value is None:
        return None
    field = f"{parent}.{name}" if parent else name
    if isinstance(value, bool) or not isinstance(value, int):
        raise Unprovable(field, f"must be an integer, not {type(value).__name__}")
    if value < 0:
        raise Unprovable(field, "must not be negative")
    if value > MAX_COUNT:
        raise Unprovable(field, "is greater than 2**53")
    return value


def require_count(raw: Raw, name: str, *, parent: str = "") -> int:
    count = read_count(raw, name, parent=parent)
    if count is None:
        raise Unprovable(f"{parent}.{name}" if parent else name, "is not reported")
    return count


def read_details(raw: Raw, name: str, *, parent: str = "") -> Raw:
    """A nested object, empty when absent or null. Raises Unprovable when it is something else."""
    value = raw.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        field = f"{parent}.{name}" if parent else name
        raise Unprovable(field, f"must be an object, not {type(value).__name__}")
    return value


def read_either(*places: tuple[Raw, str, str]) -> int | None:
    """One count that may stand in several places `(object, field, parent)`; where it does, they must agree."""
    found: int | None = None
    for raw, name, parent in places:
        count = read_count(raw, name, parent=parent)
        if count is None:
            continue
        if found is not None and found != count:
            raise Unprovable(f"{parent}.{name}" if parent else name, f"is {count} here and {found} elsewhere")
        found = count
    return found


def expect(field: str, found: int, expected: int, meaning: str) -> None:
    """The proof step: what was reported must equal what follows from the rest."""
    if found != expected:
        raise Unprovable(field, f"is {found}, but {meaning} is {expected}")


def refuse_tokens(raw: Raw, name: str, *, parent: str, kind: str) -> None:
    """Raises Unprovable when tokens were counted for which the market has no bucket."""
    if read_count(raw, name, parent=parent):
        raise Unprovable(f"{parent}.{name}" if parent else name, f"there is no bucket for {kind}")


def take(parent_field: str, whole: int, parts: Mapping[str, int | None]) -> int:
    """What is left of `whole` after its reported parts. Raises Unprovable when the parts exceed the whole."""
    left = whole - sum(part or 0 for part in parts.values())
    if left < 0:
        named = " + ".join(name for name, part in parts.items() if part)
        raise Unprovable(parent_field, f"is {whole}, less than its parts {named}")
    return left


def split_input(
    field: str,
    whole: int,
    *,
    cache_read: int | None,
    cache_write: int | None,
    image: int | None,
    audio: int | None,
    cache_write_requested: bool,
    apart: bool = False,
) -> dict[str, int | None]:
    """Disjoint input buckets of a whole that contains all of them. `field` is the name of the whole.

    Cache writes count as such only where the buyer asked for them; else they stay in uncached input.
    Cached tokens beside image or audio tokens may be the same tokens, so that is refused unless the source told
    them `apart`: then `image` and `audio` are without what was cached.
    """
    if not apart and (cache_read or (cache_write and cache_write_requested)) and (image or audio):
        raise Unprovable(
            field, "cached tokens may overlap image or audio tokens, which the source does not tell apart"
        )
    if cache_write is not None:
        take(field, whole, {"cache_read": cache_read, "cache_write": cache_write})
    written = cache_write if cache_write_requested or cache_write is None else 0
    parts = {"cache_read": cache_read, "cache_write": written, "image_input": image, "audio_input": audio}
    return {"uncached_input": take(field, whole, parts), **parts}
