"""Whether a contract renews itself, as people say it."""

from __future__ import annotations

from django import forms

from marketplace.portal.forms import DecimalField, PortalForm


class RenewalForm(PortalForm):
    service_fields = {"max_rate_micros_per_mtok": "max_rate"}
    renews = forms.ChoiceField(
        label="At its end",
        choices=[("no", "It does not renew"), ("yes", "It renews, and so does every contract that follows")],
    )
    max_rate = DecimalField(
        decimals=6,
        label="Your highest rate per Mtok",
        required=False,
        help_text="Needed to renew. It renews at the rate of that day, never above this.",
    )
