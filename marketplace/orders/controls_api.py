"""REST of the market's controls, for the operator: their state, history and verbs. Rules are the services'."""

from __future__ import annotations

from typing import Any, ClassVar
from uuid import UUID

from django.urls import path
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from marketplace import clock
from marketplace.accounts.models import OrganizationRole
from marketplace.accounts.scopes import Scope
from marketplace.api.pagination import CursorPagination
from marketplace.api.serializers import MicrosPerMtokField, StrictSerializer, TextField, TimestampField
from marketplace.api.views import ApiView
from marketplace.orders import controls_selectors as selectors
from marketplace.orders.models import CapReview, MarketControl, MarketControlChange
from marketplace.orders.services import controls as services
from pricing.models import Grade
from pricing.selectors import grades_in_force


class PublicControlSerializer(serializers.Serializer[Any]):
    """What everybody may know of a grade's market: whether it trades, and under which cap."""

    status = serializers.ChoiceField(choices=MarketControl.Status.choices)
    status_since = serializers.DateTimeField()
    halted_because = serializers.CharField(allow_blank=True, help_text="empty while it trades")
    cap_micros_per_mtok = serializers.IntegerField(help_text="what a book sealed now is cleared under")
    administered_rate_micros_per_mtok = serializers.IntegerField(
        allow_null=True,
        help_text="what halted periods settle at; null while it trades or where nothing traded",
    )


class ControlOut(serializers.Serializer[Any]):
    grade = serializers.CharField(source="grade.family.slug")
    grade_id = serializers.UUIDField(source="grade.id")
    status = serializers.ChoiceField(choices=MarketControl.Status.choices, source="control.status")
    status_since = serializers.DateTimeField(source="control.status_since")
    halted_because = serializers.CharField(source="control.halted_because", allow_blank=True)
    cap_micros_per_mtok = serializers.IntegerField(source="cap")
    book_cap_micros_per_mtok = serializers.IntegerField(
        source="book_cap", help_text="lower than the cap while the breaker is tripped"
    )
    administered_rate_micros_per_mtok = serializers.IntegerField(
        source="administered_rate", allow_null=True, help_text="what a halted period settles at"
    )
    administered_rate_set_micros_per_mtok = serializers.IntegerField(
        source="control.administered_rate_micros_per_mtok",
        allow_null=True,
        help_text="the operator's figure; null: the median of 30 days",
    )
    rolling_sum_micros_per_mtok = serializers.IntegerField(
        source="figures.rolling_sum", help_text="clearing rates of seven days, summed"
    )
    threshold_micros_per_mtok = serializers.IntegerField(
        source="threshold", help_text="the rolling sum may not pass it"
    )
    traded_periods = serializers.IntegerField(source="figures.traded_periods")
    median_micros_per_mtok = serializers.IntegerField(source="figures.median", allow_null=True)


class ControlChangeOut(serializers.ModelSerializer[MarketControlChange]):
    class Meta:
        model = MarketControlChange
        fields = (
            "id",
            "action",
            "from_status",
            "to_status",
            "reason",
            "actor_kind",
            "actor_id",
            "evidence",
            "created_at",
        )


class CapReviewOut(serializers.ModelSerializer[CapReview]):
    class Meta:
        model = CapReview
        fields = (
            "id",
            "status",
            "cap_micros_per_mtok",
            "cap_before_micros_per_mtok",
            "effective_from",
            "reason",
            "actor_kind",
            "actor_id",
            "evidence",
            "created_at",
            "declined_at",
            "decline_reason",
        )


class ReasonIn(StrictSerializer):
    reason = TextField(max_length=services.MAX_REASON_CHARACTERS)


class AdministeredRateIn(ReasonIn):
    rate_micros_per_mtok = MicrosPerMtokField(allow_null=True, help_text="null: the median of 30 days")


class CapIn(ReasonIn):
    cap_micros_per_mtok = MicrosPerMtokField()
    effective_from = TimestampField(help_text="at least 28 days ahead")


class _OperatorView(ApiView):
    role = OrganizationRole.OPERATOR

    def grade(self, slug: str) -> Grade:
        return selectors.grade_named(slug, at=clock.now())

    def state(self, slug: str) -> Response:
        return Response(ControlOut(selectors.state_of(self.grade(slug), now=clock.now())).data)


class ControlsView(_OperatorView):
    pagination_class = CursorPagination

    @extend_schema(operation_id="controls_list", responses=ControlOut(many=True))
    def get(self, request: Request) -> Response:
        """The market of every grade in force: its state and the figures that the rules look at."""
        now = clock.now()
        pagination = CursorPagination()
        shown = pagination.paginate_queryset(grades_in_force(now), request, self)
        return pagination.get_paginated_response(
            ControlOut(selectors.states_of(shown, now=now), many=True).data
        )


