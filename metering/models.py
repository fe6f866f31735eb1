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
    """A registered meter. Meter kind and host come from here, never from a payload. Gateway meters have no key.

    An editor is the market's own source of edited events (amendments, backfills) of one kind; it has no key either.
    """

    class Status(models.TextChoices):
        ACTIVE = "active"
        CLOSED = "closed"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    kind = models.CharField(max_length=8, choices=MeterKind.choices)
    is_editor = models.BooleanField(default=False)
    host_id = models.UUIDField(null=True)
    public_key = models.BinaryField(max_length=32, null=True)
    status = models.CharField(max_length=8, choices=Status.choices, default=Status.ACTIVE)
    # Dependable limit of the host, for the impossible-rate check; null until benched.
    dependable_numerator_per_s = models.BigIntegerField(null=True)
    next_sequence = models.BigIntegerField(default=1)
    last_digest = models.CharField(max_length=64, blank=True)
    # Since when event numbers are missing; then all up to `complete_until` have come, or are known to be lost.
    gap_since = models.DateTimeField(null=True)
    complete_until = models.BigIntegerField(default=0)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(kind="gateway")
                | Q(is_editor=True)
                | (Q(host_id__isnull=False) & Q(public_key__isnull=False)),
                name="metering_source_host_meters_have_key",
            ),
            models.UniqueConstraint(
                fields=["host_id", "kind"],
                condition=Q(status="active"),
                name="metering_source_one_active_per_host",
            ),
            models.UniqueConstraint(
                fields=["kind"],
                condition=Q(status="active", kind="gateway", is_editor=False),
                name="metering_source_one_gateway",
            ),
            models.UniqueConstraint(
                fields=["kind"], condition=Q(is_editor=True), name="metering_source_one_editor"
            ),
        ]
        indexes = [
            models.Index(
                fields=["gap_since"], condition=Q(gap_since__isnull=False), name="metering_source_with_gap"
            )
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
    # Runs of duplicates: [[first index, last index]]. What is in neither was accepted.
    duplicates = models.JSONField(default=list, db_default=models.Value([], models.JSONField()))
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
    # From admission to the first chunk with output: time to first token. A role alone is no output.
    first_byte_ms = models.IntegerField(null=True)
    duration_ms = models.IntegerField(null=True)

    class Meta:
        managed = False
        db_table = "metering_usageevent"


class UsageRollup(models.Model):
    """Exact integer sums of stored events; charges are computed from these only. Hours and days are derived."""

    # The order of the key is that of reading: a contract's usage from .. until is one range of its index, and what is
    # asked for by equality comes before it.
    pk = models.CompositePrimaryKey(
        "contract_id", "meter", "period_start", "rate_id", "api_key_id", "offering_id", "bucket"
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
    # The part of `events` and `numerator` that is estimated: nobody reported it, or another meter did.
    estimated_events = models.BigIntegerField(default=0)
    estimated_numerator = models.BigIntegerField(default=0)
    # In rows of output: native output and reasoning tokens of events with a recount, and what they came to in o200k.
    recounted_tokens = models.BigIntegerField(default=0)
    recount_o200k_tokens = models.BigIntegerField(default=0)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(events__gte=0)
                & Q(native_tokens__gte=0)
                & Q(numerator__gte=0)
                & Q(estimated_events__range=(0, F("events")))
                & Q(estimated_numerator__range=(0, F("numerator")))
                & Q(recounted_tokens__gte=0)
                & Q(recount_o200k_tokens__gte=0),
                name="metering_rollup_not_negative",
            ),
        ]
        indexes = [
            models.Index(fields=["period_start"], name="metering_rollup_by_period"),
            # A provider reads by what he offers.
            models.Index(fields=["offering_id", "period_start"], name="metering_rollup_by_offering"),
            # The few that are estimated, to be replaced.
            models.Index(
                fields=["period_start"], condition=Q(estimated_events__gt=0), name="metering_rollup_estimated"
            ),
        ]


