"""Request bodies: strict JSON, an allow-list of OpenAI's fields, and the bound of what a request may come to. Pure."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import msgspec

from marketplace.gateway.errors import ApiError, invalid

MAX_BODY_BYTES: Final = 4 * 1024 * 1024
MAX_DEPTH: Final = 64
MAX_MESSAGES: Final = 4_096
MAX_INPUTS: Final = 2_048
MAX_TOOLS: Final = 128
MAX_STOPS: Final = 4

CHAT: Final = "/v1/chat/completions"
COMPLETIONS: Final = "/v1/completions"
EMBEDDINGS: Final = "/v1/embeddings"

_ROLES: Final = frozenset({"system", "developer", "user", "assistant", "tool", "function"})


@dataclass(frozen=True, slots=True)
class Asked:
    """A checked request. `body` is what goes to the host, less the output limit, which the grade decides.

    `input_bytes` bounds the input tokens: no vocabulary makes more tokens than there are bytes.
    """

    path: str
    model: str
    body: dict[str, Any]
    stream: bool
    include_usage: bool
    max_output_tokens: int | None
    max_output_param: str
    input_bytes: int


def parse_json(raw: bytes) -> dict[str, Any]:
    """A JSON object as RFC 8259 and I-JSON mean it. Raises ApiError 400."""
    try:
        value = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_object)
    except UnicodeDecodeError:
        raise invalid(None, "The body is not UTF-8.", code="invalid_json") from None
    except RecursionError:
        raise invalid(None, "The body is nested too deeply.", code="invalid_json") from None
    except ValueError as error:
        raise invalid(None, f"The body is not valid JSON: {str(error)[:120]}.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise invalid(None, "The body must be a JSON object.", code="invalid_json")
    # A NUL can only come as an escape: raw control characters are no JSON. And depth takes as many brackets.
    if b"\\u" in raw or raw.count(b"[") + raw.count(b"{") > MAX_DEPTH:
        _check_text(value, "", 0)
    return value


def parse_request(path: str, raw: bytes) -> Asked:
    """The request of one of the three generating endpoints. Raises ApiError 400 naming the parameter."""
    value = parse_json(raw)
    fields = _FIELDS[path]
    for name in value:
        if name not in fields:
            shown = name.encode("ascii", "backslashreplace").decode()[:80]
            raise invalid(shown, f"Unknown parameter: '{shown}'.", code="unknown_parameter")
    body: dict[str, Any] = {}
    for name, field in value.items():
        if field is None:
            continue
        check = fields[name]
        if check is not None:
            check(name, field)
        if name not in _NOT_FORWARDED:
            body[name] = field
    for name in _REQUIRED[path]:
        if value.get(name) is None:
            raise invalid(name, f"Missing required parameter: '{name}'.", code="missing_required_parameter")
    stream = bool(value.get("stream"))
    options = value.get("stream_options")
    if options is not None and not stream:
        raise invalid("stream_options", "'stream_options' is only allowed when 'stream' is true.")
    limit, limit_param = _output_limit(value)
    if path == COMPLETIONS and isinstance(body["prompt"], list):
        body["prompt"] = body["prompt"][0]
    bounded = {name: body[name] for name in _INPUT_FIELDS if name in body}
    return Asked(
        path=path,
        model=value["model"],
        body=body,
        stream=stream,
        include_usage=bool(options and options.get("include_usage")),
        max_output_tokens=limit,
        max_output_param=limit_param,
        # Quotes and names of the JSON only add to the bound.
        input_bytes=len(msgspec.json.encode(bounded)),
    )


def _output_limit(value: Mapping[str, Any]) -> tuple[int | None, str]:
    named = [name for name in ("max_completion_tokens", "max_tokens") if value.get(name) is not None]
    if len(named) == 2 and value[named[0]] != value[named[1]]:
        raise invalid("max_tokens", "'max_tokens' and 'max_completion_tokens' contradict each other.")
    return (value[named[0]], named[0]) if named else (None, "max_tokens")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice in one object")
    return found


def _check_text(value: Any, path: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise invalid(None, "The body is nested too deeply.", code="invalid_json")
    if isinstance(value, str):
        if "\x00" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise invalid(path or None, "Text must not contain NUL or half of a surrogate pair.")
    elif isinstance(value, dict):
        for name, inner in value.items():
            _check_text(name, path, depth + 1)
            _check_text(inner, f"{path}.{name}" if path else str(name), depth + 1)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check_text(inner, f"{path}.{index}" if path else str(index), depth + 1)


# Checks of single fields ---------------------------------------------------------------------------------------------

Check = Callable[[str, Any], None]


def _wrong_type(name: str, wanted: str) -> ApiError:
    return invalid(name, f"Invalid type for '{name}': expected {wanted}.", code="invalid_type")


def _integer(least: int, most: int) -> Check:
    def check(name: str, value: Any) -> None:
        if type(value) is not int:
            raise _wrong_type(name, "an integer")
        if not least <= value <= most:
            raise invalid(name, f"'{name}' must be from {least} to {most}.", code="integer_out_of_range")

    return check


def _number(least: float, most: float) -> Check:
    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _wrong_type(name, "a number")
        # 1e400 reads as infinity, which no bound admits.
        if not least <= value <= most:
            raise invalid(name, f"'{name}' must be from {least:g} to {most:g}.", code="decimal_out_of_range")

    return check


def _boolean(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise _wrong_type(name, "a boolean")


def _text(most: int, *, least: int = 1) -> Check:
    def check(name: str, value: Any) -> None:
        if not isinstance(value, str):
            raise _wrong_type(name, "a string")
        if not least <= len(value) <= most:
            raise invalid(name, f"'{name}' must have {least} to {most} characters.")

    return check


def _one_of(*words: str) -> Check:
    def check(name: str, value: Any) -> None:
        if value not in words or not isinstance(value, str):
            raise invalid(name, f"'{name}' must be one of {', '.join(words)}.")

    return check


def _only(expected: Any) -> Check:
    def check(name: str, value: Any) -> None:
        if type(value) is not type(expected) or value != expected:
            raise invalid(name, f"'{name}' must be {json.dumps(expected)} here.", code="unsupported_value")

    return check


def _mapping(name: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise _wrong_type(name, "an object")


def _stop(name: str, value: Any) -> None:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise _wrong_type(name, "a string or an array of strings")
    if len(stops) > MAX_STOPS:
        raise invalid(name, f"'{name}' may have at most {MAX_STOPS} sequences.")


def _messages(name: str, value: Any) -> None:
    if not isinstance(value, list):
        raise _wrong_type(name, "an array")
    if not 1 <= len(value) <= MAX_MESSAGES:
        raise invalid(name, f"'{name}' must have 1 to {MAX_MESSAGES} messages.")
    for index, message in enumerate(value):
        place = f"{name}[{index}]"
        if not isinstance(message, dict):
            raise _wrong_type(place, "an object")
        role = message.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            raise invalid(f"{place}.role", f"'{place}.role' must be one of {', '.join(sorted(_ROLES))}.")
        content = message.get("content")
        if isinstance(content, list):
            for part_index, part in enumerate(content):
                _content_part(f"{place}.content[{part_index}]", part)
        elif content is None:
            if role != "assistant":
                raise invalid(f"{place}.content", f"Missing required parameter: '{place}.content'.")
        elif not isinstance(content, str):
            raise _wrong_type(f"{place}.content", "a string or an array of parts")


def _content_part(place: str, part: Any) -> None:
    if not isinstance(part, dict):
        raise _wrong_type(place, "an object")
    if part.get("type") not in ("text", "refusal"):
        raise invalid(
            f"{place}.type", "Only parts of type 'text' are served by this grade.", code="unsupported_value"
        )
    text = part.get(part["type"])
    if not isinstance(text, str):
        raise _wrong_type(f"{place}.{part['type']}", "a string")


def _tools(name: str, value: Any) -> None:
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise _wrong_type(name, "an array of objects")
    if len(value) > MAX_TOOLS:
        raise invalid(name, f"'{name}' may have at most {MAX_TOOLS} entries.")


def _tool_choice(name: str, value: Any) -> None:
    if not isinstance(value, str | dict):
        raise _wrong_type(name, "a string or an object")


def _stream_options(name: str, value: Any) -> None:
    _mapping(name, value)
    for option, chosen in value.items():
        place = f"{name}.{option}"
        if option not in ("include_usage", "include_obfuscation"):
            raise invalid(place[:80], f"Unknown parameter: '{place[:80]}'.", code="unknown_parameter")
        _boolean(place, chosen)


def _logit_bias(name: str, value: Any) -> None:
    _mapping(name, value)
    if len(value) > 300:
        raise invalid(name, f"'{name}' may have at most 300 entries.")
    for token, bias in value.items():
        _number(-100, 100)(f"{name}.{token[:20]}", bias)


def _prompt(name: str, value: Any) -> None:
    if isinstance(value, list):
        if len(value) != 1 or not isinstance(value[0], str):
            raise invalid(name, f"'{name}' must be one string.", code="unsupported_value")
        return
    if not isinstance(value, str):
        raise _wrong_type(name, "a string")


def _input(name: str, value: Any) -> None:
    if isinstance(value, str):
        if not value:
            raise invalid(name, f"'{name}' must not be empty.")
        return
    if not isinstance(value, list) or not all(isinstance(text, str) and text for text in value):
        raise _wrong_type(name, "a string or an array of strings that are not empty")
    if not 1 <= len(value) <= MAX_INPUTS:
        raise invalid(name, f"'{name}' must have 1 to {MAX_INPUTS} entries.")


_COMMON: Final[dict[str, Check]] = {
    "model": _text(120),
    "stream": _boolean,
    "stream_options": _stream_options,
    "max_tokens": _integer(1, 2**31),
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "n": _only(1),
    "stop": _stop,
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "logit_bias": _logit_bias,
    "seed": _integer(-(2**63), 2**63 - 1),
    "user": _text(512, least=0),
}
_FIELDS: Final[dict[str, dict[str, Check]]] = {
    CHAT: _COMMON
    | {
        "messages": _messages,
        "max_completion_tokens": _integer(1, 2**31),
        "logprobs": _boolean,
        "top_logprobs": _integer(0, 20),
        "response_format": _mapping,
        "tools": _tools,
        "tool_choice": _tool_choice,
        "parallel_tool_calls": _boolean,
        "reasoning_effort": _one_of("none", "minimal", "low", "medium", "high", "xhigh"),
        "metadata": _mapping,
        "store": _only(False),
        "service_tier": _one_of("auto", "default"),
        "safety_identifier": _text(512, least=0),
        "prompt_cache_key": _text(512, least=0),
    },
    COMPLETIONS: _COMMON
    | {"prompt": _prompt, "logprobs": _integer(0, 5), "best_of": _only(1), "echo": _only(False)},
    EMBEDDINGS: {
        "model": _text(120),
        "input": _input,
        "encoding_format": _one_of("float", "base64"),
        "dimensions": _integer(1, 65_536),
        "user": _text(512, least=0),
    },
}
_REQUIRED: Final = {
    CHAT: ("model", "messages"),
    COMPLETIONS: ("model", "prompt"),
    EMBEDDINGS: ("model", "input"),
}
# What names the buyer's people or purposes stays here; what the gateway decides is written anew.
_NOT_FORWARDED: Final = frozenset(
    {
        "model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n", "user", "metadata", "store",
        "service_tier", "safety_identifier", "prompt_cache_key", "best_of", "echo",
    }
)  # fmt: skip
_INPUT_FIELDS: Final = ("messages", "prompt", "input", "tools", "tool_choice", "response_format")
