"""Service levels of a grade, as they are published and shown."""

from __future__ import annotations

from rest_framework import serializers

from marketplace.api.serializers import StrictChoiceField, StrictIntegerField, StrictSerializer
from pricing.models import ServiceLevel
from pricing.promising import MAX_MINIMUM_REQUESTS, MICROSECONDS
from pricing.services import MAX_CONTEXT_TOKENS, MAX_REQUEST_S
from pricing.units import PPM

_HELP = {
    "metric": "first_token: from admission to the first output; output_token: per output token after it",
    "percentile": "of the requests of a settlement period, by nearest rank",
    "limit_us": "the level holds while the percentile is at most this many microseconds",
    "credit_ppm": "share of the buyer's gross of the settlement period, where it is broken",
    "minimum_requests": "fewer requests of a contract at an offering say nothing",
    "max_input_tokens": "longer requests are not measured; null: all are",
}


class ServiceLevelOut(serializers.ModelSerializer[ServiceLevel]):
    class Meta:
        model = ServiceLevel
        fields = ("id", *_HELP)
        extra_kwargs = {name: {"help_text": text} for name, text in _HELP.items()}


class ServiceLevelIn(StrictSerializer):
    metric = StrictChoiceField(choices=ServiceLevel.Metric.choices, help_text=_HELP["metric"])
    percentile = StrictIntegerField(min_value=1, max_value=99, help_text=_HELP["percentile"])
    limit_us = StrictIntegerField(
        min_value=1, max_value=MAX_REQUEST_S * MICROSECONDS, help_text=_HELP["limit_us"]
    )
    credit_ppm = StrictIntegerField(min_value=1, max_value=PPM, help_text=_HELP["credit_ppm"])
    minimum_requests = StrictIntegerField(
        min_value=1, max_value=MAX_MINIMUM_REQUESTS, help_text=_HELP["minimum_requests"]
    )
    max_input_tokens = StrictIntegerField(
        min_value=1,
        max_value=MAX_CONTEXT_TOKENS,
        required=False,
        allow_null=True,
        default=None,
        help_text=_HELP["max_input_tokens"],
    )
