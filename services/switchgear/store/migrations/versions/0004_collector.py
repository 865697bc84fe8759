"""Events, signals and expected nodes of the collector."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "collector_events",
        sa.Column("ordinal", sa.BigInteger().with_variant(sa.Integer, "sqlite"), autoincrement=True, nullable=False),
        sa.Column("node", sa.String(80), nullable=False),
        sa.Column("boot_id", sa.String(128), nullable=False),
        sa.Column("source", sa.String(64), nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("time_unix_ns", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("gpu", sa.Integer),
        sa.Column("code", sa.Integer),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("simulated", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("ordinal", name="pk_collector_events"),
        sa.UniqueConstraint("boot_id", "source", "sequence", name="uq_collector_events_boot_id_source_sequence"),
    )
    op.create_table(
        "collector_signals",
        sa.Column("revision", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("signal_id", sa.String(64), nullable=False),
        sa.Column("node", sa.String(80), nullable=False),
        sa.Column("gpu", sa.Integer),
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("severity", sa.String(16), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("evidence", sa.Text, nullable=False),
        sa.Column("time_unix_ns", sa.BigInteger, nullable=False),
        sa.Column("simulated", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("revision", name="pk_collector_signals"),
        sa.UniqueConstraint("signal_id", name="uq_collector_signals_signal_id"),
    )
    op.create_index("ix_collector_signals_node_revision", "collector_signals", ["node", "revision"])
    op.create_table(
        "collector_nodes",
        sa.Column("node", sa.String(80), nullable=False),
        sa.PrimaryKeyConstraint("node", name="pk_collector_nodes"),
    )
