"""REST for the list tariffs of an offering: its versions, and what a grade costs over the coming day."""

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
    LotsField,
    MicrosPerMtokField,
    StrictChoiceField,
    StrictIntegerField,
    StrictSerializer,
    TimestampField,
)
from marketplace.api.views import ApiView, PublicView
from marketplace.errors import NotFound
from pricing.selectors import find_grade
from pricing.services import MAX_RATE_MICROS_PER_MTOK
from pricing.tariffs import DAY_S, MAX_TIERS, Kind, Tier, Window
from pricing.units import NUMERATOR_PER_LOT
from providers import list_rates, selectors, services
from providers.list_tariffs import MAX_WINDOWS
from providers.models import ListTariff


class WindowIn(StrictSerializer):
    start_s = StrictIntegerField(min_value=0, max_value=DAY_S - 1, help_text="seconds of the UTC day")
    end_s = StrictIntegerField(min_value=0, max_value=DAY_S, help_text="at or before start_s: over midnight")
    rate_micros_per_mtok = MicrosPerMtokField(max_value=MAX_RATE_MICROS_PER_MTOK)


class TierIn(StrictSerializer):
    up_to_lots = LotsField(
        required=False,
        allow_null=True,
        help_text="of a buyer's calendar month, inclusive; the last tier has none",
    )
    rate_micros_per_mtok = MicrosPerMtokField(min_value=0, max_value=MAX_RATE_MICROS_PER_MTOK)


class TariffIn(StrictSerializer):
    kind = StrictChoiceField(choices=ListTariff.Kind.values)
    valid_from = TimestampField(help_text="the start of a delivery period, a whole one ahead at least")
    rate_micros_per_mtok = MicrosPerMtokField(
        max_value=MAX_RATE_MICROS_PER_MTOK, required=False, help_text="per_unit, or outside all windows"
    )
    windows = serializers.ListField(
        child=WindowIn(), required=False, max_length=MAX_WINDOWS, help_text="time_of_use"
    )
    tiers = serializers.ListField(
        child=TierIn(), required=False, max_length=MAX_TIERS, help_text="graduated, volume"
    )
    package_lots = LotsField(required=False, help_text="package")
    package_micros = StrictIntegerField(
        min_value=1, max_value=MAX_RATE_MICROS_PER_MTOK, required=False, help_text="the price of one package"
    )


class SlotOut(serializers.Serializer[Any]):
    start_s = serializers.IntegerField(help_text="seconds of the UTC day")
    end_s = serializers.IntegerField()
    rate_id = serializers.UUIDField()
    rate_micros_per_mtok = serializers.IntegerField(source="rate.micros_per_mtok")


class TierOut(serializers.Serializer[Any]):
    up_to_lots = serializers.SerializerMethodField(allow_null=True)
    rate_micros_per_mtok = serializers.IntegerField(source="rate")

    def get_up_to_lots(self, tier: Tier) -> int | None:
        return _lots(tier.up_to)


class MonthTermsOut(serializers.Serializer[Any]):
    """What a version says of a calendar month's volume: no tiers and null where it says nothing of it."""

    tiers = serializers.SerializerMethodField()
    package_lots = serializers.SerializerMethodField(allow_null=True)
    package_micros = serializers.SerializerMethodField(allow_null=True)

    @extend_schema_field(TierOut(many=True))
    def get_tiers(self, tariff: ListTariff) -> Any:
        terms = list_rates.month_tariff_of(tariff)
        return TierOut(terms.tiers if terms else [], many=True).data

    def get_package_lots(self, tariff: ListTariff) -> int | None:
        terms = list_rates.month_tariff_of(tariff)
        return _lots(terms.unit) if terms and terms.kind is Kind.PACKAGE else None

    def get_package_micros(self, tariff: ListTariff) -> int | None:
        terms = list_rates.month_tariff_of(tariff)
        return terms.package_micros if terms and terms.kind is Kind.PACKAGE else None


class TariffOut(MonthTermsOut, serializers.ModelSerializer[ListTariff]):
    status = serializers.SerializerMethodField()
    slots = SlotOut(
        many=True,
        help_text="the whole UTC day, in order, half-open; of tiers and packages the highest rate a token can come to",
    )

    class Meta:
        model = ListTariff
        fields = (
            "id",
            "offering_id",
            "kind",
            "status",
            "valid_from",
            "slots",
            "tiers",
            "package_lots",
            "package_micros",
            "withdrawn_at",
            "created_at",
        )

    @extend_schema_field(serializers.ChoiceField(choices=["announced", "begun", "withdrawn"]))
    def get_status(self, tariff: ListTariff) -> str:
        if tariff.withdrawn_at is not None:
            return "withdrawn"
        return "announced" if tariff.valid_from > clock.now() else "begun"


class RateSpanOut(serializers.Serializer[Any]):
    start = serializers.DateTimeField()
    end = serializers.DateTimeField()
    rate_micros_per_mtok = serializers.IntegerField(source="rate")


class ListRatesOut(serializers.Serializer[Any]):
    items = RateSpanOut(many=True)


