"""What the agent reads off an engine, on each engine's own words and on a real llama.cpp server."""

import asyncio
import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest
from aiohttp import web

from metering.registers import register_delta
from providers.agent.bench import bench_engine
from providers.agent.config import BenchPlan, Config
from providers.agent.engines import Engine, detect_engine
from providers.agent.errors import EngineUnreachable
from providers.agent.registers import BenchTokens, RegisterRead, Registers, parse_metrics, registers_of
from providers.agent.state import State
from tests.engine import RunningEngine, free_port
from tests.metering.test_registers import Read

T = TypeVar("T")

LLAMACPP = """\
# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed.
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 249
# HELP llamacpp:prompt_tokens_cached_total Number of prompt tokens taken from the cache.
# TYPE llamacpp:prompt_tokens_cached_total counter
llamacpp:prompt_tokens_cached_total 247
# TYPE llamacpp:tokens_predicted_total counter
llamacpp:tokens_predicted_total 64
# TYPE llamacpp:prompt_tokens_seconds gauge
llamacpp:prompt_tokens_seconds 1254.51
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 2
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred 0
"""

# Two data-parallel ranks and an adapter served beside its base model.
VLLM = """\
# HELP process_start_time_seconds Start time of the process since unix epoch in seconds.
# TYPE process_start_time_seconds gauge
process_start_time_seconds 1.79517514734e+09
# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="m"} 3010.0
vllm:prompt_tokens_total{engine="1",model_name="m"} 1.2e+06
vllm:prompt_tokens_total{engine="1",model_name="m-lora"} 5.0
# TYPE vllm:prompt_tokens_created gauge
vllm:prompt_tokens_created{engine="0",model_name="m"} 1.7951751473e+09
# TYPE vllm:prompt_tokens_by_source_total counter
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_compute"} 2010.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="m",source="local_cache_hit"} 1000.0
# TYPE vllm:prompt_tokens_cached_total counter
vllm:prompt_tokens_cached_total{engine="0",model_name="m"} 1000.0
vllm:prompt_tokens_cached_total{engine="1",model_name="m"} 24.0
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="m"} 70.0
vllm:generation_tokens_total{engine="1",model_name="m, \\"quoted\\" {1}"} 30.0
# TYPE vllm:request_prompt_tokens histogram
vllm:request_prompt_tokens_sum{engine="0",model_name="m"} 1.0
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
vllm:num_requests_waiting{engine="0",model_name="m"} 0.0
"""

# Several processes behind one page: none tells when it started.
SGLANG = """\
# TYPE sglang:prompt_tokens_total counter
sglang:prompt_tokens_total{is_streaming="true",model_name="m",tp_rank="0"} 900.0
sglang:prompt_tokens_total{is_streaming="false",model_name="m",tp_rank="0"} 100.0
# TYPE sglang:cached_tokens_total counter
sglang:cached_tokens_total{cache_source="device",model_name="m"} 300.0
sglang:cached_tokens_total{cache_source="host",model_name="m"} 50.0
# TYPE sglang:generation_tokens_total counter
sglang:generation_tokens_total{is_streaming="true",model_name="m"} 40.0
sglang:generation_tokens_total{is_streaming="false",model_name="m"} 2.0
# TYPE sglang:cache_hit_rate gauge
sglang:cache_hit_rate{model_name="m"} 0.35
sglang:num_running_reqs{model_name="m"} 1.0
sglang:num_queue_reqs{model_name="m"} 6.0
"""

TGI = """\
# TYPE tgi_request_input_length histogram
tgi_request_input_length_bucket{le="10"} 1
tgi_request_input_length_bucket{le="+Inf"} 4
tgi_request_input_length_sum 1234
tgi_request_input_length_count 4
# TYPE tgi_request_generated_tokens histogram
tgi_request_generated_tokens_sum 567
tgi_request_generated_tokens_count 4
# TYPE tgi_batch_current_size gauge
tgi_batch_current_size 2
tgi_queue_size 1
"""


