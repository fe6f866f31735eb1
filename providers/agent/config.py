"""The agent's configuration: a TOML file, every key of which the environment can override."""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from providers.agent.errors import CannotStart

PREFIX = "TOKENYARD_AGENT_"

Port = Annotated[int, Meta(ge=0, le=65_535)]
Positive = Annotated[int, Meta(ge=1, le=2**53)]
Rate = Annotated[int, Meta(ge=0, le=2**53)]
HttpUrl = Annotated[str, Meta(pattern="^https?://[^/?#@\\s]+(/[^?#\\s]*)?$")]


class OfferingTerms(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A grade this host sells and its three prices, in micros of the market's currency per Mtok."""

    grade: str
    spot_floor_micros_per_mtok: Rate
    firm_rate_micros_per_mtok: Rate
    list_rate_micros_per_mtok: Rate


class BenchPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The reference mix of the start bench; short, because the market measures in earnest by its probes."""

    requests: Positive = 8
    concurrency: Positive = 2
    prompt_words: Positive = 60
    output_tokens: Positive = 64
    timeout_s: Positive = 60


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`base_url` is where the market's gateway reaches this agent; `engine_url` stays on this host."""

    market_url: HttpUrl
    base_url: HttpUrl
    engine_url: HttpUrl
    state_dir: str = "/var/lib/tokenyard-agent"
    enrolment_code: str = ""
    listen_host: str = "127.0.0.1"
    listen_port: Port = 8101
    engine_kind: str = ""  # Detected when empty.
    engine_model: str = ""  # The engine's first model when empty.
    engine_api_key: str = ""
    engine_wait_s: Positive = 120
    model_path: str = ""  # Where the weights lie, if on this host: their digest is then reported.
    heartbeat_s: Positive = 5
    upload_interval_ms: Positive = 1_000
    shutdown_grace_s: Positive = 30
    max_request_s: Positive = 900
    max_body_bytes: Positive = 8 * 1024 * 1024
    keep_sent_days: Positive = 7  # How long usage that the market has is kept, should it ask again ...
    keep_sent_mib: Positive = 256  # ... and how much of it at most.
    test_clock_offset_s: int = 0  # Rehearses a wrong clock: seconds added to this machine's.
    log_level: str = "INFO"
    bench: BenchPlan = BenchPlan()
    offerings: tuple[OfferingTerms, ...] = ()


def load_config(path: Path | None, environment: Mapping[str, str] = os.environ, **overrides: str) -> Config:
    """The file's values, then TOKENYARD_AGENT_* (BENCH_REQUESTS for [bench] requests, OFFERINGS as a JSON
    list), then `overrides`. Raises CannotStart naming the key.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise CannotStart(
                "config", f"{path} cannot be read: {error.strerror}", "give --config FILE"
            ) from None
        except ValueError as error:
            raise CannotStart(
                "config", f"{path} is not TOML: {error}", "see example.toml beside the agent"
            ) from None
    values |= _from_environment(Config, environment, PREFIX)
    bench = _from_environment(BenchPlan, environment, PREFIX + "BENCH_")
    if bench:
        values["bench"] = {**values.get("bench", {}), **bench}
    values |= overrides
    try:
        return msgspec.convert(values, Config)
    except msgspec.ValidationError as error:
        raise CannotStart(
            "config", str(error), f"correct {path or 'the environment'} (see example.toml)"
        ) from None


def _from_environment(
    kind: type[msgspec.Struct], environment: Mapping[str, str], prefix: str
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        text = environment.get(prefix + field.name.upper())
        if text is None or field.name == "bench":
            continue
        try:
            if field.name == "offerings":
                values[field.name] = msgspec.json.decode(text.encode())
            else:
                values[field.name] = msgspec.convert(text, field.type, strict=False)
        except msgspec.MsgspecError as error:
            raise CannotStart(
                "config", f"{prefix}{field.name.upper()}: {error}", "correct the environment"
            ) from None
    return values
