"""The tables of the store itself."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "revisions",
        sa.Column("service", sa.String(63), nullable=False),
        sa.Column("value", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("service", name="pk_revisions"),
    )
    op.create_table(
        "requests",
        sa.Column("request_type", sa.String(200), nullable=False),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("fingerprint", sa.LargeBinary, nullable=False),
        sa.Column("response", sa.LargeBinary, nullable=False),
        sa.Column("create_time_unix_ns", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("request_type", "request_id", name="pk_requests"),
    )
    op.create_index("ix_requests_create_time_unix_ns", "requests", ["create_time_unix_ns"])
    op.create_table(
        "leases",
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("holder", sa.String(200), nullable=False),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("expire_time_unix_ns", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_leases"),
    )


def downgrade() -> None:
    for table in ("leases", "requests", "revisions"):
        op.drop_table(table)
