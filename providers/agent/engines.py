"""Which engine runs here and what it serves."""

import asyncio
import re
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from providers.agent.config import Config
from providers.agent.errors import EngineUnreachable

_DETECT_TIMEOUT = aiohttp.ClientTimeout(total=5)

# Engines that send running usage counts when asked; the others only at the end.
_STREAM_OPTIONS: Mapping[str, Mapping[str, bool]] = {
    "vllm": {"include_usage": True, "continuous_usage_stats": True},
    "sglang": {"include_usage": True, "continuous_usage_stats": True},
}
_USAGE_AT_THE_END = {"include_usage": True}


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """An engine as detected; what it does not tell is null. `kind` is also the name of its usage adapter."""

    kind: str
    model: str
    version: str | None = None
    build_info: str | None = None
    context_tokens: int | None = None
    parallel: int | None = None
    quantisation: str | None = None
    tokenizer_digest: str | None = None
    chat_template_digest: str | None = None
    model_digest: str | None = None
    embeddings: bool | None = None

    @property
    def fingerprint(self) -> str:
        """Changes when the engine, its model or its configuration does: then a bench is out of date."""
        return sha256(msgspec.json.encode(self, order="sorted")).hexdigest()

    @property
    def usage_source(self) -> str:
        """The adapter for its OpenAI-compatible answers (Ollama's own adapter is for its native interface)."""
        return "openai_chat" if self.kind == "ollama" else self.kind

    @property
    def stream_options(self) -> Mapping[str, bool]:
        return _STREAM_OPTIONS.get(self.kind, _USAGE_AT_THE_END)


