"""A trade's ask is one of its auction: one foreign key says so, in place of one for the auction and one for the ask."""

import django.db.models.deletion
from django.db import migrations, models

_TOGETHER = """
ALTER TABLE orders_trade ADD CONSTRAINT orders_trade_ask_of_its_auction
    FOREIGN KEY (auction_id, ask_id) REFERENCES orders_ask (auction_id, id) DEFERRABLE INITIALLY DEFERRED
"""


class Migration(migrations.Migration):
    dependencies = (("orders", "0006_releases"),)
    operations = (
        migrations.AddConstraint(
            model_name="ask",
            constraint=models.UniqueConstraint(fields=("auction", "id"), name="orders_ask_of_auction"),
        ),
        migrations.RunSQL(
            _TOGETHER, "ALTER TABLE orders_trade DROP CONSTRAINT orders_trade_ask_of_its_auction"
        ),
        migrations.AlterField(
            model_name="trade",
            name="ask",
            field=models.ForeignKey(
                db_constraint=False,
                db_index=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="trades",
                to="orders.ask",
            ),
        ),
        migrations.AlterField(
            model_name="trade",
            name="auction",
            field=models.ForeignKey(
                db_constraint=False,
                db_index=False,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="trades",
                to="orders.auction",
            ),
        ),
    )
