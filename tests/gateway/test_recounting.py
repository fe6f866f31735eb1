"""The gateway's recount: exactly the o200k tokens of what was delivered, whatever parts it came in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marketplace.clock import wall_now
from marketplace.contracts.holds import Opened
from marketplace.gateway.answers import has_output
from marketplace.gateway.recounting import MAX_PENDING, PIECE, Recount, TextCount
from marketplace.gateway.store import GradeVersion
from marketplace.gateway.usage import UsageMeter
from metering.usage import Finish, Flag, UsageEvent, decode_event
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


def recounted(choices: Sequence[dict[str, Any]], *, streamed: bool = True, chat: bool = True) -> int | None:
    recount = Recount()
    for choice in choices:
        recount.take(choice, streamed=streamed, chat=chat)
        while recount.count_some():
            pass
    return recount.tokens()


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
            counted.add(PROSE[at : at + size])
            counted.count_what_is_due()
            at += size
    assert counted.count_all() == count_o200k(PROSE[:at])


def test_a_long_text_is_counted_on_the_way_and_not_remembered() -> None:
    counted = TextCount()
    for at in range(0, len(PROSE), 5):
        counted.add(PROSE[at : at + 5])
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
    assert recounted(choices) == sum(map(count_o200k, texts))
    assert recounted([{"index": 0, "text": "Hello world"}], chat=False) == count_o200k("Hello world") == 2


def test_what_was_not_delivered_is_not_counted() -> None:
    assert recounted([]) is None, "an embedding"
    assert recounted([chat({"role": "assistant", "content": ""})]) is None
    answer = chat({"content": "42"})
    assert recounted([answer]) == 1
    vllm = chat({"reasoning": "Hm."})
    assert recounted([vllm, answer]) == recounted([vllm, answer], streamed=False) == 1 + count_o200k("Hm.")
    both = chat({"reasoning": "Hm.", "reasoning_content": "Hm."})
    assert recounted([both, answer]) == 1 + count_o200k("Hm.")
    for delta, text in (
        ({"refusal": "I would rather not."}, "I would rather not."),
        ({"function_call": {"arguments": "{}"}}, "{}"),
    ):
        assert recounted([chat(delta)]) == count_o200k(text)
        assert recounted([chat(delta)], streamed=False) is None
    # Each interface has its own place for text; what stands in the other's is for nobody.
    stray = answer | {"text": "Nobody reads this."}
    assert recounted([stray]) == 1
    assert recounted([stray], chat=False) == count_o200k("Nobody reads this.")


@pytest.mark.parametrize(
    "delta",
    [
        {"content": 5},
        {"content": ["a"]},
        {"reasoning_content": {"a": 1}},
        {"tool_calls": {"index": 0}},
        {"tool_calls": [5]},
        {"tool_calls": [{"index": 0}]},
        {"function_call": "x"},
        {"function_call": {"name": 7}},
        {"audio": {"data": "AAAA"}},
        7,
        [],
    ],
)
def test_what_is_no_text_does_not_switch_the_recount_off(delta: Any) -> None:
    delivered = [chat({"content": "Hello"}), chat(delta), chat({"content": " world"})]
    assert recounted(delivered) == count_o200k("Hello world") == 2


@pytest.mark.parametrize("number", [90, -1, True, {}, "only", "9" * 5_000, 10**30])
def test_calls_are_counted_whatever_their_number(number: Any) -> None:
    call = chat({"tool_calls": [{"index": number, "function": {"name": "f", "arguments": "{}"}}]})
    assert recounted([call]) == 2
    many = [
        chat({"tool_calls": [{"index": index, "function": {"name": "rate_of "}}]}) for index in range(5_000)
    ]
    recount = Recount()
    for one in many:
        recount.take(one, streamed=True)
    assert len(recount._texts) < 2 * MAX_PENDING // 1_000
    assert recount.tokens() == pytest.approx(5_000 * count_o200k("rate_of "), rel=0.35)


def test_a_text_without_a_place_to_cut_is_bounded_and_counted() -> None:
    letters = chat({"content": "x" * 1_000})
    assert recounted([letters] * (MAX_PENDING // 1_000)) == count_o200k("x" * MAX_PENDING)
    assert recounted([letters] * 120) == pytest.approx(count_o200k("x" * 120_000), abs=4)
    # As many tokens as characters can be.
    rare = chat({"content": "\U0001f9ff\U000e0041" * 500})
    assert recounted([rare] * (MAX_PENDING // 1_000)) == count_o200k(
        "\U0001f9ff\U000e0041" * (MAX_PENDING // 2)
    )
    counted = TextCount()
    for _ in range(300):
        counted.add("x" * 1_000)
        counted.count_what_is_due()
        assert counted._pending <= MAX_PENDING + PIECE + 1_000


def test_a_megabyte_in_one_piece_is_counted_in_turns() -> None:
    text = PROSE * 40
    recount = Recount()
    recount.take(chat({"content": text}), streamed=True)
    turns = 1
    while recount.count_some():
        turns += 1
    assert turns >= len(text) // MAX_PENDING
    assert recount.tokens() == count_o200k(text)


GRADE = GradeVersion(
    id=UUID(int=1),
    version=1,
    currency="USD",
    max_request_s=15,
    max_output_tokens=4_096,
    template_overhead_tokens=0,
    standard_ppm={Bucket.UNCACHED_INPUT: 1_000_000, Bucket.OUTPUT: 4_000_000, Bucket.REASONING: 4_000_000},
    output_kappa_ppm=800_000,
)
TEXT = "The quick brown fox jumps over the lazy dog. " * 20


def metered(deltas: Sequence[dict[str, Any]], usage: dict[str, Any] | None = None) -> UsageMeter:
    meter = UsageMeter(grade=GRADE, engine="vllm", input_bound_tokens=4_000, output_bound_tokens=4_096)
    for delta in deltas:
        choice = chat(delta)
        meter.feed({"choices": [choice]})
        meter.generated_chunks += has_output(choice)
        meter.recount.take(choice, streamed=True)
    if usage is None:
        meter.estimate(10)
    else:
        meter.feed({"choices": [], "usage": usage})
    meter.cut_to_bounds()
    return meter


def event_of(meter: UsageMeter) -> UsageEvent:
    now = wall_now()
    opened = Opened._make([None] * len(Opened._fields))._replace(
        outcome="ok",
        contract_id=UUID(int=2),
        offering_id=UUID(int=3),
        grade_id=GRADE.id,
        rate_id=UUID(int=4),
        period_start=now,
    )
    line = meter.event(
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
    )
    return decode_event(line.strip())


def usage_of(output: int, reasoning: int | None = None) -> dict[str, Any]:
    usage: dict[str, Any] = {
        "prompt_tokens": 3,
        "completion_tokens": output,
        "total_tokens": output + 3,
    }
    if reasoning is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    return usage


def test_the_usage_event_carries_the_recount_and_bills_the_engines_count() -> None:
    event = event_of(metered([{"content": "Hello world"}], usage_of(11)))
    assert event.recount_o200k == 2
    assert event.buckets == {Bucket.UNCACHED_INPUT: 3, Bucket.OUTPUT: 11}
    assert event.flags == ()


@pytest.mark.parametrize(
    ("deltas", "reasoning", "recount", "flags"),
    [
        # One token of hidden reasoning: the recount stands for the other 2,009.
        ([{"content": TEXT}], 1, count_o200k(TEXT), (Flag.HIDDEN_REASONING,)),
        ([{"content": TEXT}, {"function_call": "x"}], None, count_o200k(TEXT), ()),
        ([{"content": TEXT}], 1_005, count_o200k(TEXT), (Flag.HIDDEN_REASONING,)),
        # Most of it is hidden: nothing is said, and that is seen.
        ([{"content": TEXT}], 1_006, None, (Flag.HIDDEN_REASONING,)),
        # What is shown is counted, against all that is claimed.
        (
            [{"reasoning_content": "Hm."}, {"content": TEXT}],
            1_809,
            count_o200k(TEXT) + count_o200k("Hm."),
            (),
        ),
    ],
)
def test_a_host_cannot_switch_its_recount_off(
    deltas: list[dict[str, Any]], reasoning: int | None, recount: int | None, flags: tuple[Flag, ...]
) -> None:
    event = event_of(metered(deltas, usage_of(2_010, reasoning)))
    assert (event.recount_o200k, event.flags) == (recount, flags)


@pytest.mark.parametrize("parts", [list(TEXT), [TEXT], [TEXT[:7], TEXT[7:]]])
def test_an_estimate_goes_by_the_text_and_not_by_how_it_was_cut(parts: list[str]) -> None:
    meter = metered([{"content": part} for part in parts])
    # 201 o200k tokens, at 0.8 of them to a native one: 251.25.
    assert count_o200k(TEXT) == 201
    assert meter.counts() == {Bucket.UNCACHED_INPUT: 10, Bucket.OUTPUT: 251}
    event = event_of(meter)
    assert (event.flags, event.recount_o200k) == ((Flag.ESTIMATED,), 201)


def test_an_estimate_is_bounded_and_nothing_delivered_is_nothing() -> None:
    much = metered([{"content": TEXT}] * 30)
    assert much.counts()[Bucket.OUTPUT] == 4_096
    assert much.flags == {Flag.ESTIMATED, Flag.CAPPED}
    assert metered([{"tool_calls": [{}]}] * 900).counts()[Bucket.OUTPUT] == 0
    tiny = UsageMeter(
        grade=replace(GRADE, output_kappa_ppm=9_000_000),
        engine="vllm",
        input_bound_tokens=10,
        output_bound_tokens=10,
    )
    tiny.recount.take(chat({"content": "a"}), streamed=True)
    tiny.estimate(1)
    assert tiny.counts()[Bucket.OUTPUT] == 1
    plain = UsageMeter(
        grade=replace(GRADE, output_kappa_ppm=None),
        engine="vllm",
        input_bound_tokens=10,
        output_bound_tokens=1_000,
    )
    plain.recount.take(chat({"content": TEXT}), streamed=True)
    plain.estimate(1)
    assert plain.counts()[Bucket.OUTPUT] == 201
