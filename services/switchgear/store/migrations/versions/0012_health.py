"""What the collector concludes about each node, and what webhooks have told of it."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.create_table(
        "collector_health",
        sa.Column("node", sa.String(80), nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("verdict", sa.String(16), nullable=False),
        sa.Column("since_unix_ns", sa.BigInteger, nullable=False),
        sa.Column("boot_id", sa.String(128), nullable=False),
        sa.Column("epoch", sa.String(128), nullable=False),
        sa.Column("change", sa.Text, nullable=False),
        sa.Column("conditions", sa.JSON, nullable=False),
        sa.Column("expires_unix_ns", sa.BigInteger, nullable=True),
        sa.PrimaryKeyConstraint("node", name="pk_collector_health"),
    )
    op.create_index("ix_collector_health_revision", "collector_health", ["revision"], unique=True)
    op.create_index("ix_collector_health_expires_unix_ns", "collector_health", ["expires_unix_ns"])
    op.create_table(
        "collector_webhooks",
        sa.Column("webhook", sa.String(64), nullable=False),
        sa.Column("node", sa.String(80), nullable=False),
        sa.Column("told", sa.JSON, nullable=False),
        sa.Column("time_unix_ns", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("webhook", "node", name="pk_collector_webhooks"),
    )


def downgrade() -> None:
    op.drop_table("collector_webhooks")
    op.drop_table("collector_health")
