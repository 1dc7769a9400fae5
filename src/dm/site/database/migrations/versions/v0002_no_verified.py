"""Batches no longer keep what was found in staging: the manifest and the station's own digests say it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.drop_column("batches", "verified")


def downgrade() -> None:
    """Undo."""
    op.add_column("batches", sa.Column("verified", sa.Text(), nullable=True))
