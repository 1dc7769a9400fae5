"""What the stores of this service share: errors of MongoDB as errors of DM."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pymongo.errors import ConnectionFailure, DuplicateKeyError, ExecutionTimeout, PyMongoError, WriteConcernError

from dm.common.errors import ProcessingError, ServiceUnavailable


@contextmanager
def translated() -> Iterator[None]:
    """Raise the errors of a block of database operations as DM's; of a duplicate key as they are.

    :raises ServiceUnavailable: the database is down. :raises ProcessingError: it refuses the operation.
    """
    try:
        yield
    except DuplicateKeyError:
        raise
    except (ConnectionFailure, ExecutionTimeout, WriteConcernError) as error:
        raise ServiceUnavailable("The processing database does not answer; try again.") from error
    except PyMongoError as error:
        raise ProcessingError(f"The processing database refuses an operation: {error}.") from error
