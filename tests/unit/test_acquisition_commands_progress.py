"""The words and lines in which commands tell how far a DAQ or upload is."""

from __future__ import annotations

import pytest

from dm.station.acquisition.api import DaqInfo, UploadInfo
from dm.station.acquisition.commands.progress import (
    Lines,
    fraction,
    goes_on,
    numbers,
    size_text,
    summary,
    time_text,
    trouble,
)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (999_499, "999 kB"), (999_700, "1.00 MB"), (12_345_678, "12.3 MB"),
     (99_960_000, "100 MB"), (5e9, "5.00 GB"), (3.2e12, "3.20 TB"), (4e18, "4000 PB")],
)  # fmt: skip
def test_sizes(count: float, text: str) -> None:
    assert size_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0 s"), (0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (187, "3:07 min"), (7500, "2:05 h"),
     (360_000, "100:00 h")],
)  # fmt: skip
def test_times(seconds: float, text: str) -> None:
    assert time_text(seconds) == text


RUNNING = {
    "id": "u", "status": "finalizing", "countFiles": 5000, "nProcessedFiles": 1234, "nProcessingErrors": 3,
    "completedBytes": 1_200_000_000, "countBytes": 4_500_000_000, "fileRate": 812.4, "byteRate": 98.3e6,
    "secondsRemaining": 34.2,
}  # fmt: skip


def test_numbers_of_an_upload() -> None:
    assert numbers(UploadInfo(dict(RUNNING)), 4.0) == [
        "1,234 of 5,000 files", "1.20 GB of 4.50 GB", "812 files/s", "98.3 MB/s", "30 s left", "3 failed",
    ]  # fmt: skip
    listing = {**RUNNING, "status": "running", "fileRate": 2.0, "nProcessingErrors": 0}
    del listing["secondsRemaining"]
    assert numbers(UploadInfo(listing)) == [
        "1,234 of 5,000+ files", "1.20 GB of 4.50 GB+", "2.0 files/s", "98.3 MB/s",
    ]  # fmt: skip
    assert numbers(DaqInfo(listing))[0] == "1,234 of 5,000 files"
    assert numbers(UploadInfo({"status": "running"})) == ["no files yet"]
    assert numbers(UploadInfo({"status": "done"})) == ["0 of 0 files", "0 B"]


def test_an_idle_daq() -> None:
    info = {
        "countFiles": 5, "nProcessedFiles": 5, "completedBytes": 5, "status": "running", "startTime": 1000.0,
        "runTime": 100.0, "lastProgressTime": 1040.0, "fileRate": 3.0,
    }  # fmt: skip
    assert numbers(DaqInfo(info), 12.0) == ["5 of 5 files", "5 B", "nothing new for 1:12 min"]
    assert numbers(UploadInfo(info))[2] == "3.0 files/s"
    assert "nothing new" not in str(numbers(DaqInfo({**info, "nWaitingFiles": 1, "countFiles": 6})))
    assert "nothing new" not in str(numbers(DaqInfo({**info, "lastProgressTime": 1098.0})))


def test_large_files_are_told_in_bytes() -> None:
    small = {"countFiles": 100, "nProcessedFiles": 50, "countBytes": 10**8, "completedBytes": 10**7}
    assert fraction(UploadInfo(small)) == 0.5
    large = {"countFiles": 2, "countBytes": 4 * 10**9, "completedBytes": 0, "movingBytes": 10**9, "status": "running"}
    assert fraction(UploadInfo(large)) == 0.25
    assert numbers(DaqInfo(large))[:2] == ["0 of 2 files", "1.00 GB of 4.00 GB"]
    assert fraction(UploadInfo({**large, "nProcessedFiles": 2})) == 1.0
    assert fraction(UploadInfo({})) == 0.0


def test_trouble_is_one_harmless_line() -> None:
    assert trouble(UploadInfo({**RUNNING, "errorMessage": "a\x1b[2Jb\nc: Disk full."})) == "a\\x1b[2Jb\\nc: Disk full."
    assert trouble(UploadInfo({**RUNNING, "status": "failed", "errorMessage": "3 failed."})) == ""


def test_summaries() -> None:
    over = {**RUNNING, "status": "failed", "nCompletedFiles": 4997, "completedBytes": 4.4e9, "runTime": 41.0}
    assert summary(UploadInfo(over)) == (
        "Upload u: failed. 4,997 files, 4.40 GB, 3 failed in 41 s (121.9 files/s, 107 MB/s)."
    )
    empty = {"id": "d", "status": "done", "nSkippedFiles": 2, "runTime": 0.2}
    assert summary(DaqInfo(empty)) == "DAQ d: done. 0 files, 0 B, 2 skipped in 0 s."


def test_lines_come_at_intervals_and_at_changes_of_the_status(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(3600)
    for _ in range(3):
        lines.show(UploadInfo({**RUNNING, "status": "running"}))
    lines.show(UploadInfo({**RUNNING, "errorMessage": "Storage is away."}))
    lines.show(UploadInfo({**RUNNING, "status": "done"}))
    shown = capsys.readouterr()
    assert shown.out == ""
    first, second = shown.err.splitlines()
    assert " running: 1,234 of 5,000+ files, " in first
    assert second.endswith(" finalizing: 1,234 of 5,000 files, 1.20 GB of 4.50 GB, 812 files/s, 98.3 MB/s, 34 s left, "
                           "3 failed - Storage is away.")  # fmt: skip


def test_what_goes_on_is_told_with_the_command_that_stops_it() -> None:
    assert "dm-stop-upload --id u" in goes_on(UploadInfo({"id": "u"}))
    daq = goes_on(DaqInfo({"id": "d", "experimentName": "e 1", "dataDirectory": "/data/it's"}))
    assert daq.startswith("DAQ d goes on. ") and "--id d\n" in daq
    assert daq.endswith("""dm-stop-daq --experiment 'e 1' --data-directory '/data/it'"'"'s'""")
