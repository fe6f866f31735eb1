"""The good that is traded and its prices: immutable, versioned rows."""

from __future__ import annotations

from django.contrib.postgres.fields import DateTimeRangeField
from django.db import models
from django.db.models import F, Q

from marketplace.ids import uuid7


class GradeFamily(models.Model):
    """What all versions of a grade share. `model` is the name a buyer puts in an OpenAI request."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    slug = models.SlugField(max_length=64, unique=True)
    title = models.CharField(max_length=120)
    model = models.CharField(max_length=120, unique=True)
    precision_floor = models.CharField(max_length=16)
    context_tokens = models.BigIntegerField()
    region = models.CharField(max_length=32)
    service_class = models.CharField(max_length=32)
    created_at = models.DateTimeField()

    def __str__(self) -> str:
        return self.slug


class TokenizerCalibration(models.Model):
    """Kappa of a tokenizer, measured on a corpus: append-only, a new measurement is a new version.

    `kappa_ppm` is of the whole mix; the other figures are the spread over its classes, by nearest rank.
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    tokenizer = models.CharField(max_length=64)
    version = models.PositiveIntegerField()
    tokenizer_digest = models.CharField(max_length=64)
    corpus = models.CharField(max_length=64)
    corpus_digest = models.CharField(max_length=64)
    made_by = models.CharField(max_length=64)
    kappa_ppm = models.BigIntegerField()
    least_ppm = models.BigIntegerField()
    p10_ppm = models.BigIntegerField()
    median_ppm = models.BigIntegerField()
    p90_ppm = models.BigIntegerField()
    most_ppm = models.BigIntegerField()
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["tokenizer", "version"], name="pricing_calibration_version_unique"
            ),
            models.UniqueConstraint(
                fields=["tokenizer", "tokenizer_digest", "corpus_digest"],
                name="pricing_calibration_measured_once",
            ),
            models.CheckConstraint(
                condition=Q(least_ppm__gt=0)
                & Q(p10_ppm__gte=F("least_ppm"))
                & Q(median_ppm__gte=F("p10_ppm"))
                & Q(p90_ppm__gte=F("median_ppm"))
                & Q(most_ppm__gte=F("p90_ppm"))
                & Q(kappa_ppm__gte=F("least_ppm"))
                & Q(kappa_ppm__lte=F("most_ppm")),
                name="pricing_calibration_spread_ordered",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.tokenizer}@{self.version}"


class CalibrationClass(models.Model):
    """One content class of a calibration: the same texts, counted by the tokenizer and by o200k_base."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    calibration = models.ForeignKey(TokenizerCalibration, on_delete=models.PROTECT, related_name="classes")
    name = models.CharField(max_length=32)
    # How often the class counts in the mix.
    weight = models.PositiveIntegerField()
    texts = models.PositiveIntegerField()
    utf8_bytes = models.BigIntegerField()
    native_tokens = models.BigIntegerField()
    o200k_tokens = models.BigIntegerField()
    kappa_ppm = models.BigIntegerField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["calibration", "name"], name="pricing_calibrationclass_name_unique"
            ),
            models.CheckConstraint(
                condition=Q(weight__gt=0)
                & Q(texts__gt=0)
                & Q(utf8_bytes__gt=0)
                & Q(native_tokens__gt=0)
                & Q(o200k_tokens__gt=0)
                & Q(kappa_ppm__gt=0),
                name="pricing_calibrationclass_positive",
            ),
        ]


class Grade(models.Model):
    """One version of a grade: weights, kappa, tokenizer and request time, fixed for the life of every contract on it.

    At most one version of a family is in force at any instant (exclusion constraint
    `pricing_grade_one_version_at_a_time`, in the migration, over uuidrange and valid_during).
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    family = models.ForeignKey(GradeFamily, on_delete=models.PROTECT, related_name="versions")
    version = models.PositiveIntegerField()
    currency = models.CharField(max_length=3)
    tokenizer_digest = models.CharField(max_length=80)
    # Where the kappa of its text buckets was measured; null where the operator named figures of his own.
    calibration = models.ForeignKey(
        TokenizerCalibration, on_delete=models.PROTECT, null=True, related_name="+"
    )
    max_request_s = models.PositiveIntegerField()
    max_output_tokens = models.BigIntegerField()
    template_overhead_tokens = models.BigIntegerField()
    spot_minimum_take_ppm = models.BigIntegerField()
    reference_rate_micros_per_mtok = models.BigIntegerField()
    valid_during = DateTimeRangeField()
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["family", "version"], name="pricing_grade_version_unique"),
            models.CheckConstraint(
                condition=Q(spot_minimum_take_ppm__gte=0) & Q(spot_minimum_take_ppm__lte=1_000_000),
                name="pricing_grade_minimum_take_in_range",
            ),
            models.CheckConstraint(
                condition=Q(reference_rate_micros_per_mtok__gt=0)
                & Q(max_request_s__gt=0)
                & Q(max_output_tokens__gt=0)
                & Q(template_overhead_tokens__gte=0),
                name="pricing_grade_figures_positive",
            ),
            models.CheckConstraint(
                condition=Q(valid_during__isempty=False)
                & Q(valid_during__lower_inf=False)
                & Q(valid_during__lower_inc=True)
                & Q(valid_during__upper_inc=False),
                name="pricing_grade_valid_half_open",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.family_id}@{self.version}"


