"""What providers and their agents send and are sent, in JSON: first what goes out, then what comes in."""

from __future__ import annotations

from typing import Any, Final

from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from marketplace import clock
from marketplace.api.serializers import (
    MicrosPerMtokField,
    StrictBooleanField,
    StrictChoiceField,
    StrictIntegerField,
    StrictSerializer,
    TextField,
    TimestampField,
    UuidField,
)
from marketplace.egress import MAX_URL_CHARACTERS
from pricing.rating import plain_prices
from pricing.selectors import by_bucket
from pricing.services import MAX_RATE_MICROS_PER_MTOK
from providers import selectors
from providers.claims import MAX_COUNT, MAX_COUNTER, MAX_DURATION_MS, MAX_TOKENS
from providers.models import Bench, Host, Offering

_BIGGEST: Final = 2**63 - 1


class BenchOut(serializers.ModelSerializer[Bench]):
    class Meta:
        model = Bench
        fields = (
            "duration_ms",
            "requests",
            "concurrency",
            "input_tokens",
            "output_tokens",
            "first_byte_p50_ms",
            "first_byte_p95_ms",
            "measured_at",
        )


class ProviderOut(serializers.Serializer[Any]):
    """What everybody may know of a provider."""

    display_name = serializers.CharField()
    since = serializers.DateTimeField()
    grades = serializers.ListField(child=serializers.CharField(), help_text="titles of what is on offer")
    settled_numerator = serializers.SerializerMethodField(
        help_text="usage of the last 30 days in settled periods, in millionths of a standard token, as a string"
    )
    reconciliation_ppm = serializers.IntegerField(
        allow_null=True,
        help_text="the share of that, by volume, in periods whose meters agreed within 0.5%; null without usage",
    )

    def get_settled_numerator(self, profile: selectors.Profile) -> str:
        return str(profile.settled_numerator)


class HostOut(serializers.ModelSerializer[Host]):
    hardware = serializers.DictField(help_text="as the agent detected it")
    engine = serializers.DictField(help_text="as the agent detected it")

    class Meta:
        model = Host
        fields = (
            "id",
            "name",
            "region",
            "site",
            "status",
            "base_url",
            "source_id",
            "ready",
            "in_flight",
            "clock_skew_ms",
            "last_heartbeat_at",
            "enrolled_at",
            "created_at",
            "hardware",
            "engine",
        )


class HostDetailOut(HostOut):
    bench = serializers.SerializerMethodField(help_text="what was measured, last")
    capacity = serializers.SerializerMethodField(
        help_text="shares of the host in the running delivery period"
    )

    class Meta:
        model = Host
        fields = (*HostOut.Meta.fields, "bench", "capacity")

    @extend_schema_field(BenchOut(allow_null=True))
    def get_bench(self, host: Host) -> dict[str, Any] | None:
        bench = selectors.latest_bench(host.pk)
        return None if bench is None else dict(BenchOut(bench).data)

    @extend_schema_field(
        {
            "type": "object",
            "properties": {name: {"type": "integer"} for name in ("sellable_ppm", "sold_ppm", "unsold_ppm")},
        }
    )
    def get_capacity(self, host: Host) -> dict[str, int]:
        capacity = selectors.running_capacity(host.pk, clock.now())
        return {
            "sellable_ppm": capacity.sellable_ppm,
            "sold_ppm": capacity.sold_ppm,
            "unsold_ppm": capacity.unsold_ppm,
        }


class EnrolmentCodeOut(serializers.Serializer[Any]):
    host_id = serializers.UUIDField()
    code = serializers.CharField(help_text="shown once; works once")
    expires_at = serializers.DateTimeField()


class OfferingOut(serializers.ModelSerializer[Offering]):
    """Of a query that `list_rates.with_list_rate` annotated."""

    grade = serializers.CharField(source="grade.family.slug")
    list_rate_id = serializers.UUIDField(source="listed_rate_id", help_text="in force now")
    list_rate_micros_per_mtok = serializers.IntegerField(
        source="listed_micros_per_mtok", help_text="in force now: by the offering's tariff where it has one"
    )
    firm_rate_micros_per_mtok = serializers.IntegerField(source="firm_rate.micros_per_mtok")
    list_prices_per_mtok = serializers.SerializerMethodField(
        help_text="list rate x weight x kappa of each bucket: exact decimals per million native tokens"
    )

    class Meta:
        model = Offering
        fields = (
            "id",
            "host_id",
            "grade",
            "grade_id",
            "status",
            "dependable_numerator_per_s",
            "list_rate_id",
            "list_rate_micros_per_mtok",
            "list_prices_per_mtok",
            "firm_rate_id",
            "firm_rate_micros_per_mtok",
            "spot_floor_micros_per_mtok",
            "created_at",
        )

    @extend_schema_field({"type": "object", "additionalProperties": {"type": "string"}})
    def get_list_prices_per_mtok(self, offering: Any) -> dict[str, str]:
        ppm = {bucket: row.standard_ppm for bucket, row in by_bucket(offering.grade.buckets.all()).items()}
        prices = plain_prices(offering.listed_micros_per_mtok, ppm)
        return {bucket.value: price.per_mtok for bucket, price in prices.items()}


