"""What the metadata readers find, and that nothing in a file can make them misbehave."""

import json
import os
import signal
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from dm.common.errors import ProcessingError
from dm.station.acquisition.plugins import metadata_command, metadata_hdf5, metadata_spec, metadata_values
from dm.station.acquisition.plugins.metadata_reader import Reader, extract


def nexus(path, **extra):
    with h5py.File(path, "w") as file:
        file.attrs["default"] = "entry"
        entry = file.create_group("entry")
        entry.attrs.update(NX_class="NXentry", default="data")
        entry["title"] = "AgBehenate 5 s"
        entry["start_time"] = "2024-05-01T10:00:00-05:00"
        entry["definition"] = np.array([b"NXsas"])
        instrument = entry.create_group("instrument")
        instrument.attrs["NX_class"] = np.bytes_(b"NXinstrument")
        instrument["name"] = "9-ID-C USAXS"
        source = instrument.create_group("source")
        source.attrs["NX_class"] = "NXsource"
        source["name"] = "Advanced Photon Source"
        source["energy"] = 7.0
        mono = instrument.create_group("monochromator")
        mono.attrs["NX_class"] = "NXmonochromator"
        mono["energy"] = 21.0
        mono["energy"].attrs["units"] = "keV"
        detector = instrument.create_group("pilatus")
        detector.attrs["NX_class"] = "NXdetector"
        detector["data"] = np.zeros((3, 4, 5), "u4")
        sample = entry.create_group("sample")
        sample.attrs["NX_class"] = "NXsample"
        sample["name"] = "silver behenate"
        data = entry.create_group("data")
        data.attrs.update(NX_class="NXdata", signal="frames")
        data["frames"] = h5py.SoftLink("/entry/instrument/pilatus/data")
        for name, value in extra.items():
            entry[name] = value
    return str(path)


def test_nexus_fields(tmp_path):
    found = metadata_hdf5.extract(nexus(tmp_path / "a.h5", scan_command="ascan th 0 1 10 1"))
    assert {k: found[k] for k in found if k != "entries"} == {
        "title": "AgBehenate 5 s",
        "startTime": "2024-05-01T10:00:00-05:00",
        "definition": "NXsas",
        "scanCommand": "ascan th 0 1 10 1",
        "instrument": "9-ID-C USAXS",
        "source": "Advanced Photon Source",
        "energy": 21.0,
        "energyUnits": "keV",
        "sampleName": "silver behenate",
        "detectors": [{"name": "pilatus", "shape": [3, 4, 5], "type": "uint32"}],
        "signal": "/entry/data/frames",
        "signalShape": [3, 4, 5],
        "signalType": "uint32",
    }


