"""How fast an experiment is downloaded over HTTPS, beside what a user would run instead.

    python benchmarks/download.py                         # 1,000 files of 1 MB and one of 2 GiB, medians of 3
    python benchmarks/download.py --files 200 --large 256 # smaller, for development

The suite is installed and started in a temporary directory (or ``--root``), the files are published through its storage
service, and everything goes over loopback to a directory on the same disk, each way in turn in every round:

* ``dm-download`` as a user calls it: login, listing, 4 files at a time, every file digested and made durable;
* ``rsync -a`` over ``ssh`` to localhost, which verifies nothing on disk and makes nothing durable;
* ``curl`` with the session's cookie, a process for each file (on a part of the files only) and one for all of them;
* ``globus-url-copy -r -cc 4`` from a GridFTP server with GSI and a proxy credential, the data in the clear.

The exit status is 1 when ``dm-download`` takes more than ``--limit`` times as long as ``rsync`` over ``ssh``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import uuid
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from ingest import make_files, timed
from rich.console import Console
from rich.table import Table
from suite import EXPERIMENT, Suite, workplace

sys.path.append(str(Path(__file__).resolve().parents[1]))
from tests.service import storage_fixtures
from tests.service.acquisition_hosts import running_sshd
from tests.service.gsi_server import Gsi, running_gsi

_EACH = 100  # files that one process each is tried on
Way = Callable[[Path], float]


def publish(running: Suite, source: Path, batch: int = 200) -> None:
    """Publish the files of a directory, below its name."""
    from dm.common.environment import read_login_file
    from dm.site.storage.api import StorageServiceApi

    manager = StorageServiceApi(*running.login)
    station = StorageServiceApi(*read_login_file(running.layout.login_file(running.plan.service_account)))
    grant = manager.addGrant(EXPERIMENT, "upload")
    names = sorted(os.listdir(source))
    for start in range(0, len(names), batch):
        number = str(uuid.uuid4())
        opened = station.openBatch(grant, number, source="benchmark")
        contents = {f"{source.name}/{name}": (source / name).read_bytes() for name in names[start : start + batch]}
        station.submitBatch(grant, number, storage_fixtures.staged(opened["stagingDirectory"], contents))
        outcomes = storage_fixtures.outcome(station, number, 600)
        if any(one["status"] != "stored" for one in outcomes.values()):
            raise SystemExit(f"Not published: {next(iter(outcomes.values()))}")
    manager.close()
    station.close()


def dm_download(folder: str) -> Way:
    """The command."""
    command = [str(Path(sys.executable).parent / "dm-download"), "--experiment", EXPERIMENT, "--path", folder]

    def way(target: Path) -> float:
        return _timed([*command, "--destination-directory", str(target)])

    return way


def rsync(ssh: list[str], stored: Path) -> Way:
    """``rsync`` over ``ssh``."""
    return lambda target: _timed(["rsync", "-a", "-e", " ".join(ssh), f"localhost:{stored}/", f"{target}/"])


def globus(gsi: Gsi, proxy: Path, stored: Path) -> Way:
    """``globus-url-copy`` with a proxy."""
    environment = {
        **os.environ,
        "X509_CERT_DIR": str(gsi.authority.certificates),
        "X509_USER_PROXY": str(proxy),
    }
    command = ["globus-url-copy", "-r", "-cc", "4", "-fast", f"{gsi.server.url}{stored}/"]
    return lambda target: _timed([*command, f"file://{target}/"], environment)


def curl(session: str, folder: str, names: list[str], each: bool) -> Way:
    """``curl``: one process for all files, or for each."""
    base = f"{os.environ['DM_DS_WEB_SERVICE_URL'].rstrip('/')}/dm/files/download?experimentName={EXPERIMENT}&path="
    options = ["curl", "-sSf", "--cacert", os.environ["DM_CA_FILE"], "-H", f"Cookie: SESSIONID={session}"]

    def way(target: Path) -> float:
        words = [["-o", str(target / name), base + quote(f"{folder}/{name}")] for name in names]
        if not each:
            config = target / "config"
            config.write_text("".join(f'url = "{url}"\noutput = "{path}"\n' for _, path, url in words))
            return _timed([*options, "-K", str(config)])
        some = words[:_EACH]
        return timed(lambda: [subprocess.run([*options, *word], check=True) for word in some]) * len(words) / len(some)

    return way


def _timed(command: list[str], environment: dict[str, str] | None = None) -> float:
    return timed(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment))


def compare(console: Console, root: Path, title: str, ways: dict[str, Way], size: int, rounds: int) -> float:
    """Run every way in turn; return how many times as long as ``rsync`` the command takes."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for name, way in ways.items():
            target = root / "target"
            target.mkdir()
            seconds[name].append(way(target))
            shutil.rmtree(target)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    table = Table("way", "seconds", "MB/s", "ratio to rsync", title=f"{title}, median of {rounds}")
    for name, median in medians.items():
        ratio = median / medians["rsync over ssh"]
        table.add_row(name, f"{median:.2f}", f"{size / median / 1e6:.0f}", f"{ratio:.2f}")
    console.print(table)
    return medians["dm-download"] / medians["rsync over ssh"]


def run(arguments: argparse.Namespace) -> int:
    """Measure; return the exit status."""
    from dm.site.storage.api import ExperimentDsApi

    console = Console()
    worst = 0.0
    with workplace("download", arguments.root) as root, Suite(root, watch=False) as running:
        for folder, count, size in (
            ("many", arguments.files, arguments.size * 1000),
            ("large", 1, arguments.large << 20),
        ):
            if not count * size:
                continue
            source = root / folder
            make_files(source, count, size)
            publish(running, source)
            names = sorted(os.listdir(source))
            shutil.rmtree(source)
            api = ExperimentDsApi(*running.login)
            stored = Path(api.getExperimentByName(EXPERIMENT)["dataDirectory"], folder)
            session = str(api.client.cookie)
            with (
                running_sshd(root / f"ssh-{folder}") as ssh,
                running_gsi(root / f"gsi-{folder}", {"root": "root"}) as gsi,
            ):
                ways = {
                    "dm-download": dm_download(folder),
                    "rsync over ssh": rsync(ssh, stored),
                    "curl, one for all files": curl(session, folder, names, each=False),
                    "globus-url-copy -cc 4": globus(gsi, gsi.login("root"), stored),
                }
                if count > 1:
                    ways["curl, one for each file"] = curl(session, folder, names, each=True)
                title = f"{count} files of {size / 1e6:g} MB"
                worst = max(worst, compare(console, root, title, ways, count * size, arguments.rounds))
            api.close()
    return int(worst > arguments.limit)


def main() -> int:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000, help="files of the first part; 0 leaves it out")
    parser.add_argument("--size", type=int, default=1000, metavar="KB", help="their size")
    parser.add_argument("--large", type=int, default=2048, metavar="MIB", help="size of the one file; 0 leaves it out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--root", type=Path, help="where to work; default: the place for temporary files")
    parser.add_argument("--limit", type=float, default=3.0, help="see above")
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
