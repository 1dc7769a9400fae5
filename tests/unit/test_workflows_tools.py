"""The other tools of the standard workflows, checked against values that are computed without them."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import re
import struct
import subprocess
import sys
from pathlib import Path

import fabio
import h5py
import hdf5plugin
import numpy as np
import pytest
import zstandard
from PIL import Image

from dm.common.errors import ConfigurationError, InvalidArgument
from dm.station.workflows.tools import audit, compress, convert, geometry, integrate, results, summary, xpcs
from tests.beamline_files import beamline_file

SILVER_BEHENATE = 2 * math.pi / 58.380  # 1/angstrom
RANDOM = np.random.default_rng(3)


# --- summary --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["33id/33id_spec.dat", "33id/APS_spec_data.dat", "usaxs/02_03_setup.dat"])
def test_summary_of_spec(name: str, tmp_path: Path) -> None:
    """Every scan, its points, and the peak of its last counter, as the lines of the file say."""
    path = beamline_file(name)
    told = summary.run(str(path), tmp_path)
    found = json.loads((tmp_path / told["summaryJson"]).read_text())["scans"]
    spectra = re.compile(r"^@A.*(?:(?<=\\)\n.*)*", re.MULTILINE)  # of multichannel analysers, within the scans
    scans = re.split(r"^#S ", spectra.sub("", path.read_text(errors="replace")), flags=re.MULTILINE)[1:]
    assert told["nScans"] == len(found) == len(scans)
    for scan, text in zip(found, scans, strict=True):
        rows = [
            [float(word) for word in line.split()] for line in text.splitlines()[1:] if re.match(r"\s*[-+.\d]", line)
        ]
        number, _, command = text.splitlines()[0].partition(" ")
        assert (scan["scan"].split(".")[0], scan["command"]) == (number, command.strip())
        assert scan["points"] == len(rows)
        if rows and len(rows[0]) > 1:
            last = [row[-1] for row in rows]
            peak = last.index(max(last))
            assert (scan["maximum"], scan["peakAt"]) == pytest.approx((last[peak], rows[peak][0]))
    assert told["nPoints"] == sum(scan["points"] for scan in found)
    assert told["nEmptyScans"] == sum(not scan["points"] for scan in found)
    text = (tmp_path / told["summary"]).read_text()
    assert all(scan["command"][:60] in text for scan in found if "  " not in scan["command"])


@pytest.mark.parametrize(
    ("name", "kind", "broken"),
    [
        ("areadetector/AgBehenate_228.hdf5", "NeXus", 0),
        ("sas/nexus-example.hdf5", "NeXus", 0),
        ("dls/538039.nxs", "NeXus", 2),
        ("dls/p45-1168.nxs", "NeXus", 6),
        ("sls/Sample_Line_2021-03-16_096.hdf5", "NeXus", 0),
        ("soleil/file_2.nxs", "NeXus", 0),
        ("usaxs/02_03_setup_fly/S10_Blank.h5", "NeXus", 0),
    ],
)
def test_summary_of_nexus(name: str, kind: str, broken: int, tmp_path: Path) -> None:
    path = beamline_file(name)
    told = summary.run(str(path), tmp_path)
    found = json.loads((tmp_path / told["summaryJson"]).read_text())
    groups, datasets = {}, {}
    with h5py.File(path) as file:
        file.visititems(
            lambda place, item: (groups if isinstance(item, h5py.Group) else datasets).setdefault(
                f"/{place}", item.name
            )
        )
        known = {one["path"]: one for one in found["objects"]}
        # visititems tells each object once; what has several names is told here by each of them
        assert groups.keys() | datasets.keys() <= known.keys()
        for place in datasets:
            assert known[place]["shape"] == list(file[place].shape or ())
    assert (told["kind"], told["nBrokenLinks"], told["complete"]) == (kind, broken, True)
    assert told["nDatasets"] >= len(datasets)


def test_summary_of_the_default_plot(tmp_path: Path) -> None:
    told = summary.run(str(beamline_file("sas/nexus-example.hdf5")), tmp_path)
    assert (told["signal"], told["title"]) == ("/entry/data/frames", "NeXus NXsas example")
    text = (tmp_path / told["summary"]).read_text()
    assert "/entry/data/frames int32 10x195x487 (deflate) = " not in text
    assert "/entry/data/frames int32 10x195x487 (deflate)" in text


def test_no_summary_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello\n")
    with pytest.raises(InvalidArgument, match="neither HDF5"):
        summary.run(str(tmp_path / "notes.txt"), tmp_path)


# --- azimuthal integration ------------------------------------------------------------------------------------

AGBH = "areadetector/AgBehenate_228.hdf5"
BEAM = {"beam_x": -5.42, "beam_y": 85.86}  # the file has columns and rows the other way round


def test_rings_of_silver_behenate(tmp_path: Path) -> None:
    """The calibrant's rings lie at whole multiples of its d-spacing, within a hundredth."""
    told = integrate.run(str(beamline_file(AGBH)), tmp_path, given=BEAM, points=600)
    q, intensity, _ = np.loadtxt(tmp_path / told["curve"]).T
    orders = []
    for n in range(6, len(q) - 6):
        around = intensity[max(0, n - 15) : n + 15]
        if intensity[n] == intensity[n - 6 : n + 7].max() and intensity[n] > 1.2 * np.median(around):
            orders.append(q[n] / SILVER_BEHENATE)
    assert [round(order) for order in orders[:11]] == list(range(1, 12))
    assert orders[:11] == pytest.approx(list(range(1, 12)), rel=0.012)
    assert told["peakAt"] == pytest.approx(q[intensity.argmax()], rel=1e-6)


