"""What people type, parsed strictly; rules are the services'. Each form knows which of its inputs a service means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, ClassVar, cast
from uuid import UUID

from django import forms

from marketplace.accounts.models import OrganizationRole
from marketplace.contracts.models import OveragePolicy, Payment
from marketplace.egress import MAX_URL_CHARACTERS
from marketplace.errors import Conflict, DomainError, NotFound
from marketplace.ids import derived_id, uuid7
from marketplace.orders.services.releasing import MOST_PERIODS
from marketplace.orders.terms import MAX_STEPS, MAX_SUBSTITUTES
from marketplace.webhooks.catalogue import EVENT_TYPES
from metering.reading import MOST_RANGE, Group, Slice
from pricing.units import parse_decimal

_MOST_LOTS = 10**12
FIRST_STEPS = 3


class DecimalField(forms.CharField):
    """A plain decimal, kept as an exact integer scaled by `10**decimals`: no float on the way."""

    def __init__(self, *, decimals: int, **options: Any) -> None:
        super().__init__(widget=forms.TextInput(attrs={"inputmode": "decimal", "maxlength": "20"}), **options)
        self.decimals = decimals

    def to_python(self, value: Any) -> Any:
        text = super().to_python(value)
        if not text:
            return None
        try:
            return parse_decimal(text, decimals=self.decimals, field="x")
        except ValueError as error:
            reason = str(error).removeprefix("x: ")
            raise forms.ValidationError(f"{reason[:1].upper()}{reason[1:]}.") from None


class LotsField(forms.IntegerField):
    def __init__(self, *, least: int = 1, **options: Any) -> None:
        widget = forms.TextInput(attrs={"inputmode": "numeric"})
        super().__init__(min_value=least, max_value=_MOST_LOTS, widget=widget, **options)


class PortalForm(forms.Form):
    """`service_fields` translates a service's field name into the input that people see."""

    service_fields: ClassVar[Mapping[str, str]] = {}

    def refuse(self, error: DomainError) -> None:
        """Say what the service said, at the input it means. What does not exist at all stays a NotFound."""
        if isinstance(error, NotFound) and error.field is None:
            raise error
        name = self.service_fields.get(error.field or "", error.field)
        detail = f"{error.detail[:1].upper()}{error.detail[1:]}"
        self.add_error(
            name if name in self.fields else None, detail if detail.endswith(".") else f"{detail}."
        )


class OperationForm(PortalForm):
    """A form that moves money or sells capacity: sent twice by an impatient finger, it is done once."""

    resent: ClassVar[str] = ""
    operation = forms.UUIDField(widget=forms.HiddenInput, initial=uuid7)

    def clean_operation(self) -> UUID:
        operation: UUID = self.cleaned_data["operation"]
        if operation.version != 7:
            raise forms.ValidationError("This form is damaged; open the page again.")
        return operation

    def operation_id(self, organization_id: UUID) -> UUID:
        """Bound to the organization, so that nobody can aim at another's operation."""
        return derived_id(self.cleaned_data["operation"], f"portal:{organization_id}")

    def refuse(self, error: DomainError) -> None:
        """Going back and sending other figures is another operation: say so, and let the next click do it."""
        if isinstance(error, Conflict) and error.code == Conflict.code and self.resent:
            self.data = {**dict(self.data.items()), "operation": str(uuid7())}
            self.add_error(None, self.resent)
        else:
            super().refuse(error)


class SignInForm(PortalForm):
    email = forms.CharField(
        label="E-mail", max_length=254, widget=forms.EmailInput(attrs={"autocomplete": "username"})
    )
    password = forms.CharField(
        max_length=1000, strip=False, widget=forms.PasswordInput(attrs={"autocomplete": "current-password"})
    )


class TopUpForm(OperationForm):
    service_fields = {"amount_micros": "amount"}
    resent = (
        "This form topped up another amount before, and that stands. Send it again to top up this one too."
    )
    amount = DecimalField(decimals=6, label="Amount", help_text="In whole minor units, for example 25.00.")


class RefundForm(OperationForm):
    service_fields = {"amount_micros": "amount"}
    resent = "This form sent another amount back before, and that stands. Send it again to send this one too."
    amount = DecimalField(decimals=6, label="Amount", help_text="In whole minor units, for example 25.00.")