@pytest.mark.parametrize(
    ("kind", "text", "boot", "expected"),
    [
        # Excludes cached tokens: all input is both together.
        ("llamacpp", LLAMACPP, "2399564725", (249 + 247, 247, 64, 2, 0, "2399564725")),
        # Includes them; ranks and models added up.
        ("vllm", VLLM, "", (3010 + 1_200_000 + 5, 1024, 100, 7, 0, "1795175147")),
        ("sglang", SGLANG, "", (1000, 350, 42, 1, 6, None)),
        ("tgi", TGI, "", (1234, None, 567, 2, 1, None)),
        ("ollama", "nothing", "", (None, None, None, None, None, None)),
        ("openai_chat", VLLM, "", (None, None, None, None, None, None)),
        ("vllm", "", "", (None, None, None, None, None, None)),
    ],
)
def test_each_engine_means_something_else_and_is_told_in_one_meaning(
    kind: str, text: str, boot: str, expected: tuple[Any, ...]
) -> None:
    read = registers_of(kind, text, boot=boot)
    assert expected == (
        read.prompt_tokens_total,
        read.cached_tokens_total,
        read.output_tokens_total,
        read.requests_running,
        read.requests_waiting,
        read.engine_boot,
    )


def test_an_older_llamacpp_without_a_cached_counter_does_not_tell_its_input() -> None:
    read = registers_of("llamacpp", LLAMACPP.replace("llamacpp:prompt_tokens_cached_total 247\n", ""))
    assert (read.prompt_tokens_total, read.cached_tokens_total, read.output_tokens_total) == (None, None, 64)


@pytest.mark.parametrize(
    "broken", ["1.2.3", "NaN", "+Inf", "-5", "1e400", "many", '{engine="0} 1', "9007199254740994"]
)
def test_a_value_that_is_no_count_leaves_the_others(broken: str) -> None:
    text = f'vllm:generation_tokens_total {broken}\nvllm:prompt_tokens_total{{engine="0"}} 7\nrubbish {{\n'
    read = registers_of("vllm", text)
    assert (read.prompt_tokens_total, read.output_tokens_total) == (7, None)


def test_a_page_is_read_whole_too() -> None:
    assert parse_metrics(TGI)["tgi_request_input_length_bucket"] == 5


# A page over the wire -----------------------------------------------------------------------------------------


def config_for(url: str, **plan: int) -> Config:
    bench = BenchPlan(**({"requests": 3, "output_tokens": 16, "prompt_words": 12} | plan))
    return Config(market_url="http://m", base_url="http://a", engine_url=url, bench=bench)


def on_loop(work: Callable[[aiohttp.ClientSession], Any]) -> Any:
    async def run() -> Any:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http:
            return await work(http)

    return asyncio.run(run())


def read_page(status: int, text: str, *, kind: str = "vllm") -> RegisterRead:
    async def page(request: web.Request) -> web.Response:
        return web.Response(status=status, text=text)

    async def work(http: aiohttp.ClientSession) -> RegisterRead:
        application = web.Application()
        application.router.add_get("/{any:.*}", page)
        runner = web.AppRunner(application)
        await runner.setup()
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        try:
            tokens = BenchTokens(input_tokens=5, output_tokens=6)
            registers = Registers(
                http,
                config_for(f"http://127.0.0.1:{port}"),
                Engine(kind=kind, model="m"),
                bench_tokens=lambda: tokens,
            )
            return await registers.read()
        finally:
            await runner.cleanup()

    read: RegisterRead = on_loop(work)
    return read


def test_a_long_page_is_read_to_its_end_and_carries_the_benches() -> None:
    filler = "".join(f'vllm:latency_bucket{{le="{number}"}} {number}\n' for number in range(50_000))
    read = read_page(200, filler + VLLM)
    assert (read.output_tokens_total, read.bench_input_tokens, read.bench_output_tokens) == (100, 5, 6)


