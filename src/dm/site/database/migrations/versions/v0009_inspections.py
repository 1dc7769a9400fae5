"""What inspections of files in storage found, and which published files are known to be damaged."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)
_NONE = sa.text("'{}'::jsonb")


def upgrade() -> None:
    """Apply."""
    op.add_column("published_files", sa.Column("damaged", _MOMENT))
    op.create_table(
        "inspections",
        sa.Column("experiment_id", sa.Integer(), nullable=False),
        sa.Column("rounds", sa.Integer(), server_default="0", nullable=False),
        sa.Column("asked", _MOMENT),
        sa.Column("asked_by", sa.Text()),
        sa.Column("asked_options", postgresql.JSONB(), server_default=_NONE, nullable=False),
        sa.Column("started", _MOMENT),
        sa.Column("options", postgresql.JSONB(), server_default=_NONE, nullable=False),
        sa.Column("position", postgresql.JSONB(), server_default=_NONE, nullable=False),
        sa.Column("ended", _MOMENT),
        sa.Column("read_ended", _MOMENT),
        sa.Column("counts", postgresql.JSONB(), server_default=_NONE, nullable=False),
        sa.Column("last_error", sa.Text()),
        sa.Column("lease_owner", sa.Text()),
        sa.Column("lease_until", _MOMENT),
        sa.ForeignKeyConstraint(["experiment_id"], ["experiments.id"], name=op.f("fk_inspections_experiment_id")),
        sa.PrimaryKeyConstraint("experiment_id", name=op.f("pk_inspections")),
    )
    op.create_table(
        "inspection_findings",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("experiment_id", sa.Integer(), nullable=False),
        sa.Column("path_key", sa.LargeBinary(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("path", sa.LargeBinary(), nullable=False),
        sa.Column("detail", sa.Text(), server_default="", nullable=False),
        sa.Column("found", _MOMENT, server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("repaired", _MOMENT),
        sa.CheckConstraint(
            "kind IN ('missing', 'extra', 'changed', 'digest', 'permissions', 'link', 'special', 'unreadable')",
            name=op.f("ck_inspection_findings_kind"),
        ),
        sa.ForeignKeyConstraint(
            ["experiment_id"], ["experiments.id"], name=op.f("fk_inspection_findings_experiment_id")
        ),
        sa.PrimaryKeyConstraint("experiment_id", "path_key", "kind", name=op.f("pk_inspection_findings")),
        sa.UniqueConstraint("experiment_id", "id", name=op.f("uq_inspection_findings_experiment_id_id")),
    )


def downgrade() -> None:
    """Undo."""
    op.drop_table("inspection_findings")
    op.drop_table("inspections")
    op.drop_column("published_files", "damaged")
