"""What the LDAP directory has yet to learn: marks that triggers write in the transaction of every change."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_NOW = sa.text("clock_timestamp()")

# Marks are only ever added and, once the directory knows, deleted by id: two transactions that change the same thing
# never wait for each other, and a change made while an earlier one is being written has a mark of its own.
_FUNCTION = """
CREATE FUNCTION directory_mark() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO directory_marks (kind, subject) VALUES (TG_ARGV[0], (to_jsonb(NEW) ->> TG_ARGV[1])::integer);
    END IF;
    IF TG_OP <> 'INSERT' AND (TG_OP = 'DELETE' OR to_jsonb(OLD) ->> TG_ARGV[1] <> to_jsonb(NEW) ->> TG_ARGV[1]) THEN
        INSERT INTO directory_marks (kind, subject) VALUES (TG_ARGV[0], (to_jsonb(OLD) ->> TG_ARGV[1])::integer);
    END IF;
    RETURN NULL;
END $$
"""
_USER = ("username", "badge", "first_name", "middle_name", "last_name", "email", "active", "source", "uid_number")
_EXPERIMENT = ("auth_group_name", "gid", "state", "station_id")
_TRIGGERS = (
    ("experiment_roles", "INSERT OR UPDATE OR DELETE", "", "experiment", "experiment_id"),
    ("station_roles", "INSERT OR UPDATE OR DELETE", "", "station", "station_id"),
    ("experiments", "INSERT", "", "experiment", "id"),
    ("experiments", "UPDATE", _EXPERIMENT, "experiment", "id"),
    ("users", "INSERT", "", "user", "id"),
    ("users", "UPDATE", _USER, "user", "id"),
)


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "directory_marks",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("subject", sa.Integer(), nullable=False),
        sa.Column("made", sa.DateTime(timezone=True), server_default=_NOW, nullable=False),
        sa.CheckConstraint("kind IN ('experiment', 'station', 'user')", name=op.f("ck_directory_marks_kind")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_directory_marks")),
    )
    op.create_table(
        "directory_runs",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("finished", sa.DateTime(timezone=True), server_default=_NOW, nullable=False),
        sa.Column("report", postgresql.JSONB(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_directory_runs")),
    )
    op.execute(_FUNCTION)
    for table, when, columns, kind, column in _TRIGGERS:
        changed = " OR ".join(f"OLD.{name} IS DISTINCT FROM NEW.{name}" for name in columns)
        condition = f"WHEN ({changed})" if changed else ""
        event = "update" if columns else "change"
        op.execute(
            f"CREATE TRIGGER directory_{event} AFTER {when} ON {table} FOR EACH ROW {condition}"
            f" EXECUTE FUNCTION directory_mark('{kind}', '{column}')"
        )


def downgrade() -> None:
    """Undo."""
    for table, _, columns, _, _ in _TRIGGERS:
        op.execute(f"DROP TRIGGER directory_{'update' if columns else 'change'} ON {table}")
    op.execute("DROP FUNCTION directory_mark()")
    for table in ("directory_runs", "directory_marks"):
        op.drop_table(table)
