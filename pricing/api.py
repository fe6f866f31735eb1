"""REST of grades, public to read, the operator's to publish; and of measured tokenizers, public."""

from __future__ import annotations

from typing import Any, ClassVar
from uuid import UUID

from django.urls import path
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import clock
from marketplace.accounts.scopes import Scope
from marketplace.api.pagination import CursorPagination
from marketplace.api.serializers import (
    MicrosPerMtokField,
    PpmField,
    StrictIntegerField,
    StrictSerializer,
    TextField,
    UuidField,
)
from marketplace.api.views import ApiView, PublicView
from marketplace.errors import NotFound
from pricing import selectors
from pricing.level_serializers import ServiceLevelIn, ServiceLevelOut
from pricing.models import CalibrationClass, Grade, TokenizerCalibration
from pricing.promising import MAX_LEVELS
from pricing.service_levels import LevelTerms
from pricing.services import (
    MAX_CONTEXT_TOKENS,
    MAX_KAPPA_PPM,
    MAX_RATE_MICROS_PER_MTOK,
    MAX_REQUEST_S,
    MAX_WEIGHT_PPM,
    publish_grade,
)
from pricing.units import Bucket, decimal_string


class BucketOut(serializers.Serializer[Any]):
    bucket = serializers.ChoiceField(choices=[bucket.value for bucket in Bucket])
    weight_ppm = serializers.IntegerField()
    kappa_ppm = serializers.IntegerField()
    standard_ppm = serializers.IntegerField(
        help_text="standard tokens per native token, in ppm: weight x kappa"
    )
    reference_price_per_mtok = serializers.CharField(
        help_text="exact decimal price of a million native tokens at the reference rate"
    )


class SpreadOut(serializers.ModelSerializer[TokenizerCalibration]):
    """Kappa of the corpus' classes, by nearest rank."""

    class Meta:
        model = TokenizerCalibration
        fields = ("least_ppm", "p10_ppm", "median_ppm", "p90_ppm", "most_ppm")


class CalibrationClassOut(serializers.ModelSerializer[CalibrationClass]):
    """The same texts, counted by the tokenizer (`native_tokens`) and by o200k_base."""

    class Meta:
        model = CalibrationClass
        fields = ("name", "weight", "texts", "utf8_bytes", "native_tokens", "o200k_tokens", "kappa_ppm")


class CalibrationOut(serializers.ModelSerializer[TokenizerCalibration]):
    spread = SpreadOut(source="*")
    classes = serializers.SerializerMethodField()

    class Meta:
        model = TokenizerCalibration
        fields = (
            "id",
            "tokenizer",
            "version",
            "tokenizer_digest",
            "made_by",
            "corpus",
            "corpus_digest",
            "kappa_ppm",
            "spread",
            "classes",
            "created_at",
        )

    @extend_schema_field(CalibrationClassOut(many=True))
    def get_classes(self, calibration: TokenizerCalibration) -> Any:
        # Sorted here: ordering in the database would undo the prefetch.
        rows = sorted(calibration.classes.all(), key=lambda row: row.name)
        return CalibrationClassOut(rows, many=True).data


class GradeCalibrationOut(serializers.ModelSerializer[TokenizerCalibration]):
    """Where the kappa of a grade was measured, and how far it spreads."""

    spread = SpreadOut(source="*")

    class Meta:
        model = TokenizerCalibration
        fields = ("id", "tokenizer", "version", "corpus", "kappa_ppm", "spread")


class GradeOut(serializers.ModelSerializer[Grade]):
    slug = serializers.CharField(source="family.slug")
    title = serializers.CharField(source="family.title")
    model = serializers.CharField(source="family.model", help_text="the `model` of an OpenAI request")
    precision_floor = serializers.CharField(source="family.precision_floor")
    context_tokens = serializers.IntegerField(source="family.context_tokens")
    region = serializers.CharField(source="family.region")
    service_class = serializers.CharField(source="family.service_class")
    valid_from = serializers.DateTimeField(source="valid_during.lower")
    valid_until = serializers.DateTimeField(source="valid_during.upper", allow_null=True)
    reference_rate_per_mtok = serializers.SerializerMethodField(
        help_text="the reference rate as a decimal string"
    )
    calibration = GradeCalibrationOut(allow_null=True)
    buckets = serializers.SerializerMethodField()
    service_levels = serializers.SerializerMethodField(
        help_text="what it promises of speed, with the credit where a settlement period breaks it"
    )

    class Meta:
        model = Grade
        fields = (
            "id",
            "slug",
            "version",
            "title",
            "model",
            "precision_floor",
            "context_tokens",
            "region",
            "service_class",
            "currency",
            "tokenizer_digest",
            "calibration",
            "max_request_s",
            "max_output_tokens",
            "template_overhead_tokens",
            "spot_minimum_take_ppm",
            "reference_rate_micros_per_mtok",
            "reference_rate_per_mtok",
            "valid_from",
            "valid_until",
            "buckets",
            "service_levels",
        )

    def get_reference_rate_per_mtok(self, grade: Grade) -> str:
        return decimal_string(grade.reference_rate_micros_per_mtok, 6)

    @extend_schema_field(BucketOut(many=True))
    def get_buckets(self, grade: Grade) -> list[dict[str, Any]]:
        prices = selectors.prices_per_bucket(grade, grade.reference_rate_micros_per_mtok)
        return [
            {
                "bucket": bucket.value,
                "weight_ppm": row.weight_ppm,
                "kappa_ppm": row.kappa_ppm,
                "standard_ppm": row.standard_ppm,
                "reference_price_per_mtok": prices[bucket].per_mtok,
            }
            for bucket, row in selectors.by_bucket(grade.buckets.all()).items()
        ]

    @extend_schema_field(ServiceLevelOut(many=True))
    def get_service_levels(self, grade: Grade) -> Any:
        return ServiceLevelOut(selectors.levels_of(grade), many=True).data


