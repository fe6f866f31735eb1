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
    "contract.ended": "the term of a committed contract is over",
    "contract.renewal_failed": "a contract could not renew itself; why, and whether it is tried again, is in the data",
    "contract.renewed": "a contract renewed itself: another one begins where it ends",
    "contract.suspended": "a contract was suspended; the reason is in the data",
    "contract.unpaid": "a suspended contract is about to end, or has ended, for want of payment: the status says",
    "credit_note.issued": "a credit note is final and has its number",
    "dispute.closed": "a dispute was decided; won or lost is in the data",
    "dispute.opened": "a bank has taken a payment back",
    "invoice.issued": "an invoice is final and has its number",
    "invoice.overdue": "an invoice was not paid by its due date, or is due again after it",
    "invoice.reminder": "an overdue invoice was reminded of; `days` after its due date, or after a carried due counts",
    "invoice.paid": "an invoice is paid in full",
    "organization.active": "nothing long overdue is left: purchases and on-demand delivery are open again",
    "organization.past_due": "purchases and on-demand delivery were closed for an invoice long overdue",
    "payment.action_required": "a payment waits for the buyer at a link",
    "payout.failed": "a payout was refused, or came back from the bank; the reason is in the data",
    "payout.paid": "earnings were paid out",
    "payout_destination.changed": "a new place for payouts was asked for, applied or cancelled",
    "refund.failed": "a refund was refused, or did not arrive; the money is on the balance again",
    "refund.succeeded": "part of a payment was sent back to where it came from",
    "spend_cap.near": "nine tenths of a spend cap are spent or held in its window",
    "statement.issued": "a statement is final and has its number",
    "test_clock.ready": "a test clock has arrived where it was advanced to, or stopped on the way: the status says",
    "top_up.failed": "a top-up was declined or ran out, and nothing was charged",
    "top_up.succeeded": "money was added to the balance",
}
