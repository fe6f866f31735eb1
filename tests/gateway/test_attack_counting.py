"""What a caller who hangs up, or a host that reports nothing, leaves the gateway to count."""

from __future__ import annotations

import pytest

from marketplace.gateway.counting import count_input_tokens

WORDS = "seven little words that cost some tokens"


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "user", "content": WORDS}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": WORDS}]}]},
        {
            "messages": [
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": WORDS}}]}
            ]
        },
        {"messages": [], "tools": [{"type": "function", "function": {"name": "f", "description": WORDS}}]},
        {"messages": [], "response_format": {"type": "json_schema", "json_schema": {"title": WORDS}}},
        {"prompt": WORDS},
        {"input": [WORDS]},
        {"prompt": WORDS + " <|endoftext|>"},
    ],
)
def test_every_text_that_a_host_reads_is_counted(body: dict[str, object]) -> None:
    assert count_input_tokens(body) >= 7
