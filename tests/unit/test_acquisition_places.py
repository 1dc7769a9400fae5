"""How many batches are moved at the same time."""

from __future__ import annotations

from contextlib import ExitStack

from dm.station.acquisition.places import Places, destination_of


def test_a_destination_that_hangs_leaves_places_for_others() -> None:
    places = Places(4, 3)
    with ExitStack() as hung:
        for task in ("a", "b", "c"):
            assert hung.enter_context(places.entered(task, "HUNG@storage"))
        with places.entered("d", "HUNG@storage") as free:
            assert not free
        with places.entered("d", "OTHER@storage") as free:
            assert free
            with places.entered("e", "THIRD@storage") as fifth:
                assert not fifth
    with places.entered("d", "HUNG@storage") as free:
        assert free


def test_one_task_gets_half_of_the_movers() -> None:
    places = Places(4, 4)
    with places.entered("a", "x") as first, places.entered("a", "x") as second, places.entered("a", "x") as third:
        assert (first, second, third) == (True, True, False)
        with places.entered("b", "x") as other:
            assert other
    with Places(1, 9).entered("a", "x") as alone:
        assert alone


def test_a_place_is_given_back_when_the_move_fails() -> None:
    places = Places(1, 1)
    try:
        with places.entered("a", "x"):
            raise OSError
    except OSError:
        pass
    with places.entered("a", "x") as free:
        assert free


def test_two_storages_on_one_host_are_two_destinations() -> None:
    one = {"primaryStorage": {"name": "VOYAGER"}, "storageHost": "s"}
    other = {"primaryStorage": {"name": "TAPE"}, "storageHost": "s"}
    assert destination_of(one) != destination_of(other)
    assert destination_of({}) == "@"
