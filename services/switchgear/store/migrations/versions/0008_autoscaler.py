"""Inference services and replicas."""

import sqlalchemy as sa
from alembic import op

from switchgear.store.base import Json

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.create_table(
        "inference_services",
        sa.Column("name", sa.String(80), nullable=False),
        sa.Column("spec", Json, nullable=False),
        sa.Column("desired", sa.Integer, nullable=False),
        sa.Column("advised", sa.Integer, nullable=True),
        sa.Column("cause", sa.String(16), nullable=False),
        sa.Column("decision", sa.Text, nullable=False),
        sa.Column("decide_time_unix_ns", sa.BigInteger, nullable=False),
        sa.Column("hindrance", sa.Text, nullable=False),
        sa.Column("deleting", sa.Boolean, nullable=False),
        sa.Column("create_time_unix_ns", sa.BigInteger, nullable=False),
        sa.Column("last_number", sa.BigInteger, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_inference_services"),
    )
    op.create_index("ix_inference_services_revision", "inference_services", ["revision"])
    op.create_table(
        "replicas",
        sa.Column("service", sa.String(80), nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("name", sa.String(120), nullable=False),
        sa.Column("job", sa.String(80), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("node", sa.String(80), nullable=False),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("create_time_unix_ns", sa.BigInteger, nullable=False),
        sa.Column("ready_time_unix_ns", sa.BigInteger, nullable=True),
        sa.Column("drain_time_unix_ns", sa.BigInteger, nullable=True),
        sa.Column("drain_revision", sa.BigInteger, nullable=False),
        sa.Column("end_time_unix_ns", sa.BigInteger, nullable=True),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("service", "number", name="pk_replicas"),
    )
    op.create_table(
        "replica_numbers",
        sa.Column("service", sa.String(80), nullable=False),
        sa.Column("last_number", sa.BigInteger, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("service", name="pk_replica_numbers"),
    )
    op.create_index("ix_replica_numbers_revision", "replica_numbers", ["revision"])


def downgrade() -> None:
    op.drop_table("replica_numbers")
    op.drop_table("replicas")
    op.drop_table("inference_services")
