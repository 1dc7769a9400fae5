"""Alembic's entry point: migrates on the connection that :meth:`dm.site.database.store.Store.migrate` hands over."""

from alembic import context

from dm.site.database.tables import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
with context.begin_transaction():
    context.run_migrations()
