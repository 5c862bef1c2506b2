"""Where a loader stands and where its next pass begins: contracts C1 to C4, case by case."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from subjects import Indices, ids
from torch.utils.data import BatchSampler, DistributedSampler

from dataporter import ConfigurationError, ResumableDataLoader


def loader_of(length: int = 10, batch_size: int = 2, **arguments: Any) -> ResumableDataLoader[Any]:
    return ResumableDataLoader(Indices(length), batch_size, **{"seed": 1, **arguments})


def epoch_of(epoch: int, **arguments: Any) -> list[list[int]]:
    loader = loader_of(shuffle=True, **arguments)
    loader.set_epoch(epoch)
    return [ids(batch) for batch in loader]


def place(loader: ResumableDataLoader[Any]) -> tuple[int, int, int, int]:
    return loader.epoch, loader.step, loader.position, loader.remaining


@pytest.mark.parametrize("workers", [0, 2])
def test_position_counts_what_was_delivered_not_what_was_prefetched(workers: int) -> None:
    loader = loader_of(num_workers=workers)
    assert place(loader) == (0, 0, 0, 5)
    for delivered, _ in enumerate(loader, start=1):
        assert place(loader) == (0, delivered, 2 * delivered, 5 - delivered)
    assert place(loader) == (1, 0, 0, 5)


def test_a_state_after_the_last_batch_resumes_with_no_batch_and_then_the_next_epoch() -> None:
    loader = loader_of(shuffle=True)
    for _ in loader:
        state = loader.state_dict()
    resumed = loader_of(shuffle=True)
    resumed.load_state_dict(state)
    assert place(resumed) == (0, 5, 10, 0)
    assert [ids(batch) for batch in resumed] == []
    assert [ids(batch) for batch in resumed] == epoch_of(1)


def test_a_state_after_the_loop_ended_resumes_with_the_whole_next_epoch() -> None:
    loader = loader_of(shuffle=True)
    list(loader)
    resumed = loader_of(shuffle=True)
    resumed.load_state_dict(loader.state_dict())
    assert [ids(batch) for batch in resumed] == epoch_of(1)


def test_passes_are_consecutive_epochs_also_after_an_abandoned_one() -> None:
    loader = loader_of(shuffle=True)
    assert [ids(batch) for batch in loader] == epoch_of(0)
    next(iter(loader))
    assert loader.epoch == 1
    assert [ids(batch) for batch in loader] == epoch_of(2)


def test_an_iterator_without_a_next_changes_nothing() -> None:
    loader = loader_of(shuffle=True)
    iter(loader)
    iter(loader)
    assert [ids(batch) for batch in loader] == epoch_of(0)


def test_set_epoch_between_iter_and_next_counts() -> None:
    loader = loader_of(shuffle=True)
    batches = iter(loader)
    loader.set_epoch(3)
    assert [ids(batch) for batch in batches] == epoch_of(3)
    assert loader.epoch == 4


def test_set_epoch_on_the_current_epoch_changes_nothing() -> None:
    loader = loader_of(shuffle=True)
    loader.seek(epoch=2, step=3)
    loader.set_epoch(2)
    assert [ids(batch) for batch in loader] == epoch_of(2)[3:]
    loader.load_state_dict({**loader.state_dict(), "epoch": 2, "step": 1, "position": 2})
    loader.set_epoch(2)
    assert [ids(batch) for batch in loader] == epoch_of(2)[1:]


def test_set_epoch_on_another_epoch_starts_it() -> None:
    loader = loader_of(shuffle=True)
    loader.seek(epoch=2, step=3)
    loader.set_epoch(1)
    assert place(loader) == (1, 0, 0, 5)
    assert [ids(batch) for batch in loader] == epoch_of(1)


def test_set_epoch_while_a_pass_is_under_way_counts_for_the_next_one() -> None:
    loader = loader_of(shuffle=True)
    seen = []
    for batch in loader:
        seen.append(ids(batch))
        if len(seen) == 2:
            loader.set_epoch(7)
    assert seen == epoch_of(0)
    assert [ids(batch) for batch in loader] == epoch_of(7)


@pytest.mark.parametrize("reach", ["sampler", "batch_sampler.sampler"])
def test_set_epoch_on_what_frameworks_can_reach_is_the_loaders(reach: str) -> None:
    loader = loader_of(shuffle=True)
    reached: Any = loader
    for name in reach.split("."):
        reached = getattr(reached, name)
    reached.set_epoch(4)
    assert loader.epoch == reached.epoch == 4
    assert [ids(batch) for batch in loader] == epoch_of(4)


def test_the_samplers_set_epoch_never_goes_back() -> None:
    # Fabric counts its passes from 0 after a resume, and calls this before each.
    loader = loader_of(shuffle=True)
    loader.seek(epoch=3, step=2)
    resumed = loader_of(shuffle=True)
    resumed.load_state_dict(loader.state_dict())
    resumed.sampler.set_epoch(0)
    assert [ids(batch) for batch in resumed] == epoch_of(3)[2:]
    resumed.sampler.set_epoch(1)
    assert [ids(batch) for batch in resumed] == epoch_of(4)
    resumed.set_epoch(1)
    assert [ids(batch) for batch in resumed] == epoch_of(1), "the loader's own does"


def test_the_state_of_a_loop_that_reads_ahead_is_where_the_loop_stands() -> None:
    def rest(state: dict[str, Any]) -> list[list[int]]:
        resumed = loader_of(shuffle=True)
        resumed.load_state_dict(state)
        return [ids(batch) for batch in resumed]

    def behind(read_ahead: int) -> dict[str, Any]:
        return loader.state_dict(at=loader.mark(read_ahead=read_ahead))

    loader, expected = loader_of(shuffle=True), epoch_of(0)
    batches = iter(loader)
    assert rest(behind(0)) == expected
    for delivered, _ in enumerate(batches, start=1):
        assert rest(behind(1)) == expected[delivered - 1 :]
        assert rest(behind(0)) == expected[delivered:]
        assert rest(behind(2)) == expected[max(0, delivered - 2) :]
        assert behind(0) == loader.state_dict()
    assert rest(behind(2)) == expected[-1:], "it has asked for the end as well"
    for read_ahead in (0, 1):
        ended = behind(read_ahead)
        assert (ended["epoch"], ended["step"]) == (0, 5), "its loop has not begun another pass"
        assert rest(ended) == []
    assert next(batches, None) is None
    assert rest(behind(2)) == [], "it has asked for the end twice"
    assert rest(loader.state_dict()) == epoch_of(1)
    next(iter(loader))
    assert rest(behind(1)) == epoch_of(1)
    assert rest(behind(2)) == expected[-1:]
    loader.seek(epoch=2, step=1)
    assert behind(1) == loader.state_dict()
    for further in (4, -1):
        with pytest.raises(ConfigurationError, match=f"read_ahead={further}: expected"):
            loader.mark(read_ahead=further)
    with pytest.raises(ConfigurationError, match=r"at=3: expected what mark\(\) returned"):
        loader.state_dict(at=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mark_is_the_state_as_of_its_batch_whatever_has_come_since(workers: int) -> None:
    loader = loader_of(shuffle=True, num_workers=workers)
    marks = [loader.mark()]
    states = [loader.state_dict()]
    for _ in range(2):
        for _ in loader:
            marks.append(loader.mark())
            states.append(loader.state_dict())
    loader.seek(epoch=9, step=3)
    assert [loader.state_dict(at=mark) for mark in marks] == states


def test_a_loaded_state_is_the_state_and_takes_effect_at_the_next_iter() -> None:
    loader = loader_of(shuffle=True)
    state = {**loader.state_dict(), "epoch": 5, "step": 2, "position": 4}
    loader.load_state_dict(state)
    assert loader.state_dict() == state
    assert [ids(batch) for batch in loader] == epoch_of(5)[2:]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_iterator_from_before_a_load_or_a_seek_delivers_nothing_more(workers: int) -> None:
    for move in ("load_state_dict", "seek"):
        loader = loader_of(shuffle=True, num_workers=workers)
        state = loader.state_dict()
        batches, unused = iter(loader), iter(loader)
        next(batches)
        if move == "seek":
            loader.seek(step=0)
        else:
            loader.load_state_dict(state)
        for _ in range(2):
            with pytest.raises(ConfigurationError, match=r"this iterator began before .* iter\("):
                next(batches)
        assert place(loader) == (0, 0, 0, 5)
        assert [ids(batch) for batch in unused] == epoch_of(0), "it had not begun"


def test_an_iterator_that_has_ended_ends_again_after_a_load() -> None:
    loader = loader_of()
    batches = iter(loader)
    state = loader.state_dict()
    list(batches)
    loader.load_state_dict(state)
    assert next(batches, None) is None


def test_set_epoch_of_an_epoch_that_has_begun_starts_it_again() -> None:
    for reach in ("", "sampler"):
        loader = loader_of(shuffle=True)
        reached: Any = getattr(loader, reach) if reach else loader
        next(iter(loader))
        reached.set_epoch(0)
        assert [ids(batch) for batch in loader] == epoch_of(0)
        reached.set_epoch(1)
        batches = iter(loader)
        next(batches)
        reached.set_epoch(1)
        assert [ids(batch) for batch in batches] == epoch_of(1)[1:], "the pass stays as it is"
        assert [ids(batch) for batch in loader] == epoch_of(2)


def test_a_copy_in_the_middle_of_a_pass_resumes_there() -> None:
    for copied in (copy.deepcopy, copy.copy, lambda loader: pickle.loads(pickle.dumps(loader))):
        loader = loader_of(shuffle=True)
        batches = iter(loader)
        next(batches), next(batches)
        again = copied(loader)
        assert place(again) == place(loader) == (0, 2, 4, 3)
        assert [ids(batch) for batch in again] == epoch_of(0)[2:]
        assert [ids(batch) for batch in again] == epoch_of(1)
        assert [ids(batch) for batch in batches] == epoch_of(0)[2:]


def test_len_is_the_whole_epoch_wherever_the_loader_stands() -> None:
    loader = loader_of(11, 4)
    loader.seek(step=2)
    assert (len(loader), loader.remaining, len(iter(loader))) == (3, 1, 3)


def test_seek_jumps_to_any_batch_of_any_epoch() -> None:
    loader = loader_of(shuffle=True)
    loader.seek(epoch=9, step=4)
    assert [ids(batch) for batch in loader] == epoch_of(9)[4:]
    loader.seek(step=2)
    assert [ids(batch) for batch in loader] == epoch_of(10)[2:], "by default the current epoch"
    with pytest.raises(ConfigurationError, match="5 steps"):
        loader.seek(step=6)


def test_samples_at_says_which_samples_a_batch_has_without_reading_them() -> None:
    class Unreadable(Indices):
        def __getitem__(self, index: int) -> int:
            raise AssertionError("read")

    loader = ResumableDataLoader(Unreadable(10), 2, shuffle=True, seed=1)
    for epoch in (0, 4):
        assert [loader.samples_at(epoch, step).tolist() for step in range(5)] == epoch_of(epoch)
    with pytest.raises(ConfigurationError, match="5 steps"):
        loader.samples_at(0, 5)
    assert loader.state_dict()["step"] == 0


def test_samples_at_of_an_epoch_in_which_the_batch_size_changed() -> None:
    loader = loader_of(shuffle=True)
    loader.seek(step=1)
    resumed = loader_of(shuffle=True, batch_size=3)
    resumed.load_state_dict(loader.state_dict())
    assert resumed.samples_at(0, 1).tolist() == [*epoch_of(0)[1], *epoch_of(0)[2]][:3]
    with pytest.raises(ConfigurationError, match="another batch size"):
        resumed.samples_at(0, 0)


def test_the_last_pass_that_began_moves_the_loader() -> None:
    loader = loader_of(shuffle=True)
    first, second = iter(loader), iter(loader)
    assert ids(next(first)) == epoch_of(0)[0]
    assert ids(next(second)) == epoch_of(1)[0]
    assert ids(next(first)) == epoch_of(0)[1]
    assert place(loader) == (1, 1, 2, 4)


def test_copies_and_pickles_go_on_from_the_same_place_and_apart() -> None:
    loader = loader_of(shuffle=True)
    next(iter(loader))
    state = loader.state_dict()
    assert copy.copy(loader).dataset is loader.dataset
    for other in (copy.copy(loader), copy.deepcopy(loader), pickle.loads(pickle.dumps(loader))):
        assert other.state_dict() == state
        other.load_state_dict(state)
        assert [ids(batch) for batch in other] == epoch_of(0)[1:]
    assert loader.state_dict() == state


def test_frameworks_find_truthful_samplers_and_may_rebuild_them() -> None:
    loader = loader_of(11, 3, shuffle=True)
    assert isinstance(loader.batch_sampler, BatchSampler)
    assert (loader.batch_size, loader.drop_last) == (3, False)
    assert (loader.batch_sampler.batch_size, loader.batch_sampler.drop_last) == (3, False)
    expected = [loader.samples_at(0, step).tolist() for step in range(4)]
    assert list(loader.batch_sampler) == expected
    rebuilt = type(loader.batch_sampler)(loader.sampler, batch_size=3, drop_last=False)
    assert list(rebuilt) == expected
    assert len(loader.sampler) == 11


def test_a_rebuilt_sampler_is_never_sharded_twice() -> None:
    loader = loader_of(11, 3, shuffle=True, rank=1, world_size=2)
    assert len(loader.sampler) == 6
    with pytest.raises(ConfigurationError, match="use_distributed_sampler=False"):
        list(loader.sampler)
    with pytest.raises(ConfigurationError, match="can only be walked through"):
        ResumableDataLoader(
            Indices(11),
            3,
            sampler=DistributedSampler(range(11), 2, 1),
            strategy=loader.strategy,
            seed=1,
        )


def test_a_distributed_sampler_of_the_users_own_is_followed_and_driven() -> None:
    def build(rank: int) -> ResumableDataLoader[Any]:
        return loader_of(12, 2, sampler=DistributedSampler(range(12), 2, rank, seed=8))

    ranks, epochs = [build(0), build(1)], []
    for epoch in range(2):
        for loader in ranks:
            loader.set_epoch(epoch)
        epochs.append([[ids(batch) for batch in loader] for loader in ranks])
    for rank, loader in enumerate(ranks):
        theirs = DistributedSampler(range(12), 2, rank, seed=8)
        theirs.set_epoch(1)
        assert [index for batch in epochs[1][rank] for index in batch] == list(theirs)
        loader.sampler.set_epoch(0)
    assert [[ids(batch) for batch in loader] for loader in ranks] == epochs[0]
    next(iter(ranks[0]))
    next(iter(ranks[1]))
    states = [loader.state_dict() for loader in ranks]
    assert [state["rank"] for state in states] == [0, 1]
    resumed = build(1)  # of equally many batches, so that any rank's part will do
    resumed.load_state_dict(states[0])
    assert [ids(batch) for batch in resumed] == epochs[0][1][1:], "nobody set another epoch"


def test_a_pass_that_cannot_begin_leaves_the_position_as_it_was() -> None:
    loader = loader_of(shuffle=True)
    next(iter(loader))
    before = loader.state_dict()
    loader.converter = 5  # type: ignore[assignment]
    for _ in range(2):
        with pytest.raises(ConfigurationError):
            next(iter(loader))
        assert loader.state_dict() == before
    loader.converter = None
    assert [ids(batch) for batch in loader] == epoch_of(1)


def test_what_is_refused_draws_nothing_from_torchs_generator() -> None:
    loader, before = loader_of(shuffle=True, seed=None), torch.get_rng_state()
    with pytest.raises(ConfigurationError, match="step=99"):
        loader.seek(step=99)
    assert torch.equal(torch.get_rng_state(), before)