async def wait_for_engine(http: aiohttp.ClientSession, config: Config) -> Engine:
    """The engine, as soon as it answers. Raises EngineUnreachable after `engine_wait_s`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + config.engine_wait_s
    while True:
        try:
            return await detect_engine(http, config)
        except EngineUnreachable:
            if loop.time() >= deadline:
                raise
            await asyncio.sleep(0.3)


async def detect_engine(http: aiohttp.ClientSession, config: Config) -> Engine:
    """Asks in the order in which the answers are unambiguous. Raises EngineUnreachable."""
    probe = _Probe(http, config)
    models = await probe.get("/v1/models")
    served = _served_model(models, config.engine_model)
    kind = config.engine_kind or await _detect_kind(probe, models)
    detail = getattr(_Details, kind, None)
    facts: dict[str, Any] = await detail(probe, served) if detail is not None else {}
    model = config.engine_model or str(served.get("id") or facts.get("model") or "")
    if not model:
        raise EngineUnreachable(f"{config.engine_url} lists no model; load one or set engine_model")
    facts.pop("model", None)
    if config.model_path:
        facts["model_digest"] = await asyncio.to_thread(_file_digest, Path(config.model_path))
    return Engine(kind=kind, model=model, **facts)


class _Probe:
    def __init__(self, http: aiohttp.ClientSession, config: Config) -> None:
        self._http = http
        self._base = config.engine_url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {config.engine_api_key}"} if config.engine_api_key else {}

    async def get(self, path: str) -> Any:
        """The JSON answer, or None when there is no such page. Raises EngineUnreachable when nobody answers."""
        return await self._ask("GET", path, None)

    async def post(self, path: str, body: Any) -> Any:
        return await self._ask("POST", path, body)

    async def _ask(self, method: str, path: str, body: Any) -> Any:
        try:
            async with self._http.request(
                method, self._base + path, json=body, headers=self._headers, timeout=_DETECT_TIMEOUT
            ) as answer:
                if answer.status == 503:
                    raise EngineUnreachable(f"{self._base} is still loading its model")
                if answer.status != 200:
                    return None
                return msgspec.json.decode(await answer.read())
        except msgspec.DecodeError:
            return None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise EngineUnreachable(f"no engine answers at {self._base} ({type(error).__name__})") from None


def _served_model(models: Any, wanted: str) -> dict[str, Any]:
    entries = models.get("data") if isinstance(models, dict) else None
    entries = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    return next((entry for entry in entries if not wanted or entry.get("id") == wanted), {})


async def _detect_kind(probe: _Probe, models: Any) -> str:
    props = await probe.get("/props")
    if isinstance(props, dict) and "build_info" in props:
        return "llamacpp"
    owner = _served_model(models, "").get("owned_by")
    for path, field, kind in (
        ("/version", "version", "vllm"),
        ("/server_info", "version", "sglang"),
        ("/model_info", "model_path", "sglang"),
        ("/api/version", "version", "ollama"),
        ("/info", "model_id", "tgi"),
    ):
        answer = await probe.get(path)
        if isinstance(answer, dict) and field in answer:
            return kind
    return {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llamacpp"}.get(str(owner), "openai_chat")


class _Details:
    """Per engine, what its own pages tell."""

    @staticmethod
    async def llamacpp(probe: _Probe, served: dict[str, Any]) -> dict[str, Any]:
        props = await probe.get("/props") or {}
        meta = served.get("meta") or {}
        settings = props.get("default_generation_settings") or {}
        return {
            "build_info": props.get("build_info"),
            "version": props.get("build_info"),
            # Per slot: the server divides its context by the number of slots.
            "context_tokens": settings.get("n_ctx") or meta.get("n_ctx"),
            "parallel": props.get("total_slots"),
            "quantisation": meta.get("ftype") or props.get("model_ftype"),
            "chat_template_digest": _text_digest(props.get("chat_template")),
            "embeddings": None,
        }

    @staticmethod
    async def vllm(probe: _Probe, served: dict[str, Any]) -> dict[str, Any]:
        version = await probe.get("/version") or {}
        info = await probe.get("/tokenizer_info") or {}
        return {
            "version": version.get("version"),
            "context_tokens": served.get("max_model_len"),
            "quantisation": _quantisation_in(str(served.get("root") or served.get("id") or "")),
            "chat_template_digest": _text_digest(info.get("chat_template")),
        }

    @staticmethod
    async def sglang(probe: _Probe, served: dict[str, Any]) -> dict[str, Any]:
        server = await probe.get("/server_info") or {}
        return {
            "version": server.get("version"),
            "context_tokens": served.get("max_model_len") or server.get("context_length"),
            "quantisation": server.get("quantization") or server.get("dtype"),
            "parallel": server.get("max_running_requests"),
            "chat_template_digest": _text_digest(server.get("chat_template")),
        }

    @staticmethod
    async def ollama(probe: _Probe, served: dict[str, Any]) -> dict[str, Any]:
        version = await probe.get("/api/version") or {}
        shown = await probe.post("/api/show", {"model": served.get("id")}) or {}
        contexts = [
            value
            for name, value in (shown.get("model_info") or {}).items()
            if name.endswith("context_length")
        ]
        return {
            "version": version.get("version"),
            "context_tokens": contexts[0] if contexts else None,
            "quantisation": (shown.get("details") or {}).get("quantization_level"),
            "chat_template_digest": _text_digest(shown.get("template")),
        }

    @staticmethod
    async def tgi(probe: _Probe, _served: dict[str, Any]) -> dict[str, Any]:
        info = await probe.get("/info") or {}
        return {
            "model": info.get("model_id"),
            "version": info.get("version"),
            "context_tokens": info.get("max_total_tokens"),
            "quantisation": info.get("quantize") or info.get("model_dtype"),
        }


def _quantisation_in(repository: str) -> str | None:
    """vLLM does not tell; the repository's name usually does."""
    found = re.search(r"(?i)(nvfp4|mxfp4|fp8|awq|gptq|int8|int4|bf16|w8a8|w4a16)", repository)
    return found.group(1).lower() if found else None


def _text_digest(text: Any) -> str | None:
    return sha256(text.encode()).hexdigest() if isinstance(text, str) and text else None


def _file_digest(path: Path) -> str | None:
    digest = sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()