def test_integration_agrees_with_a_plain_histogram(tmp_path: Path) -> None:
    """Each frame of a real stack, against sums over pixel centres with the solid angle put in by hand."""
    path = beamline_file("sas/nexus-example.hdf5")
    points = 60
    told = integrate.run(str(path), tmp_path, points=points, unit="q_nm^-1")
    with h5py.File(path) as file, h5py.File(tmp_path / told["integrated"]) as result:
        frames = file["entry/data/frames"][()].astype(float)
        q, intensity = result["entry/data/q"][()], result["entry/data/I"][()]
        assert result["entry/data"].attrs["signal"] == "I"
        assert result["entry/process/file"][()].decode() == path.name
    y, x = np.indices(frames.shape[1:])
    distance, pixel, wavelength = 540.8, 0.172, 0.59040224  # as the file says: mm, mm, angstrom
    radius = np.hypot((x + 0.5) * pixel - 17.1914, (y + 0.5) * pixel + 0.9718)
    angle = np.arctan(radius / distance)
    pixel_q = 40 * math.pi / wavelength * np.sin(angle / 2)
    edges = np.linspace(q[0] - (q[1] - q[0]) / 2, q[-1] + (q[1] - q[0]) / 2, points + 1)
    place = np.digitize(pixel_q.ravel(), edges) - 1
    inside = (place >= 0) & (place < points)
    weight = np.bincount(place[inside], (np.cos(angle) ** 3).ravel()[inside], points)
    for frame, curve in zip(frames, intensity, strict=True):
        wanted = np.bincount(place[inside], frame.ravel()[inside], points) / weight
        np.testing.assert_allclose(curve[3:-8], wanted[3:-8], rtol=0.03)
    mean = np.loadtxt(tmp_path / told["curve"])[:, 1]
    np.testing.assert_allclose(mean, np.nanmean(intensity, axis=0), rtol=1e-5)


