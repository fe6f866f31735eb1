"""The agent's meter on the wire of every engine: fed in packets, it claims what the adapter proves of the whole."""

from __future__ import annotations

from typing import Final

import pytest

from pricing.units import Bucket
from providers.agent.meter import AttemptMeter
from tests.pricing.test_wire import PROVED, WIRE
from tests.providers.test_agent_parts import delivery_key

# The agent carries event streams; Ollama's own line protocol and Gemini's do not pass it.
STREAMS: Final = sorted(
    name for name in PROVED if name.endswith(".sse") and not name.startswith(("gemini/", "ollama/"))
)


@pytest.mark.parametrize("packet_bytes", [7, 1_000_000])
@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_metered_as_its_adapter_proves_it(name: str, packet_bytes: int) -> None:
    meter = AttemptMeter(key=delivery_key(), usage_source=name.split("/")[0], bytes_in=10)
    stream = (WIRE / name).read_bytes()
    for start in range(0, len(stream), packet_bytes):
        meter.feed_stream(stream[start : start + packet_bytes])
    event = meter.event()
    assert event.flags == ()
    assert event.buckets == {Bucket(bucket): tokens for bucket, tokens in PROVED[name].items()}
