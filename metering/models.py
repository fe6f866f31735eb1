"""Meters, what they reported, and the exact sums of it. Knows contract ids, not customers."""

from __future__ import annotations

from django.db import models
from django.db.models import F, Q

from marketplace.ids import uuid7
from pricing.models import Grade


class MeterKind(models.TextChoices):
    GATEWAY = "gateway"
    AGENT = "agent"
    ENGINE = "engine"


class MeterSource(models.Model):
    """A registered meter. Meter kind and host come from here, never from a payload. Gateway meters have no key."""

    class Status(models.TextChoices):
        ACTIVE = "active"
        CLOSED = "closed"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    kind = models.CharField(max_length=8, choices=MeterKind.choices)
    host_id = models.UUIDField(null=True)
    public_key = models.BinaryField(max_length=32, null=True)
    status = models.CharField(max_length=8, choices=Status.choices, default=Status.ACTIVE)
    # Dependable limit of the host, for the impossible-rate check; null until benched.
    dependable_numerator_per_s = models.BigIntegerField(null=True)
    next_sequence = models.BigIntegerField(default=1)
    last_digest = models.CharField(max_length=64, blank=True)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(kind="gateway") | (Q(host_id__isnull=False) & Q(public_key__isnull=False)),
                name="metering_source_host_meters_have_key",
            ),
            models.UniqueConstraint(
                fields=["host_id", "kind"],
                condition=Q(status="active"),
                name="metering_source_one_active_per_host",
            ),
            models.UniqueConstraint(
                fields=["kind"],
                condition=Q(status="active", kind="gateway"),
                name="metering_source_one_gateway",
            ),
        ]


class SignatureNonce(models.Model):
    """A nonce that a signing key has used: a signed request is believed once. Kept as a digest, whatever came."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    key_id = models.UUIDField()
    nonce_digest = models.BinaryField(max_length=16)
    used_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["key_id", "nonce_digest"], name="metering_nonce_used_once")
        ]
        indexes = [models.Index(fields=["used_at"], name="metering_nonce_by_time")]


class MeterPoint(models.Model):
    """Which usage is legitimate: this contract may be supplied by this offering in this grade version from .. until."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    contract_id = models.UUIDField()
    offering_id = models.UUIDField()
    host_id = models.UUIDField()
    grade = models.ForeignKey(Grade, on_delete=models.PROTECT, related_name="+")
    valid_from = models.DateTimeField()
    valid_until = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["contract_id", "offering_id"], name="metering_point_unique"),
            models.CheckConstraint(
                condition=Q(valid_until__isnull=True) | Q(valid_until__gt=F("valid_from")),
                name="metering_point_valid_forwards",
            ),
        ]


class UsageBatch(models.Model):
    """The inbox: a batch as it was accepted. The queue of record of ingestion; the broker only wakes workers."""

    class Status(models.TextChoices):
        PENDING = "pending"
        STORED = "stored"
        DEAD = "dead"

    class Chain(models.TextChoices):
        LINKED = "linked"
        GAP = "gap"
        BROKEN = "broken"

    id = models.UUIDField(primary_key=True, db_default=models.Func(function="uuidv7"), editable=False)
    source = models.ForeignKey(MeterSource, on_delete=models.PROTECT, related_name="+")
    sequence_from = models.BigIntegerField(null=True)
    sequence_to = models.BigIntegerField(null=True)
    previous_digest = models.CharField(max_length=64, blank=True)
    digest = models.CharField(max_length=64, blank=True)
    # Whether it continues the source's last batch; a break is recorded, never refused: the usage in it is real.
    chain = models.CharField(max_length=8, choices=Chain.choices, blank=True)
    # The event lines, without the header.
    body = models.BinaryField()
    body_bytes = models.IntegerField()
    status = models.CharField(max_length=8, choices=Status.choices, default=Status.PENDING)
    attempts = models.PositiveSmallIntegerField(default=0)
    accepted_events = models.IntegerField(default=0)
    duplicate_events = models.IntegerField(default=0)
    # Per event that is not plainly accepted or duplicate: [{"index", "id", "result", "field", "reason"}].
    exceptions = models.JSONField(default=list)
    error = models.TextField(blank=True)
    received_at = models.DateTimeField()
    stored_at = models.DateTimeField(null=True)

    class Meta:
        indexes = [
            models.Index(fields=["id"], condition=Q(status="pending"), name="metering_batch_pending"),
            models.Index(fields=["source", "-id"], name="metering_batch_by_source"),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(accepted_events__gte=0) & Q(duplicate_events__gte=0) & Q(body_bytes__gte=0),
                name="metering_batch_not_negative",
            ),
            models.UniqueConstraint(
                fields=["source", "sequence_from", "digest"],
                condition=Q(sequence_from__isnull=False),
                name="metering_batch_sequence_unique",
            ),
        ]


