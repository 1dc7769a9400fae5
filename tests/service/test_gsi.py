"""GridFTP with GSI for users: a password gets a proxy from MyProxy, and that gets the files of one's own experiments.

The GridFTP server looks users and groups up in a mount namespace of its own, whose account files the tests write; a
site with LDAP has them from there. The gridmap file is made by ``dm-make-gridmap`` of the site's users.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from dm.common.environment import write_login_file
from tests.faults.namespace import Namespace, namespace
from tests.live import PROGRAMS
from tests.service import storage_fixtures as fx
from tests.service.gridftp_server import ORGANIZATION, MyProxyServer, running
from tests.service.gsi_server import Gsi, password_of, running_gsi

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a server that works for others needs root")

UIDS = {fx.ALICE: 71111, fx.BOB: 72222, fx.STRANGER: 73333}
SAMPLES = Path(__file__).parents[2] / "etc" / "gridftp"
CONTENT = os.urandom(3 << 20)
TEMPLATE = f"/O={ORGANIZATION}/CN={{username}}"


@dataclass
class Accounts:
    """What a name service says inside a mount namespace: the machine's own accounts and the users, and their groups."""

    directory: Path
    groups: dict[str, tuple[int, set[str]]] = field(default_factory=dict)

    def mount(self, inside: Namespace) -> None:
        people = "".join(f"{name}:x:{uid}:{uid}::/nonexistent:/bin/false\n" for name, uid in UIDS.items())
        (self.directory / "passwd").write_text(Path("/etc/passwd").read_text() + people)
        self.tell()
        for name in ("passwd", "group"):
            inside.run("mount", "--bind", self.directory / name, f"/etc/{name}")

    def tell(self) -> None:
        """Write the groups as they are now, into the file that is mounted."""
        own = {name: (uid, set[str]()) for name, uid in UIDS.items()} | self.groups
        lines = "".join(f"{name}:x:{gid}:{','.join(sorted(members))}\n" for name, (gid, members) in own.items())
        (self.directory / "group").write_text(Path("/etc/group").read_text() + lines)


@dataclass
class Place:
    """Everything a test talks to."""

    directory: Path
    site: fx.Site
    gsi: Gsi
    accounts: Accounts
    inside: Namespace

    def experiment(self, gid: int, *members: str) -> Path:
        """Add an experiment with members, a group and a file; return the file."""
        name = f"exp-{uuid.uuid4().hex[:8]}"
        experiments = self.site.experiments(fx.MANAGER)
        experiments.addExperiment(name, fx.STATION, usernameList=list(members))
        with self.site.service.store.transaction() as connection:
            connection.execute(
                sa.text("UPDATE experiments SET gid = :gid WHERE name = :name"), {"gid": gid, "name": name}
            )
        experiments.restorePermissions(name)
        grant = self.site.station(fx.MANAGER).addGrant(name, "upload", fx.STATION)
        fx.publish(self.site.station(), grant, {"run 1/a.h5": CONTENT})
        self.accounts.groups[name] = (gid, set(members))
        self.accounts.tell()
        return Path(experiments.getExperimentByName(name, fx.STATION)["dataDirectory"], "run 1/a.h5")

    def make_gridmap(self, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Run the command as cron does."""
        done = subprocess.run(
            [PROGRAMS / "dm-make-gridmap", "--file", self.gsi.gridmap, *words],
            env=self.environment, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == status, done
        return done

    @property
    def environment(self) -> dict[str, str]:
        """Variables of an account that may list users."""
        login = self.directory / "login"
        write_login_file(login, fx.ADMIN, fx.password_of(fx.ADMIN))
        return {
            "PATH": os.environ["PATH"],
            "DM_LOGIN_FILE": str(login),
            "DM_HOME": str(self.directory / "home"),
            "DM_DS_WEB_SERVICE_URL": self.site.url,
            "DM_CA_FILE": str(self.site.ca_file),
        }


def sample(directory: Path) -> Path:
    """Return the sample configuration of the server, for the storage and the logs of the tests."""
    text = (SAMPLES / "gridftp.conf").read_text()
    assert "\nport 2811\n" in text and " R/gdata/dm\n" in text
    text = text.replace("\nport 2811\n", "\n").replace(" R/gdata/dm\n", f" R{directory}/site/storage\n")
    text = text.replace("/var/log", str(directory))
    (directory / "gridftp.conf").write_text(text)
    return directory / "gridftp.conf"


@pytest.fixture(scope="module")
def place(run_directory: Path, new_postgres_database: Callable[[], str], certificates: Path) -> Iterator[Place]:
    directory = run_directory / f"gsi-{uuid.uuid4().hex[:8]}"
    directory.mkdir(mode=0o755)
    accounts = Accounts(directory)
    with (
        fx.running_site(new_postgres_database(), certificates, directory / "site") as site,
        namespace() as inside,
    ):
        accounts.mount(inside)
        options = ["-c", str(sample(directory))]
        with running_gsi(
            directory / "gsi", {name: name for name in UIDS}, options=options, prefix=inside.prefix
        ) as gsi:
            yield Place(directory, site, gsi, accounts, inside)
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(autouse=True)
def mapped(place: Place) -> None:
    place.gsi.map({name: name for name in UIDS})


def had(place: Place, proxy: Path, path: Path) -> str | bytes:
    """Fetch a file; return its bytes, or why not."""
    target = place.directory / "target"
    target.unlink(missing_ok=True)
    done = place.gsi.copy(proxy, path, target)
    return target.read_bytes() if done.returncode == 0 else done.stderr


def lines(place: Place) -> Mapping[str, str]:
    """Return the gridmap's subjects and accounts."""
    found = [line for line in place.gsi.gridmap.read_text().splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0].strip('"'): line.rpartition(" ")[2] for line in found}


