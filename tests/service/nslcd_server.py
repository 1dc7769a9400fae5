"""People and groups of a slapd as a storage host sees them: a real nslcd, in a mount namespace of its own.

::

    with namespace() as inside, running_nslcd(inside, directory, slapd):
        subprocess.run([*inside.prefix, "getent", "group", "some-experiment"])

Only inside do ``passwd`` and ``group`` come from LDAP as well; nothing of the machine changes. Needs root and the
packages ``nslcd`` and ``libnss-ldapd``.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.namespace import Namespace
from tests.service.slapd_server import Slapd, program, until


@contextmanager
def running_nslcd(inside: Namespace, directory: Path, slapd: Slapd) -> Iterator[None]:
    """Run an nslcd inside until the block ends. :param directory: made, for its files."""
    directory.mkdir(parents=True)
    switch = Path("/etc/nsswitch.conf").read_text().splitlines()
    kept = [line for line in switch if line.partition(":")[0] not in ("passwd", "group", "shadow", "initgroups")]
    added = [f"{database}: files ldap" for database in ("passwd", "group", "shadow")]
    (directory / "nsswitch.conf").write_text("\n".join([*kept, *added, ""]))
    config = directory / "nslcd.conf"
    config.write_text(
        f"uri {slapd.url}\nbase {slapd.base}\nbinddn {slapd.service_dn}\nbindpw {slapd.service_password}\n"
        f"tls_cacertfile {slapd.ca_file}\ntls_reqcert demand\nthreads 3\nbind_timelimit 5\n"
    )
    config.chmod(0o600)
    for name in ("nsswitch.conf", "nslcd.conf"):
        inside.run("mount", "--bind", directory / name, f"/etc/{name}")
    inside.run("mount", "-t", "tmpfs", "none", "/run")
    inside.run("mkdir", "/run/nslcd")
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([*inside.prefix, program("nslcd"), "--debug"], stdout=log, stderr=log)
    try:
        until(lambda: _answers(inside), what=f"nslcd ({directory / 'log'})")
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(inside: Namespace) -> bool:
    return subprocess.run([*inside.prefix, program("nslcd"), "--check"], check=False).returncode == 0
