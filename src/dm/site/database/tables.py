"""The tables of the site's services, as SQLAlchemy Core sees them.

Migrations (``migrations/versions``) make them; a test compares the two. Paths are kept as bytes and found by the
SHA-256 of the path: any bytes are a legal file name, text columns and index rows are not that patient.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Float,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID

METADATA = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Moment = DateTime(timezone=True)
NOW = text("now()")


def _id() -> Column[int]:
    # ALWAYS: nobody can insert a number of their own, and an identity never goes back, so no number is used twice.
    return Column("id", Integer, Identity(always=True), primary_key=True)


users = Table(
    "users",
    METADATA,
    _id(),
    Column("username", Text, nullable=False, unique=True),
    Column("badge", Integer),
    Column("first_name", Text, nullable=False, server_default=""),
    Column("middle_name", Text, nullable=False, server_default=""),
    Column("last_name", Text, nullable=False, server_default=""),
    Column("email", Text, nullable=False, server_default=""),
    Column("password_hash", Text),
    Column("is_local_user", Boolean, nullable=False, server_default=text("true")),
    # A user who is not active cannot log in and has no rights; what they own and their roles stay.
    Column("active", Boolean, nullable=False, server_default=text("true")),
    # Which user directory the person comes from, and that directory's own number of the person.
    Column("source", Text),
    Column("source_key", Text),
    Column("uid_number", Integer, unique=True),
    Column("last_update", Moment, nullable=False, server_default=NOW),
    Column("institution", Text, nullable=False, server_default=""),
    # Since when, and for how many runs, the directory has not known the person any more.
    Column("absent_since", Moment),
    Column("absent_runs", Integer, nullable=False, server_default="0"),
    # "directory" where a synchronisation did it, and may undo it; else an administrator did.
    Column("deactivated_by", Text),
    # Digest of what LDAP was told of the person last, password hash included.
    Column("directory_digest", LargeBinary),
    Index("uq_users_source_key", "source", "source_key", unique=True, postgresql_where=text("source IS NOT NULL")),
)

stations = Table(
    "stations",
    METADATA,
    _id(),
    Column("name", Text, nullable=False, unique=True),
    Column("description", Text, nullable=False, server_default=""),
    # How the directories of new experiments are named; unset: {station}/{root_path}/{name}.
    Column("path_template", Text),
    Column("default_storage_id", Integer, ForeignKey("storages.id")),
)

storages = Table(
    "storages",
    METADATA,
    _id(),
    Column("name", Text, nullable=False, unique=True),
    Column("description", Text, nullable=False, server_default=""),
    Column("host", Text, nullable=False),
    Column("root_directory", Text, nullable=False),
    # No new experiments; those that are there stay.
    Column("retired", Boolean, nullable=False, server_default=text("false")),
)

experiment_types = Table(
    "experiment_types",
    METADATA,
    _id(),
    Column("name", Text, nullable=False, unique=True),
    Column("description", Text, nullable=False, server_default=""),
)

experiments = Table(
    "experiments",
    METADATA,
    _id(),
    Column("name", Text, nullable=False),
    Column("station_id", Integer, ForeignKey("stations.id"), nullable=False),
    Column("storage_id", Integer, ForeignKey("storages.id"), nullable=False),
    Column("type_id", Integer, ForeignKey("experiment_types.id"), nullable=False),
    Column("description", Text, nullable=False, server_default=""),
    Column("root_path", Text, nullable=False, server_default=""),
    Column("storage_directory", Text, nullable=False),
    Column("auth_group_name", Text, nullable=False),
    # The number of its Unix group where the site gives the groups (LDAP); never used again.
    Column("gid", Integer, unique=True),
    Column("start_date", Moment, nullable=False),
    Column("end_date", Moment, nullable=False),
    Column("create_date", Moment, nullable=False, server_default=NOW),
    Column("update_date", Moment, nullable=False, server_default=NOW),
    Column("globus_group_id", Text),
    Column("managed_directory_structure", Boolean, nullable=False, server_default=text("true")),
    Column("beamline_user_account", Text),
    Column("beamline_admin_account", Text),
    Column("data_directory_frozen", Boolean, nullable=False, server_default=text("false")),
    Column("analysis_directory_frozen", Boolean, nullable=False, server_default=text("false")),
    Column("metadata", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("state", Text, nullable=False, server_default="active"),
    # One that is deleted can be restored until it is purged.
    Column("deleted", Moment),
    Column("purge_after", Moment),
    Column("purged", Moment),
    Column("pinned", Moment),
    Column("pinned_until", Moment),
    Column("pinned_by", Text),
    CheckConstraint("state IN ('active', 'moving', 'deleting', 'deleted', 'restoring')", name="state"),
    Index("ix_experiments_recoverable", "purge_after", postgresql_where=text("state = 'deleted' AND purged IS NULL")),
    # A deleted experiment's name and directory may be used again; its number may not.
    Index("uq_experiments_live_name", "station_id", "name", unique=True, postgresql_where=text("state <> 'deleted'")),
    Index(
        "uq_experiments_live_directory",
        "storage_directory",
        unique=True,
        postgresql_where=text("state <> 'deleted'"),
    ),
)

system_roles = Table(
    "system_roles",
    METADATA,
    Column("user_id", Integer, ForeignKey("users.id"), primary_key=True),
    Column("role", Text, primary_key=True),
    CheckConstraint("role IN ('administrator')", name="role"),
)

station_roles = Table(
    "station_roles",
    METADATA,
    Column("user_id", Integer, ForeignKey("users.id"), primary_key=True),
    Column("station_id", Integer, ForeignKey("stations.id"), primary_key=True),
    Column("role", Text, primary_key=True),
    CheckConstraint("role IN ('manager', 'service')", name="role"),
)

experiment_roles = Table(
    "experiment_roles",
    METADATA,
    Column("user_id", Integer, ForeignKey("users.id"), primary_key=True),
    Column("experiment_id", Integer, ForeignKey("experiments.id"), primary_key=True),
    Column("role", Text, primary_key=True),
    CheckConstraint("role IN ('User', 'PI')", name="role"),
    Index(None, "experiment_id"),
)

sessions = Table(
    "sessions",
    METADATA,
    Column("id_hash", LargeBinary, primary_key=True),
    Column("user_id", Integer, ForeignKey("users.id"), nullable=False),
    Column("created", Moment, nullable=False),
    Column("used", Moment, nullable=False),
    # The token it was opened with, which limits it and whose end ends it.
    Column("token_id", UUID(as_uuid=False), ForeignKey("api_tokens.id", ondelete="CASCADE")),
    Index(None, "user_id"),
    Index(None, "used"),
    Index(None, "token_id"),
)

api_tokens = Table(
    "api_tokens",
    METADATA,
    Column("id", UUID(as_uuid=False), primary_key=True),
    Column("secret_hash", LargeBinary, nullable=False),
    Column("user_id", Integer, ForeignKey("users.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("scopes", ARRAY(Text), nullable=False),
    Column("station_id", Integer, ForeignKey("stations.id")),
    Column("created", Moment, nullable=False, server_default=NOW),
    Column("created_by", Text, nullable=False),
    Column("expires", Moment, nullable=False),
    Column("used", Moment),
    Column("revoked", Moment),
    Index(None, "user_id"),
)

audit_events = Table(
    "audit_events",
    METADATA,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("time", Moment, nullable=False, server_default=text("clock_timestamp()")),
    Column("service", Text, nullable=False),
    Column("event", Text, nullable=False),
    Column("actor", Text, nullable=False, server_default=""),
    Column("subject", Text, nullable=False, server_default=""),
    Column("remote", Text, nullable=False, server_default=""),
    Column("request_id", Text, nullable=False, server_default=""),
    Column("details", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Index(None, "time"),
    Index(None, "subject"),
)

# Runs that brought the users of a directory up to date.
user_syncs = Table(
    "user_syncs",
    METADATA,
    Column("id", UUID(as_uuid=False), primary_key=True),
    Column("source", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("dry_run", Boolean, nullable=False),
    Column("force", Boolean, nullable=False),
    Column("started", Moment, nullable=False, server_default=text("clock_timestamp()")),
    Column("ended", Moment),
    Column("message", Text, nullable=False, server_default=""),
    Column("summary", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    CheckConstraint("status IN ('running', 'done', 'refused', 'failed')", name="status"),
    Index(None, "started"),
)

# What the facility's own systems said last, so that their outage is survived.
facility_records = Table(
    "facility_records",
    METADATA,
    Column("adapter", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("record", JSONB, nullable=False),
    Column("fetched", Moment, nullable=False, server_default=NOW),
)

# What the LDAP directory has yet to learn; triggers write a mark in the transaction of every change.
directory_marks = Table(
    "directory_marks",
    METADATA,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("kind", Text, nullable=False),
    Column("subject", Integer, nullable=False),
    Column("made", Moment, nullable=False, server_default=text("clock_timestamp()")),
    CheckConstraint("kind IN ('experiment', 'station', 'user')", name="kind"),
)

# The numbers that experiments' groups get as the experiments are made; one row, where the site has a directory.
directory_numbers = Table(
    "directory_numbers",
    METADATA,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("enabled", Boolean, nullable=False),
    Column("gid_first", Integer, nullable=False),
    Column("gid_last", Integer, nullable=False),
    CheckConstraint("id = 1", name="only"),
)

# The last comparisons of the whole directory with the database.
directory_runs = Table(
    "directory_runs",
    METADATA,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("finished", Moment, nullable=False, server_default=text("clock_timestamp()")),
    Column("report", JSONB, nullable=False),
)

grants = Table(
    "grants",
    METADATA,
    Column("id", UUID(as_uuid=False), primary_key=True),
    Column("secret_hash", LargeBinary, nullable=False),
    Column("experiment_id", Integer, ForeignKey("experiments.id"), nullable=False),
    Column("user_id", Integer, ForeignKey("users.id"), nullable=False),
    Column("purpose", Text, nullable=False),
    Column("created", Moment, nullable=False, server_default=NOW),
    Column("revoked", Moment),
    CheckConstraint("purpose IN ('daq', 'upload', 'job')", name="purpose"),
    Index(None, "experiment_id"),
)

batches = Table(
    "batches",
    METADATA,
    Column("id", UUID(as_uuid=False), primary_key=True),
    Column("experiment_id", Integer, ForeignKey("experiments.id"), nullable=False),
    Column("grant_id", UUID(as_uuid=False), ForeignKey("grants.id"), nullable=False),
    Column("root", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("on_conflict", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("created", Moment, nullable=False, server_default=NOW),
    Column("queued", Moment),
    Column("ended", Moment),
    Column("lease_until", Moment),
    Column("lease_owner", Text),
    Column("fence", Integer, nullable=False, server_default="0"),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("last_error", Text),
    # JSON text in ASCII, not jsonb: jsonb refuses the lone surrogates that stand for undecodable bytes of names.
    Column("request", Text),
    Column("request_hash", LargeBinary),
    Column("result", Text),
    CheckConstraint("root IN ('data', 'analysis')", name="root"),
    CheckConstraint("on_conflict IN ('fail', 'replace', 'version')", name="on_conflict"),
    CheckConstraint("state IN ('open', 'queued', 'publishing', 'committed', 'abandoned')", name="state"),
    Index("ix_batches_waiting", "queued", postgresql_where=text("state IN ('queued', 'publishing')")),
    Index(None, "experiment_id"),
)

published_files = Table(
    "published_files",
    METADATA,
    Column("id", BigInteger, Identity(always=True), nullable=False),
    Column("experiment_id", Integer, ForeignKey("experiments.id"), primary_key=True),
    Column("root", Text, primary_key=True),
    Column("path_key", LargeBinary, primary_key=True),
    Column("path", LargeBinary, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("mtime_ns", BigInteger, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("md5", LargeBinary),
    Column("version", Integer, nullable=False),
    Column("source", Text, nullable=False),
    Column("batch_id", UUID(as_uuid=False), nullable=False),
    Column("published", Moment, nullable=False, server_default=NOW),
    # How the file is compressed, and size and digest of what is in it.
    Column("compression", Text),
    Column("content_digest", LargeBinary),
    Column("content_size", BigInteger),
    # When an inspection found the file missing, changed or unreadable; published again, it is whole again.
    Column("damaged", Moment),
    UniqueConstraint("experiment_id", "id"),
)

# One row per experiment whose files were ever looked through: the last round, or the one under way.
inspections = Table(
    "inspections",
    METADATA,
    Column("experiment_id", Integer, ForeignKey("experiments.id"), primary_key=True),
    Column("rounds", Integer, nullable=False, server_default="0"),
    Column("asked", Moment),
    Column("asked_by", Text),
    Column("asked_options", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("started", Moment),
    Column("options", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("position", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("ended", Moment),
    Column("read_ended", Moment),
    Column("counts", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("last_error", Text),
    Column("lease_owner", Text),
    Column("lease_until", Moment),
)

# What is wrong with files, until a later round no longer finds it.
inspection_findings = Table(
    "inspection_findings",
    METADATA,
    Column("id", BigInteger, Identity(always=True), nullable=False),
    Column("experiment_id", Integer, ForeignKey("experiments.id"), primary_key=True),
    Column("path_key", LargeBinary, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("path", LargeBinary, nullable=False),
    Column("detail", Text, nullable=False, server_default=""),
    Column("found", Moment, nullable=False, server_default=text("clock_timestamp()")),
    Column("round", Integer, nullable=False),
    Column("repaired", Moment),
    CheckConstraint(
        "kind IN ('missing', 'extra', 'changed', 'digest', 'permissions', 'link', 'special', 'unreadable')",
        name="kind",
    ),
    UniqueConstraint("experiment_id", "id"),
)

operations = Table(
    "operations",
    METADATA,
    Column("id", UUID(as_uuid=False), primary_key=True),
    Column("name", Text, nullable=False),
    Column("experiment_id", Integer, ForeignKey("experiments.id"), nullable=False),
    Column("username", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("error_message", Text),
    Column("submitted", Moment, nullable=False, server_default=NOW),
    Column("started", Moment),
    Column("ended", Moment),
    Column("attempts", SmallInteger, nullable=False, server_default="0"),
    # What it needs to be gone on with after a crash, and how far it is.
    Column("details", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("not_before", Moment),
    Index("ix_operations_unfinished", "submitted", postgresql_where=text("status IN ('pending', 'running')")),
    Index(None, "experiment_id"),
    CheckConstraint("status IN ('pending', 'running', 'done', 'failed')", name="status"),
)

# A Globus group per experiment that has one; what Globus was told last.
globus_groups = Table(
    "globus_groups",
    METADATA,
    Column("experiment_id", Integer, ForeignKey("experiments.id"), primary_key=True, autoincrement=False),
    Column("group_id", Text, nullable=False),
    Column("group_name", Text, nullable=False),
    # The access rule of the guest collection, and the path it is for.
    Column("rule_id", Text),
    Column("rule_path", Text),
    # Identities beyond the experiment's members -> their role in the group.
    Column("extras", JSONB, nullable=False, server_default=text("'{}'::jsonb")),
    Column("members_hash", Text, nullable=False, server_default=""),
    Column("members_count", Integer, nullable=False, server_default="0"),
    # Members whose identities Globus does not know.
    Column("unknown", JSONB, nullable=False, server_default=text("'[]'::jsonb")),
    Column("created", Moment, nullable=False, server_default=text("clock_timestamp()")),
    Column("compared", Moment),
    Column("failures", Integer, nullable=False, server_default="0"),
    Column("not_before", Moment),
    Column("last_error", Text, nullable=False, server_default=""),
)

# Tries of logins that are left before further ones are refused: an account's from each address, and from anywhere.
login_tallies = Table(
    "login_tallies",
    METADATA,
    Column("key", LargeBinary, primary_key=True),
    Column("username", Text, nullable=False),
    # Empty: the account's from anywhere.
    Column("remote", Text, nullable=False, server_default=""),
    Column("left_over", Float, nullable=False),
    # Tries that are being checked now; whoever died over one has failed.
    Column("pending", Integer, nullable=False, server_default="0"),
    Column("at", Moment, nullable=False, server_default=text("clock_timestamp()")),
    Index(None, "at"),
)
