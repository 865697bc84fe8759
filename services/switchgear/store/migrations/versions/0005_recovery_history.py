"""When jobs of recovery ended, so that the oldest can be forgotten."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("recovery_jobs", sa.Column("end_time_unix_ns", sa.BigInteger, nullable=True))
    op.create_index("ix_recovery_jobs_end_time_unix_ns", "recovery_jobs", ["end_time_unix_ns"])


def downgrade() -> None:
    op.drop_index("ix_recovery_jobs_end_time_unix_ns", "recovery_jobs")
    op.drop_column("recovery_jobs", "end_time_unix_ns")
