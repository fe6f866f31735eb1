"""Every change of a bid, kept for good beside the receipt that the market signed for it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from django.conf import settings

from marketplace.accounts.services import Actor
from marketplace.orders.models import Auction, Bid, BidRevision
from marketplace.orders.receipts import RECEIPT, key_id_of, sign_receipt
from marketplace.orders.services.phases import first_round
from marketplace.orders.terms import BidTerms, utc_text


def market_public_key() -> bytes:
    """The 32 raw bytes that receipts are verified with."""
    return _private_key().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def record_revision(
    bid: Bid,
    *,
    event: BidRevision.Event,
    terms: BidTerms,
    held_micros: int,
    rounds: Sequence[Auction],
    now: datetime,
    actor: Actor,
) -> BidRevision:
    """Append revision `bid.revision` of a locked bid, with its receipt. Inside the caller's transaction.

    `rounds` are the locked rounds that tell where the order first competes; a cancelled one competes nowhere.
    """
    first_period_start, auction_id = None, None
    if event != BidRevision.Event.CANCELLED:
        first_period_start, auction_id = first_round(rounds, period_start=terms.period_start, now=now)
    document = {
        "receipt": RECEIPT,
        "market": settings.PORTAL_URL,
        "key_id": key_id_of(market_public_key()),
        "event": str(event),
        "bid_id": str(bid.id),
        "revision": bid.revision,
        "terms_sha256": terms.sha256().hex(),
        "held_micros": held_micros,
        "received_at": utc_text(now),
        "priority_at": utc_text(bid.priority_at),
        "first_period_start": utc_text(first_period_start),
        "first_auction_id": None if auction_id is None else str(auction_id),
    }
    return BidRevision.objects.create(
        bid=bid,
        number=bid.revision,
        event=event,
        terms=terms.document(),
        terms_sha256=terms.sha256(),
        held_micros=held_micros,
        receipt=document,
        signature=sign_receipt(document, private_key=_private_key()),
        actor_kind=actor.kind,
        actor_id=actor.id,
        created_at=now,
    )


def _private_key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(settings.MARKET_SIGNING_KEY)
