"""What a mail says of a fact: a few plain sentences and where to go on. Pure: from what programs are told too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pricing.units import format_micros

Data = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """`says(data)` is subject, sentences and the path of a page of the portal. `is_legal`: it cannot be turned off.

    `to_owners`: whatever the organization's addresses are, each owner is told himself.
    """

    meaning: str
    says: Callable[[Data], tuple[str, Sequence[str], str]]
    is_legal: bool = False
    to_owners: bool = False


def _money(data: Data, name: str) -> str:
    return f"{format_micros(data[name], data['currency'])} {data['currency']}"


def _issued(data: Data) -> tuple[str, Sequence[str], str]:
    due = data["outstanding_micros"]
    left = f"{_money(data, 'outstanding_micros')} is to be paid." if due else "Nothing of it is left to pay."
    return (
        f"Invoice {data['number']}",
        [f"Invoice {data['number']} over {_money(data, 'total_micros')} is issued.", left],
        f"/buyer/invoices/{data['invoice_id']}",
    )


def _reminder(data: Data) -> tuple[str, Sequence[str], str]:
    return (
        f"Reminder: invoice {data['number']} is overdue",
        [
            f"Invoice {data['number']} was due {data['days']} day{'' if data['days'] == 1 else 's'} ago, and "
            f"{_money(data, 'outstanding_micros')} of it is not paid.",
            f"If it is not paid {data['suspended_after_days']} days after its due date, nothing more can be bought and "
            "on-demand delivery stops.",
            "If you have paid it meanwhile, there is nothing to do.",
        ],
        f"/buyer/invoices/{data['invoice_id']}",
    )


def _action(data: Data) -> tuple[str, Sequence[str], str]:
    invoice_id = data.get("invoice_id")
    return (
        "Your bank asks you to confirm a payment",
        [
            f"A payment of {_money(data, 'amount_micros')} waits for you.",
            "Sign in and follow its link to your bank or to the payment page.",
        ],
        f"/buyer/invoices/{invoice_id}" if invoice_id else "/buyer/top-up",
    )


_DESTINATION: Final = {
    "requested": "was asked for and takes effect at {effective_at} (UTC)",
    "applied": "has taken effect",
    "cancelled": "was cancelled",
}


def _destination(data: Data) -> tuple[str, Sequence[str], str]:
    happened = _DESTINATION.get(data["status"], "is {status}").format_map(dict(data))
    return (
        "Another destination for your payouts",
        [
            f"Another destination for your organization's payouts {happened}.",
            "If it was none of you, cancel it at once and change your passwords and API keys.",
        ],
        "/provider/payouts",
    )


def _low(data: Data) -> tuple[str, Sequence[str], str]:
    return (
        "Your balance is low",
        [
            f"{_money(data, 'available_micros')} of your prepaid balance is free. That is below "
            f"{_money(data, 'threshold_micros')}, where you wanted to be told.",
            "Requests are refused when it is used up."
            if data["auto_top_up"] != "active"
            else "Your saved card is charged for a top-up.",
        ],
        "/buyer/top-up",
    )


def _top_up_failed(data: Data) -> tuple[str, Sequence[str], str]:
    return (
        "An automatic top-up failed",
        [
            f"A top-up of {_money(data, 'amount_micros')} failed: {data['reason']}.",
            "It has stopped until you set it again."
            if data["auto_top_up"] == "stopped"
            else "It is tried again later.",
        ],
        "/buyer/auto-top-up",
    )


def _cap(data: Data) -> tuple[str, Sequence[str], str]:
    return (
        "A spend cap is nearly reached",
        [
            f"{_money(data, 'spent_micros')} of the {_money(data, 'limit_micros')} that {data['subject']} may spend "
            f"per {data['period']} is spent or held.",
            "Requests that do not fit are refused until the window ends, or the cap is raised.",
        ],
        "/buyer/spend-caps",
    )


_REASONS: Final = {"past_due": "an invoice is overdue", "month_unpaid": "a month of it is not paid"}


def _suspended(data: Data) -> tuple[str, Sequence[str], str]:
    reason = _REASONS.get(data["reason"], str(data["reason"]).replace("_", " "))
    count = data.get("contracts", 1)
    what = "A contract is" if count == 1 else f"{count} contracts are"
    sentences = [f"{what} suspended: {reason}.", "It is delivered on again when the cause is gone."]
    if data.get("ends_unpaid_at") and count == 1:
        sentences.append(f"If it stays unpaid, it ends on {data['ends_unpaid_at']} (UTC).")
    return "Delivery is suspended", sentences, "/buyer"


def _unpaid(data: Data) -> tuple[str, Sequence[str], str]:
    page = f"/buyer/contracts/{data['contract_id']}"
    if data["status"] == "ending":
        return (
            "A contract ends soon if it is not paid",
            [
                f"A suspended contract ends on {data['ends_at']} (UTC) if its month is not paid before.",
                "Add funds, and it is delivered on again, if its capacity is still there.",
            ],
            page,
        )
    return (
        "A contract has ended unpaid",
        [
            "A suspended contract has ended: its month was not paid, or its capacity was sold when it was.",
            "Nothing is owed for the months that were not delivered, and no fee for the end.",
        ],
        page,
    )


def _renewed(data: Data) -> tuple[str, Sequence[str], str]:
    rate, highest = _money(data, "rate_micros_per_mtok"), _money(data, "max_rate_micros_per_mtok")
    return (
        "A contract renewed itself",
        [
            f"A contract renewed itself at {rate} per Mtok, from {data['starts_at']} until {data['ends_at']} (UTC).",
            f"It renews again at its end, at {highest} per Mtok at most, unless you turn that off.",
        ],
        f"/buyer/contracts/{data['successor_id']}",
    )


def _not_renewed(data: Data) -> tuple[str, Sequence[str], str]:
    retrying = data["status"] == "retrying"
    return (
        "A contract has not renewed itself yet" if retrying else "A contract does not renew itself",
        [
            f"A contract that you set to renew itself could not: {data['detail']}",
            f"It is tried every hour until {data['decided_until']} (UTC)."
            if retrying
            else "It ends with its term. You can ask for a new quote.",
        ],
        f"/buyer/contracts/{data['contract_id']}",
    )


KINDS: Final[Mapping[str, Kind]] = {
    "invoice.issued": Kind("An invoice is issued", _issued, is_legal=True),
    "invoice.reminder": Kind("An overdue invoice is reminded of", _reminder, is_legal=True),
    "payment.action_required": Kind("A payment waits for your confirmation", _action, is_legal=True),
    "payout_destination.changed": Kind(
        "Another destination for payouts", _destination, is_legal=True, to_owners=True
    ),
    "contract.suspended": Kind("Delivery is suspended", _suspended, is_legal=True),
    "contract.unpaid": Kind("A contract ends for want of payment", _unpaid, is_legal=True),
    "contract.renewed": Kind("A contract renewed itself", _renewed, is_legal=True),
    "contract.renewal_failed": Kind("A contract could not renew itself", _not_renewed, is_legal=True),
    "balance.low": Kind("The balance is low", _low),
    "auto_top_up.failed": Kind("An automatic top-up failed", _top_up_failed),
    "spend_cap.near": Kind("A spend cap is nearly reached", _cap),
}
OPTIONAL: Final = tuple(name for name, kind in KINDS.items() if not kind.is_legal)


def mail_of(event_type: str, data: Data, *, organization: str, portal_url: str) -> tuple[str, str]:
    """Subject and text. Names are what people chose: they stand in the text, on one line, never in the subject."""
    kind = KINDS[event_type]
    subject, sentences, path = kind.says(data)
    ending = (
        "This notice belongs to your agreement with the market and cannot be turned off."
        if kind.is_legal
        else f"Such notices can be turned off: {portal_url}/notices"
    )
    lines = [
        f"For {' '.join(organization.split())}.",
        "",
        *sentences,
        "",
        f"{portal_url}{path}",
        "",
        ending,
        "",
    ]
    return " ".join(subject.split())[:200], "\n".join(lines)
