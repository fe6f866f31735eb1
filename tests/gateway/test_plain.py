"""Which requests every host of a grade must serve, without a server."""

from __future__ import annotations

from typing import Any

import pytest

from marketplace.gateway.parsing import Asked
from marketplace.gateway.plain import is_plain

CHAT = [{"role": "user", "content": "Zwei Tage im Mai,\n\twas nun? 好"}]
THREE = [*CHAT, {"role": "assistant", "content": "Ja."}, *CHAT]


def plain(body: dict[str, Any], *, bound: int = 100, limit: int = 10, context: int = 110) -> bool:
    asked = Asked("/v1/chat/completions", "m", {"model": "m"} | body, False, False, None, "max_tokens", 40)
    return is_plain(asked, input_bound_tokens=bound, limit_tokens=limit, context_tokens=context)


@pytest.mark.parametrize(
    "body",
    [
        {"messages": CHAT},
        {"messages": THREE, "temperature": 0, "top_p": 1, "stream": True},
        {"messages": CHAT, "temperature": 0.7, "user": "u", "top_p": None},
        {"prompt": "Once"},
        {"input": "Once"},
    ],
)
def test_text_that_fits_is_plain(body: dict[str, Any]) -> None:
    assert plain(body)
    assert not plain(body, bound=101)


@pytest.mark.parametrize(
    "body",
    [
        {"messages": CHAT, "tools": []},
        {"messages": CHAT, "temperature": 1.5},
        {"messages": CHAT, "temperature": True},
        {"messages": CHAT, "top_p": 0},
        {"messages": THREE[:2]},
        {"messages": [*CHAT, *CHAT, *CHAT]},
        {"messages": [{"role": "system", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
        {"messages": [{"role": "user", "content": "x", "name": "n"}]},
        {"messages": [{"role": "user", "content": " \n"}]},
        {"messages": [{"role": "user", "content": "a\x07"}]},
        {"messages": [{"role": "user", "content": "a\ud800"}]},
        {"prompt": ["a", "b"]},
        {"input": [1, 2]},
    ],
)
def test_what_some_engine_may_refuse_is_not(body: dict[str, Any]) -> None:
    assert not plain(body)
