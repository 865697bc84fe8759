"""Where agents serve their metrics, and the trace to which a job belongs."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.add_column("nodes", sa.Column("metrics_address", sa.Text, nullable=False, server_default=""))
    op.add_column("jobs", sa.Column("trace_parent", sa.String(64), nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("jobs", "trace_parent")
    op.drop_column("nodes", "metrics_address")
