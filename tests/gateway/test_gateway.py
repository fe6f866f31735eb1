"""The gateway as buyers meet it: the official client, a real gateway process, a real agent, a real engine."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest
import requests
from django.conf import settings

from marketplace import clock
from marketplace.accounts.services import SYSTEM, revoke_api_key
from marketplace.contracts.models import Hold
from marketplace.contracts.spending import set_spend_cap
from marketplace.gateway.config import CACHE_S
from marketplace.ids import uuid7
from marketplace.ledger.selectors import check_ledger
from marketplace.periods import delivery_period
from metering.models import UsageBatch
from metering.usage import Flag, UsageEvent, decode_event
from pricing.tariffs import Tier, Window
from pricing.tokenizers import count_o200k
from pricing.units import decimal_string
from providers.models import FailedAttempt, Host
from providers.services import announce_tariff
from tests.conftest import TestDatabase
from tests.contracts.world import INPUT_PPM, OUTPUT_PPM, World, available, give_money, make_world
from tests.database import Services
from tests.engine import RunningEngine, free_port
from tests.faults.test_no_writes import read_only
from tests.market import wait_until
from tests.providers.agent_rig import LoopThread, Market, write_agent

CHAT: Any = [{"role": "user", "content": "How many lots are in one Mtok?"}]


@dataclass
class Rig:
    """A gateway process on a database of its own, in front of a host of hyperion's."""

    world: World
    url: str
    client: openai.OpenAI

    def post(self, path: str, body: Any, **headers: str) -> requests.Response:
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        sent = {"authorization": f"Bearer {self.world.acme.secret}"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        return requests.post(self.url + path, data=data, headers=sent, timeout=30)

    def fund(self, amount_micros: int = 10_000_000) -> None:
        give_money(self.world, amount_micros, clock.now())


def events() -> list[UsageEvent]:
    return [decode_event(bytes(batch.body).strip()) for batch in UsageBatch.objects.order_by("id")]


def numerator_of(event: UsageEvent) -> int:
    weights = {"uncached_input": INPUT_PPM, "cache_read": INPUT_PPM // 10, "output": OUTPUT_PPM}
    return sum((count or 0) * weights[bucket.value] for bucket, count in event.buckets.items() if count)


@pytest.fixture
def rig(committed_db: TestDatabase, engine: RunningEngine, tmp_path: Path) -> Iterator[Rig]:
    world = make_world(clock.now())
    with _running(Market(offering_id=world.plant.offering.id)) as market:
        agent = write_agent(tmp_path, market=market, engine_url=engine.url)
        # The agent of this rig reports elsewhere; its host is alive as long as the test runs.
        alive_until = clock.now() + timedelta(hours=1)
        Host.objects.update(base_url=agent.url, engine={"kind": "llamacpp"}, last_heartbeat_at=alive_until)
        agent.start()
        port = free_port()
        log = tmp_path / "gateway.log"
        command = [sys.executable, "-m", "uvicorn", "marketplace.gateway.asgi:application"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--port", str(port), "--no-access-log", "--log-level", "warning"],
                env=committed_db.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            _wait_until_ready(process, port, log)
            url = f"http://127.0.0.1:{port}"
            with openai.OpenAI(
                base_url=f"{url}/v1", api_key=world.acme.secret, max_retries=0, timeout=30
            ) as client:
                yield Rig(world, url, client)
        finally:
            process.terminate()
            process.wait(20)
            agent.stop()


@contextmanager
def _running(market: Market) -> Iterator[Market]:
    thread = LoopThread()
    runner = thread.run(market.start())
    try:
        yield market
    finally:
        thread.run(runner.cleanup())
        thread.close()


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    pytest.fail(f"the gateway did not start:\n{log.read_text(errors='replace')[-3000:]}")


def test_the_official_client_completes_chats_and_pays_exactly_what_was_used(rig: Rig) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        rig.client.chat.completions.create(model="tiny-chat", messages=CHAT, max_tokens=20, temperature=0)
    assert (refused.value.status_code, refused.value.code) == (402, "insufficient_funds")
    assert not Hold.objects.exists()
    rig.fund()

    answer = rig.client.chat.completions.create(
        model="tiny-chat", messages=CHAT, max_tokens=20, temperature=0
    )
    assert answer.choices[0].message.content
    assert answer.usage is not None
    ours = answer.usage.tokenyard  # type: ignore[attr-defined]
    (event,) = events()
    assert int(ours["standard_numerator"]) == numerator_of(event)
    assert event.buckets["output"] == answer.usage.completion_tokens  # type: ignore[index]
    assert event.recount_o200k == count_o200k(answer.choices[0].message.content)
    assert ours["generation_id"] == str(event.request_id)
    held = Hold.objects.get()
    assert held.captured_numerator == numerator_of(event)
    assert available(rig.world) == 10_000_000 - held.captured_micros
    shown = rig.world.acme.api.get(f"/api/v1/generations/{ours['generation_id']}").json()
    assert shown["standard_numerator"] == ours["standard_numerator"]
    assert shown["cost"] == ours["cost"]

    usage, text, finish = None, "", None
    stream = rig.client.chat.completions.create(
        model="tiny-chat",
        messages=CHAT,
        max_tokens=20,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        assert "timings" not in chunk.model_fields_set | set(chunk.model_extra or {})
        for choice in chunk.choices:
            text += choice.delta.content or ""
            finish = choice.finish_reason or finish
        usage = chunk.usage or usage
    assert text
    assert finish in ("stop", "length")
    assert usage is not None
    assert int(usage.tokenyard["standard_numerator"]) == numerator_of(events()[1])  # type: ignore[attr-defined]
    assert events()[1].recount_o200k == count_o200k(text)
    assert check_ledger() == []

    completion = rig.client.completions.create(model="tiny-chat", prompt="Hello", max_tokens=8)
    assert completion.usage is not None
    assert completion.object == "text_completion"
    assert [event.recount_o200k for event in events()[2:]] == [
        count_o200k(completion.choices[0].text) or None
    ]
    models = rig.client.models.list().data
    assert [model.id for model in models] == ["tiny-chat"]
    assert models[0].tokenyard["prices"]["output"]["per_mtok"] == "0.6"  # type: ignore[attr-defined]


def test_a_list_tariff_prices_models_and_requests_at_their_time(rig: Rig) -> None:
    """The version began an hour ago and is of another price from this period to the one after the next, UTC."""
    rig.fund()
    now, period = clock.now(), timedelta(seconds=settings.DELIVERY_PERIOD_S)
    start = delivery_period(now).start
    first_s = (start.hour * 60 + start.minute) * 60
    tariff = announce_tariff(
        organization_id=rig.world.hyperion.id,
        offering_id=rig.world.plant.offering.id,
        kind="time_of_use",
        valid_from=start - timedelta(hours=1),
        rate_micros_per_mtok=900_000,
        windows=[Window(first_s, (first_s + 600 + int(period.total_seconds())) % 86_400, 300_000)],
        now=start - timedelta(hours=2),
        actor=SYSTEM,
    )
    time.sleep(CACHE_S)
    (model,) = rig.client.models.list().data
    assert model.tokenyard["rate_micros_per_mtok"] == 300_000  # type: ignore[attr-defined]
    answer = rig.client.chat.completions.create(model="tiny-chat", messages=CHAT, max_tokens=8, temperature=0)
    ours = answer.usage.tokenyard  # type: ignore[union-attr]
    (cheap,) = {slot.rate for slot in tariff.slots.all() if slot.rate.micros_per_mtok == 300_000}
    assert (ours["rate_id"], ours["rate_micros_per_mtok"]) == (str(cheap.id), 300_000)
    numerator = int(ours["standard_numerator"])
    assert ours["cost"] == decimal_string(numerator * 300_000, 18)
    (event,) = events()
    assert (event.rate_id, numerator_of(event)) == (cheap.id, numerator)
    assert Hold.objects.get().captured_micros == -(-numerator * 300_000 // 10**12)


def test_an_answer_says_that_the_month_decides_what_it_costs(rig: Rig) -> None:
    rig.fund()
    start = delivery_period(clock.now()).start
    announce_tariff(
        organization_id=rig.world.hyperion.id,
        offering_id=rig.world.plant.offering.id,
        kind="graduated",
        valid_from=start - timedelta(hours=1),
        tiers=[Tier(10**9, 700_000), Tier(None, 300_000)],
        now=start - timedelta(hours=2),
        actor=SYSTEM,
    )
    time.sleep(CACHE_S)
    answer = rig.client.chat.completions.create(model="tiny-chat", messages=CHAT, max_tokens=8, temperature=0)
    ours = answer.usage.tokenyard  # type: ignore[union-attr]
    assert (ours["settles_by_month"], ours["rate_micros_per_mtok"]) == (True, 700_000)
    numerator = int(ours["standard_numerator"])
    assert ours["cost"] == decimal_string(numerator * 700_000, 18)
    assert Hold.objects.get().captured_micros == numerator * 700_000 // 10**12 + 1


def test_refusals_are_clear_and_change_nothing(rig: Rig) -> None:
    rig.fund()
    good = {"model": "tiny-chat", "messages": CHAT}
    cases = [
        (rig.post("/v1/chat/completions", good | {"model": "nobody"}), 404, "model_not_found", "model"),
        (rig.post("/v1/chat/completions", good | {"max_tokens": 10**6}), 400, "invalid_value", "max_tokens"),
        (rig.post("/v1/chat/completions", good | {"surprise": 1}), 400, "unknown_parameter", "surprise"),
        (rig.post("/v1/chat/completions", b"{"), 400, "invalid_json", None),
        (rig.post("/v1/chat/completions", b" " * 5_000_000), 413, "request_too_large", None),
        (rig.post("/v1/chat/completions", good, authorization="Bearer ty_a_b"), 401, "invalid_api_key", None),
        (rig.post("/v1/nothing", good), 404, "unknown_url", None),
        (
            rig.post("/v1/chat/completions", good, x_tokenyard_contract=str(uuid7())),
            404, "contract_not_found", "X-Tokenyard-Contract",
        ),
        (
            rig.post("/v1/chat/completions", good, x_tokenyard_contract="1"),
            400, "invalid_value", "X-Tokenyard-Contract",
        ),
    ]  # fmt: skip
    for answer, status, code, param in cases:
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
    assert not Hold.objects.exists()

    revoke_api_key(
        organization_id=rig.world.acme.id, api_key_id=rig.world.acme.api_key_id, now=clock.now(), actor=SYSTEM
    )
    time.sleep(5)
    assert rig.post("/v1/chat/completions", good).status_code == 401


def test_a_stream_without_further_funds_is_cut_within_its_hold(rig: Rig) -> None:
    # Enough for the first hold of 1,024 tokens and a little, not for an extension.
    rig.fund(760)
    pieces, finish = 0, ""
    stream = rig.client.chat.completions.create(
        model="tiny-chat", messages=CHAT, max_tokens=1_900, stream=True, temperature=1.5,
        logit_bias={"2": -100},
    )  # fmt: skip
    for chunk in stream:
        for choice in chunk.choices:
            pieces += 1
            finish = str(choice.finish_reason or finish)
    held = Hold.objects.get()
    assert held.status == "captured"
    assert held.captured_micros <= 760
    (event,) = events()
    if finish == "budget":
        assert Flag.CUT_BUDGET in event.flags
        assert (event.buckets["output"] or 0) > 900  # type: ignore[index]
    else:
        assert pieces < 1_024, "the engine ended the answer by itself"
    assert check_ledger() == []


def test_a_caller_who_hangs_up_pays_what_was_delivered(rig: Rig) -> None:
    rig.fund()
    stream = rig.client.chat.completions.create(
        model="tiny-chat", messages=CHAT, max_tokens=1_900, stream=True, logit_bias={"2": -100}
    )
    for number, _ in enumerate(stream):
        if number == 5:
            break
    stream.close()
    deadline = time.monotonic() + 10
    while not events() and time.monotonic() < deadline:
        time.sleep(0.05)
    (event,) = events()
    assert (event.buckets["output"] or 0) > 0  # type: ignore[index]
    assert Hold.objects.get().captured_numerator == numerator_of(event)


def test_a_host_that_does_not_answer_costs_nothing(rig: Rig) -> None:
    rig.fund()
    Host.objects.update(base_url=f"http://127.0.0.1:{free_port()}")
    answer = rig.post("/v1/chat/completions", {"model": "tiny-chat", "messages": CHAT})
    assert answer.status_code == 502
    [hold] = Hold.objects.all()
    assert hold.status == "voided"
    assert available(rig.world) == 10_000_000
    # And is remembered: settlement counts it as down from then on.
    attempt = FailedAttempt.objects.get(pk=hold.pk)
    assert (attempt.offering_id, attempt.cause) == (rig.world.plant.offering.id, "failed_attempt")
    assert attempt.occurred_at >= hold.opened_at


def test_a_spend_cap_refuses_in_openais_form(rig: Rig) -> None:
    rig.fund()
    acme = rig.world.acme
    set_spend_cap(
        organization_id=acme.id,
        scope="api_key",
        api_key_id=acme.api_key_id,
        period="day",
        limit_micros=0,
        now=clock.now(),
        actor=SYSTEM,
    )
    with pytest.raises(openai.APIStatusError) as refused:
        rig.client.chat.completions.create(model="tiny-chat", messages=CHAT, max_tokens=20, temperature=0)
    assert (refused.value.status_code, refused.value.code) == (402, "spend_cap_reached")
    assert "this API key per UTC day" in refused.value.message
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 86_400
    assert not Hold.objects.exists()


def test_books_that_only_read_are_away_and_the_request_costs_nothing(
    rig: Rig, committed_db: TestDatabase, services: Services
) -> None:
    rig.fund()
    ready = f"{rig.url}/readyz"
    with read_only(committed_db, services):
        wait_until(lambda: requests.get(ready, timeout=5).status_code == 503, "the gateway to notice")
        with pytest.raises(openai.APIStatusError) as refused:
            rig.client.chat.completions.create(model="tiny-chat", messages=CHAT, max_tokens=20)
        assert (refused.value.status_code, refused.value.code) == (503, "service_unavailable")
        assert int(refused.value.response.headers["retry-after"]) > 0
        assert not Hold.objects.exists()
    wait_until(lambda: requests.get(ready, timeout=5).status_code == 200, "the gateway to notice")
    assert rig.client.chat.completions.create(model="tiny-chat", messages=CHAT, max_tokens=20).choices
    assert Hold.objects.count() == 1
