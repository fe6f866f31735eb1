"""Raw usage of one request each, as each source words it."""

from __future__ import annotations

from typing import Any

OPENAI_CHAT: dict[str, Any] = {
    "prompt_tokens": 1000,
    "completion_tokens": 300,
    "total_tokens": 1300,
    "prompt_tokens_details": {"cached_tokens": 400, "cache_write_tokens": 100, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 200,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 10,
    },
}
OPENAI_RESPONSES: dict[str, Any] = {
    "input_tokens": 1000,
    "output_tokens": 300,
    "total_tokens": 1300,
    "input_tokens_details": {
        "cached_tokens": 400,
        "cache_write_tokens": 100,
        "cache_write_tokens_details": {"ttl_30m_tokens": 60, "ttl_12h_tokens": 40},
    },
    "output_tokens_details": {"reasoning_tokens": 200},
}
ANTHROPIC: dict[str, Any] = {
    "input_tokens": 500,
    "cache_read_input_tokens": 400,
    "cache_creation_input_tokens": 100,
    "cache_creation": {"ephemeral_5m_input_tokens": 60, "ephemeral_1h_input_tokens": 40},
    "output_tokens": 300,
}
GEMINI: dict[str, Any] = {
    "promptTokenCount": 1000,
    "cachedContentTokenCount": 400,
    "candidatesTokenCount": 100,
    "thoughtsTokenCount": 200,
    "toolUsePromptTokenCount": 50,
    "totalTokenCount": 1350,
}
VLLM: dict[str, Any] = {
    "prompt_tokens": 248,
    "completion_tokens": 32,
    "total_tokens": 280,
    "prompt_tokens_details": {"cached_tokens": 240, "created_cache_tokens": 8, "multimodal_tokens": {}},
    "completion_tokens_details": {"reasoning_tokens": 12},
}
VLLM_WITHOUT_DETAILS: dict[str, Any] = {
    "prompt_tokens": 248,
    "completion_tokens": 32,
    "total_tokens": 280,
    "prompt_tokens_details": None,
    "completion_tokens_details": None,
}
SGLANG: dict[str, Any] = {
    "prompt_tokens": 248,
    "completion_tokens": 32,
    "total_tokens": 280,
    "reasoning_tokens": 12,
    "prompt_tokens_details": {"cached_tokens": 240},
    "sglext": {"cached_tokens_details": {"device": 200, "host": 40, "storage": 0}},
}
LLAMACPP: dict[str, Any] = {
    "prompt_tokens": 248,
    "completion_tokens": 32,
    "total_tokens": 280,
    "prompt_tokens_details": {"cached_tokens": 247},
    "timings": {"cache_n": 247, "prompt_n": 1, "predicted_n": 32, "prompt_ms": 1.5, "predicted_ms": 40.25},
}
OLLAMA: dict[str, Any] = {
    "done": True,
    "prompt_eval_count": 248,
    "prompt_eval_cached_count": 247,
    "eval_count": 32,
    "eval_duration": 10**9,
}
