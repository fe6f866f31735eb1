"""The base of every REST view: authenticate, scope, parse; the rules are the services'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar
from uuid import UUID

from django.db.models import QuerySet
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import MethodNotAllowed, NotAuthenticated
from rest_framework.exceptions import NotFound as NoSuchAddress
from rest_framework.permissions import AllowAny, BasePermission, IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import BaseSerializer
from rest_framework.views import APIView

from marketplace.accounts.models import ApiKey, Organization
from marketplace.accounts.services import Actor
from marketplace.api.authentication import ApiKeyAuthentication
from marketplace.api.pagination import CursorPagination
from marketplace.api.parsing import StrictJSONParser
from marketplace.api.schema import ApiSchema
from marketplace.errors import Forbidden

_SAFE = ("GET", "HEAD")


class ScopeMissing(Forbidden):
    code = "scope_missing"


class RoleMissing(Forbidden):
    code = "role_missing"


class OrganizationSuspended(Forbidden):
    code = "organization_suspended"


class PublicView(APIView):
    """Public data without a key."""

    authentication_classes: Sequence[type[BaseAuthentication]] = ()
    permission_classes: Sequence[type[BasePermission]] = (AllowAny,)
    parser_classes = (StrictJSONParser,)
    # No OPTIONS answer that lists fields: the OpenAPI document does that, and it does it once.
    metadata_class = None
    schema: ApiSchema | None = ApiSchema()

    def page(self, rows: QuerySet[Any], serializer: type[BaseSerializer[Any]]) -> Response:
        """One page of `rows` by id, newest first: `{"items": [...], "next": ...}`."""
        pagination = CursorPagination()
        shown = pagination.paginate_queryset(rows, self.request, self)
        return pagination.get_paginated_response(serializer(shown, many=True).data)

    def parse(self, serializer: type[BaseSerializer[Any]]) -> dict[str, Any]:
        """The validated body. Raises ValidationError (422) naming the fields at fault."""
        parsed = serializer(data=self.request.data)
        parsed.is_valid(raise_exception=True)
        data: dict[str, Any] = parsed.validated_data
        return data


class ApiView(PublicView):
    """A view for API keys.

    `scopes` names per method what the key must carry; a method that is not named is not allowed. `role` is what the
    organization must be. What belongs to another organization is answered by selectors as not found.
    """

    scopes: ClassVar[Mapping[str, str]] = {"GET": "read"}
    role: ClassVar[str | None] = None

    authentication_classes = (ApiKeyAuthentication,)
    permission_classes = (IsAuthenticated,)

    def check_permissions(self, request: Request) -> None:
        method = "GET" if request.method == "HEAD" else str(request.method)
        if method not in self.scopes:
            raise MethodNotAllowed(method)
        if not isinstance(request.auth, ApiKey):
            raise NotAuthenticated("An API key is needed: Authorization: Bearer ty_<key id>_<secret>.")
        super().check_permissions(request)
        scope = self.scopes[method]
        if scope not in request.auth.scopes:
            raise ScopeMissing(f"this needs an API key with the scope '{scope}'")
        if self.role is not None and not self.organization.has_role(self.role):
            raise RoleMissing(f"only an organization with the role {str(self.role)!r} may do this")
        if method not in _SAFE and self.organization.status == Organization.Status.SUSPENDED:
            raise OrganizationSuspended("the organization is suspended: it may read, and change nothing")

    @property
    def api_key(self) -> ApiKey:
        key = self.request.auth
        assert isinstance(key, ApiKey), "only after check_permissions"
        return key

    @property
    def organization(self) -> Organization:
        return self.api_key.organization

    @property
    def organization_id(self) -> UUID:
        return self.api_key.organization_id

    @property
    def actor(self) -> Actor:
        """The key, and the address the connection came from."""
        return Actor("api_key", self.api_key.id, self.request.META.get("REMOTE_ADDR") or None)

    @property
    def operation_id(self) -> UUID:
        """The id that the effects of this request derive from; only under `@idempotent`."""
        operation_id = getattr(self.request, "operation_id", None)
        assert isinstance(operation_id, UUID), "the method lacks @idempotent"
        return operation_id


class NoSuchView(PublicView):
    """An address under /api/v1 that nobody serves, in the form of every other problem."""

    schema = None

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        raise NoSuchAddress("There is nothing at this address.")
