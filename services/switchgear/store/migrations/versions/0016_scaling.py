"""What autoscaling policies have learned."""

import sqlalchemy as sa
from alembic import op

from switchgear.store.base import Json

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.create_table(
        "scaling_memories",
        sa.Column("service", sa.String(80), primary_key=True),
        sa.Column("policy", sa.String(80), nullable=False),
        sa.Column("learned", Json, nullable=False),
        sa.Column("now_s", sa.Double, nullable=False),
        sa.Column("unix_s", sa.Double, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("scaling_memories")
