"""The tiny model behind a real llama.cpp server."""

import json
import urllib.request
from pathlib import Path
from typing import Any

from marketplace.local.tiny_model import write_tiny_model
from tests.engine import RunningEngine


def post(url: str, body: Any) -> bytes:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        content: bytes = answer.read()
        return content


def chat(engine: RunningEngine, text: str, **options: Any) -> dict[str, Any]:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 400, **options}
    answer: dict[str, Any] = json.loads(post(f"{engine.url}/v1/chat/completions", body))
    return answer


def test_same_seed_gives_the_same_bytes_and_another_seed_another_model(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_tiny_model(tmp_path / name, seed=seed)
    first, second, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == second
    assert first != other
    assert len(first) < 600_000


def test_answers_are_printable_end_by_themselves_and_vary_in_length(engine: RunningEngine) -> None:
    lengths = []
    for number in range(12):
        answer = chat(engine, f"hello {number}", seed=number)
        text = answer["choices"][0]["message"]["content"]
        assert all(" " <= character <= "~" for character in text)
        lengths.append(answer["usage"]["completion_tokens"])
    assert min(lengths) < 400
    assert len(set(lengths)) > 3


def test_output_tokenises_to_exactly_what_was_sampled(engine: RunningEngine) -> None:
    for number in range(5):
        answer = chat(engine, "count me", seed=number, max_tokens=60)
        choice = answer["choices"][0]
        tokens = json.loads(post(f"{engine.url}/tokenize", {"content": choice["message"]["content"]}))[
            "tokens"
        ]
        end_token = 1 if choice["finish_reason"] == "stop" else 0
        assert answer["usage"]["completion_tokens"] == len(tokens) + end_token


def test_the_same_request_gives_the_same_answer_at_temperature_zero(engine: RunningEngine) -> None:
    texts = {chat(engine, "again", temperature=0)["choices"][0]["message"]["content"] for _ in range(3)}
    assert len(texts) == 1


def test_a_stream_ends_with_usage_and_the_end_mark(engine: RunningEngine) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "stream": True}
    body["stream_options"] = {"include_usage": True}
    events = post(f"{engine.url}/v1/chat/completions", body).decode().strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    usage = json.loads(events[-2].removeprefix("data: "))["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_metrics_and_props_are_served(engine: RunningEngine) -> None:
    with urllib.request.urlopen(f"{engine.url}/metrics", timeout=5) as answer:
        assert b"llamacpp:tokens_predicted_total" in answer.read()
    with urllib.request.urlopen(f"{engine.url}/props", timeout=5) as answer:
        props = json.load(answer)
    assert props["default_generation_settings"]["n_ctx"] == engine.context_tokens
    assert "<|turn|>" in props["chat_template"]
