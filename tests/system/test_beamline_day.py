"""A whole day on real beamline files where they lie beside the repository, else on the demo's own realistic set.

The files are arranged so that a neighbour folder ``shared/data/beamline`` holds them; they are not part of the product.
"""

import hashlib
import subprocess
from pathlib import Path

import pytest

from dm.deploy import demo_data
from tests.system.test_deploy_quickstart import quickstart

REAL = Path(__file__).parents[3] / "shared" / "data" / "beamline"
FROM_INSIDE = {
    "33id/33id_spec.dat": ["psic", "1-106"],
    "areadetector/AgBehenate_228.hdf5": ["USAXS", "Glassy carbon"],
    "dls/538039.nxs": ["i16", "Scan of sample with GDA"],
    "sas/nexus-example.hdf5": ["APS 9-ID-C USAXS pinSAXS"],
    "sls/Sample_Image_2021-03-16_095.hdf5": ["SLS PolLux X07DA"],
    "soleil/file_2.nxs": ["DIFFABS", "redemarrage"],
    "usaxs/02_03_setup.dat": ["1-50"],
    "usaxs/02_03_setup_fly/S10_Blank.h5": ["APS USAXS at 9-ID-C"],
}


@pytest.fixture(scope="module")
def day(run_directory):
    data = REAL
    if not REAL.is_dir():
        data = run_directory / "beamline"
        data.mkdir()
        demo_data.make_default_set(data)
    root = run_directory / "day"
    done = quickstart("--data", data, "--root", root, "--keep")
    yield data, root, done
    subprocess.run([root / "bin" / "dm-control", "all", "stop", "--config", root / "etc" / "dm.toml"], check=True)


def test_everything_is_as_claimed(day):
    _, _, done = day
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Everything is as claimed" in done.stdout


def test_storage_holds_what_the_detector_wrote(day):
    data, root, _ = day
    (stored,) = root.glob("storage/*/*/data")

    def digests(top):
        files = [path for path in top.rglob("*") if path.is_file()]
        return {str(path.relative_to(top)): hashlib.md5(path.read_bytes()).hexdigest() for path in files}

    assert digests(stored) == digests(data)


def test_metadata_come_from_inside_the_files(day):
    data, root, _ = day
    for name, words in FROM_INSIDE.items():
        if not (data / name).exists():
            continue
        shown = subprocess.run(
            [
                "bash",
                "-c",
                'source "$0/etc/dm.setup.sh" && dm-get-experiment-file --experiment agbh-demo --file "$1" '
                "--display-keys ALL --display-format json",
                root,
                name,
            ],
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for word in words:
            assert word in shown, (name, word, shown)
