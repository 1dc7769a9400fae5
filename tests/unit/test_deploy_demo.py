"""The demo's detector, its processing program and its checks."""

import hashlib
import os

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from dm.deploy import demo_checks, demo_data, demo_process, tomlwriter
from dm.station.acquisition.plugins.metadata_reader import extract

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    directory = tmp_path_factory.mktemp("generated")
    demo_data.make_default_set(directory)
    return directory


def test_default_set_says_what_it_is(source):
    frame = extract(str(source / "saxs" / "agbh_0003.h5"))
    assert (frame["instrument"], frame["title"], frame["energy"]) == (
        "DM demo SAXS camera",
        "Silver behenate, frame 3",
        21.0,
    )
    spec = extract(str(source / "agbh_setup.dat"))
    assert (spec["scanCount"], spec["scanNumbers"], spec["user"]) == (4, "1-4", "demo")
    assert extract(str(source / "notes.txt")) == {"mimeType": "text/plain"}


def test_the_detector_copies_exactly_and_closes_the_spec_file_after_each_scan(source, tmp_path):
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    closed = []
    demo_data.write_as_detector(source, tmp_path, files, 0, closed.append)
    for name in files:
        assert (tmp_path / name).read_bytes() == (source / name).read_bytes()
    counts = {str(name): closed.count(name) for name in files}
    assert counts.pop("agbh_setup.dat") == 1 + demo_data.SCANS
    assert set(counts.values()) == {1}


def invoke(*arguments):
    result = CliRunner().invoke(demo_process.main, list(map(str, arguments)))
    return result.exit_code, result.output


def test_inspect_prints_labelled_numbers(source):
    assert invoke("inspect", source / "agbh_setup.dat") == (
        0,
        "Kind: scan\nScans: 4\nPoints: 41\nMaximum: 91000\nMean: 23009.5\n",
    )
    code, output = invoke("inspect", source / "saxs" / "agbh_0001.h5")
    assert code == 0
    assert output.startswith("Kind: image\nPoints: 94965\nMaximum: ")
    assert invoke("inspect", source / "notes.txt") == (0, "Kind: other\n")


def test_picture_draws_images_curves_and_scans(source, tmp_path):
    from PIL import Image

    curve = tmp_path / "a curve;.h5"
    with h5py.File(curve, "w") as file:
        file["flat"] = np.zeros(50)
        file["lively"] = np.exp(-(np.linspace(-3, 3, 50) ** 2))
        file["frames"] = h5py.ExternalLink("gone.h5", "/x")
    for path in (curve, source / "agbh_setup.dat", source / "saxs" / "agbh_0001.h5"):
        code, output = invoke("picture", path, tmp_path)
        assert code == 0, output
        lines = dict(line.split(": ", 1) for line in output.splitlines())
        target = os.path.join(lines["Results"], lines["Picture"])
        assert lines["Picture"] == f"{path.name}.png"
        with Image.open(target) as image:
            assert max(image.size) >= demo_process.PICTURE_PIXELS
            assert len(image.convert("RGB").getcolors(1 << 20)) > 5
    code, output = invoke("picture", source / "notes.txt", tmp_path)
    assert (code, "nothing to draw" in output) == (1, True)


@pytest.fixture
def claims(tmp_path):
    """A small world in which everything is as claimed."""
    folders = {name: tmp_path / "exp" / name for name in ("data", "analysis", ".staging")}
    source = tmp_path / "source"
    for folder in (*folders.values(), source):
        folder.mkdir(parents=True)

    def put(folder, name, content):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(0o640)
        return {"fileSize": len(content), "md5Sum": hashlib.md5(content).hexdigest(), "experimentFilePath": name}

    spec = b"#F a\n#E 1\n#C Title  User = u\n\n#S 1 ct\n#N 1\n#L x\n1\n2\n"
    put(source, "a.dat", spec)
    put(source, "n.txt", b"text")
    inside = extract(str(source / "a.dat"))
    return demo_checks.Claims(
        sources={"a.dat": source / "a.dat", "n.txt": source / "n.txt"},
        experiment={
            "dataDirectory": str(folders["data"]),
            "analysisDirectory": str(folders["analysis"]),
            "storageDirectory": str(tmp_path / "exp"),
        },
        data_records={
            "a.dat": {**put(folders["data"], "a.dat", spec), **inside},
            "n.txt": {**put(folders["data"], "n.txt", b"text"), "mimeType": "text/plain"},
        },
        analysis_records={"pictures/a.dat.png": put(folders["analysis"], "pictures/a.dat.png", PNG)},
        jobs=[
            {"experimentFilePath": "a.dat", "status": "done", "points": "4", "maximum": "1"},
            {"experimentFilePath": "n.txt", "status": "done", "kind": "other"},
        ],
        plain={"n.txt"},
        owner=os.geteuid(),
        group=os.getegid(),
    )


def wrong(claims):
    return {check.claim: check.wrong for check in demo_checks.verify(claims) if not check.ok}


def test_a_world_as_claimed_passes(claims):
    assert wrong(claims) == {}


@pytest.mark.parametrize(
    ("spoil", "claim"),
    [
        (lambda c, d: (d / "data/a.dat").write_bytes(b"dataX"), "files stored"),
        (lambda c, d: (d / "data/a.dat").unlink(), "files stored"),
        (lambda c, d: (d / "data/n.txt").chmod(0o644), "stored files owned"),
        (lambda c, d: (d / "data/n.txt").chmod(0o660), "stored files owned"),
        (lambda c, d: c.data_records.pop("n.txt"), "files cataloged"),
        (lambda c, d: c.data_records.update(ghost={}), "files cataloged"),
        (lambda c, d: c.data_records["a.dat"].update(md5Sum="0"), "files cataloged"),
        (lambda c, d: c.data_records["a.dat"].pop("title"), "metadata found inside"),
        (lambda c, d: c.data_records["a.dat"].update(scanCount=7), "metadata found inside"),
        (lambda c, d: c.jobs.pop(), "jobs done"),
        (lambda c, d: c.jobs[0].update(status="failed"), "jobs done"),
        (lambda c, d: c.jobs[0].pop("points"), "jobs done"),
        (lambda c, d: (d / "analysis/pictures/a.dat.png").write_bytes(b"GIF"), "pictures"),
        (lambda c, d: c.analysis_records.clear(), "pictures"),
        (lambda c, d: (d / "data/a.dat.1").write_bytes(b"twice"), "nothing lost, nothing twice"),
        (lambda c, d: (d / ".staging/left").write_bytes(b"x"), "nothing lost, nothing twice"),
    ],
)
def test_each_claim_is_really_checked(claims, spoil, claim):
    spoil(claims, demo_checks.Path(claims.experiment["storageDirectory"]))
    assert any(found.startswith(claim) for found in wrong(claims))


def test_toml_comes_back_as_it_was():
    import tomllib

    values = {"a": 'x"\\\n\x7fé', "b": 1, "c": True, "d": [1, "two"], "e": 0.5, "none": None, "t": {"u v": {"w": 1}}}
    back = tomllib.loads(tomlwriter.dumps({"s": values, "z": {}}))
    assert back == {"s": {k: v for k, v in values.items() if v is not None}, "z": {}}
    with pytest.raises(TypeError, match="no TOML form"):
        tomlwriter.dumps({"s": {"x": object()}})
