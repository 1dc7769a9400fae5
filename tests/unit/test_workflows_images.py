"""Statistics and thumbnails of ``dm-process image-statistics`` against what numpy says of the whole array."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dm.common.errors import ConfigurationError, InvalidArgument
from dm.station.workflows.tools import images, results, statistics
from dm.station.workflows.tools.statistics import Thumbnail
from tests.beamline_files import beamline_file

RANDOM = np.random.default_rng(7)


def agree(told: dict[str, Any], values: np.ndarray, masked: int = 0) -> None:
    """The statistics are those of these values."""
    values = values.astype(float)
    assert told["count"] == values.size
    assert told.get("nMaskedPixels", masked) == masked
    for name, wanted in (("mean", values.mean()), ("standardDeviation", values.std()), ("total", values.sum())):
        assert math.isclose(told[name], wanted, rel_tol=1e-9, abs_tol=1e-9), name
    assert (told["minimum"], told["maximum"]) == (values.min(), values.max())


def file_of(path: Path, values: np.ndarray, name: str = "entry/data/data", **options: Any) -> str:
    with h5py.File(path, "w") as file:
        file.create_dataset(name, data=values, **options)
    return str(path)


@pytest.mark.parametrize(
    ("name", "dataset"),
    [
        ("areadetector/AgBehenate_228.hdf5", "entry/data/data"),
        ("sas/nexus-example.hdf5", "entry/data/frames"),
        ("sls/Sample_Image_2021-03-16_095.hdf5", "entry1/control/data"),
    ],
)
def test_real_files(name: str, dataset: str, tmp_path: Path) -> None:
    path = beamline_file(name)
    told = statistics.run(str(path), tmp_path)
    with h5py.File(path) as file:
        values = file[dataset][()]
    assert told["dataset"] == dataset
    agree(told, values)
    frames = values.reshape((-1, *values.shape[-2:]))
    assert (told["nFrames"], told["nRows"], told["nColumns"]) == frames.shape
    written = json.loads((tmp_path / told["statistics"]).read_text())
    assert len(written["frames"]) == len(frames)
    for found, frame in zip(written["frames"], frames, strict=True):
        agree(found, frame)
    with Image.open(tmp_path / told["picture"]) as picture:
        picture.load()
        scale = max(1, 512 // (2 * max(frames.shape[1:])))
        assert picture.size == (frames.shape[2] * scale, frames.shape[1] * scale)
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20


def test_the_picture_shows_the_image(tmp_path: Path) -> None:
    """Bright where the data are high: the beam of the silver behenate picture is at the left edge."""
    told = statistics.run(str(beamline_file("areadetector/AgBehenate_228.hdf5")), tmp_path)
    with Image.open(tmp_path / told["picture"]) as picture:
        luminance = np.asarray(picture.convert("L"), float)
    assert luminance[76:96, :15].mean() > 2 * luminance[:, 300:450].mean()


@pytest.mark.parametrize(
    "kind", ["u1", "<u2", ">u2", "u4", "u8", "i1", "<i4", ">i4", "i8", "f2", "f4", ">f8", "c8", "?"]
)
@pytest.mark.parametrize("shape", [(9, 11), (3, 8, 7), (2, 3, 5, 6)])
def test_types_and_shapes(kind: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    values = RANDOM.integers(0, 100, shape).astype(kind)
    told = statistics.run(file_of(tmp_path / "f.h5", values), tmp_path)
    agree(told, np.abs(values) if kind == "c8" else values)
    assert told["nFrames"] == math.prod(shape[:-2])


def test_what_is_left_out(tmp_path: Path) -> None:
    values = RANDOM.integers(0, 1000, (4, 20, 30))
    marked = {
        "f4": (np.nan, np.inf, -np.inf),
        "u2": (65535,),
        "u4": (2**32 - 1,),
        "i4": (-1, -2),
    }
    for kind, marks in marked.items():
        array = values.astype(kind)
        for number, mark in enumerate(marks):
            array[number, 3, 4 + number] = mark
        path = file_of(tmp_path / "f.h5", array)
        keep = np.isfinite(array) & ~np.isin(array, [mark for mark in marks if np.isfinite(mark)])
        agree(statistics.run(path, tmp_path), array[keep], masked=len(marks))
        if kind != "f4":
            agree(statistics.run(path, tmp_path, masking=False), array)


def test_nothing_is_valid(tmp_path: Path) -> None:
    told = statistics.run(file_of(tmp_path / "f.h5", np.full((8, 9), np.nan)), tmp_path)
    assert (told["count"], told["nMaskedPixels"], "mean" in told) == (0, 72, False)
    with Image.open(tmp_path / told["picture"]) as picture:
        assert (np.asarray(picture) == 128).all()


def test_a_master_file_with_linked_data(tmp_path: Path) -> None:
    """As Eiger detectors write: frames in files of their own, one of which has not arrived; a mask; dead pixels."""
    stacks = [RANDOM.integers(0, 50, (count, 12, 14)).astype("u4") for count in (3, 2)]
    stacks[0][:, 5, 5] = 2**32 - 1
    mask = np.zeros((12, 14), "u4")
    mask[0, :] = 1
    for number, stack in enumerate(stacks, 1):
        file_of(tmp_path / f"s_data_{number:06d}.h5", stack, chunks=(1, 12, 14), **hdf5plugin.Bitshuffle())
    with h5py.File(tmp_path / "s_master.h5", "w") as file:
        data = file.create_group("entry/data")
        for number in (1, 2, 3):
            data[f"data_{number:06d}"] = h5py.ExternalLink(f"s_data_{number:06d}.h5", "entry/data/data")
        file["entry/instrument/detector/detectorSpecific/pixel_mask"] = mask
    told = statistics.run(str(tmp_path / "s_master.h5"), tmp_path)
    whole = np.concatenate(stacks)
    keep = (whole != 2**32 - 1) & (mask == 0)
    assert told["nFrames"] == 5
    agree(told, whole[keep], masked=int((~keep).sum()))


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(4, 40), st.integers(4, 40)),
    chunk=st.tuples(st.integers(1, 3), st.integers(1, 17), st.integers(1, 17)) | st.none(),
    room=st.sampled_from([1, 7, 64, 500, 1 << 21]),
    pixels=st.integers(1, 64),
)
def test_blocks_cover_everything_once(shape, chunk, room, pixels, tmp_path_factory) -> None:
    values = np.arange(math.prod(shape), dtype="i8").reshape(shape)
    path = tmp_path_factory.mktemp("blocks") / "f.h5"
    chunks = None if chunk is None else tuple(min(pair) for pair in zip(chunk, shape, strict=True))
    file_of(path, values, chunks=chunks)
    seen = np.zeros(shape, int)
    thumbnail = Thumbnail(*shape[1:], pixels)
    usual, images.BLOCK_VALUES = images.BLOCK_VALUES, room
    try:
        with h5py.File(path) as file:
            for block in images.find(file).blocks():
                place = tuple(
                    slice(first, first + size)
                    for first, size in zip((block.frame, block.row, block.column), block.values.shape, strict=True)
                )
                seen[place] += 1
                np.testing.assert_array_equal(values[place], block.values)
                thumbnail.add(block, block.values.astype(float), bool(block.frame % 2))
    finally:
        images.BLOCK_VALUES = usual
    assert (seen == 1).all()
    step = thumbnail.bin
    assert max(thumbnail.mean().shape) <= pixels
    for (row, column), mean in np.ndenumerate(thumbnail.mean()):
        part = values[:, row * step : (row + 1) * step, column * step : (column + 1) * step]
        assert math.isclose(mean, part.mean(), rel_tol=1e-12)


def test_a_huge_image_needs_little_memory(tmp_path: Path) -> None:
    """An image of 256 MB, most of it never written, in a process of its own."""
    path = tmp_path / "huge.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("data", (8_000, 8_000), "f4", chunks=(500, 500), fillvalue=1.0)
        data[:500, :500] = 2.0
    code = (
        "import sys; from pathlib import Path; from dm.station.workflows.tools import results, statistics; "
        f"results.tell(statistics.run({str(path)!r}, Path({str(tmp_path)!r}))); "
        "print([line for line in open('/proc/self/status') if line.startswith('VmHWM')][0].replace('VmHWM', 'peak'))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    said = process.communicate(timeout=100)[0]
    assert process.returncode == 0
    told = dict(line.split(":", 1) for line in said.splitlines() if line)
    pixels, bright = 8_000**2, 500**2
    assert (int(told["count"]), float(told["maximum"])) == (pixels, 2.0)
    assert int(told["peak"].split()[0]) < 250_000  # kB; ru_maxrss would be that of the process it was forked from
    assert math.isclose(float(told["mean"]), 1 + bright / pixels, rel_tol=1e-6)


def test_a_file_without_images(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="holds no image"):
        statistics.run(str(beamline_file("soleil/file_2.nxs")), tmp_path)
    (tmp_path / "text").write_text("no image\n")
    with pytest.raises(InvalidArgument, match="not an HDF5 file"):
        statistics.run(str(tmp_path / "text"), tmp_path)
    path = file_of(tmp_path / "f.h5", np.zeros((9, 9)))
    with pytest.raises(InvalidArgument, match=r"Dataset 'nowhere' of .* holds no images"):
        statistics.run(path, tmp_path, "nowhere")
    assert not list(tmp_path.glob("*.png"))


def test_links_in_circles(tmp_path: Path) -> None:
    path = file_of(tmp_path / "f.h5", np.ones((5, 5)))
    with h5py.File(path, "r+") as file:
        file["entry/again"] = h5py.SoftLink("/entry")
        file["entry/hard"] = file["entry"]
        file["entry/nothing"] = h5py.SoftLink("/nowhere")
    assert statistics.run(path, tmp_path)["count"] == 25


def test_a_missing_package_is_told_in_one_sentence() -> None:
    with pytest.raises(ConfigurationError) as caught:
        results.required("dm_no_such_package.inner", "Doing this")
    assert str(caught.value) == (
        "Doing this needs the Python package 'dm_no_such_package'; install it with: "
        "pip install 'beamline-dm[workflows]'."
    )


def test_names_of_results(tmp_path: Path) -> None:
    odd = os.fsdecode(b"/data/" + b"x" * 240 + b"\xff.h5")
    assert len(results.named(odd, ".png").encode()) <= 255
    assert results.named("/a/b c.h5", ".png") == "b c.h5.png"
    assert results.beside(str(tmp_path), "/abs/f.h5", "run1/f.h5") == tmp_path / "run1"
    assert results.beside(str(tmp_path), "run2/f.h5", "") == tmp_path / "run2"
    assert results.beside(str(tmp_path), "/abs/f.h5", "") == tmp_path
    with pytest.raises(InvalidArgument):
        results.beside(str(tmp_path), "f.h5", "../f.h5")
