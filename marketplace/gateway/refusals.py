"""From the hold function's outcome to what the buyer is told. Pure."""

from __future__ import annotations

from typing import Final

from marketplace.contracts.holds import Opened
from marketplace.contracts.purchases import cap_message
from marketplace.gateway.errors import ApiError

CONTRACT_HEADER: Final = "X-Tokenyard-Contract"
_NUMERATOR_PER_TOKEN: Final = 1_000_000
_QUOTA: Final = "insufficient_quota"


def rate_limit_headers(opened: Opened) -> dict[str, str]:
    """OpenAI's x-ratelimit-* headers, in standard tokens of the right that pays."""
    headers: dict[str, str] = {}
    if opened.limit_numerator is not None:
        headers["x-ratelimit-limit-tokens"] = str(opened.limit_numerator // _NUMERATOR_PER_TOKEN)
    if opened.remaining_numerator is not None:
        headers["x-ratelimit-remaining-tokens"] = str(opened.remaining_numerator // _NUMERATOR_PER_TOKEN)
    if opened.reset_ms is not None:
        headers["x-ratelimit-reset-tokens"] = f"{opened.reset_ms}ms"
    return headers


def refusal_of(opened: Opened) -> ApiError:
    """The error of an outcome other than ok. Nothing was generated and nothing is held."""
    outcome = opened.outcome
    headers = rate_limit_headers(opened)
    if opened.retry_after_ms is not None:
        headers["retry-after"] = str(max(1, -(-opened.retry_after_ms // 1000)))
        headers["retry-after-ms"] = str(opened.retry_after_ms)
    if outcome == "contract_not_found":
        message = "There is no such contract of yours for this model."
        return ApiError(404, outcome, message, param=CONTRACT_HEADER)
    if outcome == "contract_suspended":
        message = "The contract is suspended: its month is not paid. Top up your balance."
        return ApiError(402, outcome, message, kind=_QUOTA)
    if outcome == "contract_exhausted":
        message = "The contract has not enough volume left in this period for this request."
        return ApiError(402, outcome, message, kind=_QUOTA, headers=headers)
    if outcome == "insufficient_funds":
        message = "Neither your balance nor a credit line covers this request. Top up your balance."
        return ApiError(402, outcome, message, kind=_QUOTA)
    if outcome == "spend_cap_reached":
        return ApiError(402, outcome, _cap_message(opened), kind=_QUOTA, headers=headers)
    if outcome == "overage_above_max_rate":
        message = (
            f"The contract's volume is used up, and its overage costs {opened.rate_micros_per_mtok} micros per Mtok "
            f"now, above its max_rate_micros_per_mtok of {opened.max_rate_micros_per_mtok}. Retry in another "
            "delivery period."
        )
        param = "max_rate_micros_per_mtok"
        return ApiError(429, outcome, message, kind="rate_limit_error", param=param, headers=headers)
    if outcome == "rate_limited":
        message = "The contract's rate per delivery period is reached. Retry later."
        return ApiError(429, "rate_limit_exceeded", message, kind="rate_limit_error", headers=headers)
    if outcome == "capacity_unavailable":
        message = "No unsold capacity is left for this request at the moment. Retry later."
        return ApiError(429, outcome, message, kind="capacity_error", headers=headers)
    if outcome == "capacity_curtailed":
        message = (
            "The host that owes this contract can supply less, and no more of it in this period. Retry later."
        )
        return ApiError(429, outcome, message, kind="capacity_error", headers=headers)
    assert outcome == "no_offering", f"unknown outcome {outcome!r}"
    message = "No host that serves this model is ready at the moment."
    return ApiError(503, "no_host_ready", message, kind="server_error", headers=headers)


def _cap_message(opened: Opened) -> str:
    assert opened.spend_cap is not None
    return cap_message(opened.spend_cap, of_what="this request")
