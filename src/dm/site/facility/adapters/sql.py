"""Adapter ``sql``: queries against a database of the facility, whatever SQLAlchemy has a dialect for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, field_validator, model_validator

from dm.common.errors import CommunicationError, ConfigurationError
from dm.site.facility.adapters.base import KINDS, FacilityAdapter, Person
from dm.site.facility.adapters.translation import TranslatingSettings, Translation

_QUERIES = (*KINDS, "proposal_people", "esaf_people")


class SqlSettings(TranslatingSettings):
    """Settings of adapter ``sql``."""

    url: SecretStr | None = Field(
        default=None,
        description="Database as an SQLAlchemy URL; the driver must be installed.",
        examples=["postgresql+psycopg2://reader@db.example.org/facility"],
    )
    url_file: Path | None = Field(default=None, description="File with the URL, for one that holds a password.")
    queries: dict[str, str] = Field(
        description="One query for each of users, runs, beamlines, proposals, esafs that the database has, and "
        "proposal_people, esaf_people (with a column recordId). :run and :year are replaced where they occur."
    )
    timeout_seconds: int = Field(default=60, ge=1, description="Time a connection or a query may take.")

    @field_validator("queries")
    @classmethod
    def _known(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if name not in _QUERIES:
                raise ValueError(f"{name!r} is no query we ask; known are {', '.join(_QUERIES)}")
        return value

    @model_validator(mode="after")
    def _one_url(self) -> SqlSettings:
        if (self.url is None) == (self.url_file is None):
            raise ValueError("give either url or url_file")
        return self


class Sql(FacilityAdapter):
    """Runs each query in a transaction of its own that is never committed."""

    settings_model = SqlSettings

    def __init__(self, name: str, settings: SqlSettings) -> None:
        super().__init__(name, settings)
        self._queries = settings.queries
        self._translation = Translation(self, settings)
        self.provides = frozenset(KINDS) & settings.queries.keys()
        self._engine: Any = None

    def users(self) -> Iterator[Person]:
        """Yield the people that query ``users`` finds."""
        return self._translation.people(self._rows("users"))

    def runs(self) -> Iterator[dict[str, Any]]:
        """Yield what query ``runs`` finds."""
        return self._translation.records("runs", self._rows("runs"))

    def beamlines(self) -> Iterator[dict[str, Any]]:
        """Yield what query ``beamlines`` finds."""
        return self._translation.records("beamlines", self._rows("beamlines"))

    def proposals(self, run: str | None) -> Iterator[dict[str, Any]]:
        """Yield what query ``proposals`` finds, with the people of query ``proposal_people``."""
        return self._with_people("proposals", "proposal_people", run=run)

    def esafs(self, year: int | None) -> Iterator[dict[str, Any]]:
        """Yield what query ``esafs`` finds, with the people of query ``esaf_people``."""
        return self._with_people("esafs", "esaf_people", year=year)

    def check(self) -> None:
        """Connect. :raises CommunicationError: the database does not answer."""
        from sqlalchemy.exc import SQLAlchemyError

        try:
            with self._connected():
                return
        except SQLAlchemyError as error:
            raise self._outage(error) from error

    def close(self) -> None:
        """Close the connections."""
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    def _with_people(self, kind: str, people: str, **values: Any) -> Iterator[dict[str, Any]]:
        rows = self._rows(kind, **values)
        if people not in self._queries:
            return self._translation.records(kind, rows)
        return self._translation.joined(kind, rows, self._rows(people, **values))

    def _rows(self, name: str, **values: Any) -> Iterator[dict[str, Any]]:
        from sqlalchemy import text
        from sqlalchemy.exc import SQLAlchemyError

        statement = text(self._queries[name])
        wanted = {key: value for key, value in values.items() if key in statement.compile().params}
        try:
            with self._connected() as connection:
                found = connection.execution_options(yield_per=1000).execute(statement, wanted)
                with closing(found):
                    for row in found.mappings():
                        yield dict(row)
        except SQLAlchemyError as error:
            raise self._outage(error) from error

    def _connected(self) -> Any:
        """Return a connection that can only read, where the database can be told so."""
        from sqlalchemy import create_engine, event
        from sqlalchemy.exc import ArgumentError, NoSuchModuleError
        from sqlalchemy.pool import NullPool

        if self._engine is None:
            seconds = self.settings.timeout_seconds
            try:
                url = self._url()
                postgresql = url.startswith("postgresql")
                options: dict[str, Any] = {}
                if postgresql:
                    limits = f"-c statement_timeout={seconds * 1000} -c default_transaction_read_only=on"
                    options = {"connect_timeout": seconds, "options": limits}
                engine = create_engine(url, poolclass=NullPool, connect_args=options)
            except (ArgumentError, NoSuchModuleError, ImportError) as error:
                text = f"The URL of adapter {self.name!r} cannot be used ({type(error).__name__}); install its driver."
                raise ConfigurationError(text) from None
            if engine.dialect.name == "sqlite":

                @event.listens_for(engine, "connect")
                def only_read(connection: Any, _record: Any) -> None:
                    connection.execute("PRAGMA query_only = ON")

            self._engine = engine
        return self._engine.connect()

    def _url(self) -> str:
        if self.settings.url is not None:
            return str(self.settings.url.get_secret_value())
        try:
            return str(self.settings.url_file.read_text("utf-8")).strip()
        except (OSError, UnicodeError) as error:
            raise ConfigurationError(f"File {self.settings.url_file} cannot be read: {error}.") from error

    def _outage(self, error: Exception) -> CommunicationError:
        cause = str(getattr(error, "orig", None) or error).strip().splitlines() or [type(error).__name__]
        return CommunicationError(f"Database of adapter {self.name!r}: {cause[0][:300]}.")
