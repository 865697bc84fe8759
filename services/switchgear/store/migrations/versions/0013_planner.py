"""What the planner goes by: labels of nodes, the way of jobs through the queue, queues, reservations, what jobs used and how long they ran."""

import sqlalchemy as sa
from alembic import op

from switchgear.store.base import Json

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.add_column("nodes", sa.Column("traits", Json, nullable=False, server_default="{}"))
    op.add_column("jobs", sa.Column("turn", Json, nullable=False, server_default="{}"))
    op.create_table(
        "queues",
        sa.Column("name", sa.String(80), nullable=False),
        sa.Column("parent", sa.String(80), nullable=False),
        sa.Column("guaranteed_gpus", sa.Double, nullable=False),
        sa.Column("limit_gpus", sa.Double, nullable=True),
        sa.Column("weight", sa.Double, nullable=False),
        sa.Column("keeps", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_queues"),
    )
    op.create_table(
        "reservations",
        sa.Column("name", sa.String(80), nullable=False),
        sa.Column("nodes", Json, nullable=False),
        sa.Column("start_unix_ns", sa.BigInteger, nullable=False),
        sa.Column("end_unix_ns", sa.BigInteger, nullable=False),
        sa.Column("queues", Json, nullable=False),
        sa.Column("jobs", Json, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_reservations"),
    )
    op.create_table(
        "job_runs",
        sa.Column("job", sa.String(80), nullable=False),
        sa.Column("create_revision", sa.BigInteger, nullable=False),
        sa.Column("user", sa.String(200), nullable=False),
        sa.Column("key", sa.String(200), nullable=False),
        sa.Column("queue", sa.String(80), nullable=False),
        sa.Column("gpus", sa.Double, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("end_unix_ns", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("job", "create_revision", name="pk_job_runs"),
    )
    op.create_index("ix_job_runs_end_unix_ns", "job_runs", ["end_unix_ns"])
    op.create_table(
        "queue_usage",
        sa.Column("queue", sa.String(80), nullable=False),
        sa.Column("user", sa.String(200), nullable=False),
        sa.Column("gpu_s", sa.Double, nullable=False),
        sa.Column("time_unix_ns", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("queue", "user", name="pk_queue_usage"),
    )


def downgrade() -> None:
    for table in ("queue_usage", "job_runs", "reservations", "queues"):
        op.drop_table(table)
    op.drop_column("jobs", "turn")
    op.drop_column("nodes", "traits")
