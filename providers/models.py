"""Selling organizations, their inference hosts, what those can dependably make, and what of it is sold."""

from __future__ import annotations

from django.db import models
from django.db.models import F, Q

from marketplace.accounts.models import Organization
from marketplace.ids import uuid7
from metering.models import MeterSource
from pricing.models import Grade, Rate


class Provider(models.Model):
    """A selling organization's profile."""

    class Status(models.TextChoices):
        ACTIVE = "active"
        PAUSED = "paused"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    organization = models.OneToOneField(Organization, on_delete=models.PROTECT, related_name="provider")
    display_name = models.CharField(max_length=120)
    status = models.CharField(max_length=8, choices=Status.choices, default=Status.ACTIVE)
    self_billing_consent_at = models.DateTimeField(null=True)
    payout_destination = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField()


class Host(models.Model):
    """One inference machine, reached by the gateway at `base_url`, known by the Ed25519 key made at enrolment."""

    class Status(models.TextChoices):
        PENDING = "pending"
        ENROLLED = "enrolled"
        PAUSED = "paused"
        RETIRED = "retired"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    provider = models.ForeignKey(Provider, on_delete=models.PROTECT, related_name="hosts")
    name = models.CharField(max_length=64)
    region = models.CharField(max_length=32)
    site = models.CharField(max_length=120, blank=True)
    status = models.CharField(max_length=8, choices=Status.choices, default=Status.PENDING)
    base_url = models.URLField(max_length=300, blank=True)
    public_key = models.BinaryField(max_length=32, null=True)
    source = models.OneToOneField(MeterSource, on_delete=models.PROTECT, null=True, related_name="+")
    # As detected by the agent; shown beside what was measured.
    hardware = models.JSONField(default=dict)
    engine = models.JSONField(default=dict)
    boot_id = models.CharField(max_length=64, blank=True)
    last_heartbeat_at = models.DateTimeField(null=True)
    ready = models.BooleanField(default=False)
    in_flight = models.PositiveIntegerField(default=0)
    # How far the host's own clock is ahead of the market's, by its last heartbeat; null until it said.
    clock_skew_ms = models.BigIntegerField(null=True)
    # The last register read that was kept, and the engine's boot id that it told.
    engine_boot = models.CharField(max_length=64, blank=True)
    registers_read_at = models.DateTimeField(null=True)
    # When the market last asked for one: of several workers one asks, and a host that hangs is left alone for a while.
    registers_asked_at = models.DateTimeField(null=True)
    enrolled_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["provider", "name"], name="providers_host_name_unique"),
            models.CheckConstraint(
                condition=Q(status="pending")
                | (Q(public_key__isnull=False) & Q(source__isnull=False) & ~Q(base_url="")),
                name="providers_host_enrolled_has_identity",
            ),
        ]


class EnrolmentCode(models.Model):
    """A one-time code with which an agent claims a host; only its SHA-256 is kept."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    host = models.ForeignKey(Host, on_delete=models.CASCADE, related_name="enrolment_codes")
    code_sha256 = models.BinaryField(max_length=32, unique=True)
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField()


class Bench(models.Model):
    """One measurement of a host in a grade, with date and conditions; the raw figures as the agent sent them."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    host = models.ForeignKey(Host, on_delete=models.PROTECT, related_name="benches")
    duration_ms = models.BigIntegerField()
    requests = models.PositiveIntegerField()
    concurrency = models.PositiveIntegerField()
    input_tokens = models.BigIntegerField()
    output_tokens = models.BigIntegerField()
    first_byte_p50_ms = models.IntegerField()
    first_byte_p95_ms = models.IntegerField()
    conditions = models.JSONField(default=dict)
    measured_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(duration_ms__gt=0) & Q(input_tokens__gte=0) & Q(output_tokens__gt=0),
                name="providers_bench_figures_positive",
            ),
        ]