def test_a_member_reads_the_experiment_and_nobody_else(place: Place) -> None:
    ours, theirs = place.experiment(70001, fx.ALICE), place.experiment(70002, fx.BOB)
    alice, bob = place.gsi.login(fx.ALICE), place.gsi.login(fx.BOB)
    assert had(place, alice, ours) == CONTENT and had(place, bob, theirs) == CONTENT
    for proxy, path in ((alice, theirs), (bob, ours)):
        said = had(place, proxy, path)
        assert isinstance(said, str) and "Permission denied" in said
        assert place.gsi.list(proxy, path.parent).returncode != 0
    assert place.gsi.list(alice, ours.parent).stdout.split()[-1] == "a.h5"


def test_who_is_taken_off_an_experiment_reads_no_more(place: Place) -> None:
    path = place.experiment(70003, fx.ALICE, fx.BOB)
    proxy = place.gsi.login(fx.ALICE)
    assert had(place, proxy, path) == CONTENT
    place.accounts.groups[path.parents[2].name][1].remove(fx.ALICE)
    place.accounts.tell()
    said = had(place, proxy, path)
    assert isinstance(said, str) and "Permission denied" in said, "the proxy still lives, the group does not"
    assert had(place, place.gsi.login(fx.BOB), path) == CONTENT


@pytest.mark.long
def test_nobody_writes(place: Place) -> None:
    path = place.experiment(70004, fx.ALICE)
    source = place.directory / "source"
    source.write_bytes(b"forged")
    for target in (path, path.with_name("new")):
        assert place.gsi.store(place.gsi.login(fx.ALICE), source, target).returncode != 0
    assert path.read_bytes() == CONTENT and [entry.name for entry in path.parent.iterdir()] == ["a.h5"]


@pytest.mark.long
def test_nothing_but_the_storage_is_shown(place: Place) -> None:
    proxy = place.gsi.login(fx.ALICE)
    readable = place.directory / "for-all"
    readable.write_text("text")
    readable.chmod(0o644)
    assert isinstance(had(place, proxy, readable), str) and isinstance(had(place, proxy, Path("/etc/passwd")), str)


@pytest.mark.long
def test_the_password_of_dm_gets_a_certificate(place: Place) -> None:
    """MyProxy as an authority that asks PAM, and that DM, as in the samples."""
    path = place.experiment(70006, fx.ALICE)
    place.make_gridmap("--dn-template", TEMPLATE)
    directory, issuer = place.directory / "issuing", place.gsi.authority
    directory.mkdir()
    (directory / "serial").write_text("1000\n")
    (directory / "issued").mkdir()
    (directory / "pam-login").write_text(f"DM_DS_WEB_SERVICE_URL={place.site.url}\nDM_CA_FILE={place.site.ca_file}\n")
    program = directory / "dm-pam-login"
    program.write_text(
        (SAMPLES / "dm-pam-login").read_text().replace("/etc/dm/pam-login", str(directory / "pam-login"))
    )
    program.chmod(0o755)
    pam = (SAMPLES / "pam.d-myproxy").read_text().replace("/usr/local/sbin/dm-pam-login", str(program))
    shutil.copytree("/etc/pam.d", directory / "pam.d")
    (directory / "pam.d" / "myproxy").write_text(pam)
    place.inside.run("mount", "--bind", directory / "pam.d", "/etc/pam.d")
    config = (SAMPLES / "myproxy-server.config").read_text()
    for there, here in (
        ("/etc/grid-security/myproxy/ca.pem", issuer.directory / "ca.pem"),
        ("/etc/grid-security/myproxy/ca.key", issuer.key()),
        ("/var/lib/myproxy", directory),
        ("/etc/grid-security/grid-mapfile", place.gsi.gridmap),
        ("/etc/grid-security/certificates", issuer.certificates),
    ):
        assert there in config
        config = config.replace(there, str(here))
    with running(MyProxyServer(directory / "myproxy", issuer, config, place.inside.prefix)) as myproxy:
        gsi = replace(place.gsi, myproxy=myproxy)
        proxy = directory / "proxy"
        done = gsi.logon(fx.ALICE, fx.password_of(fx.ALICE), proxy)
        assert done.returncode == 0, done
        assert had(place, proxy, path) == CONTENT
        proxy.unlink()
        for user, password in ((fx.ALICE, fx.password_of(fx.BOB)), (fx.ALICE, ""), ("d999999", "some thing")):
            assert gsi.logon(user, password, proxy).returncode != 0 and not proxy.exists()
        users = place.site.users(fx.ADMIN)
        users.updateUser(fx.ALICE, active=False)
        try:
            assert gsi.logon(fx.ALICE, fx.password_of(fx.ALICE), proxy).returncode != 0 and not proxy.exists()
        finally:
            users.updateUser(fx.ALICE, active=True)


