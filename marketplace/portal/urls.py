"""The portal's addresses. A page of a role does not exist for an organization without it."""

from django.urls import path

from marketplace.portal.views import buyer, buying, documents, keys, market, operator, provider, signing

urlpatterns = [
    path("", market.market, name="home"),
    path("market", market.market, name="market"),
    path("market/<slug:slug>", market.grade, name="market-grade"),
    path("signin", signing.sign_in, name="sign-in"),
    path("signout", signing.sign_out, name="sign-out"),
    path("organization", signing.switch, name="switch-organization"),
    path("buyer", buyer.home, name="buyer-home"),
    path("buyer/top-up", buyer.new_top_up, name="buyer-top-up"),
    path("buyer/contracts/<uuid:contract_id>", buyer.contract, name="buyer-contract"),
    path("buyer/buy", buying.quote_form, name="buyer-buy"),
    path("buyer/quotes/<uuid:quote_id>", buying.quote, name="buyer-quote"),
    path("buyer/bid", buying.bids, name="buyer-bid"),
    path("buyer/bid/worst-case", buying.worst_case, name="buyer-bid-worst-case"),
    path("buyer/bids/<uuid:bid_id>/cancel", buying.cancel, name="buyer-bid-cancel"),
    path("buyer/keys", keys.keys, name="buyer-keys"),
    path("buyer/keys/<uuid:api_key_id>/revoke", keys.revoke, name="buyer-key-revoke"),
    path("buyer/invoices", documents.invoices, name="buyer-invoices"),
    path("buyer/invoices/<uuid:invoice_id>", documents.invoice, name="buyer-invoice"),
    path("buyer/invoice-lines/<uuid:line_id>", documents.invoice_line, name="buyer-invoice-line"),
    path("buyer/charges", documents.charges, name="buyer-charges"),
    path("buyer/charges/<uuid:charge_id>", documents.charge, name="buyer-charge"),
    path("provider", provider.home, name="provider-home"),
    path("provider/hosts/new", provider.new_host, name="provider-host-new"),
    path("provider/hosts/<uuid:host_id>", provider.host, name="provider-host"),
    path("provider/hosts/<uuid:host_id>/enrolment-code", provider.enrolment_code, name="provider-host-code"),
    path("provider/offerings/<uuid:offering_id>", provider.prices, name="provider-offering"),
    path(
        "provider/offerings/<uuid:offering_id>/status",
        provider.offering_status,
        name="provider-offering-status",
    ),
    path("provider/earnings", provider.earnings, name="provider-earnings"),
    path("provider/statements/<uuid:statement_id>", provider.statement, name="provider-statement"),
    path("operator", operator.home, name="operator-home"),
    path("operator/ledger-check", operator.ledger_check, name="operator-ledger-check"),
]
