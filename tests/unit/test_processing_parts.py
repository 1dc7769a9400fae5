"""The smaller parts: output regexes, input specifications, queries, fair places, records."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from dm.common.errors import InvalidArgument
from dm.station.processing import documents, inputs, queries, regexes
from dm.station.processing.admission import Admission, Waiting
from dm.station.processing.slots import FairSlots


def test_regexes_are_searched_anywhere_in_multi_line_output() -> None:
    output = b"noise\nMD5: abc def\nQueue: all.q\nresult 42\n"
    patterns = ["MD5: (?P<md5Sum>.*)", "Queue: (?P<queue>.*)", r"(?P<result>\d+)$", "(?P<absent>zzz)?noise"]
    assert regexes.capture(patterns, output) == {"md5Sum": "abc def", "queue": "all.q", "result": "42"}
    assert regexes.capture(["(?P<name>ü.*)"], "x ünï".encode()) == {"name": "ünï"}


def test_output_that_is_not_text_is_searched_as_bytes() -> None:
    found = regexes.capture(["File: (?P<f>.*)"], b"\xfe\nFile: a\xff\x00b\n")
    assert found == {"f": "a\udcffb"}
    assert regexes.capture(["(?P<f>a+)"], "aaü".encode()[:-1]) == {"f": "aa"}


@pytest.mark.timeout(30)
def test_no_regex_takes_long() -> None:
    regexes.capture(["(?P<x>(a+)+)$", "(?P<y>(.*)*)z", r"(?P<z>(a|a)*)b"], b"a" * (1 << 20))
    pattern = "(?P<x>[ab]{0,300}a[ab]{300})c"
    regexes.check(pattern)
    regexes.capture([pattern], b"ab" * (1 << 19))


def test_named_files_count_whether_they_exist_or_not() -> None:
    for path in ("/dev/null", "README.md", "/a b/;c"):
        assert inputs.files({"filePath": path}, 10) == [path]
    assert inputs.files({"filePathList": "a, b"}, 10) == ["a", "b"]
    assert inputs.files({"filePathList": ["a", "b,c"]}, 10) == ["a", "b,c"]


def test_directories_are_listed_within_their_limits(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "sub").mkdir(parents=True)
    for name in ("b.h5", "a.h5", "c.txt", ".hidden.h5", "sub/d.h5"):
        (data / name).touch()
    (data / "link.h5").symlink_to("/etc/passwd")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "s.h5").touch()
    (data / "out").symlink_to(tmp_path / "secret")
    assert inputs.files({"filePathPattern": f"{data}/*.h5"}, 10) == [f"{data}/a.h5", f"{data}/b.h5"]
    assert inputs.files({"dataDir": str(data)}, 10) == [f"{data}/a.h5", f"{data}/b.h5", f"{data}/c.txt"]
    root = str(data)
    assert inputs.files({"filePathPattern": "*.h5"}, 10, root, False) == ["a.h5", "b.h5"]
    assert inputs.files({"filePathPattern": "sub/*"}, 10, root, False) == ["sub/d.h5"]
    assert inputs.files({"dataDir": "sub"}, 10, root, False) == ["sub/d.h5"]
    assert inputs.files({"dataDir": f"{root}/sub"}, 10, root, False) == [f"{root}/sub/d.h5"]
    for bad in (
        {"dataDir": f"{root}/../secret"},
        {"dataDir": f"{root}/out"},
        {"filePathPattern": "out/*"},
        {"filePathPattern": "../secret/*"},
        {"dataDir": ".."},
        {"dataDir": str(tmp_path / "secret")},
        {"filePathPattern": "*/*"},
        {"filePathPattern": "*.nothing"},
        {"dataDir": "nowhere"},
    ):
        with pytest.raises(InvalidArgument, match=r"^Invalid input file specification\. [A-Z]"):
            inputs.files(bad, 10, root, False)
    with pytest.raises(InvalidArgument, match="More than 1 files"):
        inputs.files({"dataDir": str(data)}, 1)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"filePath": ""},
        {"filePath": 5},
        {"filePath": "a\0b"},
        {"filePathList": {"a": 1}},
        {"filePathList": [1]},
        {"filePathList": ["x"] * 11},
        {"filePathPattern": "*.h5"},
        {"dataDir": "relative"},
        {"dataDir": ["/a"]},
        {"fileQuery": {"fileSize": 1}},
        {"datasetName": "d"},
        {"experimentName": "e", "fileQuery": "fileSize > 5"},
        {"experimentName": "e", "fileQuery": "[1]"},
        {"experimentName": "e", "fileQuery": "[" * 70_000},
        {"experimentName": "e", "datasetName": 5},
    ],
)
def test_bad_input_specifications_are_told(arguments: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument, match=r"^Invalid input file specification\. \S.*\.$"):
        inputs.files(arguments, 10)


@pytest.mark.parametrize("path", ["../x", "a/../../x"])
def test_relative_files_stay_in_their_experiment(path: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^Invalid input file specification\. .*leaves"):
        inputs.files({"filePath": path}, 10, "/data/e1")
    assert inputs.files({"filePath": "a/b.h5"}, 10, "/data/e1") == ["a/b.h5"]


def test_the_catalog_is_asked_when_nothing_else_names_files() -> None:
    asked: list[object] = []

    def catalog(*question: object) -> list[str]:
        asked.append(question)
        return ["run1/a.h5", "./b.h5"]

    for given in ({"datasetName": "d"}, {"dataset": "d"}, {"fileQuery": '{"a": {"$gt": 1}}'}, {"fileQuery": {"a": 1}}):
        arguments = {"experimentName": "e1", **given}
        assert inputs.files(arguments, 5, "/data/e1", catalog=catalog) == ["run1/a.h5", "b.h5"]
        assert inputs.files({**arguments, "filePath": "x"}, 5, "/data/e1", catalog=catalog) == ["x"]
    assert asked == [
        ("e1", "d", None, 5),
        ("e1", "d", None, 5),
        ("e1", None, {"a": {"$gt": 1}}, 5),
        ("e1", None, {"a": 1}, 5),
    ]
    with pytest.raises(InvalidArgument, match="More than 1 files match"):
        inputs.files({"experimentName": "e1", "datasetName": "d"}, 1, "/data/e1", catalog=catalog)


def test_a_stage_may_have_files_of_its_own(tmp_path: Path) -> None:
    for name in ("data/in/b.h5", "data/in/a.h5", "data/out/c.h5", "data/in/.hidden", "other/d.h5"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    root, known = str(tmp_path / "data"), {"run": "in", "evil": "../other", "n": 5}
    assert inputs.stage_files({"dataDir": "$run"}, known, 10, root) == ["in/a.h5", "in/b.h5"]
    assert inputs.stage_files({"dataDir": ["out", "${run}/", "out"]}, known, 10, root) == [
        "out/c.h5",
        "in/a.h5",
        "in/b.h5",
    ]
    for bad, reason in (
        ("$nothing", "'nothing', which has no value"),
        ("$evil", "leaves the experiment"),
        ("$n", "cannot be read"),
        ("*", "Wildcards"),
        ([], "No file lies"),
    ):
        with pytest.raises(InvalidArgument, match=reason):
            inputs.stage_files({"dataDir": bad}, known, 10, root)
    with pytest.raises(InvalidArgument, match="More than 2 files"):
        inputs.stage_files({"dataDir": ["in", "out"]}, known, 2, root)


def test_queries_are_translated() -> None:
    given = {"id": "x", "status": {"$in": ["done", "failed"]}, "workflow.name": "w", "experimentName": "e1"}
    assert queries.translated(given) == {
        "_id": "x",
        "status": {"$in": ["done", "failed"]},
        "workflowName": "w",
        "values.experimentName": "e1",
    }
    assert queries.translated({"runNumber": {"$gte": 5, "$lt": 9, "$exists": True}})["values.runNumber"]["$lt"] == 9


@pytest.mark.parametrize(
    "query",
    [
        {"$where": "sleep(1000)"},
        {"$or": [{}]},
        {"status": {"$where": "1"}},
        {"status": {"$regex": "(a+)+$"}},
        {"status": {"$not": {"$in": []}}},
        {"status": {"nested": 1}},
        {"status": {}},
        {"status": ["a"]},
        {"status": {"$in": "a"}},
        {"status": {"$in": [{"$gt": 1}]}},
        {"status": {"$gt": {"$gt": 1}}},
        {"a.b": 1},
        {"workflow": 1, "a$b": 2},
        {"": 1},
        {"x": "y" * 2000},
        {"x": 1 << 80},
        {f"k{number}": 1 for number in range(51)},
    ],
)
def test_queries_that_are_not_on_the_list_are_refused(query: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        queries.translated(query)


def test_workflows_are_matched_by_the_same_rules() -> None:
    record = {"name": "a", "version": 3}
    assert queries.matcher({"name": "a", "version": {"$gt": 2, "$ne": 4}, "x": {"$exists": False}})(record)
    assert not queries.matcher({"version": {"$lt": "text"}})(record)
    assert queries.matcher(None)(record)


def test_places_go_round_the_owners_and_to_their_oldest_jobs() -> None:
    async def main() -> list[str]:
        slots, order = FairSlots(1), []

        async def work(owner: str, job: str) -> None:
            await slots.acquire(owner, job)
            order.append(f"{owner}{job}")
            await asyncio.sleep(0)
            slots.release(owner)

        slots.take("z")
        tasks = [asyncio.ensure_future(work("a", job)) for job in "3142"]
        tasks += [asyncio.ensure_future(work("b", job)) for job in "21"]
        await asyncio.sleep(0)
        assert slots.waiting == 6
        gone = asyncio.ensure_future(work("c", "1"))
        await asyncio.sleep(0)
        gone.cancel()
        slots.release("z")
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (slots.used, slots.waiting) == (0, 0)
        return order

    assert asyncio.run(main()) == ["a1", "b1", "a2", "b2", "a3", "a4"]


def test_output_is_made_displayable_and_short() -> None:
    assert documents.displayed(b"a\xff\x00\xc3\xbc") == "a\\xff\\x00ü"
    text = documents.displayed(b"a" * 50, b"b" * 50, 900)
    assert text.startswith("a" * 50) and text.endswith("b" * 50) and "900 bytes left out" in text
    assert documents.displayable("a\udcff") == "a\\xff"
    assert documents.searchable({"a": 1, "b c": 2, "d": [1], "e": "x" * 2000, "f": True, "g": 1 << 70}) == {
        "a": 1,
        "f": True,
    }


def waiting(name: str, owner: str = "a", priority: int = 0, workflow: str = "w", most: int = 0) -> Waiting:
    return Waiting(rank=(-priority, name), id=name, owner=owner, workflow=workflow, most=most)


def begun(admission: Admission) -> list[str]:
    found = []
    while (job := admission.next()) is not None:
        found.append(job.id)
    return found


def test_urgent_jobs_begin_first_and_owners_take_turns() -> None:
    admission = Admission(3)
    for job in (waiting("1"), waiting("2"), waiting("3"), waiting("4", "b"), waiting("5", "b"), waiting("6", "c", 9)):
        admission.add(job)
    assert begun(admission) == ["6", "1", "4"] and len(admission) == 3
    admission.add(waiting("1"))  # it is under way
    admission.ended("6")
    assert begun(admission) == ["2"]
    for name in ("1", "2", "4"):
        admission.ended(name)
    assert begun(admission) == ["5", "3"] and len(admission) == 0


def test_jobs_of_a_narrow_workflow_wait_for_each_other_and_for_nobody_else() -> None:
    admission = Admission(10)
    for name in ("1", "2", "3"):
        admission.add(waiting(name, workflow="narrow", most=1))
    admission.add(waiting("4"))
    assert begun(admission) == ["1", "4"] and len(admission) == 2
    assert admission.remove("2") is not None  # to be stopped, whatever the limits
    assert admission.remove("2") is None
    admission.ended("1")
    assert begun(admission) == []
    admission.ended("2")
    assert begun(admission) == ["3"]
    admission.ended("3")
    assert len(admission) == 0 and begun(admission) == []


def test_thousands_that_cannot_begin_cost_nothing_again_and_again() -> None:
    admission = Admission(100_000)
    for number in range(20_000):
        admission.add(waiting(f"{number:06d}", owner=f"o{number % 3}", workflow="narrow", most=1))
        assert len(begun(admission)) == (number == 0)
    for number in range(19_999):
        admission.ended(f"{number:06d}")
        assert begun(admission) == [f"{number + 1:06d}"]