class Offering(models.Model):
    """One grade served by one host: its dependable capacity from a bench, and its three prices."""

    class Status(models.TextChoices):
        LISTED = "listed"
        PAUSED = "paused"
        WITHDRAWN = "withdrawn"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    host = models.ForeignKey(Host, on_delete=models.PROTECT, related_name="offerings")
    grade = models.ForeignKey(Grade, on_delete=models.PROTECT, related_name="+")
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.LISTED)
    bench = models.ForeignKey(Bench, on_delete=models.PROTECT, related_name="+")
    # Dependable standard tokens per second x 1e6 (the unit of every numerator).
    dependable_numerator_per_s = models.BigIntegerField()
    list_rate = models.ForeignKey(Rate, on_delete=models.PROTECT, related_name="+")
    firm_rate = models.ForeignKey(Rate, on_delete=models.PROTECT, related_name="+")
    # The lowest ask in the spot market; the published floor.
    spot_floor_micros_per_mtok = models.BigIntegerField()
    data_policy = models.JSONField(default=dict)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["host", "grade"], condition=~Q(status="withdrawn"), name="providers_offering_unique"
            ),
            models.CheckConstraint(
                condition=Q(dependable_numerator_per_s__gt=0) & Q(spot_floor_micros_per_mtok__gte=0),
                name="providers_offering_figures_positive",
            ),
        ]


class HostPeriod(models.Model):
    """The share of a host that is sellable and sold in one delivery period. No capacity is sold twice: the CHECK.

    `sellable` is what the hour had, less `carry_over` (requests still running from before) and less `derated`. The host
    cannot supply `lost` of it, and every million of what is sold takes `need` since it was benched lower: what of both
    is unsold is derated, what is sold is curtailed first and then derated (`derating.py`).
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    host = models.ForeignKey(Host, on_delete=models.PROTECT, related_name="periods")
    period_start = models.DateTimeField()
    period_end = models.DateTimeField()
    sellable_ppm = models.BigIntegerField()
    sold_ppm = models.BigIntegerField(default=0)
    carry_over_ppm = models.BigIntegerField(default=0, db_default=0)
    lost_ppm = models.BigIntegerField(default=0, db_default=0)
    need_ppm = models.BigIntegerField(default=1_000_000, db_default=1_000_000)
    derated_ppm = models.BigIntegerField(default=0, db_default=0)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["host", "period_start"], name="providers_hostperiod_unique"),
            models.CheckConstraint(
                condition=Q(carry_over_ppm__gte=0)
                & Q(lost_ppm__range=(0, 1_000_000))
                & Q(need_ppm__range=(1_000_000, 10**12))
                & Q(derated_ppm__gte=0)
                & Q(sellable_ppm__lte=1_000_000 - F("carry_over_ppm") - F("derated_ppm")),
                name="providers_hostperiod_derated_in_range",
            ),
            models.CheckConstraint(
                condition=Q(sold_ppm__gte=0)
                & Q(sold_ppm__lte=F("sellable_ppm"))
                & Q(sellable_ppm__lte=1_000_000),
                name="providers_hostperiod_not_sold_twice",
            ),
            models.CheckConstraint(
                condition=Q(period_end__gt=F("period_start")), name="providers_hostperiod_forwards"
            ),
        ]
        indexes = [models.Index(fields=["period_start"], name="providers_hostperiod_by_start")]


class HostHour(models.Model):
    """The share of a host sold firm (to committed contracts) in one UTC hour."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    host = models.ForeignKey(Host, on_delete=models.PROTECT, related_name="hours")
    hour_start = models.DateTimeField()
    sellable_ppm = models.BigIntegerField()
    sold_ppm = models.BigIntegerField(default=0)
    lost_ppm = models.BigIntegerField(default=0, db_default=0)
    need_ppm = models.BigIntegerField(default=1_000_000, db_default=1_000_000)
    derated_ppm = models.BigIntegerField(default=0, db_default=0)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["host", "hour_start"], name="providers_hosthour_unique"),
            models.CheckConstraint(
                condition=Q(lost_ppm__range=(0, 1_000_000))
                & Q(need_ppm__range=(1_000_000, 10**12))
                & Q(derated_ppm__gte=0)
                & Q(sellable_ppm__lte=1_000_000 - F("derated_ppm")),
                name="providers_hosthour_derated_in_range",
            ),
            models.CheckConstraint(
                condition=Q(sold_ppm__gte=0)
                & Q(sold_ppm__lte=F("sellable_ppm"))
                & Q(sellable_ppm__lte=1_000_000),
                name="providers_hosthour_not_sold_twice",
            ),
        ]


