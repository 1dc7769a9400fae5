"""Globus groups that follow the members of experiments."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "globus_groups",
        sa.Column("experiment_id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("group_id", sa.Text(), nullable=False),
        sa.Column("group_name", sa.Text(), nullable=False),
        sa.Column("rule_id", sa.Text(), nullable=True),
        sa.Column("rule_path", sa.Text(), nullable=True),
        sa.Column("extras", JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("members_hash", sa.Text(), server_default="", nullable=False),
        sa.Column("members_count", sa.Integer(), server_default="0", nullable=False),
        sa.Column("unknown", JSONB(), server_default=sa.text("'[]'::jsonb"), nullable=False),
        sa.Column("created", moment, server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("compared", moment, nullable=True),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("not_before", moment, nullable=True),
        sa.Column("last_error", sa.Text(), server_default="", nullable=False),
        sa.ForeignKeyConstraint(
            ["experiment_id"], ["experiments.id"], name=op.f("fk_globus_groups_experiment_id_experiments")
        ),
        sa.PrimaryKeyConstraint("experiment_id", name=op.f("pk_globus_groups")),
    )


def downgrade() -> None:
    """Undo."""
    op.drop_table("globus_groups")
