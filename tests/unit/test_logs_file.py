"""Log files: rotation, a disk that fails, files moved away, secrets, request ids."""

import logging
import os
import threading

import pytest

from dm.common import logs
from dm.common.errors import ConfigurationError

log = logging.getLogger("dm.test")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "logs" / "service.log"


@pytest.fixture
def logging_to(path):
    opened = []

    def configure(**options):
        opened.append(logs.configure("storage", path, **options))
        return opened[-1]

    yield configure
    for configured in opened:
        configured.close()


def test_a_line(logging_to, path):
    logging_to()
    with logs.request("req-1"):
        log.info("Stored %d files", 3)
    log.info("after")
    first, second = path.read_text().splitlines()
    assert first.endswith("INFO storage req-1 dm.test: Stored 3 files")
    assert second.endswith("INFO storage - dm.test: after")
    assert path.stat().st_mode & 0o007 == 0


def test_levels(logging_to, path):
    logging_to(level="warning")
    log.info("no")
    log.warning("yes")
    logging.getLogger("somelibrary").info("no")
    logging.getLogger("somelibrary").warning("yes")
    assert [line.rpartition(" ")[2] for line in path.read_text().splitlines()] == ["yes", "yes"]
    with pytest.raises(ConfigurationError, match="LOUD"):
        logs.configure("storage", level="LOUD")


def test_closing_restores_logging(path):
    root = logging.getLogger()
    before = (list(root.handlers), root.level, logging.getLogger("dm").level)
    with logs.configure("storage", path, "DEBUG", stderr=True):
        assert root.handlers != before[0]
    assert (list(root.handlers), root.level, logging.getLogger("dm").level) == before


def test_rotation_by_size_and_count(logging_to, path):
    logging_to(max_bytes=1000, keep=2)
    for number in range(100):
        log.info("line %03d", number)
    names = sorted(item.name for item in path.parent.iterdir())
    assert names == ["service.log", "service.log.1", "service.log.2"]
    assert all(item.stat().st_size <= 1000 for item in path.parent.iterdir())
    text = "".join((path.parent / name).read_text() for name in ("service.log.2", "service.log.1", "service.log"))
    numbers = [int(line.rpartition(" ")[2]) for line in text.splitlines()]
    assert numbers == list(range(numbers[0], 100)), "the newest lines, in order, none lost at a rotation"


def test_rotation_without_keeping(logging_to, path):
    logging_to(max_bytes=300, keep=0)
    for number in range(20):
        log.info("line %d", number)
    assert [item.name for item in path.parent.iterdir()] == ["service.log"]


def test_two_processes_of_a_service_share_a_log(path):
    handlers = [logs.SteadyFileHandler(path, 2000, 50) for _ in range(2)]
    for handler in handlers:
        handler.setFormatter(logs.LineFormatter("storage"))

    def write(handler, who):
        for number in range(100):
            handler.emit(logging.LogRecord("dm", logging.INFO, "", 0, f"{who}-{number}", None, None))

    threads = [threading.Thread(target=write, args=(handler, who)) for who, handler in enumerate(handlers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for handler in handlers:
        assert handler.lost == 0
        handler.close()
    words = {line.split()[-1] for item in path.parent.iterdir() for line in item.read_text().splitlines()}
    assert words == {f"{who}-{number}" for who in (0, 1) for number in range(100)}


def test_a_file_moved_away_is_recreated(logging_to, path):
    logging_to()
    log.info("one")
    path.rename(path.with_suffix(".old"))
    log.info("two")
    assert path.read_text().endswith("two\n")
    path.unlink()
    log.info("three")
    assert path.read_text().endswith("three\n")


def test_a_vanished_directory_is_made_again(logging_to, path):
    logging_to()
    log.info("one")
    path.unlink()
    path.parent.rmdir()
    log.info("two")
    assert path.read_text().endswith("two\n")


def test_a_full_disk_does_not_stop_the_service(capfd, monkeypatch):
    handler = logs.SteadyFileHandler("/dev/full", max_bytes=0)
    monkeypatch.setattr(logs, "RETRY_SECONDS", 0.0)
    handler.setFormatter(logs.LineFormatter("storage"))
    for number in range(5):
        handler.emit(logging.LogRecord("dm", logging.INFO, "", 0, f"line {number}", None, None))
    assert handler.lost == 5
    assert capfd.readouterr().err == ""
    handler.close()


def test_lost_lines_are_counted_when_it_works_again(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "RETRY_SECONDS", 0.0)
    path = tmp_path / "gone" / "service.log"
    path.parent.write_text("a file in place of the directory")
    handler = logs.SteadyFileHandler(path)
    record = logging.LogRecord("dm", logging.INFO, "", 0, "line", None, None)
    handler.emit(record)
    handler.emit(record)
    path.parent.unlink()
    handler.emit(record)
    assert path.read_text().splitlines() == ["2 log lines could not be written before this one.", "line"]
    handler.close()


def test_a_failing_disk_is_not_tried_for_every_line(tmp_path):
    (tmp_path / "gone").write_text("")
    handler = logs.SteadyFileHandler(tmp_path / "gone" / "service.log")
    record = logging.LogRecord("dm", logging.INFO, "", 0, "line", None, None)
    handler.emit(record)
    (tmp_path / "gone").unlink()
    handler.emit(record)
    assert handler.lost == 2, "the next attempt comes after a pause"
    handler.close()


def test_a_wrong_format_argument_does_not_stop_the_service(logging_to, path):
    (handler,) = logging_to().handlers
    handler.emit(logging.LogRecord("dm", logging.INFO, "x.py", 7, "%d files", ("many",), None))
    assert "unformattable record from" in path.read_text()


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("login with password=hush now", "hush"),
        ("{'username': 'd1', 'password': 'hu sh'}", "hu sh"),
        ('{"servicePassword": "hush"}', "hush"),
        ("Cookie: SESSIONID=hush; Path=/", "hush"),
        ("set-cookie: SESSIONID=hush", "hush"),
        ("Authorization: Bearer hush", "hush"),
        ("Dm-Grant: 17.hush", "hush"),
        ("client_secret = hush", "hush"),
        ("access_token:hush", "hush"),
        ("postgresql+psycopg2://dm:hush@db/dm", "hush"),
    ],
)
def test_secrets_are_scrubbed(text, hidden):
    scrubbed = logs.scrub(text)
    assert hidden not in scrubbed
    assert "***" in scrubbed


@pytest.mark.parametrize(
    "text",
    [
        "stored 3 files",
        "https://host:22236/dm/x",
        "token refused",
        "secret: the file is gone" * 0,
        "a:b@c",
        "password file /x",
    ],
)
def test_other_text_stays(text):
    assert logs.scrub(text) == text


def test_tracebacks_are_scrubbed_and_values_cannot_forge_lines(logging_to, path):
    logging_to()
    try:
        raise ValueError("password=hush")
    except ValueError:
        log.exception("Failed for %s", "x\n2026-01-01 INFO forged\x1b[31m")
    text = path.read_text()
    assert "hush" not in text
    assert "Traceback" in text
    assert r"x\n2026-01-01 INFO forged\x1b[31m" in text


def test_undecodable_names_can_be_logged(logging_to, path):
    logging_to()
    log.info("file %s", os.fsdecode(b"\xff"))
    assert r"file \udcff" in path.read_text()
