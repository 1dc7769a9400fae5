"""How long the experiments' groups take to reach LDAP: into an empty directory, nothing changed, 1 % lost.

    python benchmarks/ldap_groups.py [--experiments 2000] [--users 20] [--rounds 3]

Against a real slapd on this machine, over TLS, and a real PostgreSQL. Beside it what an administrator would do instead:
``ldapadd`` of an LDIF file of the same groups, over TLS too. Each figure is the median of the rounds, in seconds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sqlalchemy import text

sys.path.insert(0, str(Path(__file__).parents[1]))

from dm.common.embedded import EmbeddedPostgres
from dm.site.database.store import Store
from dm.site.identity.ldap import ldap_store
from dm.site.identity.ldap.connection import Directory
from dm.site.identity.ldap.keeper import DirectoryKeeper
from dm.site.identity.ldap.settings import LdapSettings
from tests.service.slapd_server import Slapd, program, running_slapd

_FILL = """
INSERT INTO stations (name) SELECT 'S' || n FROM generate_series(1, 20) n;
INSERT INTO storages (name, host, root_directory) VALUES ('one', 'localhost', '/nowhere');
INSERT INTO experiment_types (name) VALUES ('TEST');
INSERT INTO users (username) SELECT 'd' || 100000 + n FROM generate_series(1, 5000) n;
INSERT INTO experiments
    (name, station_id, storage_id, type_id, storage_directory, auth_group_name, start_date, end_date)
    SELECT 'e' || n, n % 20 + 1, 1, 1, '/nowhere/' || n, 'e' || n || '-s-' || n, now(), now()
    FROM generate_series(1, :experiments) n;
INSERT INTO experiment_roles (experiment_id, user_id, role)
    SELECT e, (e * 7 + u) % 5000 + 1, 'User' FROM generate_series(1, :experiments) e, generate_series(1, :users) u;
DELETE FROM directory_marks;
"""


def prepare(url: str, experiments: int, users: int) -> Store:
    """Return a database with so many experiments and members."""
    store = Store(url)
    store.migrate()
    with store.transaction() as connection:
        for statement in _FILL.split(";\n"):
            if statement.strip():
                values = {"experiments": experiments, "users": users}
                connection.execute(text(statement), {name: values[name] for name in values if f":{name}" in statement})
    return store


def timed(keeper: DirectoryKeeper, differences: int) -> float:
    """Compare everything once; return the seconds it took."""
    began = time.perf_counter()
    report = keeper.reconcile(force=True)
    seconds = time.perf_counter() - began
    found = sum(value for name, value in report.items() if name.endswith("Count"))
    assert found == differences, report
    return seconds


def emptied(slapd: Slapd) -> None:
    """Remove all groups."""
    names = [dn for dn in slapd.search(slapd.groups, "(objectClass=posixGroup)") if dn.startswith("cn=")]
    for start in range(0, len(names), 500):
        subprocess.run(
            [program("ldapdelete"), "-x", "-H", slapd.start_tls_url, "-D", slapd.admin_dn, "-w", slapd.admin_password,
             *names[start : start + 500]],
            check=True,
        )  # fmt: skip


def ldif(store: Store, slapd: Slapd) -> str:
    """Return the same groups as a file that ldapadd reads."""
    with store.transaction() as connection:
        groups = ldap_store.groups(connection)
    return "".join(
        f"dn: cn={group.name},{slapd.groups}\nobjectClass: top\nobjectClass: posixGroup\ncn: {group.name}\n"
        f"gidNumber: {group.gid}\ndescription: dm:experiment:{group.experiment_id}\n"
        + "".join(f"memberUid: {name}\n" for name in sorted(group.members))
        + "\n"
        for group in groups
    )


def ldapadd(slapd: Slapd, path: Path) -> float:
    """Add a file of groups as DM's account; return the seconds it took."""
    account = ["-D", slapd.service_dn, "-w", slapd.service_password]
    command = [program("ldapadd"), "-x", "-H", slapd.url, *account, "-f", str(path)]
    began = time.perf_counter()
    environment = os.environ | {"LDAPTLS_CACERT": str(slapd.ca_file)}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=2000)
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    times: dict[str, list[float]] = {}
    lost = max(given.experiments // 100, 1)
    with tempfile.TemporaryDirectory(prefix="dm-bench-") as name:
        place = Path(name)
        place.chmod(0o711)
        postgres = EmbeddedPostgres(place / "postgres")
        postgres.start()
        try:
            store = prepare(postgres.create_database("bench"), given.experiments, given.users)
            with running_slapd(place / "slapd") as slapd:
                keeper = DirectoryKeeper(store, Directory(LdapSettings(**slapd.settings())))  # type: ignore[arg-type]
                keeper.prepare()
                with store.transaction() as connection:
                    connection.execute(text("DELETE FROM directory_marks"))
                file = place / "groups.ldif"
                file.write_text(ldif(store, slapd))
                for _ in range(given.rounds):
                    times.setdefault("empty directory", []).append(timed(keeper, given.experiments))
                    times.setdefault("nothing changed", []).append(timed(keeper, 0))
                    for number in range(lost):
                        slapd.delete(f"cn=e{number + 1}-s-{number + 1},{slapd.groups}")
                    times.setdefault(f"{lost} groups lost", []).append(timed(keeper, lost))
                    emptied(slapd)
                    times.setdefault("ldapadd of the same", []).append(ldapadd(slapd, file))
                    emptied(slapd)
            store.close()
        finally:
            postgres.stop()
    print(f"{given.experiments} experiments x {given.users} users, seconds, median of {given.rounds}")
    for what, seconds in times.items():
        print(f"{what:22} {statistics.median(seconds):8.2f}   ({', '.join(f'{one:.2f}' for one in seconds)})")


if __name__ == "__main__":
    main()
