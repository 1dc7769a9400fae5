"""Owners, groups, modes and access lists as the kernel sees them: real accounts try what they may and may not."""

from __future__ import annotations

import functools
import itertools
import os
import pwd
import random
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from dm.common.errors import AuthorizationError, ObjectNotFound
from dm.common.records import DmObject
from dm.site.storage import acl, publishing
from dm.site.storage.api import Experiment, InspectionDsApi
from dm.site.storage.directories import DIRECTORY_MODE, ExperimentDirectory, Look, Owners, opened_directory
from dm.site.storage.explain import Component, Identity
from tests.faults.namespace import namespace
from tests.service import storage_fixtures as fx

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="files of others need root; see test_storage_unprivileged.py")

OWNER, MOVER = "daemon", "games"  # accounts that every system has
MEMBER, OTHER = 75_001, 75_002
GROUP, LATER, MOVERS = 76_001, 76_002, 76_003
_numbers = itertools.count(GROUP + 100)
CONTENTS = {"a.h5": b"data of a", "deep/er/b.h5": b"data of b"}

READER = (
    "import os, sys\n"
    "for path in sys.stdin.read().splitlines():\n"
    "    try:\n"
    "        os.close(os.open(path, os.O_RDONLY)); print(1)\n"
    "    except OSError:\n"
    "        print(0)\n"
)