def test_a_poni_file_gives_the_same(tmp_path: Path) -> None:
    path = beamline_file("sas/nexus-example.hdf5")
    geometry.chosen(str(path), {}).integrator().save(tmp_path / "cal.poni")
    for name in ("numbers", "calibrated"):
        (tmp_path / name).mkdir()
    integrate.run(str(path), tmp_path / "numbers", points=50)
    told = integrate.run(str(path), tmp_path / "calibrated", poni=str(tmp_path / "cal.poni"), points=50)
    one, other = (np.loadtxt(tmp_path / name / told["curve"]) for name in ("numbers", "calibrated"))
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_a_mask_leaves_pixels_out(tmp_path: Path) -> None:
    """The upper half made wrong and masked changes the errors, not the curve of rings that go through both halves."""
    image = np.full((60, 60), 100, "i4")
    spoilt = image.copy()
    spoilt[:30] = 9_999
    mask = np.zeros((60, 60), "u1")
    mask[:30] = 1
    fabio.tifimage.TifImage(data=mask).write(tmp_path / "mask.tif")
    for name, values in (("good", image), ("spoilt", spoilt)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["data"] = values
    numbers = {"distance": 1e6, "beam_x": 30, "beam_y": 30, "pixel_x": 100, "pixel_y": 100, "energy": 12.0}
    told = integrate.run(
        str(tmp_path / "spoilt.h5"), tmp_path, given=numbers, mask=str(tmp_path / "mask.tif"), points=9
    )
    assert np.loadtxt(tmp_path / told["curve"])[:, 1] == pytest.approx([100] * 9, rel=1e-4)
    with pytest.raises(InvalidArgument, match=r"Mask .* is of 60x60 pixels"):
        integrate.run(str(beamline_file(AGBH)), tmp_path, mask=str(tmp_path / "mask.tif"))


def test_geometry_of_files(tmp_path: Path) -> None:
    """Lengths in any unit; what is missing is named; what is given goes first."""
    found = geometry.chosen(str(beamline_file("sas/nexus-example.hdf5")), {"beam_x": 3.5})
    assert (found.distance, found.beam_x, found.beam_y) == pytest.approx((540.8, 3.5, -5.65))
    assert (found.pixel_x, found.wavelength) == pytest.approx((172, 0.59040224))
    path = tmp_path / "metres.h5"
    with h5py.File(path, "w") as file:
        detector = file.create_group("entry/instrument/detector")
        detector.attrs["NX_class"] = "NXdetector"
        for name, value, unit in (
            ("distance", 2.5, "m"), ("x_pixel_size", 75, "um"), ("y_pixel_size", 7.5e-5, "m"),
            ("beam_center_x", 1000.5, "pixel"), ("beam_center_y", 75.0, "mm"),
        ):  # fmt: skip
            detector[name] = value
            detector[name].attrs["units"] = unit
    with pytest.raises(InvalidArgument, match=r"The wavelength of 'metres\.h5' is not known from the file"):
        geometry.chosen(str(path), {})
    found = geometry.chosen(str(path), {"energy": 12.398419843320026})
    assert (found.distance, found.pixel_x, found.pixel_y) == pytest.approx((2500, 75, 75))
    assert (found.beam_x, found.beam_y, found.wavelength) == pytest.approx((1000.5, 1000, 1))
    with pytest.raises(InvalidArgument, match="either the wavelength or the energy"):
        geometry.chosen(str(path), {"energy": 12.0, "wavelength": 1.0})
    with pytest.raises(InvalidArgument, match="distance -3 is not a positive number"):
        geometry.chosen(str(path), {"energy": 12.0, "distance": -3.0})


# --- compression and conversion -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["gzip", "zstd"])
def test_compression(method: str, tmp_path: Path) -> None:
    path = beamline_file("33id/33id_spec.dat")
    content = path.read_bytes()
    told = compress.run(str(path), tmp_path, method)
    packed = (tmp_path / told["compressed"]).read_bytes()
    unpack = gzip.decompress if method == "gzip" else zstandard.ZstdDecompressor().decompressobj().decompress
    assert unpack(packed) == content
    assert (told["md5Sum"], told["originalSize"]) == (hashlib.md5(content).hexdigest(), len(content))
    assert told["compressedSize"] == len(packed) < len(content) / 2
    assert (tmp_path / told["compressed"]).stat().st_mtime_ns == path.stat().st_mtime_ns
    compress.run(str(path), tmp_path, method)
    assert (tmp_path / told["compressed"]).read_bytes() == packed, "equal input gives equal bytes"
    (tmp_path / "empty").touch()
    assert compress.run(str(tmp_path / "empty"), tmp_path, method)["originalSize"] == 0
    with pytest.raises(InvalidArgument, match="Level 77 of"):
        compress.run(str(path), tmp_path, method, 77)


def _tiff(path: Path, values: np.ndarray) -> None:
    fabio.tifimage.TifImage(data=values).write(path)


def _cbf(path: Path, values: np.ndarray) -> None:
    fabio.cbfimage.CbfImage(data=values, header={"Detector": "Pilatus"}).write(path)


def _edf(path: Path, values: np.ndarray) -> None:
    image = fabio.edfimage.EdfImage(data=values, header={"exposure": "1.5"})
    image.append_frame(data=values + 1, header={"exposure": "2.5"})
    image.write(path)


def _plain_tiff(path: Path, values: np.ndarray) -> None:
    Image.fromarray(values.astype("u1")).save(path)


@pytest.mark.parametrize("compression", convert.COMPRESSIONS)
@pytest.mark.parametrize(("ending", "write"), [("tif", _tiff), ("cbf", _cbf), ("edf", _edf), ("tiff", _plain_tiff)])
def test_conversion(ending: str, write, compression: str, tmp_path: Path) -> None:
    """What was written with one library is what the HDF5 file holds."""
    with h5py.File(beamline_file(AGBH)) as file:
        values = file["entry/data/data"][()].astype("i4") % (200 if write is _plain_tiff else 1 << 30)
    path = tmp_path / f"image.{ending}"
    write(path, values)
    told = convert.run(str(path), tmp_path, compression)
    with h5py.File(tmp_path / told["converted"]) as file:
        found = file["entry/data/data"]
        np.testing.assert_array_equal(found[0], values)
        headers = [json.loads(text) for text in file["entry/instrument/detector/headers"].asstr()[()]]
        if ending == "edf":
            np.testing.assert_array_equal(found[1], values + 1)
            assert [header["exposure"] for header in headers] == ["1.5", "2.5"]
    assert (told["nFrames"], told["nRows"], told["nColumns"]) == (2 if ending == "edf" else 1, 195, 487)


def test_what_cannot_be_converted(tmp_path: Path) -> None:
    for name, content in (
        ("text.txt", b"hello\n"),
        ("cut.tif", struct.pack("<2sHI", b"II", 42, 8)),
        ("empty.cbf", b""),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidArgument):
            convert.run(str(tmp_path / name), tmp_path)
    assert not list(tmp_path.glob("*.h5")), "nothing half is left"


# --- audit ----------------------------------------------------------------------------------------------------


def test_audit_finds_everything(tmp_path: Path) -> None:
    """Each kind of damage, once; names of any bytes."""
    data = tmp_path / "data"
    (data / "run1").mkdir(parents=True)
    odd = b"run1/\xff odd\nname.dat".decode("utf-8", "surrogateescape")
    contents = {"a.dat": b"aa", "run1/b.dat": b"bb", odd: b"odd", "short.dat": b"1234", "changed.dat": b"old"}
    records = [
        {"experimentFilePath": path, "root": "data", "fileSize": len(text), "md5Sum": hashlib.md5(text).hexdigest()}
        for path, text in {**contents, "gone.dat": b"gone", "link.dat": b"aa"}.items()
    ]
    records.append({"experimentFilePath": "plain.dat", "root": "data", "fileSize": 5, "md5Sum": None})
    for path, text in {
        **contents,
        "short.dat": b"12",
        "changed.dat": b"new",
        "plain.dat": b"plain",
        "new": b"!",
    }.items():
        (data / path).write_bytes(text)
    (data / "link.dat").symlink_to("a.dat")
    found = audit.compared(records, {"data": str(data)})
    assert {name: value for name, value in found.items() if isinstance(value, int)} == {
        "nFiles": 8, "nFine": 4, "nUnverified": 1, "nMissing": 1, "nDifferent": 2, "nUnreadable": 1, "nExtra": 1,
        "nBytesRead": 2 + 2 + 3 + 3,
    }  # fmt: skip
    assert [one["path"] for one in found["missing"]] == ["gone.dat"]
    assert {(one["path"], one["reason"]) for one in found["different"]} == {
        ("short.dat", "size"), ("changed.dat", "md5Sum"),
    }  # fmt: skip
    assert ([one["path"] for one in found["unreadable"]], [one["path"] for one in found["extra"]]) == (
        ["link.dat"], ["new"],
    )  # fmt: skip
    sizes = audit.compared(records, {"data": str(data)}, check_digests=False)
    assert (sizes["nDifferent"], sizes["nBytesRead"]) == (1, 0)
    with pytest.raises(InvalidArgument, match="not to be seen from here"):
        audit.compared(records, {"data": str(tmp_path / "elsewhere")})


# --- XPCS -----------------------------------------------------------------------------------------------------


def test_metadata_change_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "raw.h5"
    path.write_bytes(beamline_file("sas/nexus-example.hdf5").read_bytes())
    for sample in ("first", "again"):
        told = xpcs.append_metadata(str(path), {"sample": sample, "beam_x": "99.95", "beam_y": "-5.65"}, rings=4)
    assert told["nFrames"] == 10
    with h5py.File(path) as file, h5py.File(beamline_file("sas/nexus-example.hdf5")) as before:
        before.visititems(
            lambda name, item: (
                np.testing.assert_array_equal(file[name][()], item[()]) if isinstance(item, h5py.Dataset) else None
            )
        )
        assert file["xpcs/sample"][()].decode() == "again"
        assert set(np.unique(file["xpcs/dynamic_roi_map"][()])) == {1, 2, 3, 4}
        assert file["xpcs/beam_y"][()] == -5.65
    with pytest.raises(InvalidArgument, match="'images' is the pipeline's own"):
        xpcs.append_metadata(str(path), {"images": "x"})
    with pytest.raises(InvalidArgument, match="not a number"):
        xpcs.append_metadata(str(path), {"frame_time": "soon"})


def test_correlation_of_a_known_process(tmp_path: Path) -> None:
    """Intensities that decay with a known time have g2 = 1 + contrast * exp(-2 t / tau)."""
    frames, shape, decay = 400, (40, 40), 20.0
    field = RANDOM.normal(size=(2, *shape))
    values = np.empty((frames, *shape))
    step = math.exp(-1 / decay)
    for frame in range(frames):
        field = step * field + math.sqrt(1 - step**2) * RANDOM.normal(size=field.shape)
        values[frame] = (field**2).sum(axis=0) * 1000
    path = tmp_path / "raw.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("entry/data", data=values.astype("u4"), chunks=(50, 40, 40))
    xpcs.append_metadata(str(path), {"frame_time": 0.5}, rings=2)
    told = xpcs.correlate(str(path), tmp_path / "result.h5")
    with h5py.File(tmp_path / "result.h5") as file:
        tau, g2 = file["exchange/tau"][()], file["exchange/norm-0-g2"][()]
        assert file["xpcs/frame_time"][()] == 0.5
    assert (told["nFrames"], told["nRings"], len(tau)) == (frames, 2, told["nDelays"])
    assert tau[0] == 0.5
    early = tau <= 15 * 0.5
    wanted = 1 + np.exp(-2 * tau / 0.5 / decay)
    # a finite run is too short to reach the mean, which takes some of the contrast away
    np.testing.assert_allclose(g2.mean(axis=1)[early] - 1, wanted[early] - 1, rtol=0.15, atol=0.04)


def test_correlation_needs_the_metadata(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="has no group /xpcs"):
        xpcs.correlate(str(beamline_file("sas/nexus-example.hdf5")), tmp_path / "result.h5")
    assert not list(tmp_path.iterdir())


# --- telling --------------------------------------------------------------------------------------------------


def test_what_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(results.OUTPUT_FILE, str(tmp_path / "out.json"))
    results.tell({"a": np.float32(1.5), "b": "two\nlines", "c": None, "d": math.nan, "e": True, "f": np.int64(7)})
    assert capsys.readouterr().out == "a: 1.5\nb: two lines\ne: True\nf: 7\n"
    assert json.loads((tmp_path / "out.json").read_text()) == {"a": 1.5, "b": "two\nlines", "e": True, "f": 7}


def test_packages_that_are_not_installed(tmp_path: Path) -> None:
    """As where DM was installed without its extra: one sentence, and the status of a configuration error."""
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=np.ones((64, 64)), chunks=(64, 64), **hdf5plugin.Bitshuffle())
    for package, words, purpose in (
        ("pyFAI", ["integrate", str(beamline_file(AGBH))], "Azimuthal integration"),
        ("fabio", ["convert", str(path)], "Conversion of detector images"),
        ("zstandard", ["compress", str(path), "--method", "zstd"], "Compression with zstd"),
        ("hdf5plugin", ["image-statistics", str(path)], "Compression filter 32008 of '/data'"),
    ):
        code = (
            f"import sys; sys.modules[{package!r}] = None; from dm.station.workflows.commands.process import main; "
            f"main({[*words, '--output', str(tmp_path)]!r})"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == ConfigurationError.code
        assert done.stderr == (
            f"Error: {purpose} needs the Python package {package!r}; install it with: "
            "pip install 'beamline-dm[workflows]'.\n"
        )
