"""Time to first token ends at the first chunk with output, not at a role that an engine sends at once."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest

from metering.usage import Flag, UsageEvent
from providers.models import Host
from tests.gateway.test_gateway import CHAT, Rig, events, rig

__all__ = ["rig"]  # A fixture of the neighbour.

COMPUTING_S = 0.3
DONE = b"data: [DONE]\n\n"


def chunk(finish: str | None = None, **delta: Any) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
END = [
    chunk(finish="stop"),
    b"data: " + json.dumps({"choices": [], "usage": USAGE}).encode() + b"\n\n",
    DONE,
]


@contextmanager
def engine_that_sends(steps: Sequence[bytes | float]) -> Iterator[None]:
    """Answers each request with these pieces of a stream; a number is a pause in seconds."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            for step in steps:
                if isinstance(step, bytes):
                    self.wfile.write(step)
                else:
                    time.sleep(step)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    Host.objects.update(base_url=f"http://127.0.0.1:{server.server_port}")
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(rig: Rig, *, stream: bool = True) -> UsageEvent:
    body = {"model": "tiny-chat", "messages": CHAT, "max_tokens": 8, "stream": stream}
    assert rig.post("/v1/chat/completions", body).status_code == 200
    return events()[-1]


def first_token_seconds(rig: Rig) -> tuple[int, float]:
    """How many first tokens Prometheus was told of, and their sum in seconds."""
    with urllib.request.urlopen(f"{rig.url}/metrics", timeout=5) as answer:
        lines = dict(line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if line[0] != "#")
    name = "gen_ai_server_time_to_first_token_seconds"
    return int(float(lines[f"{name}_count"])), float(lines[f"{name}_sum"])


@pytest.mark.parametrize("stream", [True, False])
def test_a_role_sent_at_once_is_no_first_token(rig: Rig, stream: bool) -> None:
    rig.fund()
    with engine_that_sends([chunk(role="assistant", content=""), COMPUTING_S, chunk(content="Hi"), *END]):
        event = ask(rig, stream=stream)
    assert event.first_byte_ms is not None
    assert COMPUTING_S * 1000 <= event.first_byte_ms <= event.duration_ms
    count, seconds = first_token_seconds(rig)
    assert count == 1
    assert seconds >= COMPUTING_S


def test_a_role_and_the_first_text_in_one_network_chunk_is_a_first_token(rig: Rig) -> None:
    rig.fund()
    first = chunk(role="assistant") + chunk(content="Hi")
    with engine_that_sends([first, COMPUTING_S, chunk(content="!"), *END]):
        event = ask(rig)
    assert event.first_byte_ms is not None
    assert event.first_byte_ms < COMPUTING_S * 1000 <= event.duration_ms


def test_an_answer_without_output_has_no_first_token(rig: Rig) -> None:
    rig.fund()
    with engine_that_sends([chunk(role="assistant", content=""), *END]):
        assert ask(rig).first_byte_ms is None
    assert first_token_seconds(rig)[0] == 0


def test_reasoning_is_output(rig: Rig) -> None:
    rig.fund()
    with engine_that_sends([chunk(reasoning_content="Hm."), COMPUTING_S, chunk(content="Hi"), *END]):
        event = ask(rig)
    assert event.first_byte_ms is not None
    assert event.first_byte_ms < COMPUTING_S * 1000


def test_a_buyer_who_does_not_read_is_flagged_and_one_who_reads_is_not(rig: Rig) -> None:
    rig.fund()
    text = "x" * 60_000  # What a socket does not swallow: 20 MB altogether.
    with engine_that_sends([*[chunk(content=text)] * 350, *END]):
        assert Flag.READER_SLOW not in ask(rig).flags
        address = urlsplit(rig.url)
        assert address.hostname is not None
        body = json.dumps({"model": "tiny-chat", "messages": CHAT, "max_tokens": 8, "stream": True}).encode()
        with socket.create_connection((address.hostname, address.port or 80)) as connection:
            head = (
                f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {rig.world.acme.secret}\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            connection.sendall(head.encode() + body)
            time.sleep(1.5)
            while connection.recv(1 << 20):
                pass
    assert Flag.READER_SLOW in events()[-1].flags
