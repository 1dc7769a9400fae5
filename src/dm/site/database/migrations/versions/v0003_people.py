"""People from user directories, API tokens, the audit log, group numbers, and what the facility's systems said last."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_NOW = sa.text("now()")
_UUID = postgresql.UUID(as_uuid=False)


def upgrade() -> None:
    """Apply."""
    op.add_column("users", sa.Column("active", sa.Boolean(), server_default=sa.text("true"), nullable=False))
    op.add_column("users", sa.Column("source", sa.Text()))
    op.add_column("users", sa.Column("source_key", sa.Text()))
    op.add_column("users", sa.Column("uid_number", sa.Integer()))
    op.create_unique_constraint(op.f("uq_users_uid_number"), "users", ["uid_number"])
    op.add_column("experiments", sa.Column("gid", sa.Integer()))
    op.create_unique_constraint(op.f("uq_experiments_gid"), "experiments", ["gid"])
    op.create_table(
        "api_tokens",
        sa.Column("id", _UUID, nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("scopes", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("station_id", sa.Integer()),
        sa.Column("created", sa.DateTime(timezone=True), server_default=_NOW, nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("expires", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used", sa.DateTime(timezone=True)),
        sa.Column("revoked", sa.DateTime(timezone=True)),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_api_tokens_user_id")),
        sa.ForeignKeyConstraint(["station_id"], ["stations.id"], name=op.f("fk_api_tokens_station_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_tokens")),
    )
    op.create_index(op.f("ix_api_tokens_user_id"), "api_tokens", ["user_id"])
    op.add_column("sessions", sa.Column("token_id", _UUID))
    op.create_foreign_key(
        op.f("fk_sessions_token_id"), "sessions", "api_tokens", ["token_id"], ["id"], ondelete="CASCADE"
    )
    op.create_index(op.f("ix_sessions_token_id"), "sessions", ["token_id"])
    op.create_table(
        "audit_events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), server_default="", nullable=False),
        sa.Column("subject", sa.Text(), server_default="", nullable=False),
        sa.Column("remote", sa.Text(), server_default="", nullable=False),
        sa.Column("request_id", sa.Text(), server_default="", nullable=False),
        sa.Column("details", postgresql.JSONB(), server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_events")),
    )
    op.create_index(op.f("ix_audit_events_time"), "audit_events", ["time"])
    op.create_index(op.f("ix_audit_events_subject"), "audit_events", ["subject"])
    op.create_table(
        "facility_records",
        sa.Column("adapter", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("record", postgresql.JSONB(), nullable=False),
        sa.Column("fetched", sa.DateTime(timezone=True), server_default=_NOW, nullable=False),
        sa.PrimaryKeyConstraint("adapter", "kind", "key", name=op.f("pk_facility_records")),
    )


def downgrade() -> None:
    """Undo."""
    op.drop_table("facility_records")
    op.drop_table("audit_events")
    op.drop_column("sessions", "token_id")
    op.drop_table("api_tokens")
    op.drop_column("experiments", "gid")
    for column in ("uid_number", "source_key", "source", "active"):
        op.drop_column("users", column)