class UsageEvent(models.Model):
    """One request's metered facts, as one meter saw them. Append-only; partitioned by range of the UUIDv7 id.

    Created by SQL in the migration (Django makes no partitioned tables). Bucket columns: null is not zero.
    """

    pk = models.CompositePrimaryKey("id", "source")
    id = models.UUIDField()
    source = models.ForeignKey(MeterSource, on_delete=models.PROTECT, related_name="+", db_constraint=False)
    batch_id = models.UUIDField()
    request_id = models.UUIDField()
    attempt = models.PositiveSmallIntegerField()
    part = models.PositiveSmallIntegerField()
    contract_id = models.UUIDField()
    offering_id = models.UUIDField()
    grade_id = models.UUIDField()
    rate_id = models.UUIDField()
    api_key_id = models.UUIDField(null=True)
    period_start = models.DateTimeField()
    occurred_at = models.DateTimeField()
    uncached_input_tokens = models.BigIntegerField(null=True)
    cache_read_tokens = models.BigIntegerField(null=True)
    cache_write_tokens = models.BigIntegerField(null=True)
    output_tokens = models.BigIntegerField(null=True)
    reasoning_tokens = models.BigIntegerField(null=True)
    image_input_tokens = models.BigIntegerField(null=True)
    audio_input_tokens = models.BigIntegerField(null=True)
    audio_output_tokens = models.BigIntegerField(null=True)
    numerator = models.BigIntegerField()
    recount_o200k_tokens = models.BigIntegerField(null=True)
    flags = models.PositiveSmallIntegerField(default=0)
    finish = models.CharField(max_length=16)
    bytes_in = models.BigIntegerField()
    bytes_out = models.BigIntegerField()
    first_byte_ms = models.IntegerField(null=True)
    duration_ms = models.IntegerField(null=True)
    content_digest = models.BinaryField(max_length=16)

    class Meta:
        managed = False
        db_table = "metering_usageevent"


class UsageRollup(models.Model):
    """Exact integer sums of stored events; charges are computed from these only. Hours and days are derived."""

    pk = models.CompositePrimaryKey(
        "contract_id", "rate_id", "api_key_id", "offering_id", "bucket", "meter", "period_start"
    )
    contract_id = models.UUIDField()
    rate_id = models.UUIDField()
    # The nil UUID where a meter does not know the key (agents).
    api_key_id = models.UUIDField()
    offering_id = models.UUIDField()
    bucket = models.CharField(max_length=16)
    meter = models.CharField(max_length=8, choices=MeterKind.choices)
    period_start = models.DateTimeField()
    grade_id = models.UUIDField()
    events = models.BigIntegerField()
    native_tokens = models.BigIntegerField()
    numerator = models.BigIntegerField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(events__gte=0) & Q(native_tokens__gte=0) & Q(numerator__gte=0),
                name="metering_rollup_not_negative",
            ),
        ]
        indexes = [models.Index(fields=["period_start"], name="metering_rollup_by_period")]


class RegisterRead(models.Model):
    """The running counters of an engine at a moment (smart-meter terms), as the host's agent relayed them."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    host_id = models.UUIDField()
    boot_id = models.CharField(max_length=64)
    read_at = models.DateTimeField()
    input_tokens = models.BigIntegerField(null=True)
    cache_read_tokens = models.BigIntegerField(null=True)
    output_tokens = models.BigIntegerField(null=True)
    energy_millijoules = models.BigIntegerField(null=True)

    class Meta:
        indexes = [models.Index(fields=["host_id", "-read_at"], name="metering_register_by_host")]
        constraints = [
            models.UniqueConstraint(
                fields=["host_id", "boot_id", "read_at"], name="metering_register_read_unique"
            ),
        ]


class Discrepancy(models.Model):
    """Where the meters of a host disagree beyond tolerance in a settlement period, with the evidence for both sides."""

    class Status(models.TextChoices):
        OPEN = "open"
        ACCEPTED = "accepted"
        RESOLVED = "resolved"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    host_id = models.UUIDField()
    settlement_start = models.DateTimeField()
    status = models.CharField(max_length=8, choices=Status.choices, default=Status.OPEN)
    evidence = models.JSONField(default=dict)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["host_id", "settlement_start"], name="metering_discrepancy_unique"
            ),
        ]
