"""apsbss: runs, beamlines, proposals and safety forms as its own code asks for them, unmodified and live."""

import pytest


@pytest.fixture(scope="module")
def seen(suite, drive, facility):
    variables = {name: value for name, value in suite.environment.items() if name.startswith("DM_")}
    return drive("apsbss_live.py", facility.beamline, **variables)


def test_runs_and_beamlines(seen, facility):
    assert seen["currentRun"] == facility.run
    assert facility.run in seen["runs"] and facility.run == seen["recentRuns"][0]
    assert seen["beamlines"] == [facility.other_beamline, facility.beamline]


def test_proposals(seen, facility):
    assert set(seen["proposals"]) == {"100001", "158394"}
    proposal = seen["proposals"]["158394"]
    assert proposal["title"] == facility.title
    assert proposal["current"] is True
    assert proposal["badges"] == ["111111", "222222"]
    assert proposal["pi"] == "First Example <first@example.org>"
    assert (proposal["mailIn"], proposal["proprietary"], proposal["days"]) == (False, True, 2)
    assert proposal["info"]["PI affiliation"] == "Institute"
    assert seen["proposal"]["experimenters"][0]["instId"] == 0


def test_safety_forms(seen, facility):
    assert set(seen["esafs"]) == {"200001", "200002"}
    assert seen["esafs"]["200001"] == {
        "title": facility.title,
        "pi": "First Example <first@example.org>",
        "status": "Approved",
    }
    assert seen["esaf"]["esafId"] == 200001
    assert seen["esaf"]["sector"] == "25"


def test_both_together(seen):
    assert seen["current"] == [2, 2]
    assert seen["matches"]["158394"] == [200001]
    assert set(seen["search"]) == {"ESAF", "proposal"}
    assert "esaf_id=1" in seen["noEsaf"]
    assert "proposal_id=1" in seen["noProposal"]


def test_its_command(seen, facility):
    printed = seen["commands"]
    assert facility.beamline in printed["beamlines"]
    assert facility.run in printed["runs"]
    for what in ("list", "now"):
        assert "158394" in printed[what] and "200001" in printed[what]
    assert "esafId: 200001" in printed["esaf"]
    assert "id: 158394" in printed["proposal"]
