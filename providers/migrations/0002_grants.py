"""Hosts, benches, offerings and outages are pointed at by contracts and settlements: nobody deletes them."""

from django.db import migrations

from marketplace.accounts.append_only import take_from_app

_KEPT = ("providers_provider", "providers_host", "providers_offering", "providers_outage")


class Migration(migrations.Migration):
    dependencies = (("providers", "0001_initial"),)
    operations = (
        *(take_from_app(table, ["DELETE", "TRUNCATE"]) for table in _KEPT),
        # A bench is what was measured; a new one is a new row.
        take_from_app("providers_bench", ["UPDATE", "DELETE", "TRUNCATE"]),
    )
