"""Experiments get the number of their Unix group as they are made, whoever makes them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_FUNCTION = """
CREATE FUNCTION experiment_number() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.gid := coalesce(NEW.gid, (SELECT gid_first + NEW.id FROM directory_numbers
                                  WHERE enabled AND gid_first + NEW.id <= gid_last));
    RETURN NEW;
END $$
"""


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "directory_numbers",
        sa.Column("id", sa.SmallInteger(), autoincrement=False, nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("gid_first", sa.Integer(), nullable=False),
        sa.Column("gid_last", sa.Integer(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_directory_numbers_only")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_directory_numbers")),
    )
    op.execute(_FUNCTION)
    op.execute(
        "CREATE TRIGGER directory_number BEFORE INSERT ON experiments FOR EACH ROW EXECUTE FUNCTION experiment_number()"
    )
    # A deleted experiment keeps its group until its files are gone for good.
    op.execute(
        "CREATE TRIGGER directory_purge AFTER UPDATE ON experiments FOR EACH ROW"
        " WHEN (OLD.purged IS DISTINCT FROM NEW.purged) EXECUTE FUNCTION directory_mark('experiment', 'id')"
    )


def downgrade() -> None:
    """Undo."""
    op.execute("DROP TRIGGER directory_purge ON experiments")
    op.execute("DROP TRIGGER directory_number ON experiments")
    op.execute("DROP FUNCTION experiment_number()")
    op.drop_table("directory_numbers")
