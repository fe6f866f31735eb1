"""A host's key: bound at enrolment, known again at every call. `providers.services` exports what is public."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from django.conf import settings
from django.db import transaction
from django.db.models import Q

from marketplace.accounts.services import Actor
from marketplace.egress import check_url
from marketplace.errors import Conflict, DomainError, InvalidInput
from metering.models import MeterKind
from metering.services import close_source, register_source, remember_nonce
from providers.claims import check_document
from providers.hosting import audit_host
from providers.models import EnrolmentCode, Host
from providers.selectors import find_host
from providers.wire import SignatureRefused, signing_key_id, verify_signed_request

ENROLMENT_CODE_VALID: Final = timedelta(hours=1)
_CODE_PREFIX: Final = "tye_"


class EnrolmentCodeRefused(InvalidInput):
    """Unknown, used or expired: the three are not told apart, so that a guesser learns nothing."""

    code = "enrolment_code_refused"
    title = "The enrolment code is not valid"

    def __init__(self) -> None:
        super().__init__("It is unknown, used or expired; ask for a new one in the portal.", field="code")


class HostSignatureRefused(DomainError):
    """An agent's call that its host's key did not sign, or that was seen before."""

    code = "signature_refused"
    http_status = 401
    title = "The request's signature is not valid"


@transaction.atomic
def issue_enrolment_code(*, organization_id: UUID, host_id: UUID, now: datetime, actor: Actor) -> str:
    """A code with which an agent claims the host, once, within an hour. Shown once; codes issued before are void.

    For a host that is enrolled it allows a new key (the old one is lost): the old one holds until the code is used.
    """
    host = find_host(organization_id, host_id)
    if host.status == Host.Status.RETIRED:
        raise Conflict("A retired host cannot be enrolled.", field="host_id")
    Host.objects.select_for_update(no_key=True).get(pk=host.pk)
    host.enrolment_codes.filter(used_at__isnull=True).delete()
    code = _CODE_PREFIX + secrets.token_urlsafe(24)
    EnrolmentCode.objects.create(
        host=host, code_sha256=_sha256(code), expires_at=now + ENROLMENT_CODE_VALID, created_at=now
    )
    audit_host(host, "host.enrolment_code_issued", actor, now)
    return code


@transaction.atomic
def enrol_host(
    *,
    code: str,
    public_key: bytes,
    base_url: str,
    hardware: Mapping[str, object],
    engine: Mapping[str, object],
    now: datetime,
) -> Host:
    """Bind an agent's Ed25519 key and address to the host of the code, and register its meter.

    Raises EnrolmentCodeRefused, or InvalidInput naming the field; a code is used up only by success,
    and the agent that used it may ask again for the same answer.
    """
    if len(public_key) != 32:
        raise InvalidInput("It must be 32 bytes, an Ed25519 public key.", field="public_key")
    # The code first: whoever has none must not make us look up names. The lock: of two agents with one, one wins.
    found = (
        EnrolmentCode.objects.select_for_update(of=("self",))
        .filter(code_sha256=_sha256(code), expires_at__gt=now)
        .first()
    )
    if found is None:
        raise EnrolmentCodeRefused
    host = Host.objects.select_for_update(no_key=True).get(pk=found.host_id)
    if found.used_at is not None:
        if (
            host.public_key is not None
            and bytes(host.public_key) == public_key
            and host.enrolled_at == found.used_at
        ):
            return host  # The same agent again: our first answer was lost on its way.
        raise EnrolmentCodeRefused
    if host.status == Host.Status.RETIRED:
        raise EnrolmentCodeRefused
    values = {
        "base_url": check_url(base_url, allow_private=settings.ALLOW_PRIVATE_HOSTS, field="base_url"),
        "hardware": check_document("hardware", hardware),
        "engine": check_document("engine", engine),
    }
    EnrolmentCode.objects.filter(pk=found.pk).update(used_at=now)
    if host.source_id is not None:
        close_source(source_id=host.source_id)
    source = register_source(kind=MeterKind.AGENT, host_id=host.pk, public_key=public_key, now=now)
    status = Host.Status.ENROLLED if host.status == Host.Status.PENDING else host.status
    Host.objects.filter(pk=host.pk).update(
        status=status,
        public_key=public_key,
        source=source,
        enrolled_at=now,
        ready=False,
        boot_id="",
        **values,
    )
    host.refresh_from_db()
    audit_host(host, "host.enrolled", Actor("host", host.pk), now, base_url=host.base_url)
    return host


def verify_enrolment_signature(
    *, method: str, url: str, headers: Mapping[str, str], body: bytes, public_key: bytes, now: datetime
) -> None:
    """The enrolling agent owns the private key of the public one it brings. Raises HostSignatureRefused."""
    _verify(method, url, headers, body, public_key, now)


def authenticate_host(
    *, method: str, url: str, headers: Mapping[str, str], body: bytes, now: datetime
) -> Host:
    """The enrolled host whose key signed this request, once. `keyid` is the host's id, or its source's.

    Raises HostSignatureRefused for an unknown host, a wrong or stale signature, and a request seen before.
    """
    try:
        key_id = UUID(signing_key_id(headers))
    except SignatureRefused as error:
        raise HostSignatureRefused(str(error)) from None
    except ValueError:
        raise HostSignatureRefused("signature: keyid must be the id of a host.") from None
    host = (
        Host.objects.select_related("provider")
        .filter(Q(pk=key_id) | Q(source_id=key_id), status__in=(Host.Status.ENROLLED, Host.Status.PAUSED))
        .first()
    )
    if host is None or host.public_key is None:
        raise HostSignatureRefused("signature: no host with this key is enrolled.")
    nonce = _verify(method, url, headers, body, bytes(host.public_key), now)
    if not remember_nonce(key_id=host.pk, nonce=nonce, now=now):
        raise HostSignatureRefused("signature: this request was seen before.")
    return host


def _verify(
    method: str, url: str, headers: Mapping[str, str], body: bytes, public_key: bytes, now: datetime
) -> str:
    try:
        key = Ed25519PublicKey.from_public_bytes(public_key)
        return verify_signed_request(
            method=method, url=url, headers=headers, body=body, public_key=key, now=now
        )
    except (SignatureRefused, ValueError) as error:
        raise HostSignatureRefused(str(error)) from None


def _sha256(code: str) -> bytes:
    return hashlib.sha256(code.encode(errors="replace")).digest()