class UsageCorrection(models.Model):
    """Why a stored event no longer counts, or counts otherwise. Append-only; an event is corrected once.

    Whoever corrects a correction targets its replacement. Roll-ups hold every stored event that is no target.
    """

    class Kind(models.TextChoices):
        AMEND = "amend"
        VOID = "void"
        BACKFILL = "backfill"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    kind = models.CharField(max_length=8, choices=Kind.choices)
    # Of a backfill null: nothing was there.
    target_id = models.UUIDField(null=True)
    target_source = models.ForeignKey(MeterSource, on_delete=models.PROTECT, null=True, related_name="+")
    # Of a void null: nothing takes its place.
    replacement_id = models.UUIDField(null=True)
    replacement_source = models.ForeignKey(MeterSource, on_delete=models.PROTECT, null=True, related_name="+")
    reason = models.CharField(max_length=500)
    actor = models.CharField(max_length=100)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["target_id", "target_source"], name="metering_correction_once_per_event"
            ),
            models.UniqueConstraint(
                fields=["replacement_id", "replacement_source"], name="metering_correction_by_replacement"
            ),
            models.CheckConstraint(
                condition=Q(
                    kind="amend",
                    target_id__isnull=False,
                    target_source__isnull=False,
                    replacement_id__isnull=False,
                    replacement_source__isnull=False,
                )
                | Q(
                    kind="void",
                    target_id__isnull=False,
                    target_source__isnull=False,
                    replacement_id__isnull=True,
                    replacement_source__isnull=True,
                )
                | Q(
                    kind="backfill",
                    target_id__isnull=True,
                    target_source__isnull=True,
                    replacement_id__isnull=False,
                    replacement_source__isnull=False,
                ),
                name="metering_correction_complete",
            ),
            models.CheckConstraint(
                condition=~Q(reason="") & ~Q(actor=""), name="metering_correction_explained"
            ),
        ]


class RegisterRead(models.Model):
    """The running counters of an engine at a moment (smart-meter terms), as the host's agent relayed them.

    `input_tokens` includes what came from the cache. Differences are `metering.registers.register_delta`'s.
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    host_id = models.UUIDField()
    boot_id = models.CharField(max_length=64)
    read_at = models.DateTimeField()
    input_tokens = models.BigIntegerField(null=True)
    cache_read_tokens = models.BigIntegerField(null=True)
    output_tokens = models.BigIntegerField(null=True)
    energy_millijoules = models.BigIntegerField(null=True)
    # What the agent's own benches have used since its first start: nobody's usage, but in the counters above.
    bench_input_tokens = models.BigIntegerField(default=0)
    bench_output_tokens = models.BigIntegerField(default=0)

    class Meta:
        indexes = [models.Index(fields=["host_id", "-read_at"], name="metering_register_by_host")]
        constraints = [
            models.UniqueConstraint(
                fields=["host_id", "boot_id", "read_at"], name="metering_register_read_unique"
            ),
        ]


class Reconciliation(models.Model):
    """What comparing a host's meters for one settlement period came to. Compared anew when their sums change."""

    class Outcome(models.TextChoices):
        AGREED = "agreed"
        DISPUTED = "disputed"
        # The agent reported nothing: the period is estimated from the gateway.
        ESTIMATED = "estimated"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    host_id = models.UUIDField()
    settlement_start = models.DateTimeField()
    outcome = models.CharField(max_length=9, choices=Outcome.choices)
    gateway_numerator = models.BigIntegerField()
    agent_numerator = models.BigIntegerField()
    # Of all roll-ups compared: other sums have another one.
    usage_digest = models.BigIntegerField()
    reconciled_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["host_id", "settlement_start"], name="metering_reconciliation_unique"
            ),
            models.CheckConstraint(
                condition=Q(gateway_numerator__gte=0) & Q(agent_numerator__gte=0),
                name="metering_reconciliation_not_negative",
            ),
        ]
        indexes = [models.Index(fields=["settlement_start"], name="metering_reconciled_by_start")]


