"""Drive the published ``apsbss`` package against a live Facility Service and print what it saw as JSON.

Run by the clients' own interpreter: ``python apsbss_live.py BEAMLINE``. The DM_* variables of the setup file are in the
environment beforehand, as apsbss reads the service's address at import.
"""

import contextlib
import io
import json
import sys

from apsbss import apsbss
from apsbss.server_interface import EsafNotFound, ProposalNotFound, Server

beamline = sys.argv[1]
sector = beamline.split("-")[0]
server = Server()
run = server.current_run
seen = {"runs": server.runs, "currentRun": run, "recentRuns": server.recent_runs(3), "beamlines": server.beamlines}
proposals = server.proposals(beamline, run)
seen["proposals"] = {
    str(number): {
        "title": proposal.title,
        "current": proposal.current,
        "badges": proposal.badges,
        "pi": proposal.pi,
        "mailIn": proposal.mail_in,
        "proprietary": proposal.proprietary,
        "days": (proposal.endDate - proposal.startDate).days,
        "info": proposal.info,
    }
    for number, proposal in proposals.items()
}
first = 158394
seen["proposal"] = server.proposal(first, beamline, run).to_dict()
esafs = server.esafs(sector, run)
seen["esafs"] = {str(form.esaf_id): {"title": form.title, "pi": form.pi, "status": form.status} for form in esafs}
seen["esaf"] = server.esaf(esafs[0].esaf_id)
seen["current"] = [len(server.current_esafs(sector)), len(server.current_proposals(beamline))]
seen["matches"] = {str(number): found for number, found in server.current_esafs_and_proposals(beamline).items()}
seen["search"] = [found["type"] for found in server.search("silver")]
try:
    server.esaf(1)
except EsafNotFound as error:
    seen["noEsaf"] = str(error)
try:
    server.proposal(1, beamline, run)
except ProposalNotFound as error:
    seen["noProposal"] = str(error)

seen["commands"] = {}
for words in (
    ["beamlines"], ["runs", "--full"], ["list", beamline], ["now", beamline], ["esaf", str(esafs[0].esaf_id)],
    ["proposal", str(first), run, beamline],
):  # fmt: skip
    sys.argv = ["apsbss", *words]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        apsbss.main()
    seen["commands"][words[0]] = printed.getvalue()
print("\n" + json.dumps(seen, default=str))
