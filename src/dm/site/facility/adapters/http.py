"""Adapter ``http``: a web service of the facility that answers with JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urljoin, urlsplit

from pydantic import Field, field_validator, model_validator

from dm.common import environment
from dm.common.errors import CommunicationError, ConfigurationError
from dm.common.secretfiles import first_line
from dm.site.facility.adapters.base import KINDS, FacilityAdapter, Person
from dm.site.facility.adapters.translation import PEOPLE_KEY, TranslatingSettings, Translation, at

if TYPE_CHECKING:
    import httpx

_LARGEST = 256 << 20
_MOST_PAGES = 10_000
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_PATHS = (*KINDS, "check")


class HttpSettings(TranslatingSettings):
    """Settings of adapter ``http``."""

    url: str = Field(description="Base URL.", examples=["https://schedule.example.org/api"])
    paths: dict[str, str] = Field(
        description="Path below the URL for each of users, runs, beamlines, proposals, esafs that it has, with query. "
        "{run} and {year} are replaced.",
        examples=[{"runs": "runs", "proposals": "beamtimes?run={run}"}],
    )
    lists: dict[str, str] = Field(
        default_factory=dict, description="For each kind: where in the answer the list is, with dots; else the answer."
    )
    people: dict[str, str] = Field(
        default_factory=dict, description="For proposals and esafs: where in a record its people are, with dots."
    )
    token_file: Path | None = Field(default=None, description="File with a bearer token.")
    login_file: Path | None = Field(default=None, description="File with username|password, for basic authentication.")
    ca_file: Path | None = Field(default=None, description="Certificate authority (PEM); unset: the system's.")
    timeout_seconds: float = Field(default=60, gt=0, description="Time the service may be silent.")
    page_parameter: str | None = Field(default=None, description="Query parameter of the page, where it has pages.")
    first_page: int = Field(default=1, description="Number of the first page (or offset, see page_step).")
    page_step: int = Field(default=1, ge=1, description="Added for each page; its size where it counts records.")
    next_page: str | None = Field(
        default=None, description="Where in the answer the address of the next page is, with dots."
    )

    @field_validator("paths")
    @classmethod
    def _known(cls, value: dict[str, str]) -> dict[str, str]:
        for kind in value:
            if kind not in _PATHS:
                raise ValueError(f"{kind!r} is no kind of record; known are {', '.join(_PATHS)}")
        return value

    @field_validator("url")
    @classmethod
    def _encrypted(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
            raise ValueError("take an https address; http is for this host only")
        if parts.username or parts.password:
            raise ValueError("keep the password out of the address; name a login_file")
        return value

    @model_validator(mode="after")
    def _one_way_in(self) -> HttpSettings:
        if self.token_file is not None and self.login_file is not None:
            raise ValueError("give token_file or login_file, not both")
        if self.page_parameter is not None and self.next_page is not None:
            raise ValueError("give page_parameter or next_page, not both")
        return self


class Http(FacilityAdapter):
    """Asks with GET, follows pages, never redirections: they could lead away with the credentials."""

    settings_model = HttpSettings

    def __init__(self, name: str, settings: HttpSettings) -> None:
        super().__init__(name, settings)
        self._translation = Translation(self, settings)
        self.provides = frozenset(KINDS) & settings.paths.keys()
        self._base = settings.url.rstrip("/") + "/"
        self._http: httpx.Client | None = None

    def users(self) -> Iterator[Person]:
        """Yield the people of path ``users``."""
        return self._translation.people(self._rows("users"))

    def runs(self) -> Iterator[dict[str, Any]]:
        """Yield the runs of path ``runs``."""
        return self._translation.records("runs", self._rows("runs"))

    def beamlines(self) -> Iterator[dict[str, Any]]:
        """Yield the beamlines of path ``beamlines``; a list of mere names will do."""
        rows = ({"name": row} if isinstance(row, str) else row for row in self._rows("beamlines"))
        return self._translation.records("beamlines", rows)

    def proposals(self, run: str | None) -> Iterator[dict[str, Any]]:
        """Yield the proposals of path ``proposals``."""
        return self._with_people("proposals", run=run)

    def esafs(self, year: int | None) -> Iterator[dict[str, Any]]:
        """Yield the safety forms of path ``esafs``."""
        return self._with_people("esafs", year=year)

    def check(self) -> None:
        """Ask path ``check``, else ``runs``, else the base. :raises CommunicationError: no answer or a refusal."""
        paths = self.settings.paths
        self._get(urljoin(self._base, paths.get("check") or paths.get("runs") or ""))

    def close(self) -> None:
        """Close the connections."""
        http, self._http = self._http, None
        if http is not None:
            http.close()

    def _with_people(self, kind: str, **values: Any) -> Iterator[dict[str, Any]]:
        where = self.settings.people.get(kind)
        rows = self._rows(kind, **values)
        if where:
            rows = (
                {**row, PEOPLE_KEY[kind]: at(row, where) or []} if isinstance(row, Mapping) else row for row in rows
            )
        return self._translation.records(kind, rows)

    def _rows(self, kind: str, **values: Any) -> Iterator[Any]:
        path = self.settings.paths[kind]
        for name, value in values.items():
            if f"{{{name}}}" in path and value is None:
                raise ConfigurationError(
                    f"Path {path!r} of adapter {self.name!r} needs a {name}, and no runs are known; give their source."
                )
            path = path.replace(f"{{{name}}}", quote(str(value), safe=""))
        url = urljoin(self._base, path)
        seen: set[bytes] = set()
        for page in range(_MOST_PAGES):
            body = self._get(url, page if self.settings.page_parameter else None)
            answer = self._parsed(body, url)
            where = self.settings.lists.get(kind)
            rows = at(answer, where) if where else answer
            if not isinstance(rows, list):
                place = f"under {where!r} " if where else ""
                raise CommunicationError(f"{url} of adapter {self.name!r} has {place}no list of records.")
            # a service that ignores the parameter says the same again and again
            if (digest := hashlib.sha256(body).digest()) in seen:
                return
            seen.add(digest)
            yield from rows
            further = self._next(answer, url)
            if further is None or not rows:
                return
            url = further
        raise CommunicationError(f"{url} of adapter {self.name!r} has more than {_MOST_PAGES} pages.")

    def _next(self, answer: Any, url: str) -> str | None:
        if self.settings.page_parameter:
            return url
        found = at(answer, self.settings.next_page) if self.settings.next_page else None
        if not isinstance(found, str) or not found:
            return None
        target = urljoin(url, found)
        if urlsplit(target)[:2] != urlsplit(self._base)[:2]:
            raise CommunicationError(f"The next page of {url} is on another server, {target[:200]!r}.")
        return target

    def _get(self, url: str, page: int | None = None) -> bytes:
        import httpx

        settings = self.settings
        parameters = {}
        if settings.page_parameter is not None and page is not None:
            parameters[settings.page_parameter] = settings.first_page + page * settings.page_step
        try:
            client = self._client()
            with client.stream("GET", httpx.URL(url).copy_merge_params(parameters)) as reply:
                if reply.status_code in (401, 403):
                    self.close()  # the token or password may have been changed: read it anew next time
                if reply.status_code != 200:
                    raise CommunicationError(f"{url} of adapter {self.name!r} answered {reply.status_code}.")
                body = bytearray()
                for chunk in reply.iter_bytes():
                    body += chunk
                    if len(body) > _LARGEST:
                        raise CommunicationError(f"{url} of adapter {self.name!r} sends more than {_LARGEST} bytes.")
                return bytes(body)
        except httpx.HTTPError as error:
            raise CommunicationError(
                f"{url} of adapter {self.name!r} does not answer: {type(error).__name__} {error}."
            ) from error

    def _client(self) -> httpx.Client:
        if self._http is None:
            import httpx

            from dm.common.tls import client_context

            settings = self.settings
            headers = {"Accept": "application/json"}
            auth = None
            if settings.token_file is not None:
                headers["Authorization"] = f"Bearer {_secret(settings.token_file)}"
            if settings.login_file is not None:
                auth = httpx.BasicAuth(*environment.read_login_file(settings.login_file))
            self._http = httpx.Client(
                headers=headers, auth=auth, timeout=settings.timeout_seconds, follow_redirects=False,
                verify=client_context(settings.ca_file), trust_env=False,
            )  # fmt: skip
        return self._http

    def _parsed(self, body: bytes, url: str) -> Any:
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise CommunicationError(f"{url} of adapter {self.name!r} answers no JSON: {error}.") from None


def _secret(file: Path) -> str:
    text = first_line(file, "Token file")[0].strip()
    if not text.isascii() or not text.isprintable():
        raise ConfigurationError(f"Token file {file} holds no token; write it on one line.")
    return text
