"""Deleted experiments that can come back, directories by template, retired storages, pins, compressed files."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_MOMENT = sa.DateTime(timezone=True)
_STATE = op.f("ck_experiments_state")


def upgrade() -> None:
    """Apply."""
    op.add_column("stations", sa.Column("path_template", sa.Text()))
    op.add_column("stations", sa.Column("default_storage_id", sa.Integer()))
    op.create_foreign_key(
        op.f("fk_stations_default_storage_id"), "stations", "storages", ["default_storage_id"], ["id"]
    )
    op.add_column("storages", sa.Column("retired", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    for column in ("deleted", "purge_after", "purged", "pinned", "pinned_until"):
        op.add_column("experiments", sa.Column(column, _MOMENT))
    op.add_column("experiments", sa.Column("pinned_by", sa.Text()))
    op.drop_constraint(_STATE, "experiments", type_="check")
    op.create_check_constraint(
        _STATE, "experiments", "state IN ('active', 'moving', 'deleting', 'deleted', 'restoring')"
    )
    # Until now nothing was left of what was deleted.
    op.execute("UPDATE experiments SET deleted = update_date, purged = update_date WHERE state = 'deleted'")
    op.create_index(
        "ix_experiments_recoverable",
        "experiments",
        ["purge_after"],
        postgresql_where=sa.text("state = 'deleted' AND purged IS NULL"),
    )
    op.add_column(
        "operations",
        sa.Column("details", postgresql.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False),
    )
    op.add_column("operations", sa.Column("not_before", _MOMENT))
    op.create_index(
        "ix_operations_unfinished",
        "operations",
        ["submitted"],
        postgresql_where=sa.text("status IN ('pending', 'running')"),
    )
    op.create_index(op.f("ix_operations_experiment_id"), "operations", ["experiment_id"])
    op.add_column("published_files", sa.Column("compression", sa.Text()))
    op.add_column("published_files", sa.Column("content_digest", sa.LargeBinary()))
    op.add_column("published_files", sa.Column("content_size", sa.BigInteger()))


def downgrade() -> None:
    """Undo; what waits to be purged counts as deleted for good."""
    for column in ("content_size", "content_digest", "compression"):
        op.drop_column("published_files", column)
    op.drop_index(op.f("ix_operations_experiment_id"), table_name="operations")
    op.drop_index("ix_operations_unfinished", table_name="operations")
    op.drop_column("operations", "not_before")
    op.drop_column("operations", "details")
    op.drop_index("ix_experiments_recoverable", table_name="experiments")
    op.execute("UPDATE experiments SET state = 'active' WHERE state IN ('moving', 'restoring')")
    op.drop_constraint(_STATE, "experiments", type_="check")
    op.create_check_constraint(_STATE, "experiments", "state IN ('active', 'deleting', 'deleted')")
    for column in ("pinned_by", "pinned_until", "pinned", "purged", "purge_after", "deleted"):
        op.drop_column("experiments", column)
    op.drop_column("storages", "retired")
    op.drop_constraint(op.f("fk_stations_default_storage_id"), "stations", type_="foreignkey")
    op.drop_column("stations", "default_storage_id")
    op.drop_column("stations", "path_template")
