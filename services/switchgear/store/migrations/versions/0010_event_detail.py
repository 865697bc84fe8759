"""The device of an event, and what is known about it beyond its kind."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column("collector_events", sa.Column("pci", sa.String(16), nullable=False, server_default=""))
    op.add_column("collector_events", sa.Column("detail", sa.JSON, nullable=False, server_default="{}"))


def downgrade() -> None:
    op.drop_column("collector_events", "detail")
    op.drop_column("collector_events", "pci")