class ControlView(_OperatorView):
    @extend_schema(operation_id="controls_read", responses=ControlOut)
    def get(self, request: Request, slug: str) -> Response:
        """The market of one grade."""
        return self.state(slug)


class ControlHistoryView(_OperatorView):
    pagination_class = CursorPagination

    @extend_schema(operation_id="controls_history", responses=ControlChangeOut(many=True))
    def get(self, request: Request, slug: str) -> Response:
        """Every move of a grade's control with its reason and evidence, newest first."""
        return self.page(selectors.changes_of(self.grade(slug)), ControlChangeOut)


class HaltView(_OperatorView):
    scopes: ClassVar = {"POST": Scope.OPERATE}

    @extend_schema(operation_id="controls_halt", request=ReasonIn, responses=ControlOut)
    def post(self, request: Request, slug: str) -> Response:
        """Stop trading in a grade: gates pass without trades, contracts and on-demand run on."""
        services.halt_market(
            operator_id=self.organization_id,
            grade=self.grade(slug),
            now=clock.now(),
            actor=self.actor,
            **self.parse(ReasonIn),
        )
        return self.state(slug)


class ResumeView(_OperatorView):
    scopes: ClassVar = {"POST": Scope.OPERATE}

    @extend_schema(operation_id="controls_resume", request=ReasonIn, responses=ControlOut)
    def post(self, request: Request, slug: str) -> Response:
        """Let a halted grade trade again, from the next gate on."""
        services.resume_market(
            operator_id=self.organization_id,
            grade=self.grade(slug),
            now=clock.now(),
            actor=self.actor,
            **self.parse(ReasonIn),
        )
        return self.state(slug)


class AdministeredRateView(_OperatorView):
    scopes: ClassVar = {"POST": Scope.OPERATE}

    @extend_schema(
        operation_id="controls_administered_rate", request=AdministeredRateIn, responses=ControlOut
    )
    def post(self, request: Request, slug: str) -> Response:
        """Set what halted periods of a grade settle at, or leave it to the median of 30 days."""
        services.set_administered_rate(
            operator_id=self.organization_id,
            grade=self.grade(slug),
            now=clock.now(),
            actor=self.actor,
            **self.parse(AdministeredRateIn),
        )
        return self.state(slug)


class CapReviewsView(_OperatorView):
    scopes: ClassVar = {"GET": Scope.READ, "POST": Scope.OPERATE}
    pagination_class = CursorPagination

    @extend_schema(operation_id="cap_reviews_list", responses=CapReviewOut(many=True))
    def get(self, request: Request, slug: str) -> Response:
        """Every cap that was scheduled for a grade, by the operator or by rule, newest first."""
        return self.page(selectors.cap_reviews_of(self.grade(slug)), CapReviewOut)

    @extend_schema(operation_id="cap_reviews_schedule", request=CapIn, responses={201: CapReviewOut})
    def post(self, request: Request, slug: str) -> Response:
        """Change the cap of a grade, at least 28 days ahead."""
        review = services.schedule_cap(
            operator_id=self.organization_id,
            grade=self.grade(slug),
            now=clock.now(),
            actor=self.actor,
            **self.parse(CapIn),
        )
        return Response(CapReviewOut(review).data, status=201)


class CapReviewDeclineView(_OperatorView):
    scopes: ClassVar = {"POST": Scope.OPERATE}

    @extend_schema(operation_id="cap_reviews_decline", request=ReasonIn, responses=CapReviewOut)
    def post(self, request: Request, review_id: UUID) -> Response:
        """Take a scheduled cap back before it is in force."""
        review = services.decline_cap(
            operator_id=self.organization_id,
            review_id=review_id,
            now=clock.now(),
            actor=self.actor,
            **self.parse(ReasonIn),
        )
        return Response(CapReviewOut(review).data)


urlpatterns = [
    path("controls", ControlsView.as_view()),
    path("controls/<slug:slug>", ControlView.as_view()),
    path("controls/<slug:slug>/history", ControlHistoryView.as_view()),
    path("controls/<slug:slug>/halt", HaltView.as_view()),
    path("controls/<slug:slug>/resume", ResumeView.as_view()),
    path("controls/<slug:slug>/administered-rate", AdministeredRateView.as_view()),
    path("controls/<slug:slug>/cap-reviews", CapReviewsView.as_view()),
    path("cap-reviews/<uuid:review_id>/decline", CapReviewDeclineView.as_view()),
]
