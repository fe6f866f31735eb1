"""What is kept of unprovable usage: its numbers, bounded, and never a word of anybody's text."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pricing.normalising import MAX_EVIDENCE_BYTES, Unprovable, adapt, evidence_of
from tests.pricing.test_wire import REFUSED, raw_usage_of

SECRET = "my diagnosis is"


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_evidence_of_a_refused_sample_leads_to_the_same_refusal(name: str) -> None:
    source = name.partition("/")[0]
    kept = evidence_of(raw_usage_of(name))
    with pytest.raises(Unprovable) as refusal:
        adapt(source, msgspec.json.decode(kept))
    assert refusal.value.field == REFUSED[name]


def test_numbers_stay_and_texts_do_not() -> None:
    raw = {
        "prompt_tokens": "1e3",
        "total_tokens": -7,
        "ratio": 0.5,
        "huge": 10**40,
        "nothing": None,
        "flag": True,
        "output_ids": [5, 6, 7],
        "message": {"content": SECRET, SECRET: 1},
        "promptTokensDetails": [
            {"modality": "IMAGE", "tokenCount": 3},
            {"modality": SECRET, "tokenCount": 4},
        ],
        "endless": float("inf"),
    }
    assert msgspec.json.decode(evidence_of(raw)) == {
        "prompt_tokens": "<text>",
        "total_tokens": -7,
        "ratio": 0.5,
        "huge": "<int beyond 2**63>",
        "nothing": None,
        "flag": True,
        "output_ids": "<list>",
        "message": {"content": "<text>", "<name>": 1},
        "promptTokensDetails": [
            {"modality": "IMAGE", "tokenCount": 3},
            {"modality": "<text>", "tokenCount": 4},
        ],
        "endless": "<inf>",
    }


def test_what_does_not_fit_is_cut_and_says_so() -> None:
    kept = evidence_of({f"name_{number}": number for number in range(1_000)})
    assert len(kept) <= MAX_EVIDENCE_BYTES
    shown = msgspec.json.decode(kept)
    assert shown.pop("<cut>") is True
    assert 40 < len(shown) < 1_000
    assert shown["name_0"] == 0


@pytest.mark.parametrize("size", range(900, 1_030))
def test_wherever_the_cut_falls_the_rest_can_be_read(size: int) -> None:
    for last in ({"a": 1}, [{"a": 1}, {"b": 2}, {}], 7, "text"):
        raw = {"n" * 40 + str(number): 12_345 for number in range(size // 52)} | {
            "n" * (size % 52): 1,
            "z": last,
        }
        kept = evidence_of(raw)
        assert len(kept) <= MAX_EVIDENCE_BYTES
        shown = msgspec.json.decode(kept)
        assert (shown.get("z") == msgspec.json.decode(evidence_of(last))) is not shown.get("<cut>", False)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=60,
)


@settings(max_examples=200, deadline=None)
@given(_JSON)
def test_evidence_of_anything_is_small_and_readable(raw: Any) -> None:
    kept = evidence_of(raw)
    assert len(kept.encode()) <= MAX_EVIDENCE_BYTES
    msgspec.json.decode(kept)


@settings(max_examples=100, deadline=None)
@given(_JSON, st.sampled_from(["value", "name", "item"]))
def test_no_text_survives_wherever_it_hides(raw: Any, place: str) -> None:
    hidden: Any = {
        "value": {"a": SECRET, "b": raw},
        "name": {SECRET: raw},
        "item": [{"a": [SECRET]}, SECRET],
    }[place]
    assert SECRET not in evidence_of(hidden)
