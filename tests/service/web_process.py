"""The test service as a process of its own: prints its port, serves until a signal, prints ``stopped``."""

from __future__ import annotations

import argparse
import resource
from pathlib import Path

from dm.common.web.server import Server, serve
from tests.service.web_fixtures import application


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("certificates", type=Path)
    parser.add_argument("--descriptors", type=int)
    options = parser.parse_args()
    server = Server(
        application(), "127.0.0.1", 0, options.certificates / "server.pem", options.certificates / "server.key"
    )
    if options.descriptors:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (options.descriptors, hard))
    serve(
        server,
        "echo",
        on_stop=lambda: print("stopped", flush=True),
        on_ready=lambda: print(server.port, flush=True),
    )


if __name__ == "__main__":
    main()