@pytest.mark.parametrize(
    ("status", "kind"), [(501, "llamacpp"), (404, "vllm"), (401, "vllm"), (200, "ollama")]
)
def test_an_engine_that_tells_no_counters_is_alive_all_the_same(status: int, kind: str) -> None:
    read = read_page(status, VLLM, kind=kind)
    assert (read.prompt_tokens_total, read.bench_output_tokens) == (None, 6)


def test_an_engine_that_fails_is_unreachable() -> None:
    with pytest.raises(EngineUnreachable, match="answers 500"):
        read_page(500, "")


# The real engine ----------------------------------------------------------------------------------------------


def as_read(read: RegisterRead) -> Read:
    return Read(
        read.engine_boot or "",
        read.prompt_tokens_total,
        read.cached_tokens_total,
        read.output_tokens_total,
        None,
        read.bench_input_tokens,
        read.bench_output_tokens,
    )


def ask(url: str, prompt: str, tokens: int) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": tokens, "ignore_eos": True}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        usage: dict[str, Any] = json.load(answer)["usage"]
        return usage


def test_the_real_engines_counters_less_the_benches_are_the_requests(
    engine: RunningEngine, tmp_path: Path
) -> None:
    config = config_for(engine.url)
    state = State.open(tmp_path / "state")

    def note(input_tokens: int, output_tokens: int) -> None:
        state.add_bench_tokens(input_tokens=input_tokens, output_tokens=output_tokens)

    async def read_between(http: aiohttp.ClientSession, usages: list[dict[str, Any]]) -> tuple[Read, Read]:
        found = await detect_engine(http, config)
        registers = Registers(http, config, found, bench_tokens=state.bench_tokens)
        before = await registers.read()
        await bench_engine(http, config, found, note=note)
        # Twice the same prompt: the second comes from the cache, which llama.cpp's counter leaves out.
        for _ in range(2):
            usage = await asyncio.to_thread(ask, engine.url, "what the meter reads " * 8, 9)
            usages.append(usage)
        return as_read(before), as_read(await registers.read())

    usages: list[dict[str, Any]] = []
    before, after = on_loop(lambda http: read_between(http, usages))
    delta = register_delta([before, after])
    assert delta.is_complete
    assert delta.bench_output_tokens == 3 * 16
    assert delta.bench_input_tokens > 3 * 12
    assert delta.output_tokens == sum(usage["completion_tokens"] for usage in usages) == 18
    assert delta.input_tokens == sum(usage["prompt_tokens"] for usage in usages)
    assert usages[1]["prompt_tokens_details"]["cached_tokens"] > 0
    assert before.boot_id == after.boot_id != ""
    kept = state.bench_tokens()
    state.close()
    again = State.open(tmp_path / "state")
    assert again.bench_tokens() == kept
    again.close()


def test_a_bench_that_breaks_off_is_counted_as_far_as_it_came(engine: RunningEngine) -> None:
    noted: list[tuple[int, int]] = []
    config = config_for(engine.url, requests=1, output_tokens=1_500)

    async def work(http: aiohttp.ClientSession) -> None:
        found = await detect_engine(http, config)
        registers = Registers(http, config, found, bench_tokens=BenchTokens)
        before = as_read(await registers.read())
        bench = asyncio.create_task(
            bench_engine(http, config, found, note=lambda *tokens: noted.append(tokens))
        )
        for _ in range(500):
            if (await registers.read()).requests_running:
                break
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        bench.cancel()
        await asyncio.gather(bench, return_exceptions=True)
        assert bench.cancelled()
        await asyncio.sleep(0.5)
        delta = register_delta([before, as_read(await registers.read())])
        assert delta.output_tokens is not None
        # The engine may be a few tokens ahead of what it had told.
        assert 0 < sum(output for _, output in noted) <= delta.output_tokens

    on_loop(work)
