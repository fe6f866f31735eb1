"""The buyer's saved card: what of it people may see, whether invoices are charged to it, and how it is forgotten."""

from __future__ import annotations

import logging
from datetime import datetime
from uuid import UUID

from django.db import transaction

from marketplace.accounts.services import Actor, record_audit
from marketplace.billing.models import ProcessorOperation, ProcessorPayer
from marketplace.billing.processor_models import OperationKind
from marketplace.billing.processors.base import ProcessorBusy
from marketplace.billing.processors.registry import payment_processor, processor_named
from marketplace.billing.services.processor_gate import through_gate
from marketplace.errors import Conflict, NotFound

logger = logging.getLogger(__name__)
_UNDER_WAY = (
    ProcessorOperation.Status.REQUESTED,
    ProcessorOperation.Status.SENT,
    ProcessorOperation.Status.UNKNOWN,
)


def saved_card(organization_id: UUID) -> ProcessorPayer | None:
    """The saved card at the processor in use."""
    payers = ProcessorPayer.objects.filter(
        organization_id=organization_id, processor=payment_processor().name
    )
    return payers.exclude(payment_method_id="").first()


def card_of(organization_id: UUID) -> ProcessorPayer:
    """As `saved_card`. Raises NotFound where there is none."""
    found = saved_card(organization_id)
    if found is None:
        raise NotFound("There is no saved card.")
    return found


@transaction.atomic
def set_collection(
    *, organization_id: UUID, collect_automatically: bool, now: datetime, actor: Actor
) -> ProcessorPayer:
    """Whether invoices are charged to the saved card without being asked. Raises NotFound."""
    card = card_of(organization_id)
    card.collect_automatically = collect_automatically
    card.save(update_fields=["collect_automatically"])
    _audit(card, "card.collection", {"collect_automatically": collect_automatically}, now, actor)
    return card


def remove_card(*, organization_id: UUID, now: datetime, actor: Actor) -> None:
    """Forget the card, here and at the processor, which is asked outside of any transaction.

    Here first: once it is gone here nothing is charged to it, whether or not the processor can be reached. Raises
    NotFound, Conflict while a charge of it is under way.
    """
    card = card_of(organization_id)
    method = card.payment_method_id
    with transaction.atomic():
        locked = ProcessorPayer.objects.select_for_update(no_key=True).get(pk=card.pk)
        charges = ProcessorOperation.objects.filter(
            organization_id=organization_id, kind=OperationKind.CHARGE, status__in=_UNDER_WAY
        )
        if charges.exists():
            raise Conflict("a charge of this card is under way: remove it once that has ended")
        if locked.payment_method_id != method:
            raise Conflict("another card was saved in this moment")
        ProcessorPayer.objects.filter(pk=card.pk).update(
            payment_method_id="", card_brand="", card_last4="", card_expires=""
        )
        _audit(card, "card.removed", {"last4": card.card_last4}, now, actor)
    processor = processor_named(card.processor)
    try:
        through_gate(processor, lambda: processor.forget_card(method))
    except ProcessorBusy:
        # Nothing here can charge it any more; at the processor it stays attached to a payer that we alone may charge.
        logger.warning("a removed card is still kept at the processor", extra={"payer": card.payer_id})


def _audit(card: ProcessorPayer, action: str, detail: dict[str, object], now: datetime, actor: Actor) -> None:
    record_audit(
        organization_id=card.organization_id,
        actor=actor,
        action=action,
        object_kind="card",
        object_id=card.pk,
        detail=detail,
        now=now,
    )
