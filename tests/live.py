"""A whole suite for tests that go through its front doors: installed, started, with an experiment to work in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from dm.common.client import RestClient
from dm.common.environment import read_login_file
from dm.common.setupfile import read_setup
from dm.deploy import components
from dm.deploy.install import ADMINISTRATOR, Installed, Plan, install
from dm.site.facility import sample

STATION = "25IDC"
PEOPLE = "key,badge,firstName,lastName,email,institution\n" + "".join(
    f"P{badge},{badge},First{badge},Last{badge},d{badge}@example.org,Example\n" for badge in range(960001, 960006)
)
PROGRAMS = Path(sys.executable).parent


# Routes that need what the suite of the tests does not have (Globus, LDAP): answered by services of single tests, which
# note them here as service -> (method, template).
ANSWERED_ELSEWHERE: dict[str, set[tuple[str, str]]] = {}


@dataclass
class Suite:
    """A running suite.

    :param installed: where things are.
    """

    installed: Installed

    @property
    def environment(self) -> dict[str, str]:
        """The caller's environment with the variables of the suite's setup file, as after ``source dm.setup.sh``."""
        mine = {name: value for name, value in os.environ.items() if not name.startswith("DM_")}
        return mine | read_setup(self.installed.layout.setup) | {"DM_HOME": str(self.installed.layout.root / "home")}

    @property
    def manager(self) -> tuple[str, str]:
        """User name and password of the station's manager, whose login file the setup file names."""
        return read_login_file(self.installed.layout.login_file(self.installed.plan.manager_account))

    @property
    def administrator(self) -> tuple[str, str]:
        """User name and password of the site's administrator."""
        return read_login_file(self.installed.layout.login_file(ADMINISTRATOR))

    def dm(self, *words: object, user: str | None = None, status: int = 0, stdin: str | None = None) -> str:
        """Run a ``dm-*`` command as a user would and return what it printed.

        :param user: account whose login file to use; default: the station manager's.
        :param status: the exit status it must have; for another than 0, standard error is returned.
        """
        environment = self.environment
        if user is not None:
            environment["DM_LOGIN_FILE"] = str(self.installed.layout.login_file(user))
        done = subprocess.run(
            [str(PROGRAMS / str(words[0])), *map(str, words[1:])],
            env=environment,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )
        assert done.returncode == status, f"{words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout if status == 0 else done.stderr


def sample_facility(suite: Suite) -> None:
    """Give the facility service the sample of an installation again, whatever other tests have put there."""
    shutil.rmtree(suite.installed.layout.facility, ignore_errors=True)
    sample.write(suite.installed.layout.facility, STATION)
    (suite.installed.layout.facility / "users.csv").write_text(PEOPLE)
    suite.dm("dm-refresh-facility", "--force", user=ADMINISTRATOR)


def answered_well(client: RestClient) -> set[tuple[str, str]]:
    """Return method and template of the routes that a service has answered with a 2xx status, as its metrics say."""
    text = client.send("GET", "/metrics").text
    return {
        (sample.labels["method"], sample.labels["route"])
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "dm_requests_total" and sample.labels["status"].startswith("2") and sample.value >= 1
    }


def start(root: Path) -> Suite:
    """Install a suite below a directory that other accounts may pass, on free ports, and start all of it."""
    facility = {"user_sync": {"every_hours": 0}}  # when a test says so
    plan = Plan(
        root, STATION, host="localhost", listen="127.0.0.1", free_ports=True, settings={"facility": facility}
    )  # fmt: skip
    suite = Suite(install(plan))
    (suite.installed.layout.facility / "users.csv").write_text(PEOPLE)
    components.start(components.chosen("all", suite.installed.layout.settings))
    return suite


def stop(suite: Suite) -> None:
    """Stop all of it."""
    components.stop(components.chosen("all", suite.installed.layout.settings))
