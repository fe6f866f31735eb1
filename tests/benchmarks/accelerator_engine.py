"""The agent's start bench against an engine on a real accelerator, at several concurrencies.

    python -m tests.benchmarks.accelerator_engine

Run by hand on an inference host with an NVIDIA card and `transformers[serving]`: its own OpenAI-compatible server
serves a Llama of about a billion random weights with continuous batching. For each concurrency: the figures of the
bench, mean power and tokens per joule from the agent's energy counter.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

from providers.agent.bench import bench_engine
from providers.agent.config import BenchPlan, Config
from providers.agent.engines import wait_for_engine
from providers.agent.hardware import energy_millijoules

PORT = 18_431
OUTPUT_TOKENS = 64
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant:"
)


def write_model(folder: Path) -> None:
    """Random weights and a byte-pair tokenizer trained on this file: nothing is fetched."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train([__file__], vocab_size=2000, special_tokens=["<s>", "</s>"])
    trained.save(str(folder / "tokenizer.json"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=2048, intermediate_size=5632, num_hidden_layers=22,
        num_attention_heads=32, num_key_value_heads=4, max_position_embeddings=2048,
        bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    with torch.device("cuda"):
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


async def bench(plan: BenchPlan, model: str) -> dict[str, Any]:
    config = Config(
        market_url="http://127.0.0.1:1",
        base_url="http://127.0.0.1:2",
        engine_url=f"http://127.0.0.1:{PORT}",
        engine_model=model,
        bench=plan,
    )
    async with aiohttp.ClientSession() as http:
        engine = await wait_for_engine(http, config)
        before = energy_millijoules() or 0
        figures = await bench_engine(http, config, engine, note=lambda *_: None)
        used = (energy_millijoules() or 0) - before
    return {
        "engine": engine.kind,
        "concurrency": figures.concurrency,
        "requests": figures.requests,
        "input_tokens": figures.input_tokens,
        "output_tokens": figures.output_tokens,
        "output_tokens_per_second": round(1000 * figures.output_tokens / figures.duration_ms, 1),
        "first_byte_p50_ms": figures.first_byte_p50_ms,
        "first_byte_p95_ms": figures.first_byte_p95_ms,
        "mean_watts": round(used / figures.duration_ms, 1),
        "tokens_per_joule": round(1000 * figures.output_tokens / used, 3) if used else None,
    }


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        write_model(Path(name))
        server = subprocess.Popen(
            [
                "transformers",
                "serve",
                name,
                "--continuous-batching",
                "--port",
                str(PORT),
                "--host",
                "127.0.0.1",
            ]
        )
        try:
            asyncio.run(bench(BenchPlan(requests=4, concurrency=2, output_tokens=8, timeout_s=120), name))
            for concurrency in (1, 4, 16, 64):
                plan = BenchPlan(
                    requests=max(4, 2 * concurrency), concurrency=concurrency, output_tokens=OUTPUT_TOKENS
                )
                time.sleep(1)
                print(json.dumps(asyncio.run(bench(plan, name))), flush=True)
        finally:
            server.terminate()
            server.wait(30)
    return 0


if __name__ == "__main__":
    sys.exit(main())
