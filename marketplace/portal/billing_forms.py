"""What the operator types about taxes, discounts, credit notes and grants, in per cent and currency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from django import forms

from marketplace.billing.models import ChargeKind, Invoice, TaxRule
from marketplace.ledger.models import Grant
from marketplace.portal.forms import DecimalField, OperationForm, PortalForm
from pricing.units import decimal_string

_REASON = 300
_MOST_LINES = 1_000


class MomentField(forms.DateTimeField):
    """A moment in UTC."""

    def __init__(self, **options: Any) -> None:
        widget = forms.DateTimeInput(
            attrs={"type": "datetime-local", "step": "1"}, format="%Y-%m-%dT%H:%M:%S"
        )
        super().__init__(widget=widget, **options)

    def clean(self, value: Any) -> datetime | None:
        at: datetime | None = super().clean(value)
        return at.replace(tzinfo=UTC) if at is not None and at.tzinfo is None else at


def organization_field(label: str = "Buyer") -> forms.TypedChoiceField:
    return forms.TypedChoiceField(label=label, coerce=UUID)


class InvoiceFilterForm(PortalForm):
    named = forms.CharField(label="Buyer or number", max_length=100, required=False)
    status = forms.ChoiceField(
        label="State",
        required=False,
        choices=[
            ("", "All"),
            *((value, label) for value, label in Invoice.Status.choices if value not in ("draft", "grace")),
        ],
    )


class TaxRuleForm(PortalForm):
    service_fields = {"rate_ppm": "rate", "levy_micros_per_mtok": "levy"}
    jurisdiction = forms.CharField(
        label="Country of the buyer, or region",
        min_length=2,
        max_length=6,
        help_text="Two capital letters, for example DE; a part of a country as US-NY.",
    )
    code = forms.CharField(
        max_length=32, help_text="Rules of different codes stack; of one code one holds at a time."
    )
    title = forms.CharField(label="Name on the invoice", max_length=100)
    kind = forms.ChoiceField(
        choices=[
            (TaxRule.Kind.PERCENT, "Per cent of the net amount"),
            (TaxRule.Kind.LEVY, "Levy on volume delivered from abroad"),
        ]
    )
    rate = DecimalField(
        decimals=4, label="Rate", required=False, help_text="Of the net amount; not for a levy."
    )
    levy = DecimalField(
        decimals=6, label="Levy per Mtok", required=False, help_text="Not for a rule in per cent."
    )
    home_regions = forms.CharField(
        label="Home regions",
        required=False,
        max_length=6_500,
        help_text="Hosts that stand there are not abroad, beside the country itself; commas between.",
    )
    buyers = forms.ChoiceField(
        label="Applies to",
        choices=[
            (TaxRule.Buyers.ALL, "All buyers of the country"),
            (TaxRule.Buyers.BUSINESS, "Businesses: buyers with a verified tax number"),
            (TaxRule.Buyers.CONSUMER, "Consumers: buyers without one"),
        ],
    )
    reverse_charge = forms.BooleanField(
        label="Reverse charge",
        required=False,
        help_text="A business in another country of the union pays it itself.",
    )
    valid_from = MomentField(label="From (UTC)")
    valid_until = MomentField(label="Until (UTC)", required=False, help_text="Leave empty for no end.")

    def terms(self) -> dict[str, Any]:
        data = self.cleaned_data
        regions = [region.strip() for region in data["home_regions"].split(",") if region.strip()]
        return {
            "jurisdiction": data["jurisdiction"],
            "code": data["code"],
            "title": data["title"],
            "kind": data["kind"],
            "rate_ppm": data["rate"] or 0,
            "levy_micros_per_mtok": data["levy"] or 0,
            "home_regions": regions,
            "buyers": data["buyers"],
            "reverse_charge": data["reverse_charge"],
            "valid_from": data["valid_from"],
            "valid_until": data["valid_until"],
        }

    def clean_home_regions(self) -> str:
        typed: str = self.cleaned_data["home_regions"]
        if any(len(region.strip()) > 64 for region in typed.split(",")):
            raise forms.ValidationError("A region has at most 64 characters.")
        if typed.count(",") >= 100:
            raise forms.ValidationError("At most 100 regions.")
        return typed


class EndRuleForm(PortalForm):
    valid_until = MomentField(
        label="Until (UTC)", help_text="Now or later, and before a later rule of this code begins."
    )


class DiscountForm(PortalForm):
    service_fields = {"organization_id": "organization", "rate_ppm": "rate", "amount_micros": "amount"}
    organization = organization_field()
    title = forms.CharField(label="Name on the invoice", max_length=100)
    rate = DecimalField(decimals=4, label="Share", required=False, help_text="Per cent; or an amount.")
    amount = DecimalField(
        decimals=6, label="Amount", required=False, help_text="Off each invoice; or a share."
    )
    line_kind = forms.ChoiceField(
        label="Of lines",
        required=False,
        choices=[("", "All"), *((kind.value, kind.label) for kind in ChargeKind)],
    )
    max_invoices = forms.IntegerField(
        label="Invoices at most",
        required=False,
        min_value=1,
        max_value=1_200,
        help_text="Leave empty for every one while it is valid.",
        widget=forms.TextInput(attrs={"inputmode": "numeric"}),
    )
    valid_from = MomentField(label="From (UTC)")
    valid_until = MomentField(label="Until (UTC)", required=False, help_text="Leave empty for no end.")

    def clean(self) -> dict[str, Any]:
        data: dict[str, Any] = super().clean() or {}
        for name in ("rate", "amount"):
            if data.get(name) == 0:
                self.add_error(name, "Must be above zero.")
        if data.get("rate") and data["rate"] > 1_000_000:
            self.add_error("rate", "At most 100 %.")
        return data

    def terms(self) -> dict[str, Any]:
        data = self.cleaned_data
        names = ("title", "line_kind", "max_invoices", "valid_from", "valid_until")
        return {
            "organization_id": data["organization"],
            "rate_ppm": data["rate"],
            "amount_micros": data["amount"],
            **{name: data[name] for name in names},
        }


class CreditForm(OperationForm):
    """`what`: everything that is left, an amount, or amounts by line (`line_<n>`, by the number of the line)."""

    service_fields = {"amount_micros": "amount"}
    resent = (
        "This form issued another credit note before, and that stands. Send it again to issue this one too."
    )
    what = forms.ChoiceField(
        label="Credit",
        widget=forms.RadioSelect,
        initial="all",
        choices=[
            ("all", "All that is left of the invoice"),
            ("amount", "An amount, taken from the lines in their order"),
            ("lines", "Amounts by line"),
        ],
    )
    amount = DecimalField(
        decimals=6, label="Amount", required=False, help_text="Without tax; its tax is added."
    )
    reason = forms.CharField(max_length=_REASON, help_text="Stands on the credit note.")

    def __init__(self, *args: Any, lines: Sequence[tuple[int, UUID, int]], **options: Any) -> None:
        """`lines`: number, id and what is left of each."""
        super().__init__(*args, **options)
        self._ids = {number: line_id for number, line_id, _ in lines[:_MOST_LINES]}
        for number in self._ids:
            self.fields[f"line_{number}"] = SignedField(label=f"Credit of line {number}", required=False)

    def line(self, number: int) -> forms.BoundField | None:
        return self[f"line_{number}"] if number in self._ids else None

    def amounts_by_line(self) -> dict[UUID, int]:
        data = self.cleaned_data
        typed = {self._ids[number]: data.get(f"line_{number}") for number in self._ids}
        return {line_id: amount for line_id, amount in typed.items() if amount is not None}

    def clean(self) -> dict[str, Any]:
        data: dict[str, Any] = super().clean() or {}
        if data.get("what") == "amount" and data.get("amount") is None and "amount" not in self.errors:
            self.add_error("amount", "How much?")
        if data.get("what") == "lines" and not self.errors and not self.amounts_by_line():
            self.add_error("what", "Name an amount for at least one line.")
        return data


class SignedField(DecimalField):
    """A decimal that may be below zero: of a line that is itself a credit."""

    def __init__(self, **options: Any) -> None:
        super().__init__(decimals=6, **options)

    def to_python(self, value: Any) -> Any:
        text = str(value or "").strip()
        amount = super().to_python(text.removeprefix("-"))
        return -amount if text.startswith("-") and amount is not None else amount


class ReissueForm(PortalForm):
    reason = forms.CharField(
        max_length=_REASON, help_text="For example: wrong name of the buyer. Stands in the history."
    )


class GrantForm(OperationForm):
    service_fields = {
        "organization_id": "organization",
        "amount_micros": "amount",
        "cost_basis_ppm": "cost_basis",
        "grade_id": "grade",
    }
    resent = "This form gave another grant before, and that stands. Send it again to give this one too."
    organization = organization_field()
    kind = forms.ChoiceField(
        choices=[
            (Grant.Kind.GRANTED, "Promotional: given"),
            (Grant.Kind.PURCHASED, "Purchased: paid for from the buyer's balance"),
        ]
    )
    amount = DecimalField(decimals=6, label="Credit")
    cost_basis = DecimalField(
        decimals=4,
        label="Cost basis",
        required=False,
        help_text="The share of the credit that the buyer pays for a purchased one. 100 is its full price.",
    )
    priority = forms.IntegerField(
        min_value=0,
        max_value=999,
        initial=100,
        help_text="0 to 999; low is burned first.",
        widget=forms.TextInput(attrs={"inputmode": "numeric"}),
    )
    grade = forms.TypedChoiceField(label="May be spent on", required=False, coerce=UUID, empty_value=None)
    expires_at = MomentField(label="Expires (UTC)", required=False, help_text="Leave empty for never.")

    def terms(self) -> dict[str, Any]:
        data = self.cleaned_data
        return {
            "kind": data["kind"],
            "amount_micros": data["amount"],
            "cost_basis_ppm": data["cost_basis"] or 0,
            "priority": data["priority"],
            "grade_id": data["grade"],
            "expires_at": data["expires_at"],
        }


class GiveBackForm(OperationForm):
    service_fields = {"amount_micros": "amount", "payment_id": "payment"}
    resent = "This form gave another part back before, and that stands. Send it again to give this back too."
    amount = DecimalField(
        decimals=6, label="Credit", required=False, help_text="Leave empty for all that is unused."
    )
    payment = forms.TypedChoiceField(
        label="What was paid goes to", required=False, coerce=UUID, empty_value=None
    )


def typed_amount(micros: int) -> str:
    """An amount as an input shows it."""
    return ("-" if micros < 0 else "") + decimal_string(abs(micros), 6, minimum_decimals=2)


def choose(form: PortalForm, choices: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    """Fill a form's selects with what there is now."""
    for name, offered in choices.items():
        form.fields[name].choices = offered  # type: ignore[attr-defined]
