"""What is known of nodes that other exporters tell of."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.create_table(
        "collector_imports",
        sa.Column("node", sa.String(80), nullable=False),
        sa.Column("source", sa.String(64), nullable=False),
        sa.Column("begin_unix_ns", sa.BigInteger, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("silent", sa.Boolean, nullable=False),
        sa.Column("known", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("node", "source", name="pk_collector_imports"),
    )


def downgrade() -> None:
    op.drop_table("collector_imports")
