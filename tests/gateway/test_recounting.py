"""The gateway's recount: exactly the o200k tokens of what was delivered, whatever parts it came in, or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketplace.clock import wall_now
from marketplace.contracts.holds import Opened
from marketplace.gateway.recounting import MAX_PENDING, PIECE, Recount, TextCount
from marketplace.gateway.store import GradeVersion
from marketplace.gateway.usage import UsageMeter
from metering.usage import Finish, decode_event
from pricing.tokenizers import count_o200k, last_cut
from pricing.units import Bucket

# What o200k's expression looks at: white space of all kinds, letters with and without case, marks, digits,
# apostrophes, slashes, punctuation of two scripts, and what needs four bytes.
AWKWARD = st.text(
    alphabet="aBé你好かー'’sTl  \n\r\t//.,，。、！？：；0123\u0301\u200b\u00a0\u3000\x1c\x85😀عहि()-_<|>",
    max_size=60,
)
PROSE = (
    "The meter at the gateway counts what was delivered; it doesn't settle, it bears witness.\n"
    "Ein Zähler am Tor: 12,345 Token, gezählt um 07:30 Uhr.\n\n    def f(x):\n        return x // 2\n"
    "每个令牌都在两处计量，然后结算。两处的读数应当一致！\nトークンは二か所で計量されます。\n"
) * 40


def chat(delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": None}


def recounted(choices: Sequence[dict[str, Any]], *, streamed: bool = True, reasoning: int = 0) -> int | None:
    recount = Recount()
    for choice in choices:
        recount.take(choice, streamed=streamed)
        recount.count_some()
    return recount.tokens(native_reasoning_tokens=reasoning)


# The first example waits for the vocabulary.
@settings(deadline=None)
@given(AWKWARD, AWKWARD)
def test_a_cut_changes_no_token_whatever_follows(text: str, more: str) -> None:
    cut = last_cut(text)
    if cut:
        whole = text + more
        assert count_o200k(whole[:cut]) + count_o200k(whole[cut:]) == count_o200k(whole)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 400), st.integers(1, 4)), min_size=1, max_size=30))
def test_parts_of_any_size_add_up_to_the_whole(cuts: list[tuple[int, int]]) -> None:
    counted, at = TextCount(), 0
    for size, times in cuts:
        for _ in range(times):
            assert counted.add(PROSE[at : at + size])
            counted.count_what_is_due()
            at += size
    assert counted.count_all() == count_o200k(PROSE[:at])


def test_a_long_text_is_counted_on_the_way_and_not_remembered() -> None:
    counted = TextCount()
    for at in range(0, len(PROSE), 5):
        assert counted.add(PROSE[at : at + 5])
        counted.count_what_is_due()
        assert sum(map(len, counted._parts)) <= PIECE + 200
    before = counted.tokens
    assert 0 < count_o200k(PROSE) - before < PIECE
    assert counted.count_all() == count_o200k(PROSE)
    assert counted.count_all() == count_o200k(PROSE), "asked again, it is the same"


def test_every_delivered_text_counts_for_itself() -> None:
    call = {"index": 0, "function": {"name": "rate_of", "arguments": '{"grade": '}}
    choices = [
        chat({"role": "assistant", "content": None}),
        chat({"reasoning_content": "Let me "}),
        chat({"reasoning_content": "see."}),
        chat({"content": "Hello"}),
        chat({"content": " world"}),
        chat({"tool_calls": [call]}),
        chat({"tool_calls": [{"index": 0, "function": {"arguments": '"tiny"}'}}]}),
        chat({"tool_calls": [{"index": 1, "function": {"name": "f", "arguments": "{}"}}]}),
        chat({}),
    ]
    texts = ["Let me see.", "Hello world", "rate_of", '{"grade": "tiny"}', "f", "{}"]
    assert recounted(choices, reasoning=5) == sum(map(count_o200k, texts))
    assert recounted([{"index": 0, "text": "Hello world"}]) == count_o200k("Hello world") == 2


def test_what_cannot_be_known_is_null() -> None:
    assert recounted([]) is None, "an embedding"
    assert recounted([chat({"role": "assistant", "content": ""})]) is None
    answer = chat({"content": "42"})
    assert recounted([answer], reasoning=0) == 1
    assert recounted([answer], reasoning=900) is None, "the engine reasoned and kept it for itself"
    # Under this name it goes through a stream, and not into an answer that is sent as a whole.
    vllm = chat({"reasoning": "Hm."})
    assert recounted([vllm, answer], reasoning=3) == 1 + count_o200k("Hm.")
    assert recounted([vllm, answer], reasoning=3, streamed=False) is None
    refusal = chat({"refusal": "I would rather not."})
    assert recounted([refusal]) == count_o200k("I would rather not.")
    assert recounted([refusal], streamed=False) is None
    both = chat({"reasoning": "Hm.", "reasoning_content": "Hm."})
    assert recounted([both, answer], reasoning=3) == 1 + count_o200k("Hm.")


@pytest.mark.parametrize(
    "delta",
    [
        {"content": 5},
        {"content": ["a"]},
        {"tool_calls": {"index": 0}},
        {"tool_calls": [5]},
        {"tool_calls": [{"index": 0}]},
        {"tool_calls": [{"index": {}, "function": {"name": "f"}}]},
        {
            "tool_calls": [
                {"index": index, "function": {"name": "f", "arguments": "{}"}} for index in range(90)
            ]
        },
        {"function_call": {"name": "f"}},
        {"audio": {"data": "AAAA"}},
        {"content": "x" * (MAX_PENDING + 1)},
    ],
)
def test_a_shape_that_is_not_known_is_null_and_spoils_nothing(delta: dict[str, Any]) -> None:
    assert recounted([chat({"content": "Hello"}), chat(delta), chat({"content": " world"})]) is None


def test_a_text_without_a_place_to_cut_is_bounded() -> None:
    letters = chat({"content": "x" * 1_000})
    assert recounted([letters] * (MAX_PENDING // 1_000)) == count_o200k("x" * MAX_PENDING)
    assert recounted([letters] * (MAX_PENDING // 1_000 + 1)) is None
    # As many tokens as characters can be.
    rare = chat({"content": "\U0001f9ff\U000e0041" * 500})
    assert recounted([rare] * (MAX_PENDING // 1_000)) == count_o200k(
        "\U0001f9ff\U000e0041" * (MAX_PENDING // 2)
    )


def test_the_usage_event_carries_the_recount_and_bills_the_engines_count() -> None:
    grade = GradeVersion(
        id=UUID(int=1),
        version=1,
        currency="USD",
        max_request_s=15,
        max_output_tokens=100,
        template_overhead_tokens=0,
        standard_ppm={Bucket.UNCACHED_INPUT: 1_000_000, Bucket.OUTPUT: 4_000_000},
    )
    meter = UsageMeter(grade=grade, engine="llama.cpp", input_bound_tokens=10, output_bound_tokens=100)
    meter.feed({"usage": {"prompt_tokens": 3, "completion_tokens": 11, "total_tokens": 14}})
    meter.recount.take(chat({"content": "Hello world"}), streamed=True)
    now = wall_now()
    opened = Opened._make([None] * len(Opened._fields))._replace(
        outcome="ok",
        contract_id=UUID(int=2),
        offering_id=UUID(int=3),
        grade_id=grade.id,
        rate_id=UUID(int=4),
        period_start=now,
    )
    event = decode_event(
        meter.event(
            hold_id=UUID(int=5),
            request_id=UUID(int=6),
            attempt=0,
            opened=opened,
            api_key_id=UUID(int=7),
            occurred_at=now,
            finish=Finish.STOP,
            bytes_in=10,
            bytes_out=20,
            first_byte_ms=1,
            duration_ms=2,
        ).strip()
    )
    assert event.recount_o200k == 2
    assert event.buckets == {Bucket.UNCACHED_INPUT: 3, Bucket.OUTPUT: 11}
