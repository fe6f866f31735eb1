"""Documents: their lifecycle, taxes, discounts, credit notes, payments and dunning; what of it never changes."""

from typing import Final

import django.contrib.postgres.fields
import django.db.models.deletion
import django.db.models.expressions
from django.db import migrations, models

import marketplace.ids
from marketplace.accounts.append_only import append_only, give_to_app, take_from_app

_APPEND_ONLY: Final = (
    "billing_invoicediscount",
    "billing_invoicetax",
    "billing_invoicelinetax",
    "billing_invoicestatuschange",
    "billing_creditnote",
    "billing_creditnoteline",
    "billing_creditnotetax",
    "billing_dunningstep",
)
_RULES: Final = """
ALTER TABLE billing_taxrule ADD CONSTRAINT billing_taxrule_one_at_a_time
    EXCLUDE USING gist (uuidrange(series_id, series_id, '[]') WITH &&, tstzrange(valid_from, valid_until) WITH &&);
CREATE FUNCTION billing_guard_validity() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND to_jsonb(NEW) - 'valid_until' = to_jsonb(OLD) - 'valid_until' THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'of a row of % only the end changes: % refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'restrict_violation', TABLE = TG_TABLE_NAME;
END $$;
CREATE TRIGGER billing_taxrule_immutable BEFORE UPDATE OR DELETE ON billing_taxrule
    FOR EACH ROW EXECUTE FUNCTION billing_guard_validity();
CREATE TRIGGER billing_discount_immutable BEFORE UPDATE OR DELETE ON billing_discount
    FOR EACH ROW EXECUTE FUNCTION billing_guard_validity();
"""
_RULES_BACK: Final = """
DROP TRIGGER billing_discount_immutable ON billing_discount;
DROP TRIGGER billing_taxrule_immutable ON billing_taxrule;
DROP FUNCTION billing_guard_validity();
ALTER TABLE billing_taxrule DROP CONSTRAINT billing_taxrule_one_at_a_time;
"""
_INVOICE: Final = """
CREATE OR REPLACE FUNCTION billing_guard_invoice() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF OLD.status IN ('draft', 'grace') AND NEW.status IN ('draft', 'grace', 'finalised') THEN
            RETURN NEW;
        END IF;
        IF to_jsonb(NEW) - 'status' = to_jsonb(OLD) - 'status' AND (OLD.status, NEW.status) IN (
            ('finalised', 'paid'), ('finalised', 'action_required'), ('finalised', 'overdue'), ('finalised', 'void'),
            ('action_required', 'paid'), ('action_required', 'finalised'), ('action_required', 'overdue'),
            ('overdue', 'paid'), ('overdue', 'action_required'), ('overdue', 'uncollectible'), ('overdue', 'void'),
            ('uncollectible', 'paid'), ('paid', 'void')
        ) THEN
            RETURN NEW;
        END IF;
    ELSIF OLD.status = 'draft' THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'invoice % is %: % refused', OLD.id, OLD.status, TG_OP
        USING ERRCODE = 'restrict_violation', TABLE = TG_TABLE_NAME;
END $$;
CREATE TRIGGER billing_invoicetax_draft_only BEFORE INSERT ON billing_invoicetax
    FOR EACH ROW EXECUTE FUNCTION billing_guard_invoice_line();
CREATE TRIGGER billing_invoicediscount_draft_only BEFORE INSERT ON billing_invoicediscount
    FOR EACH ROW EXECUTE FUNCTION billing_guard_invoice_line();
CREATE TRIGGER billing_invoicelinetax_draft_only BEFORE INSERT ON billing_invoicelinetax
    FOR EACH ROW EXECUTE FUNCTION billing_guard_invoice_line_charge();
"""
_INVOICE_BACK: Final = """
DROP TRIGGER billing_invoicelinetax_draft_only ON billing_invoicelinetax;
DROP TRIGGER billing_invoicediscount_draft_only ON billing_invoicediscount;
DROP TRIGGER billing_invoicetax_draft_only ON billing_invoicetax;
CREATE OR REPLACE FUNCTION billing_guard_invoice() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF OLD.status = 'draft' THEN
            RETURN NEW;
        END IF;
        IF OLD.status = 'finalised' AND NEW.status = 'paid'
           AND to_jsonb(NEW) - 'status' = to_jsonb(OLD) - 'status' THEN
            RETURN NEW;
        END IF;
    ELSIF OLD.status = 'draft' THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'invoice % is %: % refused', OLD.id, OLD.status, TG_OP
        USING ERRCODE = 'restrict_violation', TABLE = TG_TABLE_NAME;
END $$;
"""
# A charge of a void invoice moves to the one that replaces it: it is still invoiced once.
_CHARGES: Final = """
DROP TRIGGER billing_invoicelinecharge_append_only ON billing_invoicelinecharge;
CREATE FUNCTION billing_guard_moved_charge() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND to_jsonb(NEW) - 'line_id' = to_jsonb(OLD) - 'line_id'
       AND (SELECT former.status = 'void' AND latter.status = 'draft' AND latter.replaces_id = former.id
            FROM billing_invoiceline was JOIN billing_invoice former ON former.id = was.invoice_id,
                 billing_invoiceline is_now JOIN billing_invoice latter ON latter.id = is_now.invoice_id
            WHERE was.id = OLD.line_id AND is_now.id = NEW.line_id) THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'a charge leaves a void invoice for its replacement only: % refused', TG_OP
        USING ERRCODE = 'restrict_violation', TABLE = TG_TABLE_NAME;
END $$;
CREATE TRIGGER billing_invoicelinecharge_moves BEFORE UPDATE OR DELETE ON billing_invoicelinecharge
    FOR EACH ROW EXECUTE FUNCTION billing_guard_moved_charge();
"""
_CHARGES_BACK: Final = """
DROP TRIGGER billing_invoicelinecharge_moves ON billing_invoicelinecharge;
DROP FUNCTION billing_guard_moved_charge();
CREATE TRIGGER billing_invoicelinecharge_append_only BEFORE UPDATE OR DELETE ON billing_invoicelinecharge
    FOR EACH ROW EXECUTE FUNCTION marketplace_refuse_change();
"""
# The service locks the invoice before it reads what is left; this is the promise itself.
_CREDIT: Final = """
CREATE FUNCTION billing_guard_credit() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    most record;
    given record;
BEGIN
    SELECT abs(amount_micros - discount_micros) AS net, abs(tax_micros) AS tax INTO most
    FROM billing_invoiceline WHERE id = NEW.line_id;
    SELECT abs(sum(net_micros)) AS net, abs(sum(tax_micros)) AS tax INTO given
    FROM billing_creditnoteline WHERE line_id = NEW.line_id;
    IF given.net > most.net OR given.tax > most.tax THEN
        RAISE EXCEPTION 'line % would be credited beyond its amount', NEW.line_id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'billing_creditnoteline_within_line',
                  TABLE = TG_TABLE_NAME;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER billing_creditnoteline_within_line AFTER INSERT ON billing_creditnoteline
    FOR EACH ROW EXECUTE FUNCTION billing_guard_credit();
CREATE FUNCTION billing_guard_payment() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.status = 'pending' AND NEW.amount_micros = OLD.amount_micros
       AND NEW.invoice_id = OLD.invoice_id THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'payment % is %: % refused', OLD.id, OLD.status, TG_OP
        USING ERRCODE = 'restrict_violation', TABLE = TG_TABLE_NAME;
END $$;
CREATE TRIGGER billing_invoicepayment_immutable BEFORE UPDATE OR DELETE ON billing_invoicepayment
    FOR EACH ROW EXECUTE FUNCTION billing_guard_payment();
"""
_CREDIT_BACK: Final = """
DROP TRIGGER billing_invoicepayment_immutable ON billing_invoicepayment;
DROP FUNCTION billing_guard_payment();
DROP TRIGGER billing_creditnoteline_within_line ON billing_creditnoteline;
DROP FUNCTION billing_guard_credit();
"""
# The gateway makes on-demand contracts itself: one that begins while its buyer is past due begins suspended.
_PAST_DUE: Final = """
CREATE FUNCTION billing_suspend_new_on_demand() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM accounts_organization WHERE id = NEW.organization_id AND status = 'past_due') THEN
        NEW.status := 'suspended';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER billing_suspend_new_on_demand BEFORE INSERT ON contracts_contract
    FOR EACH ROW WHEN (NEW.kind = 'on_demand') EXECUTE FUNCTION billing_suspend_new_on_demand();
"""
_PAST_DUE_BACK: Final = """
DROP TRIGGER billing_suspend_new_on_demand ON contracts_contract;
DROP FUNCTION billing_suspend_new_on_demand();
"""
_OPERATIONS: Final = (
    *(operation for table in _APPEND_ONLY for operation in append_only(table)),
    migrations.RunSQL(_RULES, _RULES_BACK),
    migrations.RunSQL(_INVOICE, _INVOICE_BACK),
    migrations.RunSQL(_CHARGES, _CHARGES_BACK),
    migrations.RunSQL(_CREDIT, _CREDIT_BACK),
    migrations.RunSQL(_PAST_DUE, _PAST_DUE_BACK),
    give_to_app("billing_invoicelinecharge", ["UPDATE"]),
    take_from_app("billing_taxrule", ["DELETE", "TRUNCATE"]),
    take_from_app("billing_discount", ["DELETE", "TRUNCATE"]),
    take_from_app("billing_invoicepayment", ["DELETE", "TRUNCATE"]),
)