class MeterFinding(models.Model):
    """What validation noticed about a host's meters in a settlement period: a fact to look at, without a ruling."""

    class Kind(models.TextChoices):
        CLOCK_SKEW = "clock_skew"
        SEQUENCE_GAP = "sequence_gap"
        IMPOSSIBLE_RATE = "impossible_rate"
        REGISTER_LESS = "register_less"
        REGISTER_MORE = "register_more"
        AGENT_MISSING = "agent_missing"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    host_id = models.UUIDField()
    settlement_start = models.DateTimeField()
    kind = models.CharField(max_length=16, choices=Kind.choices)
    evidence = models.JSONField(default=dict)
    found_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["host_id", "settlement_start", "kind"], name="metering_finding_unique"
            ),
        ]


class Discrepancy(models.Model):
    """Where the witnesses of a host disagree beyond tolerance in a settlement period, with what each of them saw.

    Open until the provider accepts the lower count, the operator rules, or ten days are over.
    """

    class Kind(models.TextChoices):
        COUNTS = "counts"
        RECOUNT = "recount"

    class Status(models.TextChoices):
        OPEN = "open"
        ACCEPTED = "accepted"
        RESOLVED = "resolved"

    class Ruling(models.TextChoices):
        LOWER = "lower"
        HIGHER = "higher"
        NUMBERS = "numbers"
        # Nobody ruled: late usage made the meters agree.
        AGREED = "agreed"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    host_id = models.UUIDField()
    settlement_start = models.DateTimeField()
    kind = models.CharField(max_length=8, choices=Kind.choices, default=Kind.COUNTS)
    status = models.CharField(max_length=8, choices=Status.choices, default=Status.OPEN)
    evidence = models.JSONField(default=dict)
    ruling = models.CharField(max_length=8, choices=Ruling.choices, blank=True)
    reason = models.CharField(max_length=500, blank=True)
    closed_by = models.CharField(max_length=100, blank=True)
    closed_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["host_id", "settlement_start", "kind"], name="metering_discrepancy_unique"
            ),
            models.CheckConstraint(
                condition=Q(status="open", ruling="", closed_at__isnull=True)
                | (~Q(status="open") & ~Q(ruling="") & ~Q(reason="") & Q(closed_at__isnull=False)),
                name="metering_discrepancy_closed_by_ruling",
            ),
        ]
        indexes = [
            models.Index(fields=["created_at"], condition=Q(status="open"), name="metering_discrepancy_open")
        ]


class DisputedUsage(models.Model):
    """The part of a contract's usage that a discrepancy keeps from being billed: for now while it is open, for good
    once it is closed. `withheld_numerator` is what billing takes off the gateway's count."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    discrepancy = models.ForeignKey(Discrepancy, on_delete=models.PROTECT, related_name="usage")
    contract_id = models.UUIDField()
    rate_id = models.UUIDField()
    offering_id = models.UUIDField()
    period_start = models.DateTimeField()
    gateway_numerator = models.BigIntegerField()
    # Of the witness who saw least.
    lower_numerator = models.BigIntegerField()
    withheld_numerator = models.BigIntegerField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["discrepancy", "contract_id", "rate_id", "offering_id", "period_start"],
                name="metering_disputed_unique",
            ),
            models.CheckConstraint(
                condition=Q(lower_numerator__gte=0)
                & Q(withheld_numerator__gte=0)
                & Q(withheld_numerator__lte=F("gateway_numerator") - F("lower_numerator")),
                name="metering_disputed_within_counts",
            ),
        ]
        indexes = [models.Index(fields=["contract_id", "period_start"], name="metering_disputed_by_contract")]


class RecountBaseline(models.Model):
    """The o200k tokens that a million native tokens of a grade version's output come to, as the operator knows better
    than its kappa says. Append-only: the latest counts."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    grade = models.ForeignKey(Grade, on_delete=models.PROTECT, related_name="+")
    baseline_ppm = models.BigIntegerField()
    reason = models.CharField(max_length=500)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(baseline_ppm__gt=0) & ~Q(reason=""), name="metering_recount_baseline_positive"
            ),
        ]
        indexes = [models.Index(fields=["grade", "-id"], name="metering_recount_baseline_last")]
