"""Nodes and jobs of the scheduler."""

import sqlalchemy as sa
from alembic import op

from switchgear.store.base import Json

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "nodes",
        sa.Column("name", sa.String(80), nullable=False),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("gpus", Json, nullable=False),
        sa.Column("agent_version", sa.Text, nullable=False),
        sa.Column("last_seen_unix_ns", sa.BigInteger, nullable=False),
        sa.Column("reachable", sa.Boolean, nullable=False),
        sa.Column("standing", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("healthy_revision", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_nodes"),
    )
    op.create_index("ix_nodes_revision", "nodes", ["revision"])
    op.create_table(
        "jobs",
        sa.Column("name", sa.String(80), nullable=False),
        sa.Column("spec", Json, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("placement_epoch", sa.BigInteger, nullable=False),
        sa.Column("placed_nodes", Json, nullable=False),
        sa.Column("excluded_nodes", Json, nullable=False),
        sa.Column("create_revision", sa.BigInteger, nullable=False),
        sa.Column("create_time_unix_ns", sa.BigInteger, nullable=False),
        sa.Column("end_time_unix_ns", sa.BigInteger, nullable=True),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_jobs"),
    )
    op.create_index("ix_jobs_end_time_unix_ns", "jobs", ["end_time_unix_ns"])
    op.create_index("ix_jobs_create_revision", "jobs", ["create_revision"], unique=True)
    op.create_index("ix_jobs_revision", "jobs", ["revision"])


def downgrade() -> None:
    op.drop_table("jobs")
    op.drop_table("nodes")
