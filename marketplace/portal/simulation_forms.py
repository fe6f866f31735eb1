"""What people type to try a committed contract on their own past usage."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from django import forms

from marketplace.contracts.models import Contract
from marketplace.contracts.quoting import MAX_MONTHS
from marketplace.portal.forms import DecimalField, LotsField, PortalForm, QuoteForm
from pricing.units import decimal_string

_AS_MANY = ("", "The last three, or fewer")


class SimulationForm(PortalForm):
    """The terms of a contract that nobody buys. What stays empty is the market's choice."""

    service_fields = {
        "rate_micros_per_mtok": "rate",
        "max_rate_micros_per_mtok": "max_rate",
        "take_share_ppm": "take_share",
        "rollover_share_ppm": "rollover_share",
    }
    grade = forms.ChoiceField()
    firm_lots = LotsField(
        label="Firm quantity per delivery period",
        help_text="Lots. What you used above it in a period counts as beyond the contract.",
    )
    volume_lots = LotsField(
        label="Volume per month", help_text="Lots. At most the firm quantity times the periods of a month."
    )
    months = forms.TypedChoiceField(
        label="Months",
        required=False,
        coerce=int,
        empty_value=None,
        choices=[_AS_MANY, *((n, f"{n} month{'s' if n > 1 else ''}") for n in range(1, MAX_MONTHS + 1))],
    )
    starts_at = forms.DateTimeField(
        label="From (UTC)",
        required=False,
        help_text="Leave empty for the latest months that are settled.",
        widget=forms.DateTimeInput(attrs={"type": "datetime-local", "step": "1"}),
    )
    rate = DecimalField(
        decimals=6,
        label="Rate per Mtok",
        required=False,
        help_text="Leave empty for today's price of the firm quantity.",
    )
    payment = forms.ChoiceField(choices=QuoteForm.base_fields["payment"].choices)  # type: ignore[attr-defined]
    take_share = DecimalField(
        decimals=4,
        label="Minimum take",
        initial="0",
        help_text="Per cent of the monthly volume that is paid even if unused; matters in arrears.",
    )
    overage_policy = forms.ChoiceField(
        label="Beyond the contract",
        choices=QuoteForm.base_fields["overage_policy"].choices,  # type: ignore[attr-defined]
    )
    max_rate = DecimalField(
        decimals=6,
        label="Highest rate beyond it",
        required=False,
        help_text="Per Mtok. Dearer volume is refused; leave empty for no bound.",
    )
    rollover_share = DecimalField(
        decimals=4,
        label="Rolls over",
        required=False,
        help_text="Per cent of what is unused of a prepaid month.",
    )
    rollover_cap_lots = LotsField(least=0, label="At most", required=False, help_text="Lots a month.")

    def clean_starts_at(self) -> datetime | None:
        starts_at: datetime | None = self.cleaned_data["starts_at"]
        return starts_at.replace(tzinfo=UTC) if starts_at and starts_at.tzinfo is None else starts_at

    @property
    def terms(self) -> dict[str, Any]:
        """What `simulate_contract` is asked."""
        data = self.cleaned_data
        return {
            "grade_slug": data["grade"],
            "firm_lots": data["firm_lots"],
            "volume_lots": data["volume_lots"],
            "months": data["months"],
            "starts_at": data["starts_at"],
            "rate_micros_per_mtok": data["rate"],
            "payment": data["payment"],
            "take_share_ppm": data["take_share"],
            "overage_policy": data["overage_policy"],
            "max_rate_micros_per_mtok": data["max_rate"],
            "rollover_share_ppm": data["rollover_share"] or 0,
            "rollover_cap_lots": data["rollover_cap_lots"] or 0,
        }


def as_bought(contract: Contract) -> dict[str, str]:
    """The form's values for the terms of a real contract; of one that is not committed only its grade."""
    asked = {"grade": contract.grade.family.slug}
    if contract.rate is None or contract.volume_lots is None:
        return asked
    return asked | {
        "firm_lots": str(contract.firm_lots),
        "volume_lots": str(contract.volume_lots),
        "rate": decimal_string(contract.rate.micros_per_mtok, 6),
        "payment": contract.payment,
        "take_share": decimal_string(contract.take_share_ppm or 0, 4),
        "overage_policy": contract.overage_policy,
        "rollover_share": decimal_string(contract.rollover_share_ppm or 0, 4),
        "rollover_cap_lots": str(contract.rollover_cap_lots or 0),
    }
