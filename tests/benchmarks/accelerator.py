"""What the agent reads of a real accelerator, beside the card's own power readings.

    python -m tests.benchmarks.accelerator

It needs an NVIDIA card and PyTorch to keep it busy, so it is run by hand on an inference host and is no part of
`make bench`. For an idle and a busy interval the difference of two `energy_millijoules()` must agree with the
power readings integrated over the same interval; then come the cost of one reading, and tokens per joule of a
small transformer's decoding, as the leaderboard would compute them.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pynvml

from providers.agent.hardware import detect_hardware, energy_millijoules

INTERVAL_S = 10
# The driver averages the power that it tells over about a second: what ran before must not weigh in.
SETTLING_S = 3
# The counter and the power reading are averaged by the driver over different windows.
TOLERANCE_PPM = 100_000


class PowerMeter(threading.Thread):
    """Integrates the power of all devices by trapezoids until told to stop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.millijoules = 0.0
        self.readings = 0
        self._stopping = threading.Event()

    def run(self) -> None:
        pynvml.nvmlInit()
        devices = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        then, before = time.monotonic(), sum(map(pynvml.nvmlDeviceGetPowerUsage, devices))
        while not self._stopping.wait(0.02):
            now, power = time.monotonic(), sum(map(pynvml.nvmlDeviceGetPowerUsage, devices))
            self.millijoules += (before + power) / 2 * (now - then)
            then, before = now, power
            self.readings += 1
        pynvml.nvmlShutdown()

    def stop(self) -> None:
        self._stopping.set()
        self.join()


def measured(work: Callable[[float], Any]) -> dict[str, Any]:
    """Energy by the agent's counter and by integrated power while `work(deadline)` runs."""
    time.sleep(SETTLING_S)
    meter = PowerMeter()
    before = energy_millijoules()
    meter.start()
    started = time.monotonic()
    done = work(started + INTERVAL_S)
    seconds = time.monotonic() - started
    meter.stop()
    after = energy_millijoules()
    if before is None or after is None:
        raise SystemExit("the card counts no energy")
    used = after - before
    off_ppm = round(1e6 * abs(used - meter.millijoules) / meter.millijoules)
    return {
        "seconds": round(seconds, 2),
        "counter_millijoules": used,
        "integrated_millijoules": round(meter.millijoules),
        "power_readings": meter.readings,
        "off_ppm": off_ppm,
        "mean_watts": round(used / 1000 / seconds, 1),
        "done": done,
    }


def rest(deadline: float) -> None:
    time.sleep(max(0.0, deadline - time.monotonic()))


def products(deadline: float) -> int:
    """Matrix products in bf16, as many as fit."""
    import torch

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    count = 0
    while time.monotonic() < deadline:
        for _ in range(20):
            a @ b
        torch.cuda.synchronize()
        count += 20
    return count


def decoder(*, streams: int) -> Callable[[float], int]:
    """Greedy decoding by a Llama of about a billion random weights, `streams` at a time: tokens written."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32_000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22,
        num_attention_heads=32, num_key_value_heads=4, max_position_embeddings=2048,
    )  # fmt: skip
    with torch.device("cuda"):
        model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    prompt = torch.randint(1, 32_000, (streams, 64), device="cuda")

    def decode(deadline: float) -> int:
        tokens = 0
        while time.monotonic() < deadline:
            written = model.generate(
                prompt, max_new_tokens=64, min_new_tokens=64, do_sample=False, pad_token_id=0
            )
            tokens += streams * (written.shape[1] - prompt.shape[1])
        torch.cuda.synchronize()
        return tokens

    decode(time.monotonic() + 1)
    return decode


def main() -> int:
    hardware = detect_hardware()
    print(json.dumps(hardware, indent=1))
    if not hardware["accelerators"]:
        print("no accelerator here")
        return 1
    costs = []
    for _ in range(20):
        started = time.perf_counter()
        energy_millijoules()
        costs.append(time.perf_counter() - started)
    print(
        f"one reading of the counter: median {sorted(costs)[10] * 1000:.1f} ms, worst {max(costs) * 1000:.1f} ms"
    )
    products(time.monotonic() + 1)  # Kernels load, clocks rise.
    wrong = 0
    for name, work in (
        ("idle", rest),
        ("matrix products", products),
        ("decoding, 1 stream", decoder(streams=1)),
        ("decoding, 64 streams", decoder(streams=64)),
    ):
        row = measured(work)
        wrong += row["off_ppm"] > TOLERANCE_PPM
        if name.startswith("decoding"):
            row["tokens_per_joule"] = round(1000 * row["done"] / row["counter_millijoules"], 3)
            row["tokens_per_second"] = round(row["done"] / row["seconds"])
        print(name, json.dumps(row), flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