class QuoteForm(PortalForm):
    service_fields = {
        "take_share_ppm": "take_share",
        "max_rate_micros_per_mtok": "max_rate",
        "rollover_share_ppm": "rollover_share",
        "rollover_cap_lots": "rollover_cap",
    }
    grade = forms.ChoiceField()
    firm_lots = LotsField(
        label="Firm quantity per delivery period", help_text="Lots. One lot is 1,000 standard tokens."
    )
    volume_lots = LotsField(
        label="Volume per month", help_text="Lots. At most the firm quantity times the periods of a month."
    )
    months = forms.TypedChoiceField(
        label="Term", coerce=int, choices=[(n, f"{n} month{'s' if n > 1 else ''}") for n in range(1, 13)]
    )
    starts_at = forms.DateTimeField(
        label="Start (UTC)",
        required=False,
        help_text="Leave empty for the next delivery period that is still open.",
        widget=forms.DateTimeInput(attrs={"type": "datetime-local", "step": "1"}),
    )
    payment = forms.ChoiceField(
        choices=[
            (Payment.PREPAID, "Prepaid: each month at its start"),
            (Payment.ARREARS, "In arrears: as used, within a credit line"),
        ]
    )
    overage_policy = forms.ChoiceField(
        label="When the volume is used up",
        choices=[
            (OveragePolicy.STOP, "Stop"),
            (OveragePolicy.LIST, "Go on at the list rate"),
            (OveragePolicy.SPOT, "Go on at the spot rate"),
        ],
    )
    max_rate = DecimalField(
        decimals=6,
        label="Beyond the volume, per Mtok at most",
        required=False,
        help_text="What costs more is refused. Leave empty for no limit.",
    )
    take_share = DecimalField(
        decimals=4,
        label="Minimum take",
        initial="0",
        help_text="Per cent of the monthly volume that is paid even if unused; matters in arrears.",
    )
    rollover_share = DecimalField(
        decimals=4,
        label="Rolls over",
        required=False,
        help_text="Per cent of a month's unused volume that the next month has too; prepaid only.",
    )
    rollover_cap = LotsField(
        least=0, label="At most", required=False, help_text="Lots; how much of it a month may have."
    )

    def clean_starts_at(self) -> datetime | None:
        starts_at: datetime | None = self.cleaned_data["starts_at"]
        return starts_at.replace(tzinfo=UTC) if starts_at and starts_at.tzinfo is None else starts_at


class AcceptForm(OperationForm):
    pass


