"""Bodies made to hurt what reads them behind the gateway."""

from __future__ import annotations

import pytest

from marketplace.gateway.errors import ApiError
from marketplace.gateway.parsing import parse_request


@pytest.mark.parametrize("depth", [70, 900])
def test_a_deeply_nested_field_never_reaches_a_host(depth: int) -> None:
    nested = b"[" * depth + b"]" * depth
    raw = b'{"model":"m","messages":[{"role":"user","content":"x"}],"tools":[{"a":' + nested + b"}]}"
    with pytest.raises(ApiError) as refused:
        parse_request("/v1/chat/completions", raw)
    assert refused.value.status == 400
