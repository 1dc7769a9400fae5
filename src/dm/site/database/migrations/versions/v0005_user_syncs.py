"""What synchronising people with user directories remembers."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Apply."""
    op.add_column("users", sa.Column("institution", sa.Text(), server_default="", nullable=False))
    op.add_column("users", sa.Column("absent_since", _MOMENT))
    op.add_column("users", sa.Column("absent_runs", sa.Integer(), server_default="0", nullable=False))
    op.add_column("users", sa.Column("deactivated_by", sa.Text()))
    op.add_column("users", sa.Column("directory_digest", sa.LargeBinary()))
    op.create_index(
        "uq_users_source_key",
        "users",
        ["source", "source_key"],
        unique=True,
        postgresql_where=sa.text("source IS NOT NULL"),
    )
    op.create_table(
        "user_syncs",
        sa.Column("id", postgresql.UUID(as_uuid=False), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("dry_run", sa.Boolean(), nullable=False),
        sa.Column("force", sa.Boolean(), nullable=False),
        sa.Column("started", _MOMENT, server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("ended", _MOMENT),
        sa.Column("message", sa.Text(), server_default="", nullable=False),
        sa.Column("summary", postgresql.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.CheckConstraint("status IN ('running', 'done', 'refused', 'failed')", name=op.f("ck_user_syncs_status")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_user_syncs")),
    )
    op.create_index(op.f("ix_user_syncs_started"), "user_syncs", ["started"])


def downgrade() -> None:
    """Undo."""
    op.drop_table("user_syncs")
    op.drop_index("uq_users_source_key", table_name="users")
    for column in ("directory_digest", "deactivated_by", "absent_runs", "absent_since", "institution"):
        op.drop_column("users", column)
