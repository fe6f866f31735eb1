"""What Prometheus asks of a gateway process. Names follow OpenTelemetry's gen_ai where it has one."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter("tokenyard_gateway_requests_total", "Requests by path and HTTP status", ["path", "status"])
IN_FLIGHT = Gauge("tokenyard_gateway_in_flight", "Requests being served")
ATTEMPTS = Counter("tokenyard_gateway_attempts_total", "Attempts at hosts by result", ["result"])
HOLDS = Counter("tokenyard_gateway_holds_total", "Holds by what became of them", ["outcome"])
ADMISSION_SECONDS = Histogram(
    "tokenyard_gateway_admission_seconds",
    "From the request's end to its dispatch: key, body, hold",
    buckets=(0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.05, 0.2, 1),
)
FIRST_OUTPUT_SECONDS = Histogram(
    "gen_ai_server_time_to_first_token_seconds",
    "From the request's end to the host's first chunk with output",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
CAPTURE_SECONDS = Histogram(
    "tokenyard_gateway_capture_seconds",
    "Capture of the hold with its usage event",
    buckets=(0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.05, 0.2, 1),
)
TOKENS = Counter("gen_ai_client_tokens_total", "Native tokens captured", ["bucket"])