class GradeBucket(models.Model):
    """Per bucket of a grade version: weight, kappa and their product, `standard_ppm`, in parts per million."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    grade = models.ForeignKey(Grade, on_delete=models.PROTECT, related_name="buckets")
    bucket = models.CharField(max_length=16)
    weight_ppm = models.BigIntegerField()
    kappa_ppm = models.BigIntegerField()
    standard_ppm = models.BigIntegerField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["grade", "bucket"], name="pricing_gradebucket_unique"),
            models.CheckConstraint(
                condition=Q(weight_ppm__gte=0) & Q(kappa_ppm__gte=0) & Q(standard_ppm__gte=0),
                name="pricing_gradebucket_not_negative",
            ),
            models.CheckConstraint(
                condition=Q(
                    bucket__in=[
                        "uncached_input",
                        "cache_read",
                        "cache_write",
                        "output",
                        "reasoning",
                        "image_input",
                        "audio_input",
                        "audio_output",
                    ]
                ),
                name="pricing_gradebucket_known",
            ),
        ]


class ServiceLevel(models.Model):
    """What a grade version promises of speed, and what the buyer gets back of a settlement period that breaks it.

    `pricing.service_levels` says how it is measured. Append-only; a version published without levels has none.
    """

    class Metric(models.TextChoices):
        FIRST_TOKEN = "first_token"  # noqa: S105
        OUTPUT_TOKEN = "output_token"  # noqa: S105

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    grade = models.ForeignKey(Grade, on_delete=models.PROTECT, related_name="service_levels")
    metric = models.CharField(max_length=16, choices=Metric.choices)
    percentile = models.PositiveSmallIntegerField()
    # Microseconds: to the first output, or per output token after it.
    limit_us = models.BigIntegerField()
    # Of the buyer's gross, in parts per million.
    credit_ppm = models.BigIntegerField()
    # Fewer requests of a contract and offering in a settlement period say nothing.
    minimum_requests = models.BigIntegerField()
    # Longer requests are not measured; null: all are.
    max_input_tokens = models.BigIntegerField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["grade", "metric", "percentile"], name="pricing_servicelevel_unique"
            ),
            models.CheckConstraint(
                condition=Q(metric__in=["first_token", "output_token"]), name="pricing_servicelevel_known"
            ),
            models.CheckConstraint(
                condition=Q(percentile__gte=1)
                & Q(percentile__lte=99)
                & Q(limit_us__gt=0)
                & Q(credit_ppm__gt=0)
                & Q(credit_ppm__lte=1_000_000)
                & Q(minimum_requests__gt=0)
                & (Q(max_input_tokens__isnull=True) | Q(max_input_tokens__gt=0)),
                name="pricing_servicelevel_in_range",
            ),
        ]


class Rate(models.Model):
    """A unit price that usage can be charged at; immutable, so a rate id pins what a request costs.

    `source_id` is the offering, contract or auction it comes from (no key upward: a plain id).
    """

    class Kind(models.TextChoices):
        LIST = "list"
        FIRM_LIST = "firm_list"
        CONTRACTED = "contracted"
        CLEARING = "clearing"
        OVERAGE = "overage"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    grade = models.ForeignKey(Grade, on_delete=models.PROTECT, related_name="+")
    kind = models.CharField(max_length=16, choices=Kind.choices)
    micros_per_mtok = models.BigIntegerField()
    source_id = models.UUIDField()
    valid_from = models.DateTimeField()
    created_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(micros_per_mtok__gte=0), name="pricing_rate_not_negative"),
        ]
        indexes = [models.Index(fields=["source_id", "kind", "-valid_from"], name="pricing_rate_by_source")]


class RateTariff(models.Model):
    """Tiers, a volume price or packages behind a list rate: its price is none per unit, but of a month's volume.

    The rate's own `micros_per_mtok` is the highest that any token can come to: what is asked for at admission. What is
    charged follows from the month (docs/tariffs.md, 12). Immutable, as the rate is.
    """

    class Kind(models.TextChoices):
        GRADUATED = "graduated"
        VOLUME = "volume"
        PACKAGE = "package"

    rate = models.OneToOneField(Rate, on_delete=models.PROTECT, primary_key=True, related_name="tariff")
    kind = models.CharField(max_length=12, choices=Kind.choices)
    # What is billed in whole: a package's size, one numerator of tiers.
    unit_numerator = models.BigIntegerField()
    # The price of a package; null of tiers.
    package_micros = models.BigIntegerField(null=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(kind__in=["graduated", "volume"], unit_numerator=1, package_micros__isnull=True)
                | Q(kind="package", unit_numerator__gt=1, package_micros__gt=0),
                name="pricing_ratetariff_of_a_kind",
            )
        ]


class RateTier(models.Model):
    """A tier of a rate: from the end of the one before it up to and with `up_to_numerator`, the last without end."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    tariff = models.ForeignKey(RateTariff, on_delete=models.PROTECT, related_name="tiers")
    place = models.PositiveSmallIntegerField()
    up_to_numerator = models.BigIntegerField(null=True)
    micros_per_mtok = models.BigIntegerField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["tariff", "place"], name="pricing_ratetier_place_unique"),
            models.UniqueConstraint(
                fields=["tariff", "up_to_numerator"],
                nulls_distinct=False,
                name="pricing_ratetier_bound_unique",
            ),
            models.CheckConstraint(
                condition=Q(micros_per_mtok__gte=0)
                & (Q(up_to_numerator__isnull=True) | Q(up_to_numerator__gt=0)),
                name="pricing_ratetier_in_range",
            ),
        ]
