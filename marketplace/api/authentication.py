"""Who calls: `Authorization: Bearer ty_<key_id>_<secret>`."""

from __future__ import annotations

from typing import Final

from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.request import Request

from marketplace import clock
from marketplace.accounts.models import ApiKey, Organization
from marketplace.accounts.selectors import find_api_key
from marketplace.accounts.services import record_key_use

_MOST_HEADER_BYTES: Final = 200


class ApiPrincipal:
    """Stands where Django expects a user: an API key acts for an organization, not for a person."""

    is_authenticated: Final = True
    is_active: Final = True
    is_anonymous: Final = False

    def __init__(self, organization: Organization) -> None:
        self.organization = organization
        self.pk = organization.pk


class ApiKeyAuthentication(BaseAuthentication):
    """`request.auth` becomes the ApiKey with its organization loaded."""

    def authenticate(self, request: Request) -> tuple[ApiPrincipal, ApiKey] | None:
        header = get_authorization_header(request)
        if not header:
            return None
        scheme, _, presented = header.partition(b" ")
        if scheme.lower() != b"bearer" or len(header) > _MOST_HEADER_BYTES:
            raise AuthenticationFailed("The Authorization header must be: Bearer ty_<key id>_<secret>.")
        now = clock.now()
        api_key = find_api_key(presented.strip().decode("latin-1"), now)
        if api_key is None:
            # One answer for unknown, wrong, expired and revoked.
            raise AuthenticationFailed("This API key is not valid.")
        record_key_use(api_key=api_key, now=now)
        return ApiPrincipal(api_key.organization), api_key

    def authenticate_header(self, request: Request) -> str:
        return 'Bearer realm="tokenyard"'
