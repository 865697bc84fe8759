"""The modes of policies."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "policy_modes",
        sa.Column("policy", sa.String(100), nullable=False),
        sa.Column("mode", sa.String(16), nullable=False),
        sa.Column("actor", sa.String(200), nullable=False),
        sa.Column("update_time_unix_ns", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("policy", name="pk_policy_modes"),
    )


def downgrade() -> None:
    op.drop_table("policy_modes")
