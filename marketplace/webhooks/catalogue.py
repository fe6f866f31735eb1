"""The kinds of event a customer's program may be told of. Pure; names never change their meaning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

EVENT_TYPES: Final[Mapping[str, str]] = {
    "endpoint.test": "sent when asked for, to try an endpoint",
    "auto_top_up.failed": "an automatic top-up was declined, or has stopped",
    "balance.low": "the free balance fell below the threshold set for it",
    "bid.awarded": "a bid won capacity in a delivery period",
    "contract.activated": "a committed contract was made, or a suspended contract is delivered on again",
    "contract.suspended": "a contract was suspended; the reason is in the data",
    "contract.ended": "the term of a committed contract is over",
    "dispute.opened": "a bank has taken a payment back",
    "invoice.issued": "an invoice is final and has its number",
    "invoice.overdue": "an invoice was not paid by its due date, or is due again after it",
    "invoice.reminder": "an overdue invoice was reminded of; `days` after its due date",
    "invoice.paid": "an invoice is paid in full",
    "payment.action_required": "a payment waits for the buyer at a link",
    "payout_destination.changed": "a new place for payouts was asked for, applied or cancelled",
    "payout.paid": "earnings were paid out",
    "spend_cap.near": "nine tenths of a spend cap are spent or held in its window",
    "refund.failed": "money sent back to a card did not arrive and is on the balance again",
    "statement.issued": "a statement is final and has its number",
    "test_clock.ready": "a test clock has arrived where it was advanced to, or stopped on the way: the status says",
    "top_up.succeeded": "money was added to the balance",
}
