"""A scripted HTTPS peer: answers each request with the next step of a script, well or badly."""

import http.server
import threading
from contextlib import contextmanager

DATA = bytes(range(256)) * 4000
TAG = '"v1"'


class Peer(http.server.ThreadingHTTPServer):
    """Answers each request with the next step of its script and remembers what it was asked."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, context):
        super().__init__(("127.0.0.1", 0), Handler)
        self.context = context
        self.script = []
        self.requests = []
        self.connections = 0

    def get_request(self):
        plain, address = super().get_request()
        self.connections += 1
        return self.context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False), address

    def handle_error(self, request, client_address):
        """A client that breaks off is part of these tests."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 20

    def step(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, self.path, dict(self.headers), body))
        self.server.script.pop(0)(self)

    do_GET = do_POST = do_PUT = do_DELETE = step

    def log_message(self, format, *args):
        """Keep quiet."""

    def reply(self, status, body=b"", headers=None, length=None):
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def cut(self):
        self.wfile.flush()
        self.close_connection = True


def json_step(status, text, **headers):
    return lambda handler: handler.reply(status, text.encode(), headers)


def cut_step(handler):
    handler.cut()


def login_step(handler):
    handler.reply(200, b"{}", {"Set-Cookie": "SESSIONID=abc; Path=/; Secure; HttpOnly"})


def data_step(cut_after=None, tag=TAG, data=DATA, ranges=True):
    """Send the data, or the range asked for; break off after some bytes."""

    def step(handler):
        first = 0
        asked = handler.headers.get("Range")
        if ranges and asked and handler.headers.get("If-Range", tag) == tag:
            first = int(asked.removeprefix("bytes=").rstrip("-"))
        part = data[first:]
        headers = {"Content-Type": "application/octet-stream", "ETag": tag}
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        handler.reply(206 if first else 200, part if cut_after is None else part[:cut_after], headers, len(part))
        if cut_after is not None:
            handler.cut()

    return step


@contextmanager
def serving(context):
    peer = Peer(context)
    thread = threading.Thread(target=peer.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield peer
    finally:
        peer.shutdown()
        thread.join()
        peer.server_close()