class Derating(models.Model):
    """A time in which a host supplies only `available_ppm` of its dependable capacity; open-ended while it lasts.

    Said by its provider or by its engine. A bench that came out lower is one without length: what was sold before it
    takes more of the host from then on (`HostPeriod.need_ppm`).
    """

    class Cause(models.TextChoices):
        PROVIDER = "provider"
        ENGINE = "engine"
        BENCH = "bench"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    host = models.ForeignKey(Host, on_delete=models.PROTECT, related_name="deratings")
    cause = models.CharField(max_length=8, choices=Cause.choices)
    available_ppm = models.BigIntegerField()
    started_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(available_ppm__range=(0, 999_999)), name="providers_derating_takes_something"
            ),
            models.CheckConstraint(
                condition=Q(ended_at__isnull=True) | Q(ended_at__gte=F("started_at")),
                name="providers_derating_forwards",
            ),
            models.UniqueConstraint(
                fields=["host", "cause"],
                condition=Q(ended_at__isnull=True),
                name="providers_derating_one_open_per_cause",
            ),
        ]
        indexes = [models.Index(fields=["host", "started_at"], name="providers_derating_by_host")]


class Outage(models.Model):
    """A time in which a host, or one offering of it, did not serve; half-open, open-ended while it lasts.

    Silence, a pause and a host's own "not ready" are the whole host's and written as they happen. Attempts that were
    refused or failed are an offering's, and written when the period is settled (`FailedAttempt` is the evidence). A
    planned outage announced in time is nobody's failure.
    """

    class Kind(models.TextChoices):
        HEARTBEAT = "heartbeat"
        REFUSED = "refused"
        FAILED_ATTEMPT = "failed_attempt"
        WITHDRAWN = "withdrawn"
        PLANNED = "planned"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    host = models.ForeignKey(Host, on_delete=models.PROTECT, related_name="outages")
    offering = models.ForeignKey(Offering, on_delete=models.PROTECT, null=True, related_name="+")
    kind = models.CharField(max_length=14, choices=Kind.choices)
    started_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField()

    class Meta:
        # No two of a kind overlap on one host or offering: `providers_outage_apart`, in the migration, over uuidrange.
        constraints = [
            models.CheckConstraint(
                condition=Q(ended_at__isnull=True) | Q(ended_at__gte=F("started_at")),
                name="providers_outage_forwards",
            ),
            models.UniqueConstraint(
                fields=["host", "kind"],
                condition=Q(ended_at__isnull=True),
                name="providers_outage_one_open_per_kind",
            ),
        ]
        indexes = [models.Index(fields=["host", "started_at"], name="providers_outage_by_host")]


class FailedAttempt(models.Model):
    """An attempt that a host refused or broke off, as the gateway saw it. Append-only; the id is its hold's."""

    class Cause(models.TextChoices):
        REFUSED = "refused"
        FAILED = "failed_attempt"

    id = models.UUIDField(primary_key=True, editable=False)
    offering = models.ForeignKey(Offering, on_delete=models.PROTECT, related_name="+", db_index=False)
    cause = models.CharField(max_length=14, choices=Cause.choices)
    occurred_at = models.DateTimeField()

    class Meta:
        indexes = [models.Index(fields=["offering", "occurred_at"], name="providers_failedattempt_when")]


# Below what they refer to.
from providers.tariff_models import ListTariff as ListTariff  # noqa: E402
from providers.tariff_models import ListTariffSlot as ListTariffSlot  # noqa: E402
