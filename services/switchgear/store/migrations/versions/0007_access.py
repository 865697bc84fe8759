"""Tokens, join tokens, the nodes that have joined and the audit log."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "access_tokens",
        sa.Column("token_id", sa.String(32), nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("user", sa.String(63), nullable=False),
        sa.Column("role", sa.Integer, nullable=False),
        sa.Column("create_revision", sa.BigInteger, nullable=False),
        sa.Column("create_time_unix_ns", sa.BigInteger, nullable=False),
        sa.Column("expire_time_unix_ns", sa.BigInteger, nullable=False),
        sa.Column("revoke_time_unix_ns", sa.BigInteger, nullable=True),
        sa.PrimaryKeyConstraint("token_id", name="pk_access_tokens"),
        sa.UniqueConstraint("create_revision", name="uq_access_tokens_create_revision"),
    )
    op.create_table(
        "access_join_tokens",
        sa.Column("token_id", sa.String(32), nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("node", sa.String(80), nullable=False),
        sa.Column("expire_time_unix_ns", sa.BigInteger, nullable=False),
        sa.Column("use_time_unix_ns", sa.BigInteger, nullable=True),
        sa.PrimaryKeyConstraint("token_id", name="pk_access_join_tokens"),
    )
    op.create_table(
        "access_nodes",
        sa.Column("node", sa.String(80), nullable=False),
        sa.Column("expire_time_unix_ns", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("node", name="pk_access_nodes"),
    )
    op.create_table(
        "audit_entries",
        sa.Column("ordinal", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("time_unix_ns", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.String(80), nullable=False),
        sa.Column("role", sa.Integer, nullable=False),
        sa.Column("method", sa.String(200), nullable=False),
        sa.Column("resource", sa.String(200), nullable=False),
        sa.Column("outcome", sa.String(32), nullable=False),
        sa.Column("message", sa.String(500), nullable=False),
        sa.Column("peer", sa.String(100), nullable=False),
        sa.Column("trace_id", sa.String(32), nullable=False),
        sa.Column("refused", sa.Boolean, nullable=False),
        sa.Column("count", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("ordinal", name="pk_audit_entries"),
    )
    op.create_index("ix_audit_entries_refused_ordinal", "audit_entries", ["refused", "ordinal"])


def downgrade() -> None:
    for table in ("audit_entries", "access_nodes", "access_join_tokens", "access_tokens"):
        op.drop_table(table)