class BidForm(OperationForm):
    """Up to ten steps; the empty ones after the last filled one are left out."""

    service_fields = {"max_total_micros_per_day": "daily_budget"}
    resent = "This form placed another bid before, and that stands. Send it again to place this one too."
    grade = forms.ChoiceField()
    period_start = forms.TypedChoiceField(
        label="For",
        required=False,
        coerce=datetime.fromisoformat,
        empty_value=None,
        help_text="A standing bid enters every auction until you cancel it.",
    )
    min_fill_lots = LotsField(
        least=0, label="Least fill", required=False, help_text="Lots. Less than this, take nothing."
    )
    all_or_none = forms.BooleanField(label="All or none", required=False)
    daily_budget = DecimalField(
        decimals=6,
        label="Daily budget",
        required=False,
        help_text="Skip further auctions of the day beyond it.",
    )
    valid_until = forms.DateTimeField(
        label="Good until (UTC)",
        required=False,
        help_text="A standing bid ends then; leave empty for no end.",
        widget=forms.DateTimeInput(attrs={"type": "datetime-local", "step": "1"}),
    )

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for number in range(MAX_STEPS):
            first = number == 0
            self.fields[f"rate_{number}"] = DecimalField(
                decimals=6, required=first, label=f"Rate of step {number + 1}"
            )
            self.fields[f"lots_{number}"] = LotsField(required=first, label=f"Lots of step {number + 1}")
        for number in range(MAX_SUBSTITUTES):
            self.fields[f"substitute_{number}"] = forms.ChoiceField(required=False, label="Grade")
            self.fields[f"adjustment_{number}"] = DecimalField(
                decimals=6, required=False, label="Worth more per Mtok"
            )

    def offer_grades(self, choices: Sequence[tuple[str, str]]) -> None:
        """The grades to choose from: (slug, title)."""
        if "grade" in self.fields:
            self.fields["grade"].choices = choices  # type: ignore[attr-defined]
        for number in range(MAX_SUBSTITUTES):
            named = [("", "None"), *choices]
            self.fields[f"substitute_{number}"].choices = named  # type: ignore[attr-defined]

    @property
    def substitutes(self) -> list[tuple[str, int]]:
        """(grade, micros per Mtok) of the filled rows, as far as they could be read; an empty adjustment is 0."""
        data = getattr(self, "cleaned_data", {})
        return [(data[f"substitute_{n}"], data.get(f"adjustment_{n}") or 0) for n in self._named_rows]

    @property
    def _named_rows(self) -> list[int]:
        data = getattr(self, "cleaned_data", {})
        return [number for number in range(MAX_SUBSTITUTES) if data.get(f"substitute_{number}")]

    @property
    def substitute_rows(self) -> list[tuple[int, forms.BoundField, forms.BoundField]]:
        return [(n + 1, self[f"substitute_{n}"], self[f"adjustment_{n}"]) for n in range(MAX_SUBSTITUTES)]

    @property
    def substitutes_in_use(self) -> bool:
        return any(field.value() or field.errors for _, *fields in self.substitute_rows for field in fields)

    @property
    def steps(self) -> list[tuple[int, int]]:
        """(micros per Mtok, lots) of the filled steps, as far as they could be read."""
        data = getattr(self, "cleaned_data", {})
        pairs = [(data.get(f"rate_{n}"), data.get(f"lots_{n}")) for n in range(MAX_STEPS)]
        return [(rate, lots) for rate, lots in pairs if rate is not None and lots is not None]

    @property
    def step_rows(self) -> list[tuple[int, forms.BoundField, forms.BoundField]]:
        return [(number + 1, self[f"rate_{number}"], self[f"lots_{number}"]) for number in range(MAX_STEPS)]

    @property
    def first_rows(self) -> list[tuple[int, forms.BoundField, forms.BoundField]]:
        return self.step_rows[:FIRST_STEPS]

    @property
    def more_rows(self) -> list[tuple[int, forms.BoundField, forms.BoundField]]:
        return self.step_rows[FIRST_STEPS:]

    @property
    def more_in_use(self) -> bool:
        return any(field.value() or field.errors for _, *fields in self.more_rows for field in fields)

    def clean(self) -> dict[str, Any]:
        data: dict[str, Any] = super().clean() or {}
        ended = False
        for number in range(MAX_STEPS):
            rate, lots = data.get(f"rate_{number}"), data.get(f"lots_{number}")
            if (rate is None) != (lots is None) and not self.errors.keys() & {
                f"rate_{number}",
                f"lots_{number}",
            }:
                missing = "rate" if rate is None else "lots"
                self.add_error(f"{missing}_{number}", "A step has both a rate and lots.")
            if rate is not None and ended:
                self.add_error(f"rate_{number}", "The step before this one is empty.")
            ended = ended or rate is None
        for number in range(MAX_SUBSTITUTES):
            if data.get(f"adjustment_{number}") is not None and not data.get(f"substitute_{number}"):
                self.add_error(f"substitute_{number}", "Of which grade?")
        return data

    def clean_valid_until(self) -> datetime | None:
        end: datetime | None = self.cleaned_data["valid_until"]
        return end.replace(tzinfo=UTC) if end and end.tzinfo is None else end

    def refuse(self, error: DomainError) -> None:
        """A service counts steps and substitutes: `steps.1.lots` is the second row's lots."""
        parts = (error.field or "").split(".")
        if parts[0] == "steps":
            number = parts[1] if len(parts) > 1 else "0"
            name = "lots" if parts[-1] == "lots" else "rate"
            error.field = f"{name}_{number}"
        if parts[0] == "substitutes":
            place = int(parts[1]) if len(parts) > 1 else 0
            row = self._named_rows[place] if place < len(self._named_rows) else 0
            error.field = f"{'substitute' if parts[-1] in ('grade', 'substitutes') else 'adjustment'}_{row}"
        super().refuse(error)


