"""The facility API: the published paths, the rules of its arguments, its records."""

import pytest

import dm
from dm.common.tls import server_context
from tests.service.client_fixtures import json_step, serving


@pytest.fixture
def peer(certificates, monkeypatch):
    monkeypatch.setenv("DM_CA_FILE", str(certificates / "ca.pem"))
    monkeypatch.setenv("DM_STATION_NAME", "25IDC")
    with serving(server_context(certificates / "server.pem", certificates / "server.key")) as started:
        monkeypatch.setenv("DM_APS_DB_WEB_SERVICE_URL", f"https://localhost:{started.server_port}")
        yield started


def closing(api):
    try:
        yield api
    finally:
        api.close()


@pytest.fixture
def bss(peer):
    yield from closing(dm.BssApsDbApi())


@pytest.fixture
def esafs(peer):
    yield from closing(dm.EsafApsDbApi())


@pytest.mark.parametrize(
    ("call", "path"),
    [
        (lambda api: api.listRuns(), "/dm/bss/runs"),
        (lambda api: api.listBeamlines(), "/dm/bss/beamlines"),
        (lambda api: api.listProposals(), "/dm/bss/beamlineProposals"),
        (lambda api: api.listProposals("2026-1"), "/dm/bss/beamlineProposals?runName=2026-1"),
        (
            lambda api: api.listProposals(beamlineName="25-ID-C", runName="2026-1"),
            "/dm/bss/beamlineProposals/25-ID-C?runName=2026-1",
        ),
        (lambda api: api.listStationProposals(), "/dm/bss/stationProposals/25IDC"),
        (
            lambda api: api.listStationProposals("2BM", "2-BM-A,B", "2026-1"),
            "/dm/bss/stationProposals/2BM/2-BM-A%2CB?runName=2026-1",
        ),
    ],
)
def test_lists_of_runs_and_proposals(peer, bss, call, path):
    peer.script = [json_step(200, '[{"name": "x"}, {"name": "y"}]')]
    assert [record["name"] for record in call(bss)] == ["x", "y"]
    assert peer.requests[0][:2] == ("GET", path)


@pytest.mark.parametrize(
    ("call", "path"),
    [
        (lambda api: api.getCurrentRun(), "/dm/bss/runs/current"),
        (lambda api: api.getProposal(70001, "2026-1", "25-ID-C"),
         "/dm/bss/proposalsById/70001?runName=2026-1&beamlineName=25-ID-C"),
        (lambda api: api.getStationProposalById("25IDC", "0070001"), "/dm/bss/stationProposalsById/25IDC/0070001"),
    ],
)  # fmt: skip
def test_one_run_or_proposal(peer, bss, call, path):
    peer.script = [json_step(200, '{"id": 70001, "startTime": "a", "endTime": "b"}')]
    assert call(bss)["id"] == 70001
    assert peer.requests[0][:2] == ("GET", path)


@pytest.mark.parametrize(
    ("call", "path"),
    [
        (lambda api: api.listEsafs("08", 2026), "/dm/esaf/sectorEsafs/08?year=2026"),
        (lambda api: api.listStationEsafs(), "/dm/esaf/stationEsafs/25IDC"),
        (lambda api: api.listStationEsafs("2BM", "2-BM-A", 2026), "/dm/esaf/stationEsafs/2BM/2-BM-A?year=2026"),
        (lambda api: api.listStationEsafsByDateRange("2BM", "2026-01-01", "2026-02-01"),
         "/dm/esaf/stationEsafsByDateRange/2BM?startDate=2026-01-01&endDate=2026-02-01"),
        (lambda api: api.listStationProposals("2BM"), "/dm/bss/stationProposals/2BM"),
    ],
)  # fmt: skip
def test_lists_of_safety_forms(peer, esafs, call, path):
    peer.script = [json_step(200, "[{}]")]
    assert len(call(esafs)) == 1
    assert peer.requests[0][:2] == ("GET", path)


def test_safety_forms_and_proposals_have_dates(peer, esafs, bss):
    form = '{"esafId": 1, "experimentStartDate": "2026-01-01 08:00:00", "experimentEndDate": "2026-01-02 08:00:00"}'
    peer.script = [json_step(200, form), json_step(200, form), json_step(200, '{"startTime": "a", "endTime": "b"}')]
    for record in (esafs.getEsaf(1), esafs.getStationEsafById("25IDC", 1)):
        assert (record.getStartDate(), record.getEndDate()) == ("2026-01-01 08:00:00", "2026-01-02 08:00:00")
    proposal = bss.getProposal(1)
    assert (proposal.getStartDate(), proposal.getEndDate()) == ("a", "b")
    assert [path for _, path, _, _ in peer.requests] == [
        "/dm/esaf/esafsById/1",
        "/dm/esaf/stationEsafsById/25IDC/1",
        "/dm/bss/proposalsById/1",
    ]


def test_without_a_service_scripts_can_go_on():
    for api in (dm.BssApsDbApi("https://localhost:1"), dm.EsafApsDbApi("https://localhost:1")):
        with pytest.raises(dm.DmException, match="connection refused"):
            api.listStationProposals("25IDC")
        api.close()


def test_without_a_station_the_variable_is_named(monkeypatch):
    monkeypatch.delenv("DM_STATION_NAME", raising=False)
    with pytest.raises(dm.ConfigurationError, match="DM_STATION_NAME"):
        dm.BssApsDbApi("https://localhost:1").listStationProposals()
