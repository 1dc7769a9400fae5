"""The storage service as an ordinary account: permissions as far as they go, and a word about how far that is."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path


def test_an_ordinary_account_keeps_others_out_and_says_what_it_cannot(certificates: Path, open_directory: Path) -> None:
    account = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    shutil.copytree(certificates, open_directory / "certificates")
    mine = [open_directory / "certificates", *(open_directory / "certificates").iterdir(), open_directory / "site"]
    mine[-1].mkdir(mode=0o711)
    words = [sys.executable, Path(__file__).with_name("unprivileged_process.py"), mine[0], mine[-1]]
    if os.geteuid() == 0:
        for path in mine:
            os.chown(path, account.pw_uid, account.pw_gid)
        words = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups", *words]
    environment = os.environ | {"HOME": str(open_directory)}
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=100, env=environment)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["uid"] == account.pw_uid
    assert set(told["stored"].values()) == {"stored"}
    assert told["health"]["status"] == "ok" and told["health"]["message"].startswith(
        "reduced: the service is not run as root"
    )
    # Another group than the service has: it cannot give it, keeps modes all the same, and says so everywhere.
    limits = [
        f"The service is not run as root: what it publishes belongs to account {account.pw_name}.",
        "Its files cannot have group 76000 of the experiment: the service is no member of it.",
    ]
    assert told["restored"]["limits"] == told["limits"] == told["access"]["limits"] == limits
    assert (told["restored"]["countFiles"], told["restored"]["countChanged"]) == (4, 2)
    assert told["findings"] == [] and told["owners"] == [account.pw_uid]
    assert told["modes"] == [0o640, 0o2750]
    assert (
        told["later"]["status"] == "warning" and "1 experiments have a group of their own" in told["later"]["message"]
    )
    assert told["access"]["httpsAllowed"] and not told["access"]["diskAllowed"]
