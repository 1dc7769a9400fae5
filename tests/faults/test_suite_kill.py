"""kill -9 of each service during the demo's transfer, then start again: nothing lost, nothing twice (issue row 6)."""

import os
import random
import signal

import pytest

from dm.deploy import components
from dm.deploy.demo import Demo

ORDER = ("acquisition", "storage", "catalog", "processing")


def kill_and_start(config, name):
    (part,) = components.chosen(name, config)
    pid = part.pid_file.alive()
    assert pid is not None, f"{name} does not run"
    os.kill(pid, signal.SIGKILL)
    while part.pid_file.alive() is not None:
        pass
    part.start()
    assert part.pid_file.alive() not in (None, pid)


def tell_logs(root):
    """Print what the services logged besides answered requests, for the report of a failure."""
    for log in sorted((root / "var" / "log").iterdir()):
        lines = [line for line in log.read_text("utf-8", "replace").splitlines() if '"GET /' not in line]
        print(log.name, *lines[-60:], sep="\n    ")


def day_with_kills(root, plan):
    """Run the demo; ``plan`` lists (files written, service to kill then)."""
    waiting = sorted(plan)
    killed = []

    def show(progress):
        while waiting and progress.written >= waiting[0][0]:
            _, name = waiting.pop(0)
            kill_and_start(root / "etc" / "dm.toml", name)
            killed.append(name)

    demo = Demo(root, show=show)
    try:
        demo.set_up()
        outcome = demo.run()
    except BaseException:
        tell_logs(root)
        raise
    finally:
        demo.stop()
    if not outcome.ok:
        tell_logs(root)
    assert len(killed) == len(plan)
    assert outcome.ok, [wrong for check in outcome.checks for wrong in check.wrong]


def test_each_service_killed_once_while_files_move(open_directory):
    day_with_kills(open_directory / "dm", [(2 + 3 * number, name) for number, name in enumerate(ORDER)])


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [*ORDER, "site-database", "station-database"])
def test_one_service_killed_again_and_again(open_directory, name):
    moments = random.Random(name).sample(range(1, 14), 5)
    day_with_kills(open_directory / "dm", [(moment, name) for moment in moments])