def _per_bucket(name: str, most: int) -> type[StrictSerializer]:
    fields = {
        bucket.value: StrictIntegerField(min_value=0, max_value=most, required=False) for bucket in Bucket
    }
    return type(name, (StrictSerializer,), fields)


WeightsIn = _per_bucket("WeightsIn", MAX_WEIGHT_PPM)
KappaIn = _per_bucket("KappaIn", MAX_KAPPA_PPM)


class GradeIn(StrictSerializer):
    slug = TextField(max_length=64)
    title = TextField(max_length=120)
    model = TextField(max_length=120)
    precision_floor = TextField(max_length=16)
    context_tokens = StrictIntegerField(min_value=1, max_value=MAX_CONTEXT_TOKENS)
    region = TextField(max_length=32)
    service_class = TextField(max_length=32)
    currency = TextField(max_length=3)
    tokenizer_digest = TextField(max_length=80)
    weights_ppm = WeightsIn()
    kappa_ppm = KappaIn(
        required=False,
        default=dict,
        help_text="o200k tokens per token of the grade's tokenizer; a bucket left out has 1.0",
    )
    calibration_id = UuidField(
        required=False,
        allow_null=True,
        default=None,
        help_text="a calibration of this tokenizer, by its digest: kappa of all text buckets comes from it",
    )
    max_request_s = StrictIntegerField(min_value=1, max_value=MAX_REQUEST_S)
    max_output_tokens = StrictIntegerField(min_value=1, max_value=MAX_CONTEXT_TOKENS)
    template_overhead_tokens = StrictIntegerField(min_value=0, max_value=MAX_CONTEXT_TOKENS)
    spot_minimum_take_ppm = PpmField()
    reference_rate_micros_per_mtok = MicrosPerMtokField(max_value=MAX_RATE_MICROS_PER_MTOK)
    service_levels = serializers.ListField(
        child=ServiceLevelIn(), required=False, default=list, max_length=MAX_LEVELS
    )


class GradesOut(serializers.Serializer[Any]):
    items = GradeOut(many=True)
    next = serializers.CharField(allow_null=True)


class GradesView(ApiView):
    """Reading is for everyone, with or without a key."""

    scopes: ClassVar[dict[str, str]] = {"POST": Scope.OPERATE}
    role = "operator"

    def check_permissions(self, request: Request) -> None:
        if not self._reads():
            super().check_permissions(request)

    def perform_authentication(self, request: Request) -> None:
        if not self._reads():
            super().perform_authentication(request)

    def _reads(self) -> bool:
        return self.request.method in ("GET", "HEAD")

    @extend_schema(operation_id="grades_list", auth=[], responses=GradesOut)
    def get(self, request: Request) -> Response:
        """Every grade in force, newest version, by id."""
        return self.page(selectors.grades_in_force(clock.now()), GradeOut)

    @extend_schema(operation_id="grades_publish", request=GradeIn, responses={201: GradeOut})
    def post(self, request: Request) -> Response:
        """Put a grade, or its next version, in force from now on."""
        data = self.parse(GradeIn)
        for field in ("weights_ppm", "kappa_ppm"):
            data[field] = {Bucket(bucket): value for bucket, value in data[field].items()}
        data["service_levels"] = [LevelTerms(**terms) for terms in data["service_levels"]]
        grade = publish_grade(**data, now=clock.now(), actor=self.actor, organization_id=self.organization_id)
        return Response(GradeOut(_find(grade.pk)).data, status=201)


class GradeView(PublicView):
    @extend_schema(operation_id="grades_read", auth=[], responses=GradeOut)
    def get(self, request: Request, grade_id: UUID) -> Response:
        """One grade version, in force or not: contracts keep the version they were made on."""
        return Response(GradeOut(_find(grade_id)).data)


class CalibrationsView(PublicView):
    pagination_class = CursorPagination

    @extend_schema(operation_id="tokenizers_list", auth=[], responses=CalibrationOut(many=True))
    def get(self, request: Request) -> Response:
        """Every measurement of a tokenizer against o200k_base, newest first, with its counts per content class."""
        return self.page(selectors.calibrations(), CalibrationOut)


def _find(grade_id: UUID) -> Grade:
    grade = selectors.find_grade(grade_id)
    if grade is None:
        raise NotFound("There is no such grade.")
    return grade


urlpatterns = [
    path("grades", GradesView.as_view(), name="api-grades"),
    path("grades/<uuid:grade_id>", GradeView.as_view(), name="api-grade"),
    path("tokenizers", CalibrationsView.as_view(), name="api-tokenizers"),
]
