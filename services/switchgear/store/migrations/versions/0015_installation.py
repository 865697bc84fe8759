"""The name of an installation, made once, and an index for what is forgiven of a node that was looked after."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    installation = op.create_table(
        "installation",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("name", sa.String(63), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_installation"),
    )
    op.bulk_insert(installation, [{"id": 1, "name": secrets.token_hex(4)}])
    op.create_index("ix_attempt_evidence_held_up_by", "attempt_evidence", ["held_up_by"])


def downgrade() -> None:
    op.drop_index("ix_attempt_evidence_held_up_by", "attempt_evidence")
    op.drop_table("installation")