class ReviseForm(BidForm):
    """What may change of a bid, for the revision that the page showed."""

    revision = forms.IntegerField(min_value=1, max_value=2**31 - 1, widget=forms.HiddenInput)

    def __init__(self, *args: Any, standing: bool, **options: Any) -> None:
        super().__init__(*args, **options)
        for name in ("operation", "grade", "period_start", *(() if standing else ("valid_until",))):
            del self.fields[name]


class CoverForm(OperationForm):
    service_fields = {"rate_micros_per_mtok": "rate"}
    resent = "This form placed another bid before, and that stands. Send it again to place this one too."
    grade = forms.ChoiceField()
    rate = DecimalField(decimals=6, label="The most you pay per Mtok")
    tokens_per_second = LotsField(label="Standard tokens a second", help_text="In every delivery period.")


class ReleaseForm(OperationForm):
    """Firm volume of coming delivery periods that goes into spot."""

    service_fields = {"floor_micros_per_mtok": "floor"}
    resent = "This form released volume before, and that stands. Send it again to release this too."
    period_start = forms.DateTimeField(
        label="From (UTC)",
        help_text="The start of a delivery period whose gate is still open.",
        widget=forms.DateTimeInput(attrs={"type": "datetime-local", "step": "1"}),
    )
    periods = forms.IntegerField(
        min_value=1,
        max_value=MOST_PERIODS,
        label="Delivery periods",
        help_text="So many in a row.",
        widget=forms.TextInput(attrs={"inputmode": "numeric"}),
    )
    lots = LotsField(label="Of each", help_text="At most the firm lots of the contract.")
    floor = DecimalField(decimals=6, label="Floor per Mtok", help_text="It is not sold for less.")

    def clean_period_start(self) -> datetime:
        start: datetime = self.cleaned_data["period_start"]
        return start.replace(tzinfo=UTC) if start.tzinfo is None else start


class TerminateForm(OperationForm):
    resent = "This form ended the contract before, and that stands. Send it again to end it at this time too."
    ends_at = forms.DateTimeField(
        label="End (UTC)",
        required=False,
        help_text="Leave empty for the earliest end.",
        widget=forms.DateTimeInput(attrs={"type": "datetime-local", "step": "1"}),
    )
    reason = forms.CharField(max_length=200, required=False, help_text="Stands in the contract's history.")

    def clean_ends_at(self) -> datetime | None:
        ends_at: datetime | None = self.cleaned_data["ends_at"]
        return ends_at.replace(tzinfo=UTC) if ends_at and ends_at.tzinfo is None else ends_at


