"""Request bodies: what is refused names the parameter; what passes is bounded."""

from __future__ import annotations

import json
from typing import Any

import pytest

from marketplace.gateway.errors import ApiError
from marketplace.gateway.parsing import CHAT, COMPLETIONS, EMBEDDINGS, parse_request

GOOD: dict[str, Any] = {"model": "tiny-chat", "messages": [{"role": "user", "content": "hi"}]}


def refusal(path: str, raw: bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse_request(path, raw)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{", b"[]", b"null", b"\xff", b'{"a":NaN}', b'{"a":Infinity}', b'{"model":"a","model":"b"}',
        b'{"a":' + b"9" * 5_000 + b"}", b"[" * 100_000, b'{"model":"a\x00b"}',
    ],
)  # fmt: skip
def test_what_is_not_json_is_refused(raw: bytes) -> None:
    assert refusal(CHAT, raw).code == "invalid_json"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"n": 1.0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 2**63}, "max_tokens"),
        ({"max_tokens": "10"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": 5, "max_tokens": 6}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"surprise": 1}}, "stream_options.surprise"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "king", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": "a\0b"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages.0.content"),
        ({"model": 5}, "model"),
        ({"model": None}, "model"),
        ({"surprise": 1}, "surprise"),
        ({"cache_salt": "x"}, "cache_salt"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"logit_bias": {"1": 1000}}, "logit_bias.1"),
        ({"store": True}, "store"),
    ],
)
def test_bad_input_names_the_parameter(change: dict[str, Any], param: str) -> None:
    assert refusal(CHAT, json.dumps(GOOD | change).encode()).param == param


def test_an_infinite_number_is_refused() -> None:
    raw = json.dumps(GOOD)[:-1].encode() + b', "temperature": 1e400}'
    assert refusal(CHAT, raw).param == "temperature"


def test_only_what_a_host_may_know_is_forwarded() -> None:
    asked = parse_request(
        CHAT,
        json.dumps(
            GOOD
            | {
                "user": "u",
                "metadata": {"a": "b"},
                "n": 1,
                "stream": True,
                "max_completion_tokens": 7,
                "seed": 1,
            }
            | {"stream_options": {"include_usage": True}, "top_p": None}
        ).encode(),
    )
    assert asked.body == {"messages": GOOD["messages"], "seed": 1}
    assert (asked.max_output_tokens, asked.stream, asked.include_usage) == (7, True, True)


def test_the_bound_counts_bytes_not_characters() -> None:
    text = "नमस्ते" * 10
    asked = parse_request(CHAT, json.dumps(GOOD | {"messages": [{"role": "user", "content": text}]}).encode())
    assert asked.input_bytes >= len(text.encode())


def test_completions_take_one_prompt() -> None:
    asked = parse_request(COMPLETIONS, b'{"model":"m","prompt":["one"]}')
    assert asked.body == {"prompt": "one"}
    assert refusal(COMPLETIONS, b'{"model":"m","prompt":["one","two"]}').param == "prompt"
    assert refusal(COMPLETIONS, b'{"model":"m","prompt":"x","echo":true}').param == "echo"
    assert refusal(COMPLETIONS, b'{"model":"m","prompt":"x","best_of":3}').param == "best_of"


def test_embeddings_take_texts() -> None:
    asked = parse_request(EMBEDDINGS, b'{"model":"m","input":["a","b"],"encoding_format":"base64"}')
    assert asked.body == {"input": ["a", "b"], "encoding_format": "base64"}
    assert refusal(EMBEDDINGS, b'{"model":"m","input":[[1,2]]}').param == "input"
    assert refusal(EMBEDDINGS, b'{"model":"m","input":[]}').param == "input"