class MonthTariffOut(MonthTermsOut, serializers.ModelSerializer[ListTariff]):
    """A price of a calendar month's volume that is on offer, by whichever provider."""

    rate_id = serializers.SerializerMethodField()
    highest_rate_micros_per_mtok = serializers.SerializerMethodField(help_text="what a request is held at")

    class Meta:
        model = ListTariff
        fields = (
            "kind",
            "valid_from",
            "rate_id",
            "highest_rate_micros_per_mtok",
            "tiers",
            "package_lots",
            "package_micros",
        )

    def get_rate_id(self, tariff: ListTariff) -> UUID:
        return tariff.slots.all()[0].rate_id

    def get_highest_rate_micros_per_mtok(self, tariff: ListTariff) -> int:
        return tariff.slots.all()[0].rate.micros_per_mtok


class MonthTariffsOut(serializers.Serializer[Any]):
    items = MonthTariffOut(many=True)


class TariffsView(ApiView):
    role = "provider"
    scopes: ClassVar[dict[str, str]] = {"GET": Scope.READ, "POST": Scope.PROVIDE}
    pagination_class = CursorPagination

    @extend_schema(operation_id="tariffs_list", responses=TariffOut(many=True))
    def get(self, request: Request, offering_id: UUID) -> Response:
        """Versions of the offering's list price, newest first. Before the first one its plain list rate holds."""
        offering = selectors.find_offering(self.organization_id, offering_id)
        return self.page(list_rates.tariffs_of(offering.pk).order_by("-pk"), TariffOut)

    @extend_schema(operation_id="tariffs_announce", request=TariffIn, responses={201: TariffOut})
    def post(self, request: Request, offering_id: UUID) -> Response:
        """Announce a version: one rate per unit, other rates in windows of the UTC day, or what a calendar month's
        volume costs by tiers or in packages. A request pays by the version of its admission."""
        data = self.parse(TariffIn)
        windows = [
            Window(window["start_s"], window["end_s"], window["rate_micros_per_mtok"])
            for window in data.pop("windows", [])
        ]
        tiers = [
            Tier(_numerator(tier.get("up_to_lots")), tier["rate_micros_per_mtok"])
            for tier in data.pop("tiers", [])
        ]
        tariff = services.announce_tariff(
            organization_id=self.organization_id,
            offering_id=offering_id,
            windows=windows,
            tiers=tiers,
            now=clock.now(),
            actor=self.actor,
            **data,
        )
        return Response(TariffOut(list_rates.tariffs_of(offering_id).get(pk=tariff.pk)).data, status=201)


def _lots(numerator: int | None) -> int | None:
    return None if numerator is None else numerator // NUMERATOR_PER_LOT


def _numerator(lots: int | None) -> int | None:
    return None if lots is None else lots * NUMERATOR_PER_LOT


class TariffView(ApiView):
    role = "provider"
    scopes: ClassVar[dict[str, str]] = {"DELETE": Scope.PROVIDE}

    @extend_schema(operation_id="tariffs_withdraw", responses={204: None})
    def delete(self, request: Request, offering_id: UUID, tariff_id: UUID) -> Response:
        """Take a version back, a whole delivery period before it begins."""
        services.withdraw_tariff(
            organization_id=self.organization_id,
            offering_id=offering_id,
            tariff_id=tariff_id,
            now=clock.now(),
            actor=self.actor,
        )
        return Response(status=204)


class GradeListRatesView(PublicView):
    @extend_schema(operation_id="grade_list_rates", responses=ListRatesOut)
    def get(self, request: Request, grade_id: UUID) -> Response:
        """The cheapest list rate over 24 hours from the running delivery period on, of what is on offer now and as
        announced."""
        grade, now = find_grade(grade_id), clock.now()
        if grade is None:
            raise NotFound("There is no such grade.")
        schedules = selectors.list_rate_schedules([grade.pk], now)
        return Response(ListRatesOut({"items": schedules.get(grade.pk, [])}).data)


class GradeListTariffsView(PublicView):
    @extend_schema(operation_id="grade_list_tariffs", responses=MonthTariffsOut)
    def get(self, request: Request, grade_id: UUID) -> Response:
        """Tiers, volume prices and packages on demand: what is on offer now or announced for the coming 24 hours."""
        grade = find_grade(grade_id)
        if grade is None:
            raise NotFound("There is no such grade.")
        return Response(MonthTariffsOut({"items": selectors.month_tariffs_of(grade.pk, clock.now())}).data)


urlpatterns: list[Any] = [
    path("offerings/<uuid:offering_id>/tariffs", TariffsView.as_view(), name="api-tariffs"),
    path("offerings/<uuid:offering_id>/tariffs/<uuid:tariff_id>", TariffView.as_view(), name="api-tariff"),
    path(
        "grades/<uuid:grade_id>/list-tariffs", GradeListTariffsView.as_view(), name="api-grade-list-tariffs"
    ),
    path("grades/<uuid:grade_id>/list-rates", GradeListRatesView.as_view(), name="api-grade-list-rates"),
]
