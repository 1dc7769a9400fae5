"""CherryPy around an application: request and reply objects per thread, finalisation, streaming.

Its body, cookie and query readers stay out: the cookie reader is quadratic, the others lose bytes that are not UTF-8
and reject the invalid media type that a published client sends. Its engine, tree and log are global and stay unused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import cherrypy
from cherrypy import _cprequest
from cherrypy.lib import httputil

if TYPE_CHECKING:
    from dm.common.web.application import Call
    from dm.common.web.replies import Reply

SERVER_NAME = "DM"
_log = logging.getLogger("dm.web")


class _Log:
    """Stands where CherryPy keeps its log manager; the access log is the application's."""

    def access(self) -> None:
        """Write nothing."""

    def error(self, msg: str = "", context: str = "", severity: int = logging.INFO, traceback: bool = False) -> None:
        """Write to DM's log."""
        _log.log(severity, "%s %s", context, msg, exc_info=traceback)

    __call__ = error


class _Request(_cprequest.Request):
    """A request that goes through the application instead of tools, hooks and page handlers."""

    def respond(self, path_info: str) -> None:
        """Fill the reply."""
        reply = self.app.answer(self.wsgi_environ["dm.call"])
        response = cherrypy.serving.response
        response.status = str(reply.status)
        response.headers.clear()
        for name, value in reply.headers.items():
            dict.__setitem__(response.headers, name, value)
        dict.__setitem__(response.headers, "Server", SERVER_NAME)
        dict.__setitem__(response.headers, "Date", httputil.HTTPDate(response.time))
        response.stream = not isinstance(reply.body, bytes)
        response.body = reply.body
        if reply.status != 304 and reply.length >= 0:  # without a length the server sends chunks
            dict.__setitem__(response.headers, "Content-Length", str(reply.length))
        response.finalize()


class Shell(cherrypy.Application):
    """The CherryPy half of :class:`dm.common.web.application.Application`."""

    request_class = _Request

    def __init__(self) -> None:
        super().__init__(None, script_name="")
        self.log = _Log()
        self.wsgiapp.pipeline = []

    def answer(self, call: Call) -> Reply:
        """Answer one request."""
        raise cherrypy.HTTPError(501)

    def get_serving(self, local: Any, remote: Any, scheme: str, protocol: str) -> tuple[Any, Any]:
        """Make this thread's request and reply objects, without telling CherryPy's global engine."""
        request = self.request_class(local, remote, scheme, protocol)
        request.app = self
        response = self.response_class()
        cherrypy.serving.load(request, response)
        return request, response

    def release_serving(self) -> None:
        """Forget this thread's request and reply objects."""
        cherrypy.serving.clear()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Serve WSGI. The server puts the request into the environment as ``dm.call``."""
        response: Iterable[bytes] = self.wsgiapp(environ, start_response)
        return response