class AmendmentForm(PortalForm):
    """Other lots, volume or months from one of the contract's later months on."""

    starts_at = forms.ChoiceField(label="From (UTC)")
    firm_lots = LotsField(label="Firm quantity per delivery period")
    volume_lots = LotsField(label="Volume per month")
    months = forms.TypedChoiceField(
        label="Term from then on",
        coerce=int,
        choices=[(n, f"{n} month{'s' if n > 1 else ''}") for n in range(1, 13)],
    )

    def __init__(self, *args: Any, starts: list[datetime], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        field = cast("forms.ChoiceField", self.fields["starts_at"])
        field.choices = [(start.isoformat(), f"{start:%Y-%m-%d %H:%M}") for start in starts]


class ApiKeyForm(PortalForm):
    service_fields = {"expires_at": "expires_in_days"}
    label = forms.CharField(max_length=100, help_text="What it is for, for example the program's name.")
    project = forms.CharField(max_length=100, required=False, help_text="Usage can be told apart by project.")
    scopes = forms.MultipleChoiceField(label="May", widget=forms.CheckboxSelectMultiple)
    default_contract = forms.TypedChoiceField(
        label="Pays with",
        required=False,
        coerce=UUID,
        empty_value=None,
        help_text="The contract that pays when a request names none.",
    )
    expires_in_days = forms.TypedChoiceField(
        label="Expires",
        required=False,
        coerce=int,
        empty_value=None,
        choices=[("", "Never"), (7, "In 7 days"), (30, "In 30 days"), (90, "In 90 days"), (365, "In a year")],
    )


class WebhookForm(PortalForm):
    url = forms.CharField(
        label="Address", max_length=MAX_URL_CHARACTERS, help_text="https, on the public internet."
    )
    description = forms.CharField(max_length=100, required=False)
    event_types = forms.MultipleChoiceField(
        label="Events",
        required=False,
        widget=forms.CheckboxSelectMultiple,
        choices=[(name, f"{name}: {meaning}") for name, meaning in EVENT_TYPES.items()],
    )


class HostForm(PortalForm):
    name = forms.CharField(max_length=64, help_text="Unique among your hosts.")
    region = forms.CharField(max_length=32, help_text="Where it stands; part of what its grades promise.")
    site = forms.CharField(
        max_length=120, required=False, help_text="The building or data centre, for people."
    )


class PricesForm(PortalForm):
    service_fields = {
        "spot_floor_micros_per_mtok": "spot_floor",
        "firm_rate_micros_per_mtok": "firm_rate",
        "list_rate_micros_per_mtok": "list_rate",
    }
    spot_floor = DecimalField(
        decimals=6,
        label="Spot floor",
        help_text="The lowest rate your unsold capacity is asked at in the auction.",
    )
    firm_rate = DecimalField(
        decimals=6, label="Firm rate", help_text="For committed contracts, over their whole term."
    )
    list_rate = DecimalField(decimals=6, label="List rate", help_text="For requests on demand.")


class ReasonForm(PortalForm):
    reason = forms.CharField(max_length=500)


class AdministeredRateForm(ReasonForm):
    service_fields = {"rate_micros_per_mtok": "rate"}
    rate = DecimalField(
        decimals=6, label="Rate per Mtok", required=False, help_text="Empty: the median of 30 days."
    )


class CapForm(ReasonForm):
    service_fields = {"cap_micros_per_mtok": "cap"}
    cap = DecimalField(decimals=6, label="Cap per Mtok")
    effective_from = forms.DateField(
        label="From (UTC)",
        help_text="28 days ahead or more.",
        widget=forms.DateInput(attrs={"type": "date"}),
    )

    def clean_effective_from(self) -> datetime:
        day: date = self.cleaned_data["effective_from"]
        return datetime(day.year, day.month, day.day, tzinfo=UTC)


class UsageForm(PortalForm):
    """What a page of usage shows. Days are whole days in UTC, the last one included."""

    service_fields = {"group_by": "by"}
    BY: ClassVar[Mapping[str, tuple[Group, ...]]] = {
        OrganizationRole.BUYER: (
            Group.MODEL, Group.GRADE, Group.CONTRACT, Group.API_KEY, Group.PROJECT, Group.HOST, Group.BUCKET,
        ),
        OrganizationRole.PROVIDER: (Group.HOST, Group.OFFERING, Group.MODEL, Group.GRADE, Group.BUCKET),
    }  # fmt: skip

    since = forms.DateField(label="From", widget=forms.DateInput(attrs={"type": "date"}))
    until = forms.DateField(label="To", widget=forms.DateInput(attrs={"type": "date"}))
    slice = forms.ChoiceField(label="Per", choices=[(item.value, item.value) for item in Slice])
    by = forms.ChoiceField(label="By")
    buckets = forms.BooleanField(label="Token buckets apart", required=False)
    model = forms.CharField(max_length=120, required=False)
    project = forms.CharField(max_length=100, required=False)

    def __init__(self, data: Mapping[str, Any], *, role: OrganizationRole) -> None:
        super().__init__(data)
        groups = self.BY[role]
        self.fields["by"].choices = [(group.value, group.value.replace("_", " ")) for group in groups]  # type: ignore[attr-defined]
        if role == OrganizationRole.PROVIDER:
            # Projects are the buyers' own.
            del self.fields["project"]

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        since, until = data.get("since"), data.get("until")
        if since and until and since > until:
            self.add_error("until", "Must not lie before the first day.")
        elif since and until and until - since >= MOST_RANGE:
            self.add_error("since", f"At most {MOST_RANGE.days} days at once.")
        for name in ("since", "until"):
            if data.get(name) and not 1970 <= data[name].year < 3000:
                self.add_error(name, "Must lie between the years 1970 and 2999.")
        return data