class HostIn(StrictSerializer):
    name = TextField(max_length=64)
    region = TextField(max_length=32)
    site = TextField(max_length=120, required=False, allow_blank=True, default="")


class HostStatusIn(StrictSerializer):
    status = StrictChoiceField(choices=["enrolled", "paused"])


class NothingIn(StrictSerializer):
    """No body, or an empty object."""


class PricesIn(StrictSerializer):
    grade = TextField(max_length=64, help_text="slug of a grade in force")
    spot_floor_micros_per_mtok = MicrosPerMtokField(min_value=0, max_value=MAX_RATE_MICROS_PER_MTOK)
    firm_rate_micros_per_mtok = MicrosPerMtokField(max_value=MAX_RATE_MICROS_PER_MTOK)
    list_rate_micros_per_mtok = MicrosPerMtokField(max_value=MAX_RATE_MICROS_PER_MTOK)


class OfferingIn(PricesIn):
    host_id = UuidField()


class OfferingStatusIn(StrictSerializer):
    status = StrictChoiceField(choices=["listed", "paused", "withdrawn"])


class EnrolIn(StrictSerializer):
    code = TextField(max_length=100)
    public_key = TextField(max_length=44, help_text="the 32 raw bytes of an Ed25519 public key, in base64")
    base_url = TextField(max_length=MAX_URL_CHARACTERS, help_text="where the gateway reaches the agent")
    hardware = serializers.DictField(child=serializers.JSONField(allow_null=True))
    engine = serializers.DictField(child=serializers.JSONField(allow_null=True))


class EnrolOut(serializers.Serializer[Any]):
    host_id = serializers.UUIDField()
    source_id = serializers.UUIDField(help_text="the meter source of the agent's usage batches")
    market_public_key = serializers.CharField(
        help_text="base64; delivery keys are signed with its other half"
    )
    heartbeat_s = serializers.IntegerField()


class RegistersIn(StrictSerializer):
    """Running counters of the engine; null where it has none. `prompt_tokens_total` includes cached tokens."""

    prompt_tokens_total = StrictIntegerField(
        min_value=0, max_value=MAX_COUNTER, required=False, allow_null=True
    )
    cached_tokens_total = StrictIntegerField(
        min_value=0, max_value=MAX_COUNTER, required=False, allow_null=True
    )
    output_tokens_total = StrictIntegerField(
        min_value=0, max_value=MAX_COUNTER, required=False, allow_null=True
    )
    requests_running = StrictIntegerField(min_value=0, max_value=MAX_COUNTER, required=False, allow_null=True)
    requests_waiting = StrictIntegerField(min_value=0, max_value=MAX_COUNTER, required=False, allow_null=True)
    engine_boot = TextField(max_length=64, required=False, allow_null=True)
    bench_input_tokens = StrictIntegerField(
        min_value=0,
        max_value=MAX_COUNTER,
        required=False,
        help_text="what the host's own benches have used so far, ever",
    )
    bench_output_tokens = StrictIntegerField(min_value=0, max_value=MAX_COUNTER, required=False)


class HeartbeatIn(StrictSerializer):
    boot_id = TextField(max_length=64)
    ready = StrictBooleanField()
    in_flight = StrictIntegerField(min_value=0, max_value=2**31 - 1)
    registers = RegistersIn(required=False)
    energy_millijoules = StrictIntegerField(min_value=0, max_value=_BIGGEST, required=False, allow_null=True)
    at = TimestampField(required=False, help_text="by the host's own clock; the market's decides")
    available_ppm = StrictIntegerField(
        min_value=0,
        max_value=1_000_000,
        required=False,
        help_text="what the engine can supply now, in millionths of its dependable capacity; less is a derating",
    )


class HeartbeatOut(serializers.Serializer[Any]):
    status = serializers.CharField(help_text="enrolled, or paused by its owner")
    heartbeat_s = serializers.IntegerField()


class BenchIn(StrictSerializer):
    duration_ms = StrictIntegerField(min_value=1, max_value=MAX_DURATION_MS)
    requests = StrictIntegerField(min_value=1, max_value=MAX_COUNT)
    concurrency = StrictIntegerField(min_value=1, max_value=MAX_COUNT)
    input_tokens = StrictIntegerField(min_value=0, max_value=MAX_TOKENS)
    output_tokens = StrictIntegerField(min_value=1, max_value=MAX_TOKENS)
    first_byte_p50_ms = StrictIntegerField(min_value=0, max_value=MAX_DURATION_MS)
    first_byte_p95_ms = StrictIntegerField(min_value=0, max_value=MAX_DURATION_MS)


class BenchAcceptedOut(serializers.Serializer[Any]):
    bench_id = serializers.UUIDField()
