"""Kappa: how many o200k tokens one token of another tokenizer carries, over a corpus. Pure.

A corpus is a mix of content classes (a language, or code). Kappa of the mix is the quotient of its totals, each
class counted as often as its weight says; the spread is over the classes, each for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from pricing.units import PPM, Ppm, div_ceil, div_half_even

MAX_WEIGHT: Final = 1_000_000
Count = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class CorpusClass:
    """Texts of one kind. `digest` is the SHA-256 (hex) of the file they came from."""

    name: str
    texts: tuple[str, ...]
    digest: str


@dataclass(frozen=True, slots=True)
class ClassCounts:
    """The same texts, counted by both tokenizers."""

    name: str
    weight: int
    texts: int
    utf8_bytes: int
    native_tokens: int
    o200k_tokens: int

    @property
    def kappa_ppm(self) -> Ppm:
        return Ppm(div_half_even(PPM * self.o200k_tokens, self.native_tokens))


@dataclass(frozen=True, slots=True)
class Spread:
    """Kappa of the classes, in ppm, by nearest rank: each figure is the kappa of some class."""

    least_ppm: int
    p10_ppm: int
    median_ppm: int
    p90_ppm: int
    most_ppm: int


def measure(
    classes: Sequence[CorpusClass], *, native: Count, reference: Count, weights: Mapping[str, int]
) -> list[ClassCounts]:
    """Every class, counted text by text. A class without a weight has 1."""
    return [
        ClassCounts(
            name=one.name,
            weight=weights.get(one.name, 1),
            texts=len(one.texts),
            utf8_bytes=sum(len(text.encode()) for text in one.texts),
            native_tokens=sum(map(native, one.texts)),
            o200k_tokens=sum(map(reference, one.texts)),
        )
        for one in classes
    ]


def kappa_of(classes: Sequence[ClassCounts]) -> Ppm:
    """o200k tokens per native token of the whole mix, rounded once, half to even."""
    o200k = sum(one.weight * one.o200k_tokens for one in classes)
    native = sum(one.weight * one.native_tokens for one in classes)
    return Ppm(div_half_even(PPM * o200k, native))


def spread_of(classes: Sequence[ClassCounts]) -> Spread:
    ranked = sorted(one.kappa_ppm for one in classes)

    def at(percent: int) -> int:
        return ranked[max(1, div_ceil(percent * len(ranked), 100)) - 1]

    return Spread(ranked[0], at(10), at(50), at(90), ranked[-1])


def corpus_digest(classes: Sequence[CorpusClass], weights: Mapping[str, int]) -> str:
    """SHA-256 (hex) over name, weight and digest of every class, by name. Another mix is another corpus."""
    lines = sorted(f"{one.name} {weights.get(one.name, 1)} {one.digest}\n" for one in classes)
    return sha256("".join(lines).encode()).hexdigest()
