"""Which replicas of a service run what it was before its last update."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"


def upgrade() -> None:
    op.add_column("inference_services", sa.Column("outdated_number", sa.BigInteger, nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("inference_services", "outdated_number")
