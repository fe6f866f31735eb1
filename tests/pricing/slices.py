"""One usage and random ways to cut it up: into events, delivery periods, batches, workers. Integers and a seed."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Final, TypeVar
from uuid import UUID

from pricing.units import Bucket

# How many random splits each property is tried on: a few in `make test`, 100,000 at night (CONTRIBUTING).
SPLITS: Final = int(os.environ.get("SLICING_SPLITS", "500"))

HOUR: Final = datetime(2026, 3, 10, 12, tzinfo=UTC)
DELIVERY_PERIOD: Final = timedelta(minutes=5)
PERIODS_PER_HOUR: Final = 12
OFFERINGS: Final = (UUID(int=3), UUID(int=1), UUID(int=2))
# Micros per Mtok. At 250,000 ppm a token of the second one costs exactly half a micro, of the third a hair more.
RATES: Final = (600_000, 2_000_000, 2_000_001, 1, 0, 333_333, 999_999, 123_456_789)
PPM: Final = (250_000, 1_000_000, 1, 25_000, 312_500, 999_999, 4_000_000, 9_600_000)

Item = TypeVar("Item")
Tokens = Mapping[Bucket, int]


@dataclass(frozen=True, slots=True)
class Draw:
    """What one offering supplied to one request: native tokens by bucket."""

    offering_id: UUID
    tokens: Tokens


@dataclass(frozen=True, slots=True)
class Slice:
    """One event: a part of a draw. Its id stands for the event's; `period` counts delivery periods of the hour."""

    id: int
    offering_id: UUID
    period: int
    tokens: Tokens


@dataclass(frozen=True, slots=True)
class Usage:
    """What a contract used of one rate in an hour, and the weights and money it is measured with."""

    standard_ppm: Mapping[Bucket, int]
    rate: int
    fee_ppm: int
    draws: Sequence[Draw]

    @property
    def native(self) -> dict[tuple[UUID, Bucket], int]:
        """Native tokens by offering and bucket: the truth that no slicing may change."""
        sums: Counter[tuple[UUID, Bucket]] = Counter()
        for draw in self.draws:
            for bucket, tokens in draw.tokens.items():
                sums[draw.offering_id, bucket] += tokens
        return dict(sums)


def random_usage(random: Random, *, most_tokens: int = 5_000_000) -> Usage:
    """Half of the time so few tokens that each can be an event of its own, at a rate that rounds."""
    standard_ppm = {bucket: random.choice(PPM) for bucket in Bucket}
    few = random.random() < 0.5
    draws = [
        Draw(
            random.choice(OFFERINGS),
            {
                bucket: random.randint(0, 12) if few else random.randint(0, most_tokens)
                for bucket in random.sample(list(Bucket), random.randint(1, 4))
            },
        )
        for _ in range(random.randint(1, 4))
    ]
    return Usage(standard_ppm, random.choice(RATES), random.choice((0, 50_000, 333_333)), draws)


def cut(random: Random, total: int) -> list[int]:
    """Parts of `total`, none negative: whole, one by one, a hair and the rest, or anywhere."""
    style = random.randrange(4)
    if style == 0 or total == 0:
        return [total]
    if style == 1 and total <= 40:
        return [1] * total
    if style == 2:
        return [1, total - 1]
    marks = sorted(random.randint(0, total) for _ in range(random.randint(1, 5)))
    return [end - start for start, end in zip([0, *marks], [*marks, total], strict=True)]


def slice_usage(random: Random, usage: Usage, *, first_id: int = 0) -> list[Slice]:
    """The usage as events: each bucket of a draw is cut by itself, and parts meet in an event or stand alone."""
    slices: list[Slice] = []
    for draw in usage.draws:
        events: list[dict[Bucket, int]] = []
        for bucket, tokens in draw.tokens.items():
            for part in cut(random, tokens):
                host = random.choice(events) if events and random.random() < 0.6 else None
                if host is not None and bucket not in host:
                    host[bucket] = part
                else:
                    events.append({bucket: part})
        slices += [
            Slice(first_id + len(slices) + place, draw.offering_id, random.randrange(PERIODS_PER_HOUR), event)
            for place, event in enumerate(events)
        ]
    return slices


def deal(random: Random, items: Iterable[Item], most: int) -> list[list[Item]]:
    """The items in any order in 1 to `most` heaps of any size, none empty."""
    shuffled = list(items)
    random.shuffle(shuffled)
    heaps: list[list[Item]] = [[] for _ in range(random.randint(1, most))]
    for item in shuffled:
        random.choice(heaps).append(item)
    return [heap for heap in heaps if heap]


def with_repeats(random: Random, slices: Sequence[Slice]) -> list[Slice]:
    """The events as a meter sends them that is not sure what has arrived: some of them again."""
    return [*slices, *random.sample(slices, random.randint(0, len(slices) // 2))]


def seeds() -> Iterator[int]:
    return iter(range(SPLITS))