def as_user(uid: int, gids: Sequence[int], *words: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command as somebody."""
    groups = ",".join(map(str, gids[1:]))
    command = ["setpriv", f"--reuid={uid}", f"--regid={gids[0]}", f"--groups={groups}" if groups else "--clear-groups"]
    return subprocess.run(
        [*command, *map(str, words)], input=stdin, text=True, capture_output=True, check=False, timeout=60
    )


def readable(uid: int, gids: Sequence[int], paths: Sequence[Path]) -> list[bool]:
    """Say of each path whether somebody can open it."""
    done = as_user(uid, gids, "/usr/bin/env", "python3", "-S", "-c", READER, stdin="\n".join(map(str, paths)))
    assert done.returncode == 0, done.stderr
    return [line == "1" for line in done.stdout.split()]


@pytest.fixture(scope="module")
def site(new_postgres_database: Any, certificates: Path, run_directory: Path) -> Iterator[fx.Site]:
    directory = run_directory / f"permissions-{uuid.uuid4().hex[:8]}"
    fast = {"files_per_second": 1e6, "megabytes_per_second": 1e6}
    with fx.running_site(
        new_postgres_database(), certificates, directory, file_owner=OWNER, staging_owner=MOVER, inspection=fast
    ) as running:
        directory.chmod(0o711)
        yield running


@pytest.fixture
def experiment(site: fx.Site) -> Experiment:
    """A new experiment, whose group has a number of its own from the start."""
    name, gid = f"exp-{uuid.uuid4().hex[:8]}", next(_numbers)
    added = site.experiments(fx.MANAGER).addExperiment(name, fx.STATION, usernameList=[fx.ALICE])
    give_group(site, added, gid)
    site.experiments(fx.MANAGER).restorePermissions(name, "", fx.STATION)
    return Experiment(added.data | {"gid": gid})


def give_group(site: fx.Site, experiment: Experiment, gid: int) -> None:
    """Record another group number, as LDAP does where it is switched on."""
    with site.service.store.transaction() as connection:
        connection.execute(
            sa.text("UPDATE experiments SET gid = :gid WHERE id = :id"), {"gid": gid, "id": experiment["id"]}
        )


def published(site: fx.Site, experiment: Experiment, contents: dict[str, bytes] = CONTENTS) -> list[Path]:
    """Publish files; return their paths."""
    grant = site.station(fx.MANAGER).addGrant(experiment["name"], "daq", fx.STATION)
    outcome = fx.publish(site.station(), grant, contents, str(uuid.uuid4()))
    assert {one["status"] for one in outcome.values()} == {"stored"}, outcome
    return [Path(experiment["dataDirectory"], path) for path in contents]


def test_members_of_the_group_read_and_nobody_else(site: fx.Site, experiment: Experiment) -> None:
    files = published(site, experiment)
    top = Path(experiment["storageDirectory"])
    places = [*files, Path(experiment["dataDirectory"]), top]
    assert readable(MEMBER, [100, experiment["gid"]], places) == [True] * len(places)
    assert readable(OTHER, [100], places) == [False] * len(places)
    assert (
        readable(OTHER, [100], [top / ".staging"])
        == readable(MEMBER, [experiment["gid"]], [top / ".staging"])
        == [False]
    )
    uid = pwd.getpwnam(OWNER).pw_uid
    found = [top, *[path for path in top.rglob("*") if ".staging" not in path.parts]]
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in found} == {(uid, experiment["gid"])}
    assert {path.lstat().st_mode & 0o7777 for path in found} == {0o2750, 0o640}
    # A member writes nowhere, not even into what is their group's.
    for place in (top, files[0].parent, top / "analysis", top / "system"):
        assert as_user(MEMBER, [experiment["gid"]], "touch", place / "new").returncode != 0


@pytest.mark.parametrize("umask", ["000", "077"])
def test_what_is_made_in_analysis_is_the_groups_whatever_the_umask(
    site: fx.Site, experiment: Experiment, umask: str
) -> None:
    analysis = Path(experiment["analysisDirectory"])
    uid = pwd.getpwnam(OWNER).pw_uid
    script = f"umask {umask}; cd {analysis} && mkdir -p a/b && echo x > a/b/file && touch top"
    done = as_user(uid, [100], "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    made = [analysis / path for path in ("a", "a/b", "a/b/file", "top")]
    assert [oct(path.stat().st_mode & 0o7777) for path in made] == ["0o2750", "0o2750", "0o640", "0o640"]
    assert {path.stat().st_gid for path in made} == {experiment["gid"]}
    assert all(acl.get(str(path), acl.ACCESS) is None for path in made)
    assert readable(MEMBER, [experiment["gid"]], made) == [True] * 4 and readable(OTHER, [100], made) == [False] * 4


def test_whom_the_mover_lets_in_is_out_again(site: fx.Site, experiment: Experiment) -> None:
    """An access list put onto a staged file does not survive publishing."""
    station = site.station()
    grant = site.station(fx.MANAGER).addGrant(experiment["name"], "daq", fx.STATION)
    batch = str(uuid.uuid4())
    staging = Path(station.openBatch(grant, batch, source="daq-1")["stagingDirectory"])
    entries = fx.staged(staging, CONTENTS)
    for entry in entries:
        subprocess.run(["setfacl", "-m", f"u:{OTHER}:rw,g:{MOVERS}:r", staging / entry["stagedName"]], check=True)
    station.submitBatch(grant, batch, entries)
    assert {one["status"] for one in fx.outcome(station, batch).values()} == {"stored"}
    files = [Path(experiment["dataDirectory"], path) for path in CONTENTS]
    assert [acl.get(str(path), acl.ACCESS) for path in files] == [None, None]
    assert [path.stat().st_mode & 0o7777 for path in files] == [0o640, 0o640]
    assert readable(MEMBER, [experiment["gid"]], files) == [True, True]


def test_movers_pass_to_their_batch_and_no_further(site: fx.Site, experiment: Experiment) -> None:
    published(site, experiment)
    grant = site.station(fx.MANAGER).addGrant(experiment["name"], "daq", fx.STATION)
    staging = Path(site.station().openBatch(grant, str(uuid.uuid4()), source="x")["stagingDirectory"])
    mover = pwd.getpwnam(MOVER)
    assert as_user(mover.pw_uid, [mover.pw_gid], "touch", staging / "000001").returncode == 0
    closed = [
        staging.parent,
        staging.parents[1],
        Path(experiment["dataDirectory"]),
        Path(experiment["dataDirectory"], "a.h5"),
    ]
    assert readable(mover.pw_uid, [mover.pw_gid], closed) == [False] * 4
    for uid, gid in ((OTHER, 100), (MEMBER, experiment["gid"])):
        assert as_user(uid, [gid], "touch", staging / "000002").returncode != 0
        assert readable(uid, [gid], [staging, staging / "000001"]) == [False, False]
    for way in staging.parents[0], staging.parents[1]:
        assert way.stat().st_mode & 0o007 == 0
    # The station's own group instead: others of that group write there, too.
    kept = site.settings
    site.restart(kept.model_copy(update={"staging_owner": None, "staging_group": "games"}))
    try:
        gid = mover.pw_gid
        opened = site.station().openBatch(grant, str(uuid.uuid4()), source="x")
        staging = Path(opened["stagingDirectory"])
        site.experiments(fx.MANAGER).restorePermissions(experiment["name"], "", fx.STATION)
        assert as_user(OTHER, [100, gid], "touch", staging / "000001").returncode == 0
        assert as_user(MEMBER, [experiment["gid"]], "touch", staging / "000002").returncode != 0
        assert readable(OTHER, [100, gid], [staging.parent, staging.parents[1]]) == [False, False]
    finally:
        site.restart(kept)


def test_another_group_is_found_and_given_everywhere(site: fx.Site, experiment: Experiment) -> None:
    """A site that switches LDAP on: experiments get group numbers, their files follow by command."""
    files = published(site, experiment)
    gid = next(_numbers)
    assert readable(MEMBER, [gid], files) == [False, False]
    give_group(site, experiment, gid)
    inspections = site._made(InspectionDsApi(fx.MANAGER, fx.password_of(fx.MANAGER), site.url, ca_file=site.ca_file))
    record = inspections.waitForInspection(inspections.inspectExperiment(experiment["name"], fx.STATION), timeout=60)
    assert record["countPermissions"] >= 10 and record["limits"] == []
    done = site.experiments(fx.MANAGER).restorePermissions(experiment["name"], "", fx.STATION)
    assert done["limits"] == [] and done["countChanged"] == done["countFiles"] + done["countDirectories"]
    top = Path(experiment["storageDirectory"])
    assert {path.lstat().st_gid for path in [top, *top.rglob("*")]} == {gid}
    assert readable(MEMBER, [gid], files) == [True, True]
    assert readable(MEMBER, [experiment["gid"]], files) == [False, False]
    record = inspections.waitForInspection(inspections.inspectExperiment(experiment["name"], fx.STATION), timeout=60)
    assert list(inspections.getFindings(experiment["name"], fx.STATION)) == []
    with site.service.store.transaction() as connection:
        events = connection.execute(
            sa.text("SELECT details FROM audit_events WHERE event = 'permissions.repaired' AND subject = :subject"),
            {"subject": f"{experiment['name']}/{fx.STATION}"},
        ).scalars()
        assert done["countChanged"] in [event["changed"] for event in events]


def test_a_group_given_while_files_are_verified_is_theirs(
    site: fx.Site, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    gid, verify = next(_numbers), publishing.verify_all

    def verified(*words: Any) -> None:
        verify(*words)
        give_group(site, experiment, gid)

    monkeypatch.setattr(publishing, "verify_all", verified)
    files = published(site, experiment)
    assert {path.stat().st_gid for path in files} == {gid}


def test_restoring_leaves_second_names_and_others_files_alone(
    site: fx.Site, experiment: Experiment, tmp_path: Path
) -> None:
    """A link out of the experiment never gives a file outside another owner."""
    published(site, experiment)
    victim = tmp_path / "victim"
    victim.write_bytes(b"x")
    os.chown(victim, OTHER, OTHER)
    data = Path(experiment["dataDirectory"])
    os.link(victim, data / "hard")
    (data / "soft").symlink_to(victim)
    (data / "dir").symlink_to(tmp_path)
    done = site.experiments(fx.MANAGER).restorePermissions(experiment["name"], "", fx.STATION)
    assert sorted(done["skipped"]) == ["data/dir", "data/hard", "data/soft"]
    assert (victim.stat().st_uid, victim.stat().st_gid) == (OTHER, OTHER)


def test_the_explanation_says_what_the_kernel_does(run_directory: Path) -> None:
    """Files with all kinds of owners, modes and lists; for each account the rule's answer is the kernel's."""
    dice = random.Random(5)
    place = run_directory / f"kernel-{uuid.uuid4().hex[:8]}"
    place.mkdir(mode=0o755)
    components: list[Component] = []
    for number in range(150):
        path = place / str(number)
        path.touch()
        named = [
            acl.Entry(tag, dice.randrange(8), which)
            for tag, which in ((acl.USER, MEMBER), (acl.USER, OTHER), (acl.GROUP, GROUP), (acl.GROUP, LATER))
            if dice.random() < 0.3
        ]
        mode = dice.choice([0o640, 0o604, 0o060, 0o400, 0o004, 0o000, 0o044, 0o206])
        descriptor = os.open(path, os.O_RDONLY)
        os.fchown(descriptor, dice.choice([MEMBER, OTHER, 0]), dice.choice([GROUP, LATER, 0]))
        os.fchmod(descriptor, mode)
        if named:
            entries = [entry for entry in acl.of_mode(mode, named) if entry.tag != acl.MASK]
            acl.put(descriptor, acl.ACCESS, (*entries, acl.Entry(acl.MASK, dice.randrange(8))))
        status = os.fstat(descriptor)
        access = acl.get(descriptor, acl.ACCESS)
        os.close(descriptor)
        components.append(Component(str(path), status.st_uid, status.st_gid, status.st_mode, access, acl.READ))
    for uid, gids in [
        (MEMBER, [100]),
        (MEMBER, [GROUP]),
        (OTHER, [100, LATER, GROUP]),
        (OTHER, [GROUP]),
        (75_009, [100]),
    ]:
        expected = readable(uid, gids, [Path(component.path) for component in components])
        who = Identity(uid, frozenset(gids))
        told = [component.decide(who) for component in components]
        wrong = [
            (component, rule)
            for component, (allowed, rule), truth in zip(components, told, expected, strict=True)
            if allowed != truth
        ]
        assert wrong == [] and 10 < sum(expected) < 140


def test_explanations_name_the_rule_and_the_difference(site: fx.Site, experiment: Experiment) -> None:
    published(site, experiment)

    @functools.cache
    def of(username: str) -> InspectionDsApi:
        made: InspectionDsApi = site._made(
            InspectionDsApi(username, fx.password_of(username), site.url, ca_file=site.ca_file)
        )
        return made

    def explain(asking: str, username: str, path: str = "data/a.h5") -> DmObject:
        return of(asking).explainAccess(username, experiment["name"], path, fx.STATION)

    told = explain(fx.MANAGER, fx.ALICE)
    assert told["httpsAllowed"] and told["httpsRule"] == f"{fx.ALICE} has role User in experiment {experiment['name']}"
    assert not told["diskAllowed"] and told["diskRule"] == f"the storage host knows no account '{fx.ALICE}'"
    assert told["inGroupRecorded"] and told["inGroupOnHost"] is None and told["groupId"] == experiment["gid"]
    assert told["differences"][0].endswith("the storage host knows no such account.")
    assert told["components"][-1]["mode"] == "-rw-r-----" and told["components"][-1]["needs"] == "r"
    assert explain(fx.ALICE, fx.ALICE).data == told.data
    assert explain(fx.MANAGER, fx.BOB)["httpsRule"].startswith(f"{fx.BOB} has no role in experiment ")
    assert explain(fx.MANAGER, fx.ADMIN)["httpsRule"] == f"{fx.ADMIN} is an administrator"
    assert explain(fx.MANAGER, fx.SERVICE)["httpsRule"] == (
        f"{fx.SERVICE} is manager and service of station {fx.STATION}"
    )
    assert explain(fx.MANAGER, "d999999")["httpsRule"] == "no user 'd999999' is known"
    root = explain(fx.MANAGER, "root")
    assert root["diskAllowed"] and not root["httpsAllowed"] and "the file system says yes" in root["differences"][-1]
    mover = explain(fx.MANAGER, MOVER)
    assert not mover["diskAllowed"] and mover["diskRule"].startswith(f"{experiment['dataDirectory']}: --- for others")
    ways = {way["path"]: way for way in mover["components"]}
    assert ways[experiment["storageDirectory"]]["rule"] == f"--x for an entry of its access list for {MOVER}"
    owner = explain(fx.MANAGER, OWNER, "data")
    assert owner["diskAllowed"] and owner["diskRule"] == f"{experiment['dataDirectory']}: rwx for its owner {OWNER}"
    site.users(fx.ADMIN).updateUser(fx.BOB, active=False)
    assert explain(fx.MANAGER, fx.BOB)["httpsRule"] == f"user {fx.BOB} is not active"
    site.users(fx.ADMIN).updateUser(fx.BOB, active=True)
    for asking, username, error in (
        (fx.STRANGER, fx.STRANGER, ObjectNotFound),
        (fx.ALICE, fx.BOB, ObjectNotFound),
        (fx.OTHER_MANAGER, fx.ALICE, ObjectNotFound),
    ):
        with pytest.raises(error):
            explain(asking, username)
    for path in ("data/none", "nothing/else"):
        with pytest.raises(ObjectNotFound):
            explain(fx.MANAGER, fx.ALICE, path)
    Path(experiment["dataDirectory"], "link").symlink_to("/etc/hostname")
    assert "is a link" in explain(fx.MANAGER, OWNER, "data/link")["diskRule"]
    site.users(fx.MANAGER).addUserExperimentRole(fx.OTHER_MANAGER, "User", experiment["name"], fx.STATION)
    with pytest.raises(AuthorizationError):
        explain(fx.OTHER_MANAGER, fx.ALICE)  # a member, and manager of another station


def test_a_file_system_without_lists_does_with_modes(site: fx.Site, run_directory: Path) -> None:
    """Movers without a group of their own then pass as anybody does; nobody looks, and all else is as ever."""
    mount = run_directory / f"without-lists-{uuid.uuid4().hex[:8]}"
    mount.mkdir()
    owners = Owners(site.settings)
    owner = owners.of_experiment({"gid": GROUP, "auth_group_name": "none"})
    with namespace() as inside:
        inside.run("mount", "-t", "ramfs", "none", mount)
        root = inside.view(mount)
        assert not acl.supported(str(root))
        top = root / fx.STATION / "plain"
        for _ in range(2):
            ExperimentDirectory(str(top), owner).make(str(root), 1, owners)
            looks = {top: owners.top(owner), top / ".staging": owners.area(owner)}
            looks[top / "data"] = Look(owner, DIRECTORY_MODE)
            for path, look in looks.items():
                with opened_directory(str(path)) as descriptor:
                    assert look.faults(descriptor, os.fstat(descriptor)) == []
            modes = [path.stat().st_mode & 0o7777 for path in looks]
            assert modes == [0o2751, 0o2701, 0o2750]
        top.chmod(0o2755)
        with opened_directory(str(top)) as descriptor:
            assert owners.top(owner).faults(descriptor, os.fstat(descriptor)) == ["mode 2755 instead of 2751"]


def test_health_says_that_everything_can_be_given(site: fx.Site) -> None:
    check = {one["name"]: one for one in site.rest().get("/status")["checks"]}["permissions"]
    assert check == {"name": "permissions", "status": "ok", "message": "files get their experiment's owner and group"}
