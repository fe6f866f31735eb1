"""Runs the simulator on loopback and sends its webhooks as Stripe does, with the faults that tests ask for."""

from __future__ import annotations

import hashlib
import hmac
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from tests.stripe_sim.app import Fault, StripeApp
from tests.stripe_sim.world import World, public

# (raw body, signature header) -> status.
Receiver = Callable[[bytes, str], int]


def sign(raw: bytes, secrets: list[str], *, at: int | None = None) -> str:
    """`Stripe-Signature`: one v1 for each secret that is in force."""
    at = int(time.time()) if at is None else at
    payload = f"{at}.".encode() + raw
    signatures = [hmac.new(secret.encode(), payload, hashlib.sha256).hexdigest() for secret in secrets]
    return ",".join([f"t={at}", *(f"v1={signature}" for signature in signatures)])


@dataclass
class StripeSim:
    """`url` answers the SDK. Webhooks wait in `queue` until `deliver` is called, so that a test decides their order."""

    url: str
    world: World
    app: StripeApp
    secrets: list[str] = field(default_factory=lambda: ["whsec_simulated"])
    queue: list[dict[str, Any]] = field(default_factory=list)

    def fail(self, kind: str, route: str, *, times: int = 1, seconds: float = 0) -> None:
        self.app.faults.append(Fault(kind, route, times, seconds))

    def calls(self, route: str) -> list[str]:
        """The idempotency keys of the calls that began at this route."""
        return [key for name, key in self.app.calls if name == route]

    def body_of(self, event: dict[str, Any]) -> bytes:
        return json.dumps(public(event), indent=2).encode()

    def deliver(
        self,
        receiver: Receiver,
        *,
        times: int = 1,
        seed: int | None = None,
        lose: Callable[[dict[str, Any]], bool] | None = None,
        age_s: int = 0,
    ) -> list[int]:
        """Send what waits: each `times` over, shuffled by `seed`, without those that `lose` picks. Statuses.

        What is not answered 2xx goes back to the queue, as Stripe tries again later.
        """
        sent = [event for event in self.queue for _ in range(times) if not (lose and lose(event))]
        self.queue.clear()
        if seed is not None:
            random.Random(seed).shuffle(sent)
        statuses = []
        for event in sent:
            raw = self.body_of(event)
            status = receiver(raw, sign(raw, self.secrets, at=int(time.time()) - age_s))
            statuses.append(status)
            if not 200 <= status < 300 and event not in self.queue:
                self.queue.append(event)
        return statuses


@contextmanager
def stripe_sim() -> Iterator[StripeSim]:
    world = World(now_s=int(time.time()))
    app = StripeApp(world)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not server.started:
        assert time.monotonic() < deadline, "the simulator did not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    sim = StripeSim(f"http://127.0.0.1:{port}", world, app)
    world.told = sim.queue.append
    try:
        yield sim
    finally:
        server.should_exit = True
        thread.join(timeout=10)