@pytest.mark.long
def test_a_wrong_pass_phrase_gets_no_proxy(place: Place) -> None:
    proxy = place.directory / "none"
    for user, password in ((fx.ALICE, "wrong pass phrase"), (fx.ALICE, password_of(fx.BOB)), ("d999999", "what ever")):
        assert place.gsi.logon(user, password, proxy).returncode != 0
        assert not proxy.exists()


def test_the_gridmap_has_the_active_users(place: Place) -> None:
    path = place.experiment(70005, fx.ALICE, fx.BOB)
    proxy = place.gsi.login(fx.ALICE)
    done = place.make_gridmap("--dn-template", TEMPLATE)
    assert done.stdout.startswith(f"file={place.gsi.gridmap} countLines=")
    people = {TEMPLATE.format(username=name): name for name in UIDS}
    assert lines(place).items() >= people.items()
    assert had(place, proxy, path) == CONTENT
    users = place.site.users(fx.ADMIN)
    users.updateUser(fx.ALICE, active=False)
    try:
        before = place.gsi.gridmap.stat().st_ino
        assert "changed=True" in place.make_gridmap("--dn-template", TEMPLATE).stdout
        assert place.gsi.gridmap.stat().st_ino != before, "replaced, never rewritten"
        assert set(people) - set(lines(place)) == {TEMPLATE.format(username=fx.ALICE)}
        said = had(place, proxy, path)
        assert isinstance(said, str) and "Gridmap lookup failure" in said
        assert had(place, place.gsi.login(fx.BOB), path) == CONTENT
    finally:
        users.updateUser(fx.ALICE, active=True)
    place.make_gridmap("--dn-template", TEMPLATE)
    assert had(place, proxy, path) == CONTENT
    done = place.make_gridmap("--dn-template", TEMPLATE)
    assert "changed=False" in done.stdout and done.stderr == ""


@pytest.mark.long
def test_the_gridmap_follows_while_the_command_runs(place: Place) -> None:
    alice = TEMPLATE.format(username=fx.ALICE)
    words = [PROGRAMS / "dm-make-gridmap", "--file", place.gsi.gridmap, "--dn-template", TEMPLATE, "--every", "1"]
    users = place.site.users(fx.ADMIN)
    with subprocess.Popen(words, env=place.environment, stdout=subprocess.PIPE, text=True) as command:
        try:
            assert command.stdout is not None and "changed=True" in command.stdout.readline()
            assert alice in lines(place)
            users.updateUser(fx.ALICE, active=False)
            assert "changed=True" in command.stdout.readline()
            assert alice not in lines(place)
        finally:
            command.terminate()
            users.updateUser(fx.ALICE, active=True)


@pytest.mark.long
def test_subjects_that_follow_no_rule(place: Place) -> None:
    known = place.directory / "subjects.csv"
    known.write_text(f"# from the authority\n{fx.ALICE},/DC=org/CN=Some Body 1\n{fx.ALICE},/DC=org/CN=Some Body 2\n")
    place.make_gridmap("--dn-file", str(known), "--account-template", "u{username}", "--force")
    assert lines(place) == dict.fromkeys(["/DC=org/CN=Some Body 1", "/DC=org/CN=Some Body 2"], f"u{fx.ALICE}")


def test_a_site_that_is_away_changes_nothing(place: Place) -> None:
    before = place.gsi.gridmap.read_text()
    place.site.stop()
    try:
        assert "No answer from" in place.make_gridmap("--dn-template", TEMPLATE, status=3).stderr
    finally:
        place.site.restart()
    assert place.gsi.gridmap.read_text() == before