class Migration(migrations.Migration):
    dependencies = [
        ("accounts", "0003_legal_identity"),
        ("billing", "0005_supply"),
        ("pricing", "0002_versions_and_immutability"),
    ]

    operations = [
        migrations.CreateModel(
            name="CreditNote",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False)),
                ("number", models.CharField(max_length=40, unique=True)),
                ("currency", models.CharField(max_length=3)),
                ("parties", models.JSONField()),
                ("reason", models.CharField(max_length=300)),
                ("net_micros", models.BigIntegerField()),
                ("tax_micros", models.BigIntegerField()),
                ("rounding_micros", models.BigIntegerField()),
                ("total_micros", models.BigIntegerField()),
                ("due_micros", models.BigIntegerField()),
                ("content_sha256", models.CharField(max_length=64)),
                ("created_at", models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name="CreditNoteLine",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False)),
                ("net_micros", models.BigIntegerField()),
                ("tax_micros", models.BigIntegerField()),
            ],
            options={
                "ordering": ["line__number"],
            },
        ),
        migrations.CreateModel(
            name="CreditNoteTax",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False)),
                ("tax_micros", models.BigIntegerField()),
            ],
        ),
        migrations.CreateModel(
            name="Discount",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=marketplace.ids.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("title", models.CharField(max_length=100)),
                ("rate_ppm", models.BigIntegerField(null=True)),
                ("amount_micros", models.BigIntegerField(null=True)),
                ("line_kind", models.CharField(blank=True, max_length=16)),
                ("max_invoices", models.PositiveIntegerField(null=True)),
                ("valid_from", models.DateTimeField()),
                ("valid_until", models.DateTimeField(null=True)),
                ("created_at", models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name="DunningStep",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False)),
                ("step", models.CharField(max_length=32)),
                ("amount_micros", models.BigIntegerField()),
                ("created_at", models.DateTimeField()),
            ],
            options={
                "ordering": ["created_at"],
            },
        ),
        migrations.CreateModel(
            name="InvoiceDiscount",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False)),
                ("title", models.CharField(max_length=100)),
                ("amount_micros", models.BigIntegerField()),
            ],
            options={
                "ordering": ["discount_id"],
            },
        ),
        migrations.CreateModel(
            name="InvoiceLineTax",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False)),
                ("tax_micros", models.BigIntegerField()),
            ],
        ),
        migrations.CreateModel(
            name="InvoicePayment",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False)),
                (
                    "source",
                    models.CharField(
                        choices=[("balance", "Balance"), ("processor", "Processor")], max_length=10
                    ),
                ),
                ("amount_micros", models.BigIntegerField()),
                (
                    "status",
                    models.CharField(
                        choices=[("pending", "Pending"), ("succeeded", "Succeeded"), ("failed", "Failed")],
                        default="pending",
                        max_length=10,
                    ),
                ),
                ("processor_reference", models.CharField(blank=True, max_length=120)),
                ("failure", models.CharField(blank=True, max_length=300)),
                ("created_at", models.DateTimeField()),
            ],
        ),
        migrations.CreateModel(
            name="InvoiceStatusChange",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=marketplace.ids.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("from_status", models.CharField(max_length=16)),
                ("to_status", models.CharField(max_length=16)),
                ("reason", models.CharField(blank=True, max_length=300)),
                ("created_at", models.DateTimeField()),
            ],
            options={
                "ordering": ["id"],
            },
        ),
        migrations.CreateModel(
            name="InvoiceTax",
            fields=[
                ("id", models.UUIDField(editable=False, primary_key=True, serialize=False)),
                ("number", models.PositiveIntegerField()),
                ("jurisdiction", models.CharField(blank=True, max_length=2)),
                ("title", models.CharField(max_length=100)),
                ("rate_ppm", models.BigIntegerField(default=0)),
                ("levy_micros_per_mtok", models.BigIntegerField(default=0)),
                ("reverse_charge", models.BooleanField(default=False)),
                ("base_micros", models.BigIntegerField(default=0)),
                ("base_numerator", models.BigIntegerField(default=0)),
                ("tax_micros", models.BigIntegerField()),
            ],
            options={
                "ordering": ["number"],
            },
        ),
        migrations.CreateModel(
            name="TaxRule",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=marketplace.ids.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("series_id", models.UUIDField(editable=False)),
                ("jurisdiction", models.CharField(max_length=2)),
                ("code", models.CharField(max_length=32)),
                ("title", models.CharField(max_length=100)),
                ("kind", models.CharField(choices=[("percent", "Percent"), ("levy", "Levy")], max_length=8)),
                ("rate_ppm", models.BigIntegerField(default=0)),
                ("levy_micros_per_mtok", models.BigIntegerField(default=0)),
                (
                    "home_regions",
                    django.contrib.postgres.fields.ArrayField(
                        base_field=models.CharField(max_length=64), blank=True, default=list, size=None
                    ),
                ),
                (
                    "buyers",
                    models.CharField(
                        choices=[("all", "All"), ("business", "Business"), ("consumer", "Consumer")],
                        default="all",
                        max_length=8,
                    ),
                ),
                ("reverse_charge", models.BooleanField(default=False)),
                ("valid_from", models.DateTimeField()),
                ("valid_until", models.DateTimeField(null=True)),
                ("created_at", models.DateTimeField()),
            ],
        ),
        migrations.RemoveConstraint(
            model_name="invoice",
            name="billing_invoice_one_per_month",
        ),
        migrations.RemoveConstraint(
            model_name="invoice",
            name="billing_invoice_finalised_has_number",
        ),
        migrations.RemoveConstraint(
            model_name="invoice",
            name="billing_invoice_adds_up",
        ),
        migrations.AddField(
            model_name="invoice",
            name="content_sha256",
            field=models.CharField(blank=True, max_length=64),
        ),
        migrations.AddField(
            model_name="invoice",
            name="discount_micros",
            field=models.BigIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="invoice",
            name="due_at",
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name="invoice",
            name="grace_until",
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name="invoice",
            name="replaces",
            field=models.OneToOneField(
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="replaced_by",
                to="billing.invoice",
            ),
        ),
        migrations.AddField(
            model_name="invoice",
            name="tax_unposted_micros",
            field=models.BigIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="invoiceline",
            name="discount_micros",
            field=models.BigIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="invoiceline",
            name="tax_micros",
            field=models.BigIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="statement",
            name="consented_at",
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name="statement",
            name="content_sha256",
            field=models.CharField(blank=True, max_length=64),
        ),
        migrations.AlterField(
            model_name="invoice",
            name="status",
            field=models.CharField(
                choices=[
                    ("draft", "Draft"),
                    ("grace", "Grace"),
                    ("finalised", "Finalised"),
                    ("action_required", "Action Required"),
                    ("overdue", "Overdue"),
                    ("uncollectible", "Uncollectible"),
                    ("paid", "Paid"),
                    ("void", "Void"),
                ],
                default="draft",
                max_length=16,
            ),
        ),
        migrations.AddConstraint(
            model_name="invoice",
            constraint=models.UniqueConstraint(
                condition=models.Q(("status", "void"), _negated=True),
                fields=("organization", "period_start"),
                name="billing_invoice_one_per_month",
            ),
        ),
        migrations.AddConstraint(
            model_name="invoice",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("status__in", ["draft", "grace"]),
                    models.Q(("number__isnull", False), ("finalised_at__isnull", False)),
                    _connector="OR",
                ),
                name="billing_invoice_finalised_has_number",
            ),
        ),
        migrations.AddConstraint(
            model_name="invoice",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    (
                        "total_micros",
                        django.db.models.expressions.CombinedExpression(
                            django.db.models.expressions.CombinedExpression(
                                django.db.models.expressions.CombinedExpression(
                                    models.F("subtotal_micros"), "-", models.F("discount_micros")
                                ),
                                "+",
                                models.F("tax_micros"),
                            ),
                            "-",
                            models.F("rounding_micros"),
                        ),
                    ),
                    (
                        "amount_due_micros",
                        django.db.models.expressions.CombinedExpression(
                            models.F("total_micros"), "-", models.F("prepaid_micros")
                        ),
                    ),
                ),
                name="billing_invoice_adds_up",
            ),
        ),
        migrations.AddField(
            model_name="creditnote",
            name="invoice",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="credit_notes", to="billing.invoice"
            ),
        ),
        migrations.AddField(
            model_name="creditnote",
            name="organization",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to="accounts.organization"
            ),
        ),
        migrations.AddField(
            model_name="creditnoteline",
            name="line",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="credited", to="billing.invoiceline"
            ),
        ),
        migrations.AddField(
            model_name="creditnoteline",
            name="note",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="lines", to="billing.creditnote"
            ),
        ),
        migrations.AddField(
            model_name="creditnotetax",
            name="line",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="taxes", to="billing.creditnoteline"
            ),
        ),
        migrations.AddField(
            model_name="discount",
            name="organization",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to="accounts.organization"
            ),
        ),
        migrations.AddField(
            model_name="dunningstep",
            name="invoice",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="dunning", to="billing.invoice"
            ),
        ),
        migrations.AddField(
            model_name="dunningstep",
            name="organization",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to="accounts.organization"
            ),
        ),
        migrations.AddField(
            model_name="invoicediscount",
            name="discount",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to="billing.discount"
            ),
        ),
        migrations.AddField(
            model_name="invoicediscount",
            name="invoice",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="discounts", to="billing.invoice"
            ),
        ),
        migrations.AddField(
            model_name="invoicelinetax",
            name="line",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="taxes", to="billing.invoiceline"
            ),
        ),
        migrations.AddField(
            model_name="invoicepayment",
            name="invoice",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="payments", to="billing.invoice"
            ),
        ),
        migrations.AddField(
            model_name="invoicepayment",
            name="organization",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to="accounts.organization"
            ),
        ),
        migrations.AddField(
            model_name="invoicestatuschange",
            name="invoice",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="history", to="billing.invoice"
            ),
        ),
        migrations.AddField(
            model_name="invoicetax",
            name="invoice",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="taxes", to="billing.invoice"
            ),
        ),
        migrations.AddField(
            model_name="invoicelinetax",
            name="tax",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to="billing.invoicetax"
            ),
        ),
        migrations.AddField(
            model_name="creditnotetax",
            name="tax",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, related_name="+", to="billing.invoicetax"
            ),
        ),
        migrations.AddConstraint(
            model_name="taxrule",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        ("kind", "percent"),
                        ("levy_micros_per_mtok", 0),
                        ("rate_ppm__gte", 0),
                        ("rate_ppm__lte", 1000000),
                    ),
                    models.Q(("kind", "levy"), ("levy_micros_per_mtok__gt", 0), ("rate_ppm", 0)),
                    _connector="OR",
                ),
                name="billing_taxrule_one_figure",
            ),
        ),
        migrations.AddConstraint(
            model_name="taxrule",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("valid_until__isnull", True),
                    ("valid_until__gte", models.F("valid_from")),
                    _connector="OR",
                ),
                name="billing_taxrule_forwards",
            ),
        ),
        migrations.AddField(
            model_name="invoicetax",
            name="rule",
            field=models.ForeignKey(
                null=True, on_delete=django.db.models.deletion.PROTECT, related_name="+", to="billing.taxrule"
            ),
        ),
        migrations.AddIndex(
            model_name="creditnote",
            index=models.Index(fields=["organization"], name="billing_creditnote_by_org"),
        ),
        migrations.AddConstraint(
            model_name="creditnote",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    (
                        "total_micros",
                        django.db.models.expressions.CombinedExpression(
                            django.db.models.expressions.CombinedExpression(
                                models.F("net_micros"), "+", models.F("tax_micros")
                            ),
                            "-",
                            models.F("rounding_micros"),
                        ),
                    ),
                    ("total_micros__gte", 0),
                ),
                name="billing_creditnote_adds_up",
            ),
        ),
        migrations.AddConstraint(
            model_name="creditnote",
            constraint=models.CheckConstraint(
                condition=models.Q(("due_micros__gte", 0), ("due_micros__lte", models.F("total_micros"))),
                name="billing_creditnote_due_within_total",
            ),
        ),
        migrations.AddConstraint(
            model_name="creditnoteline",
            constraint=models.UniqueConstraint(fields=("note", "line"), name="billing_creditnoteline_unique"),
        ),
        migrations.AddIndex(
            model_name="discount",
            index=models.Index(fields=["organization"], name="billing_discount_by_org"),
        ),
        migrations.AddConstraint(
            model_name="discount",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(
                        ("amount_micros__isnull", True), ("rate_ppm__gt", 0), ("rate_ppm__lte", 1000000)
                    ),
                    models.Q(("amount_micros__gt", 0), ("rate_ppm__isnull", True)),
                    _connector="OR",
                ),
                name="billing_discount_one_figure",
            ),
        ),
        migrations.AddConstraint(
            model_name="discount",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("valid_until__isnull", True),
                    ("valid_until__gte", models.F("valid_from")),
                    _connector="OR",
                ),
                name="billing_discount_forwards",
            ),
        ),
        migrations.AddConstraint(
            model_name="dunningstep",
            constraint=models.UniqueConstraint(fields=("invoice", "step"), name="billing_dunningstep_once"),
        ),
        migrations.AddConstraint(
            model_name="dunningstep",
            constraint=models.CheckConstraint(
                condition=models.Q(("amount_micros__gt", 0)), name="billing_dunningstep_amount_positive"
            ),
        ),
        migrations.AddConstraint(
            model_name="invoicediscount",
            constraint=models.UniqueConstraint(
                fields=("invoice", "discount"), name="billing_invoicediscount_unique"
            ),
        ),
        migrations.AddConstraint(
            model_name="invoicediscount",
            constraint=models.CheckConstraint(
                condition=models.Q(("amount_micros__gt", 0)), name="billing_invoicediscount_positive"
            ),
        ),
        migrations.AddConstraint(
            model_name="invoicepayment",
            constraint=models.CheckConstraint(
                condition=models.Q(("amount_micros__gt", 0)), name="billing_invoicepayment_positive"
            ),
        ),
        migrations.AddConstraint(
            model_name="invoicepayment",
            constraint=models.UniqueConstraint(
                condition=models.Q(("status", "pending")),
                fields=("invoice",),
                name="billing_invoicepayment_one_pending",
            ),
        ),
        migrations.AddConstraint(
            model_name="invoicelinetax",
            constraint=models.UniqueConstraint(fields=("line", "tax"), name="billing_invoicelinetax_unique"),
        ),
        migrations.AddConstraint(
            model_name="creditnotetax",
            constraint=models.UniqueConstraint(fields=("line", "tax"), name="billing_creditnotetax_unique"),
        ),
        migrations.AddConstraint(
            model_name="invoicetax",
            constraint=models.UniqueConstraint(
                fields=("invoice", "number"), name="billing_invoicetax_number_unique"
            ),
        ),
        migrations.AddConstraint(
            model_name="invoicetax",
            constraint=models.CheckConstraint(
                condition=models.Q(("levy_micros_per_mtok__gte", 0), ("rate_ppm__gte", 0)),
                name="billing_invoicetax_rate_not_negative",
            ),
        ),
        migrations.AddConstraint(
            model_name="invoicetax",
            constraint=models.CheckConstraint(
                condition=models.Q(("reverse_charge", False), ("tax_micros", 0), _connector="OR"),
                name="billing_invoicetax_reversed_is_zero",
            ),
        ),
        *_OPERATIONS,
    ]
