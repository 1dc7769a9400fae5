"""Initial schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "experiment_types",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_experiment_types")),
        sa.UniqueConstraint("name", name=op.f("uq_experiment_types_name")),
    )
    op.create_table(
        "stations",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_stations")),
        sa.UniqueConstraint("name", name=op.f("uq_stations_name")),
    )
    op.create_table(
        "storages",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("root_directory", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_storages")),
        sa.UniqueConstraint("name", name=op.f("uq_storages_name")),
    )
    op.create_table(
        "users",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("username", sa.Text(), nullable=False),
        sa.Column("badge", sa.Integer(), nullable=True),
        sa.Column("first_name", sa.Text(), server_default="", nullable=False),
        sa.Column("middle_name", sa.Text(), server_default="", nullable=False),
        sa.Column("last_name", sa.Text(), server_default="", nullable=False),
        sa.Column("email", sa.Text(), server_default="", nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=True),
        sa.Column("is_local_user", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("last_update", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.UniqueConstraint("username", name=op.f("uq_users_username")),
    )
    op.create_table(
        "experiments",
        sa.Column("id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("station_id", sa.Integer(), nullable=False),
        sa.Column("storage_id", sa.Integer(), nullable=False),
        sa.Column("type_id", sa.Integer(), nullable=False),
        sa.Column("description", sa.Text(), server_default="", nullable=False),
        sa.Column("root_path", sa.Text(), server_default="", nullable=False),
        sa.Column("storage_directory", sa.Text(), nullable=False),
        sa.Column("auth_group_name", sa.Text(), nullable=False),
        sa.Column("start_date", sa.DateTime(timezone=True), nullable=False),
        sa.Column("end_date", sa.DateTime(timezone=True), nullable=False),
        sa.Column("create_date", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("update_date", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("globus_group_id", sa.Text(), nullable=True),
        sa.Column("managed_directory_structure", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("beamline_user_account", sa.Text(), nullable=True),
        sa.Column("beamline_admin_account", sa.Text(), nullable=True),
        sa.Column("data_directory_frozen", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("analysis_directory_frozen", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column(
            "metadata", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column("state", sa.Text(), server_default="active", nullable=False),
        sa.CheckConstraint("state IN ('active', 'deleting', 'deleted')", name=op.f("ck_experiments_state")),
        sa.ForeignKeyConstraint(["station_id"], ["stations.id"], name=op.f("fk_experiments_station_id")),
        sa.ForeignKeyConstraint(["storage_id"], ["storages.id"], name=op.f("fk_experiments_storage_id")),
        sa.ForeignKeyConstraint(["type_id"], ["experiment_types.id"], name=op.f("fk_experiments_type_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_experiments")),
    )
    op.create_index(
        "uq_experiments_live_directory",
        "experiments",
        ["storage_directory"],
        unique=True,
        postgresql_where=sa.text("state <> 'deleted'"),
    )
    op.create_index(
        "uq_experiments_live_name",
        "experiments",
        ["station_id", "name"],
        unique=True,
        postgresql_where=sa.text("state <> 'deleted'"),
    )
    op.create_table(
        "sessions",
        sa.Column("id_hash", sa.LargeBinary(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_sessions_user_id")),
        sa.PrimaryKeyConstraint("id_hash", name=op.f("pk_sessions")),
    )
    op.create_index(op.f("ix_sessions_used"), "sessions", ["used"], unique=False)
    op.create_index(op.f("ix_sessions_user_id"), "sessions", ["user_id"], unique=False)
    op.create_table(
        "station_roles",
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("station_id", sa.Integer(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.CheckConstraint("role IN ('manager', 'service')", name=op.f("ck_station_roles_role")),
        sa.ForeignKeyConstraint(["station_id"], ["stations.id"], name=op.f("fk_station_roles_station_id")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_station_roles_user_id")),
        sa.PrimaryKeyConstraint("user_id", "station_id", "role", name=op.f("pk_station_roles")),
    )
    op.create_table(
        "system_roles",
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.CheckConstraint("role IN ('administrator')", name=op.f("ck_system_roles_role")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_system_roles_user_id")),
        sa.PrimaryKeyConstraint("user_id", "role", name=op.f("pk_system_roles")),
    )
    op.create_table(
        "experiment_roles",
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("experiment_id", sa.Integer(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.CheckConstraint("role IN ('User', 'PI')", name=op.f("ck_experiment_roles_role")),
        sa.ForeignKeyConstraint(["experiment_id"], ["experiments.id"], name=op.f("fk_experiment_roles_experiment_id")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_experiment_roles_user_id")),
        sa.PrimaryKeyConstraint("user_id", "experiment_id", "role", name=op.f("pk_experiment_roles")),
    )
    op.create_index(op.f("ix_experiment_roles_experiment_id"), "experiment_roles", ["experiment_id"], unique=False)
    op.create_table(
        "grants",
        sa.Column("id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("secret_hash", sa.LargeBinary(), nullable=False),
        sa.Column("experiment_id", sa.Integer(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("revoked", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("purpose IN ('daq', 'upload', 'job')", name=op.f("ck_grants_purpose")),
        sa.ForeignKeyConstraint(["experiment_id"], ["experiments.id"], name=op.f("fk_grants_experiment_id")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("fk_grants_user_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_grants")),
    )
    op.create_index(op.f("ix_grants_experiment_id"), "grants", ["experiment_id"], unique=False)
    op.create_table(
        "operations",
        sa.Column("id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("experiment_id", sa.Integer(), nullable=False),
        sa.Column("username", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("submitted", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended", sa.DateTime(timezone=True), nullable=True),
        sa.Column("attempts", sa.SmallInteger(), server_default="0", nullable=False),
        sa.CheckConstraint("status IN ('pending', 'running', 'done', 'failed')", name=op.f("ck_operations_status")),
        sa.ForeignKeyConstraint(["experiment_id"], ["experiments.id"], name=op.f("fk_operations_experiment_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_operations")),
    )
    op.create_table(
        "published_files",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("experiment_id", sa.Integer(), nullable=False),
        sa.Column("root", sa.Text(), nullable=False),
        sa.Column("path_key", sa.LargeBinary(), nullable=False),
        sa.Column("path", sa.LargeBinary(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("md5", sa.LargeBinary(), nullable=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("batch_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("published", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["experiment_id"], ["experiments.id"], name=op.f("fk_published_files_experiment_id")),
        sa.PrimaryKeyConstraint("experiment_id", "root", "path_key", name=op.f("pk_published_files")),
        sa.UniqueConstraint("experiment_id", "id", name=op.f("uq_published_files_experiment_id_id")),
    )
    op.create_table(
        "batches",
        sa.Column("id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("experiment_id", sa.Integer(), nullable=False),
        sa.Column("grant_id", sa.UUID(as_uuid=False), nullable=False),
        sa.Column("root", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("on_conflict", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("queued", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lease_owner", sa.Text(), nullable=True),
        sa.Column("fence", sa.Integer(), server_default="0", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("request", sa.Text(), nullable=True),
        sa.Column("request_hash", sa.LargeBinary(), nullable=True),
        sa.Column("verified", sa.Text(), nullable=True),
        sa.Column("result", sa.Text(), nullable=True),
        sa.CheckConstraint("on_conflict IN ('fail', 'replace', 'version')", name=op.f("ck_batches_on_conflict")),
        sa.CheckConstraint("root IN ('data', 'analysis')", name=op.f("ck_batches_root")),
        sa.CheckConstraint(
            "state IN ('open', 'queued', 'publishing', 'committed', 'abandoned')", name=op.f("ck_batches_state")
        ),
        sa.ForeignKeyConstraint(["experiment_id"], ["experiments.id"], name=op.f("fk_batches_experiment_id")),
        sa.ForeignKeyConstraint(["grant_id"], ["grants.id"], name=op.f("fk_batches_grant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batches")),
    )
    op.create_index(op.f("ix_batches_experiment_id"), "batches", ["experiment_id"], unique=False)
    op.create_index(
        "ix_batches_waiting",
        "batches",
        ["queued"],
        unique=False,
        postgresql_where=sa.text("state IN ('queued', 'publishing')"),
    )


def downgrade() -> None:
    """Take back."""
    op.drop_index(
        "ix_batches_waiting", table_name="batches", postgresql_where=sa.text("state IN ('queued', 'publishing')")
    )
    op.drop_index(op.f("ix_batches_experiment_id"), table_name="batches")
    op.drop_table("batches")
    op.drop_table("published_files")
    op.drop_table("operations")
    op.drop_index(op.f("ix_grants_experiment_id"), table_name="grants")
    op.drop_table("grants")
    op.drop_index(op.f("ix_experiment_roles_experiment_id"), table_name="experiment_roles")
    op.drop_table("experiment_roles")
    op.drop_table("system_roles")
    op.drop_table("station_roles")
    op.drop_index(op.f("ix_sessions_user_id"), table_name="sessions")
    op.drop_index(op.f("ix_sessions_used"), table_name="sessions")
    op.drop_table("sessions")
    op.drop_index("uq_experiments_live_name", table_name="experiments", postgresql_where=sa.text("state <> 'deleted'"))
    op.drop_index(
        "uq_experiments_live_directory", table_name="experiments", postgresql_where=sa.text("state <> 'deleted'")
    )
    op.drop_table("experiments")
    op.drop_table("users")
    op.drop_table("storages")
    op.drop_table("stations")
    op.drop_table("experiment_types")
