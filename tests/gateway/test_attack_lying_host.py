"""A host that lies: what it says or sends never costs a buyer more than his request can come to."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from marketplace.contracts.models import Hold
from marketplace.ledger.selectors import check_ledger
from metering.usage import Flag
from pricing.units import Bucket
from providers.models import FailedAttempt, Host
from tests.contracts.world import INPUT_PPM, OUTPUT_PPM, available
from tests.gateway.test_gateway import CHAT, Rig, events, rig

__all__ = ["rig"]  # A fixture of the neighbour.

MONEY = 10_000_000
MAX_TOKENS = 8


def delta(text: str, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None} | more
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


@contextmanager
def lying_host(pieces: Sequence[bytes], *, status: int = 200) -> Iterator[None]:
    """Every request is answered with this status and these pieces of a stream, whatever was asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            for piece in pieces:
                self.wfile.write(piece)

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


def ask(rig: Rig, *, stream: bool) -> Any:
    body = {"model": "tiny-chat", "messages": CHAT, "max_tokens": MAX_TOKENS, "stream": stream}
    return rig.post("/v1/chat/completions", body)


def most_micros() -> int:
    """What the request may come to at 0.60 a Mtok: its bytes and the overhead as input, and its output."""
    tokens = (len(json.dumps(CHAT)) + 200) * INPUT_PPM + MAX_TOKENS * OUTPUT_PPM
    return -(-tokens * 600_000 // 10**12)


@pytest.mark.parametrize("stream", [False, True])
def test_inflated_usage_is_cut_to_what_the_request_can_come_to(rig: Rig, stream: bool) -> None:
    rig.fund(MONEY)
    usage = {"prompt_tokens": 10**7, "completion_tokens": 10**6, "total_tokens": 11 * 10**6}
    pieces = [
        *(b"data: " + json.dumps({
            "choices": [{"index": 0, "delta": {"content": "x"}}], "usage": usage,
        }).encode() + b"\n\n" for _ in range(20)),
        delta("", finish_reason="stop"),
        b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n",
        b"data: [DONE]\n\n",
    ]  # fmt: skip
    with lying_host(pieces):
        ask(rig, stream=stream)
    held = Hold.objects.get()
    assert held.status == "captured"
    (event,) = events()
    assert Flag.CAPPED in event.flags
    assert (event.buckets[Bucket.OUTPUT] or 0) <= MAX_TOKENS
    assert held.captured_micros <= most_micros()
    assert available(rig.world) >= MONEY - most_micros()
    assert check_ledger() == []


def test_more_chunks_than_the_output_limit_are_not_paid(rig: Rig) -> None:
    rig.fund(MONEY)
    pieces = [delta("x")] * 5_000 + [delta("", finish_reason="stop"), b"data: [DONE]\n\n"]
    with lying_host(pieces):
        ask(rig, stream=True)
    (event,) = events()
    assert (event.buckets[Bucket.OUTPUT] or 0) <= MAX_TOKENS
    assert available(rig.world) >= MONEY - most_micros()


@pytest.mark.parametrize(
    "chunk",
    [
        {"choices": [7]},
        {"choices": 7},
        {"choices": [{"index": 0, "delta": {"tool_calls": 7}}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": []}]}}]},
        {"choices": [{"index": 0, "delta": {"content": 7}}]},
        {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": ["stop"]}]},
        {"choices": [{"index": 0, "delta": {"content": "x"}, "logprobs": {"content": 7}}]},
    ],
)
def test_what_is_no_chunk_is_a_host_failure_and_leaves_no_hold_open(rig: Rig, chunk: Any) -> None:
    rig.fund(MONEY)
    pieces = [b"data: " + json.dumps(chunk).encode() + b"\n\n", delta("y"), b"data: [DONE]\n\n"]
    with lying_host(pieces):
        answer = ask(rig, stream=False)
    assert answer.status_code == 502
    assert [hold.status for hold in Hold.objects.all() if hold.status == "open"] == []
    assert FailedAttempt.objects.get().cause == "failed_attempt"


@pytest.mark.parametrize("status", [400, 404, 413, 422, 503])
def test_a_host_that_refuses_what_every_host_must_serve_has_failed(rig: Rig, status: int) -> None:
    """It cannot put its refusals down to the buyer: the request is text alone, and fits."""
    rig.fund(MONEY)
    with lying_host([b"{}"], status=status):
        assert ask(rig, stream=False).status_code == 502
    assert FailedAttempt.objects.get().cause == "refused"
    assert not Hold.objects.filter(status="open").exists()


@pytest.mark.parametrize(
    "more",
    [
        {"seed": 7},
        {"temperature": 2},
        {"max_tokens": 2_048},
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "user", "content": "hi"}]},
        {"messages": [{"role": "user", "content": "a\u0007b"}]},
    ],
)
def test_no_buyer_makes_an_honest_host_fail_by_what_he_asks_for(rig: Rig, more: dict[str, Any]) -> None:
    """What some engine may refuse is refused, and nobody has failed."""
    rig.fund(MONEY)
    body = {"model": "tiny-chat", "messages": CHAT, "max_tokens": MAX_TOKENS} | more
    with lying_host([b"{}"], status=422):
        assert rig.post("/v1/chat/completions", body).status_code == 400
    assert not FailedAttempt.objects.exists()
    assert not Hold.objects.filter(status="open").exists()


def test_a_deeply_nested_chunk_leaves_no_hold_open(rig: Rig) -> None:
    rig.fund(MONEY)
    with lying_host([b"data: " + b'{"a":' * 100_000 + b"\n\n", b"data: [DONE]\n\n"]):
        answer = ask(rig, stream=False)
    assert answer.status_code == 502
    assert not Hold.objects.filter(status="open").exists()
