"""The start bench against an engine that knows the fields of OpenAI's documentation and no others."""

import asyncio
import json
from typing import Any

import aiohttp
from aiohttp import web

from providers.agent.bench import BenchFigures, bench_engine
from providers.agent.config import BenchPlan, Config
from providers.agent.engines import detect_engine

OF_OPENAI = {"model", "messages", "max_tokens", "stream", "stream_options", "temperature", "stop", "seed"}
ROLE = {"role": "assistant", "content": ""}
COMPUTING_S = 0.05
USAGE = {"prompt_tokens": 70, "completion_tokens": 16, "total_tokens": 86}


async def models(request: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": "strict", "object": "model"}]})


async def chat(request: web.Request) -> web.StreamResponse:
    unknown = set(await request.json()) - OF_OPENAI
    if unknown:
        return web.json_response({"detail": f"Unexpected fields in the request: {unknown}"}, status=422)
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await answer.prepare(request)
    await answer.write(f"data: {json.dumps({'choices': [{'index': 0, 'delta': ROLE}]})}\n\n".encode())
    await asyncio.sleep(COMPUTING_S)
    chunks: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"content": "words"}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}], "usage": USAGE},
    ]
    for chunk in chunks:
        await answer.write(f"data: {json.dumps(chunk)}\n\n".encode())
    await answer.write(b"data: [DONE]\n\n")
    return answer


async def benched() -> tuple[str, BenchFigures]:
    application = web.Application()
    application.add_routes([web.get("/v1/models", models), web.post("/v1/chat/completions", chat)])
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    config = Config(
        market_url="http://127.0.0.1:1",
        base_url="http://127.0.0.1:2",
        engine_url=f"http://127.0.0.1:{runner.addresses[0][1]}",
        bench=BenchPlan(requests=5, concurrency=2, output_tokens=16),
    )
    try:
        async with aiohttp.ClientSession() as http:
            engine = await detect_engine(http, config)
            return engine.kind, await bench_engine(http, config, engine, note=lambda *_: None)
    finally:
        await runner.cleanup()


def test_an_engine_that_refuses_unknown_fields_is_benched() -> None:
    kind, figures = asyncio.run(benched())
    assert kind == "openai_chat"
    assert (figures.requests, figures.input_tokens, figures.output_tokens) == (5, 350, 80)
    # Its first chunk tells the role at once; what it wrote comes later.
    assert figures.first_byte_p50_ms >= COMPUTING_S * 1000
