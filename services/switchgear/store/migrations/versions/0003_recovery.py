"""Jobs, attempts, incidents and checkpoints of recovery."""

import sqlalchemy as sa
from alembic import op

from switchgear.store.base import Json

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "recovery_jobs",
        sa.Column("job", sa.String(80), nullable=False),
        sa.Column("state", Json, nullable=False),
        sa.Column("ended", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("job", name="pk_recovery_jobs"),
    )
    op.create_index("ix_recovery_jobs_ended", "recovery_jobs", ["ended"])
    op.create_table(
        "attempts",
        sa.Column("job", sa.String(80), nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("attempt", Json, nullable=False),
        sa.PrimaryKeyConstraint("job", "generation", name="pk_attempts"),
    )
    op.create_table(
        "incidents",
        sa.Column("incident_id", sa.String(80), nullable=False),
        sa.Column("job", sa.String(80), nullable=False),
        sa.Column("incident", Json, nullable=False),
        sa.Column("create_revision", sa.BigInteger, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("incident_id", name="pk_incidents"),
    )
    op.create_index("ix_incidents_job", "incidents", ["job"])
    op.create_index("ix_incidents_create_revision", "incidents", ["create_revision"], unique=True)
    op.create_index("ix_incidents_revision", "incidents", ["revision"])
    op.create_table(
        "checkpoints",
        sa.Column("job", sa.String(80), nullable=False),
        sa.Column("checkpoint_id", sa.String(64), nullable=False),
        sa.Column("checkpoint", Json, nullable=False),
        sa.Column("commit_time_unix_ns", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("job", "checkpoint_id", name="pk_checkpoints"),
    )
    op.create_table(
        "recovery_cursors",
        sa.Column("name", sa.String(63), nullable=False),
        sa.Column("value", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_recovery_cursors"),
    )


def downgrade() -> None:
    for table in ("recovery_cursors", "checkpoints", "incidents", "attempts", "recovery_jobs"):
        op.drop_table(table)
