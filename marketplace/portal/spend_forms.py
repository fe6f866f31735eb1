"""Forms of spend caps, automatic top-ups and credit lines."""

from __future__ import annotations

from uuid import UUID

from django import forms

from marketplace.contracts.models import Payment, SpendCap
from marketplace.portal.forms import DecimalField, PortalForm


class SpendCapForm(PortalForm):
    """`subject`: `organization`, `project:<name>` or `api_key:<id>`; the choices are the organization's own."""

    service_fields = {
        "scope": "subject",
        "api_key_id": "subject",
        "project": "subject",
        "limit_micros": "limit",
    }
    subject = forms.ChoiceField(label="Spending of")
    period = forms.ChoiceField(label="Per", choices=[("day", "UTC day"), ("month", "calendar month (UTC)")])
    limit = DecimalField(
        decimals=6,
        label="At most",
        required=False,
        help_text="Tax included. Leave empty to lift the cap; 0 stops all spending.",
    )

    def subject_terms(self) -> dict[str, str | UUID]:
        scope, _, name = self.cleaned_data["subject"].partition(":")
        if scope == SpendCap.Scope.API_KEY:
            return {"scope": scope, "api_key_id": UUID(name)}
        return {"scope": scope, "project": name} if name else {"scope": scope}


class AutoTopUpForm(PortalForm):
    service_fields = {
        "threshold_micros": "threshold",
        "amount_micros": "each",
        "monthly_limit_micros": "monthly_limit",
    }
    enabled = forms.BooleanField(
        label="Charge my saved card when the balance is low",
        required=False,
        help_text="Without it you are only told, by the event balance.low.",
    )
    threshold = DecimalField(decimals=6, label="Low is below", help_text="Of what is free on your balance.")
    each = DecimalField(decimals=6, label="Top up by", help_text="In whole minor units.")
    monthly_limit = DecimalField(
        decimals=6, label="At most per month", help_text="Automatic top-ups together, by UTC month."
    )


class OnDemandPaymentForm(PortalForm):
    service_fields = {"payment": "on_demand_payment"}
    on_demand_payment = forms.ChoiceField(
        label="On-demand usage is paid",
        choices=[(Payment.PREPAID, "From the balance"), (Payment.ARREARS, "On credit, by invoice")],
    )


class CreditLineForm(PortalForm):
    service_fields = {"organization_id": "organization", "limit_micros": "limit"}
    organization = forms.TypedChoiceField(label="Buyer", coerce=UUID)
    limit = DecimalField(
        decimals=6,
        label="May owe",
        help_text="Tax included. Below what is used it refuses new spending only.",
    )
