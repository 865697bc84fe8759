"""What attempts that are over tell the planner, and when jobs that have ended were submitted."""

import sqlalchemy as sa
from alembic import op

from switchgear.store.base import Json

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.add_column("job_runs", sa.Column("submit_unix_ns", sa.BigInteger, nullable=True))
    op.create_table(
        "attempt_evidence",
        sa.Column("job", sa.String(80), nullable=False),
        sa.Column("create_revision", sa.BigInteger, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("alike", Json, nullable=False),
        sa.Column("nodes", Json, nullable=False),
        sa.Column("gpu_model", sa.Text, nullable=False),
        sa.Column("steps_per_s", sa.Double, nullable=True),
        sa.Column("held_up_by", sa.String(80), nullable=False),
        sa.Column("told_unix_ns", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("job", "create_revision", "generation", name="pk_attempt_evidence"),
    )
    op.create_index("ix_attempt_evidence_told_unix_ns", "attempt_evidence", ["told_unix_ns"])


def downgrade() -> None:
    op.drop_table("attempt_evidence")
    op.drop_column("job_runs", "submit_unix_ns")
