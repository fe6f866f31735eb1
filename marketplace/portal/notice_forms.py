"""Where mail goes, and which of the optional notices come."""

from __future__ import annotations

from typing import ClassVar

from django import forms

from marketplace.portal.forms import PortalForm
from marketplace.webhooks.notice_texts import KINDS, OPTIONAL


class NoticesForm(PortalForm):
    OPTIONAL: ClassVar = [(name, KINDS[name].meaning) for name in OPTIONAL]
    service_fields = {"muted": "wanted"}
    addresses = forms.CharField(
        label="Addresses",
        required=False,
        max_length=1_500,
        widget=forms.Textarea(attrs={"rows": 3}),
        help_text="One a line, five at most; of your accounting, for example. Leave empty to mail the owners.",
    )
    wanted = forms.MultipleChoiceField(
        label="Also mail when", required=False, widget=forms.CheckboxSelectMultiple, choices=OPTIONAL
    )

    def clean_addresses(self) -> list[str]:
        typed: str = self.cleaned_data["addresses"]
        return [line.strip() for line in typed.splitlines() if line.strip()]

    @property
    def muted(self) -> list[str]:
        return [name for name, _ in self.OPTIONAL if name not in self.cleaned_data["wanted"]]
