"""Records in their published shape, which station they are of, and names made by templates."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from dm.common.errors import InvalidArgument
from dm.common.web.routes import Principal
from dm.site import rules
from dm.site.facility import records, sample
from dm.site.facility.plans import experiment_name, filled
from dm.site.facility.records import BadRecord
from dm.site.facility.selection import Selection, same_beamline
from dm.site.facility.settings import StationSelection

RUN = records.run({"name": "2026-1", "startTime": "2026-02-01", "endTime": "2026-04-30"})


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ({}, "its name is"),
        ({"name": "a/b", "startTime": "2026-01-01", "endTime": "2026-01-02"}, "its name is"),
        ({"name": "a", "startTime": "2026-01-01"}, "it has no endTime"),
        ({"name": "a", "startTime": "2026-01-02", "endTime": "2026-01-01"}, "it ends"),
        ("text", "it is no record"),
    ],
)
def test_runs_that_are_none(raw: Any, why: str) -> None:
    with pytest.raises(BadRecord, match=why):
        records.run(raw)


def test_a_run_of_the_newer_kind() -> None:
    raw = {"runName": "2026-1", "runId": 7, "startTime": "2026-02-01", "endTime": "2026-04-30"}
    assert records.run(raw) == RUN | {"runId": 7}


def test_a_proposal_without_run_is_of_the_run_it_is_in() -> None:
    raw = {"id": Decimal(7), "startTime": datetime(2026, 3, 1, tzinfo=UTC), "endTime": date(2026, 3, 4)}
    found = records.proposal(raw, {"2026-1": RUN})
    assert (found["id"], found["run"], found["duration"]) == (7, "2026-1", 3 * 86400)
    assert found["activities"] == [{key: found[key] for key in ("startTime", "endTime", "duration")}]


def test_values_of_databases_become_json() -> None:
    raw = {"a": float("nan"), "b": Decimal("1.5"), "c": Decimal("1E+999999"), "d": b"\xff", "e": (1, {2: "\0"})}
    assert records.clean(raw) == {"a": None, "b": 1.5, "c": None, "d": "\ufffd", "e": [1, {"2": "\ufffd"}]}
    deep: Any = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(BadRecord, match="nested deeper"):
        records.clean(deep)


@pytest.mark.parametrize(
    ("given", "badge"),
    [(12, "12"), (12.0, "12"), ("0012", "12"), (" d12", "12"), ("", ""), (None, ""), (True, ""), ("guest", "guest")],
)
def test_badges(given: Any, badge: str) -> None:
    assert records.badge(given) == badge


def test_flags_and_sectors() -> None:
    assert all(records.flag(value) for value in ("Y", "yes", True, 1, "X", " true "))
    assert not any(records.flag(value) for value in ("N", "No", "", None, 0, "false"))
    assert [records.sector(value) for value in (8, "8", "08", "25", None, "W")] == ["08", "08", "08", "25", "", "W"]


def test_stations() -> None:
    selection = Selection(
        {"25IDC": StationSelection(beamlines=["25-ID-C", "25-ID-D*"]), "LAB": StationSelection(sector="9")}
    )
    assert selection.belongs({"beamline": "25-ID-C"}, "25IDC")
    assert selection.belongs({"beamline": "25-ID-D,E"}, "25IDC")
    assert not selection.belongs({"beamline": "25-ID-B"}, "25IDC")
    assert selection.belongs({"beamline": "2-BM"}, "2BM") and not selection.belongs({"beamline": "12-BM"}, "2BM")
    assert selection.belongs({"sector": "02"}, "2BM") and selection.belongs({"sector": "09"}, "LAB")
    assert not selection.belongs({"sector": ""}, "NOWHERE") and not selection.belongs({}, "NOWHERE")
    assert selection.belongs({"station": "X", "sector": "02"}, "X")
    assert not selection.belongs({"station": "X", "sector": "02"}, "2BM")
    assert same_beamline("2-BM-A,B", "02-bm-a,b".removeprefix("0")) and same_beamline("2-BM-A,7-ID", "7-ID")
    assert not same_beamline("2-BM-A", "12-BM-A")


def test_a_token_for_one_station_sees_no_other() -> None:
    selection = Selection({})
    token = Principal("admin", frozenset({"administrator"}), only_station="2BM")
    assert selection.visible({"beamline": "2-BM"}, token, False)
    assert not selection.visible({"beamline": "25-ID-C"}, token, False)
    member = Principal("d7", only_station="2BM")
    assert not selection.visible({"beamline": "25-ID-C"}, member, True)


@pytest.mark.parametrize(
    ("last_name", "name"),
    [
        ("M\u00fcller", "M\u00fcller-7"),
        ("O'Neil", "ONeil-7"),
        ("de la Cruz / Smith", "de-la-Cruz-Smith-7"),
        ("../../etc", "etc-7"),
        ("", "7"),
        ("x" * 500, f"{'x' * 40}-7"),
        ("\u202e<script>", "script-7"),
        ("e\u0301", "\u00e9-7"),
        ("{title}", "title-7"),
        ("\U0001d49c" * 100, f"{chr(0x1D49C) * 31}"),
    ],
)
def test_names_of_experiments_are_acceptable(last_name: str, name: str) -> None:
    found = experiment_name("{pi_last_name}-{esaf_id}", {"pi_last_name": last_name, "esaf_id": 7})
    assert found == name or found.startswith(name)
    assert rules.object_name(found) == found


def test_templates() -> None:
    assert experiment_name("{pi_last_name}", {"pi_last_name": "?"}) == "experiment"
    assert filled("{title} {{x", {"title": "{title}"}) == "{title} {{x"
    with pytest.raises(InvalidArgument, match="has the field"):
        filled("{name.__class__}", {"name": "x"})


def test_the_sample_of_a_facility_is_good(tmp_path: Path) -> None:
    made = sample.write(tmp_path / "facility", "25IDC", date(2026, 12, 31))
    assert {path.name for path in made} >= {"README", "runs.csv", "proposals.csv", "esafs.csv", "esaf_people.csv"}
    assert sample.write(tmp_path / "facility", "25IDC") == []
    assert "100001,Example; replace it by what your facility has,2026-3," in (made[3].read_text() + made[1].read_text())
