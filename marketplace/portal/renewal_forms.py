"""Whether a contract renews itself, as people say it."""

from __future__ import annotations

from django import forms

from marketplace.portal.forms import DecimalField, PortalForm


class RenewalForm(PortalForm):
    service_fields = {"max_rate_micros_per_mtok": "max_rate"}
    renews = forms.BooleanField(
        label="Renew this contract at its end",
        required=False,
        help_text="And every contract that follows, until you turn it off.",
    )
    max_rate = DecimalField(
        decimals=6,
        label="Your highest rate per Mtok",
        required=False,
        help_text="It renews at the rate of that day, never above this.",
    )
