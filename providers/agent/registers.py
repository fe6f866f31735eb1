"""The engine's running counters, read as Prometheus text and told in one meaning, whatever the engine's own is."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import aiohttp
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from providers.agent.config import Config
from providers.agent.engines import Engine
from providers.agent.errors import EngineUnreachable

_TIMEOUT = aiohttp.ClientTimeout(total=3)
_MAX_PAGE_BYTES = 8 * 1024 * 1024
_LARGEST = 2**53  # What a Prometheus value, a double, still counts exactly.


class _Names(NamedTuple):
    """The samples that add up to each counter of ours; `prompt` INCLUDES what came from the cache."""

    prompt: tuple[str, ...]
    cached: tuple[str, ...]
    output: tuple[str, ...]
    running: str
    waiting: str


# Only counters, and gauges that say what is now: llama.cpp's averages (`prompt_tokens_seconds` and the like) begin anew
# at each scrape, so whoever reads them spoils them for the next.
_NAMES: Mapping[str, _Names] = {
    # Its prompt counter leaves out cached tokens.
    "llamacpp": _Names(
        ("llamacpp:prompt_tokens_total", "llamacpp:prompt_tokens_cached_total"),
        ("llamacpp:prompt_tokens_cached_total",),
        ("llamacpp:tokens_predicted_total",),
        "llamacpp:requests_processing",
        "llamacpp:requests_deferred",
    ),
    # Cached tokens are in its prompt counter; a sample for each data-parallel `engine` and `model_name`.
    "vllm": _Names(
        ("vllm:prompt_tokens_total",),
        ("vllm:prompt_tokens_cached_total",),
        ("vllm:generation_tokens_total",),
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
    ),
    # Cached tokens are in its prompt counter; samples by `is_streaming`, and of the cached ones by `cache_source`.
    "sglang": _Names(
        ("sglang:prompt_tokens_total",),
        ("sglang:cached_tokens_total",),
        ("sglang:generation_tokens_total",),
        "sglang:num_running_reqs",
        "sglang:num_queue_reqs",
    ),
    # Sums of its histograms; nothing about a cache.
    "tgi": _Names(
        ("tgi_request_input_length_sum",),
        (),
        ("tgi_request_generated_tokens_sum",),
        "tgi_batch_current_size",
        "tgi_queue_size",
    ),
}
_PROCESS_START = "process_start_time_seconds"


class RegisterRead(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since the engine's start, null where it has none; `engine_boot` changes when they begin anew.

    `bench_...` are what this agent's benches have used of them since the agent's first start, over all boots.
    """

    prompt_tokens_total: int | None = None
    cached_tokens_total: int | None = None
    output_tokens_total: int | None = None
    requests_running: int | None = None
    requests_waiting: int | None = None
    engine_boot: str | None = None
    bench_input_tokens: int = 0
    bench_output_tokens: int = 0


class BenchTokens(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent's own benches have used of its engine, ever; input with what came from the cache."""

    input_tokens: int = 0
    output_tokens: int = 0


class Registers:
    """Reads the counters of one engine."""

    def __init__(
        self,
        http: aiohttp.ClientSession,
        config: Config,
        engine: Engine,
        *,
        bench_tokens: Callable[[], BenchTokens],
    ) -> None:
        self._http = http
        self._base = config.engine_url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {config.engine_api_key}"} if config.engine_api_key else {}
        self._kind = engine.kind
        self._bench_tokens = bench_tokens

    async def read(self) -> RegisterRead:
        """The counters now; only the benches' where the engine has none (Ollama: the agent counts by itself).

        Raises EngineUnreachable when the engine does not answer at all.
        """
        names = _NAMES.get(self._kind)
        path = "/metrics" if names is not None else "/v1/models"
        # Before the engine is asked: of a bench that runs meanwhile, less is subtracted rather than more.
        bench = self._bench_tokens()
        text = boot = ""
        try:
            async with self._http.get(self._base + path, headers=self._headers, timeout=_TIMEOUT) as answer:
                if answer.status >= 500 and answer.status != 501:
                    raise EngineUnreachable(f"{self._base}{path} answers {answer.status}")
                if names is not None and answer.status == 200:
                    text = await _text_of(answer)
                    boot = answer.headers.get("Process-Start-Time-Unix", "")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise EngineUnreachable(f"no engine answers at {self._base} ({type(error).__name__})") from None
        read = registers_of(self._kind, text, boot=boot)
        return msgspec.structs.replace(
            read, bench_input_tokens=bench.input_tokens, bench_output_tokens=bench.output_tokens
        )


async def _text_of(answer: aiohttp.ClientResponse) -> str:
    page = bytearray()
    async for chunk in answer.content.iter_any():
        page += chunk
        if len(page) > _MAX_PAGE_BYTES:
            return ""  # No engine says so much; half a page would pass for the whole.
    return page.decode(errors="replace")


def registers_of(kind: str, text: str, *, boot: str = "") -> RegisterRead:
    """What a page of Prometheus text says of an engine of this kind. `boot` is llama.cpp's mark of its process.

    That header is no time, whatever its name; it only changes with the process. The others tell when their process
    started, or nothing (several processes behind one page): then a counter that goes down is the only sign.
    """
    names = _NAMES.get(kind)
    if names is None:
        return RegisterRead()
    needed = {*names.prompt, *names.cached, *names.output, names.running, names.waiting, _PROCESS_START}
    samples = parse_metrics(text, needed)
    started = samples.get(_PROCESS_START)
    return RegisterRead(
        prompt_tokens_total=_sum(samples, names.prompt),
        cached_tokens_total=_sum(samples, names.cached),
        output_tokens_total=_sum(samples, names.output),
        requests_running=samples.get(names.running),
        requests_waiting=samples.get(names.waiting),
        engine_boot=boot[:64] or (str(started) if started is not None else None),
    )


def parse_metrics(text: str, names: set[str] | None = None) -> dict[str, int]:
    """Prometheus text to whole numbers by sample name, summed over labels (ranks, models); others are left out.

    With `names` only those are read: a page has thousands of histogram lines that nobody needs, and one that the parser
    does not like must not hide the counters.
    """
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    wanted = [line for line in lines if names is None or _name_of(line) in names]
    sums: dict[str, int] = {}
    for line in wanted:
        try:
            for family in text_string_to_metric_families(line + "\n"):
                for sample in family.samples:
                    value = float(sample.value)
                    if 0 <= value <= _LARGEST:  # Not a number and infinity are neither.
                        sums[sample.name] = sums.get(sample.name, 0) + int(value)
        except ValueError:
            continue
    return sums


def _name_of(line: str) -> str:
    return line.partition("{")[0].partition(" ")[0].strip()


def _sum(samples: Mapping[str, int], names: tuple[str, ...]) -> int | None:
    """None unless each part is there: a part would pass for the whole."""
    if not names or not all(name in samples for name in names):
        return None
    return sum(samples[name] for name in names)