def test_links_out_of_the_file_are_named_and_never_followed(tmp_path):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["title"] = "SECRET"
        file.create_group("g")["name"] = "SECRET"
    raw = tmp_path / "raw.txt"
    raw.write_bytes(b"SECRET BYTES....")
    path = nexus(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        del file["entry/title"]
        file["entry/title"] = h5py.ExternalLink(str(secret), "/title")
        file["entry/beamline"] = h5py.ExternalLink("not-here.h5", "/x")
        file["entry/out"] = h5py.ExternalLink(str(secret), "/")
        file["entry/run_cycle"] = h5py.SoftLink("/entry/out/title")
        file["entry/loop"] = h5py.SoftLink("/entry/loop")
        file["entry/program_name"] = h5py.SoftLink("/entry/loop")
        file["entry/again"] = file["entry"]
        file.create_dataset("entry/scan_command", (1,), "S16", external=[(str(raw), 0, 16)])
        layout = h5py.VirtualLayout((1,), "S6")
        layout[:] = h5py.VirtualSource(str(secret), "title", (1,), "S6")
        file.create_virtual_dataset("entry/entry_identifier", layout)
    found = metadata_hdf5.extract(path)
    assert "SECRET" not in json.dumps({**found, "externalFiles": None})
    assert found["externalFiles"] == sorted([str(secret), "not-here.h5"])
    assert found["instrument"] == "9-ID-C USAXS"


def test_a_marked_signal_in_a_missing_file_is_named_without_shape(tmp_path):
    path = nexus(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        del file["entry/data/frames"]
        file["entry/data/frames"] = h5py.ExternalLink("gone.h5", "/d")
    found = metadata_hdf5.extract(path)
    assert found["signal"] == "/entry/data/frames"
    assert "signalShape" not in found


def test_huge_trees_and_values_are_cut(tmp_path):
    path = nexus(tmp_path / "a.h5", run_cycle="x" * 10_000)
    with h5py.File(path, "a") as file:
        many = file.create_group("entry/metadata")
        for i in range(metadata_hdf5.MAX_NODES + 10):
            many.create_group(f"g{i}")
        for i in range(200):
            many[f"v.{i}"] = float("nan") if i % 2 else i
    found = metadata_hdf5.extract(path)
    assert found["truncated"] is True
    assert found["title"] == "AgBehenate 5 s"
    assert len(found["runCycle"]) <= metadata_values.MAX_TEXT
    assert len(json.dumps(found, allow_nan=False)) < 20_000


def test_any_hdf5_gets_its_arrays_listed(tmp_path):
    path = tmp_path / "plain.h5"
    with h5py.File(path, "w") as file:
        file["exchange/data"] = np.zeros((2, 3))
    assert metadata_hdf5.extract(str(path)) == {
        "datasets": [{"path": "/exchange/data", "shape": [2, 3], "type": "float64"}]
    }


SPEC = """#F test.dat
#E 1454539891
#D Wed Feb 03 16:51:31 2016
#C Setup with new A stage  User = usaxs
#H0 SR_current DCM_energy
#O0 mr  DCM theta  ar

#S 3 ascan  mr 10.3467 10.3426  1 0.1
#D Wed Feb 03 16:52:03 2016
#V0 101.7 18
#N 2
#L mr  I0
1 2
3 4

#S 4 mesh  a b
#D Wed Feb 03 16:53:03 2016
#V0 101.7 18.5
#N 1
#L seconds
1
2
3
"""


def test_spec_fields(tmp_path):
    path = tmp_path / "test.dat"
    path.write_text(SPEC)
    assert metadata_spec.is_spec(SPEC.encode())
    assert metadata_spec.extract(str(path)) == {
        "specFile": "test.dat",
        "epoch": 1454539891,
        "fileDate": "Wed Feb 03 16:51:31 2016",
        "title": "Setup with new A stage",
        "user": "usaxs",
        "motors": ["mr", "DCM theta", "ar"],
        "scanCount": 2,
        "scanNumbers": "3-4",
        "commands": {"ascan": 1, "mesh": 1},
        "firstScan": {
            "number": 3,
            "command": "ascan  mr 10.3467 10.3426  1 0.1".replace("  ", " "),
            "date": "Wed Feb 03 16:52:03 2016",
            "points": 2,
        },
        "lastScan": {"number": 4, "command": "mesh a b", "date": "Wed Feb 03 16:53:03 2016", "points": 3},
        "columns": ["seconds"],
        "energy": 18.5,
    }


def test_a_spec_file_with_no_scan_yet(tmp_path):
    path = tmp_path / "new.dat"
    path.write_text(SPEC.split("#S", maxsplit=1)[0])
    found = extract(str(path))
    assert found["mimeType"] == "text/x-spec"
    assert found["title"] == "Setup with new A stage"
    assert "metadataError" not in found


def test_text_gets_a_type_only_and_hostile_files_a_note(tmp_path):
    (tmp_path / "README.md").write_text("# hello")
    (tmp_path / "notes").write_text("hello")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "image.bin").write_bytes(os.urandom(100) + b"\0")
    good = Path(nexus(tmp_path / "good.h5")).read_bytes()
    (tmp_path / "half.h5").write_bytes(good[: len(good) // 2])
    (tmp_path / "bad.dat").write_bytes(b"#F x\n#S 99999999999999999999 \xff\xfe\n#L\n#N -1\n1 2 3\n")
    assert extract(str(tmp_path / "README.md")) == {"mimeType": "text/markdown"}
    assert extract(str(tmp_path / "notes")) == {"mimeType": "text/plain"}
    assert extract(str(tmp_path / "empty")) == {"mimeType": "application/octet-stream"}
    assert extract(str(tmp_path / "image.bin"))["mimeType"] == "application/octet-stream"
    half = extract(str(tmp_path / "half.h5"))
    assert half["mimeType"] == "application/x-hdf5"
    assert half["metadataError"].startswith("The file cannot be read")
    json.dumps(extract(str(tmp_path / "bad.dat")), allow_nan=False)


def test_damaged_hdf5_never_takes_the_caller_down(tmp_path):
    good = bytearray(Path(nexus(tmp_path / "good.h5")).read_bytes())
    random = np.random.default_rng(7)
    reader = Reader(seconds=1)
    try:
        for i in range(40):
            bad = bytearray(good)
            for position in random.integers(8, len(bad), 20):
                bad[position] = random.integers(256)
            path = tmp_path / f"bad{i}.h5"
            path.write_bytes(bad)
            json.dumps(reader.extract(str(path)), allow_nan=False)
        reader.seconds = 20
        assert reader.extract(str(tmp_path / "good.h5"))["title"] == "AgBehenate 5 s"
    finally:
        reader.close()


def test_reader_takes_any_file_name_and_survives_its_process(tmp_path):
    reader = Reader(seconds=20)
    try:
        name = os.fsdecode(os.fsencode(str(tmp_path)) + b"/\xff\xfe odd\n\xe6.h5")
        os.rename(nexus(tmp_path / "a.h5"), name)
        assert reader.extract(name)["title"] == "AgBehenate 5 s"
        os.kill(reader._helper._process.pid, signal.SIGKILL)
        assert reader.extract(name)["title"] == "AgBehenate 5 s"
        os.symlink(name, tmp_path / "link.h5")
        assert "metadataError" in reader.extract(str(tmp_path / "link.h5"))
        os.mkfifo(tmp_path / "fifo.h5")
        assert reader.extract(str(tmp_path / "fifo.h5")) == {"metadataError": "Not a regular file."}
        assert "metadataError" in reader.extract(str(tmp_path / "missing.h5"))
    finally:
        reader.close()


def test_reader_gives_up_on_a_file_that_hangs_it(tmp_path):
    reader = Reader(seconds=20)
    path = nexus(tmp_path / "a.h5")
    try:
        assert reader.extract(path)["title"] == "AgBehenate 5 s"
        os.kill(reader._helper._process.pid, signal.SIGSTOP)
        reader.seconds = 0.2
        assert "0.2 s" in reader.extract(path)["metadataError"]
        reader.seconds = 20
        assert reader.extract(path)["title"] == "AgBehenate 5 s"
    finally:
        reader.close()


def program(tmp_path, body):
    path = tmp_path / "program"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_program_prints_pairs_or_json(tmp_path):
    run = metadata_command.run
    assert run(program(tmp_path, 'echo "name=$1"; echo energy = 7.1 keV'), "/d/a b;x", 10) == {
        "name": "/d/a b;x",
        "energy": "7.1 keV",
    }
    assert run(program(tmp_path, """echo '{"energy": 7.1, "a.b": {"$x": [1, null]}}'"""), "/x", 10) == {
        "energy": 7.1,
        "a_b": {"_x": [1, None]},
    }
    assert run(program(tmp_path, "true"), "/x", 10) == {}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("echo oops >&2; exit 3", "status 3: oops"),
        ("echo nonsense", "not key=value"),
        ("echo '{broken'", "broken JSON"),
        ("head -c 100000 /dev/zero", "more than"),
        ("sleep 60", "did not finish"),
        ("sleep 60 & exec >&- 2>&-; sleep 60", "did not finish"),
    ],
)
def test_program_misbehaving_is_one_sentence(tmp_path, body, message):
    begun = time.monotonic()
    with pytest.raises(ProcessingError, match=message):
        metadata_command.run(program(tmp_path, body), "/x", 0.5 if "sleep" in body else 20)
    assert time.monotonic() - begun < 30


def test_program_that_is_not_there(tmp_path):
    with pytest.raises(ProcessingError, match="cannot be started: No such file"):
        metadata_command.run(str(tmp_path / "none"), "/x", 1)


def test_values_are_bounded_and_finite():
    deep = {"a": {"b": {"c": {"d": {"e": 1}}}}}
    cleaned = metadata_values.clean(
        {"n": float("inf"), "big": 1 << 80, "t": "é\0 \n x\udcff", "list": list(range(1000)), "deep": deep, "": 1}
    )
    assert "n" not in cleaned
    assert cleaned["big"] == float(1 << 80)
    assert cleaned["t"] == "é x?"
    assert len(cleaned["list"]) == metadata_values.MAX_ITEMS
    json.dumps(cleaned, allow_nan=False).encode()
    assert metadata_values.ranges([1, 2, 3, 9, 11, 12]) == "1-3,9,11-12"
    assert metadata_values.text("{Name of instrument}") is None
