"""Pid files are believed only for the very process they were written for."""

import os
import subprocess
import sys

from dm.common.pidfile import PidFile, start_token


def test_alive_follows_the_process_and_not_the_number(tmp_path):
    pid_file = PidFile(tmp_path / "x.pid")
    assert pid_file.alive() is None
    pid_file.write(os.getpid())
    assert pid_file.alive() == os.getpid()
    # The same pid with another start time is another process.
    pid_file.path.write_text(f"{os.getpid()}\nboot:1\n")
    assert pid_file.alive() is None
    for rubbish in ("", "x\n", "12", "99999999\nboot:1\n"):
        pid_file.path.write_text(rubbish)
        assert pid_file.alive() is None


def test_a_zombie_does_not_run_and_is_reaped(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    pid_file = PidFile(tmp_path / "x.pid")
    pid_file.write(child.pid)
    assert pid_file.alive() == child.pid
    assert pid_file.terminate() is True
    assert start_token(child.pid) is None
    assert not pid_file.path.exists()
    child.stdin.close()
    child.wait()


def test_terminate_kills_what_does_not_listen(tmp_path):
    code = (
        "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(99)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "ready\n"
        pid_file = PidFile(tmp_path / "x.pid")
        pid_file.write(child.pid)
        assert pid_file.terminate(patience=0.1) is False
        assert start_token(child.pid) is None
