"""Reports of failures: file, limit and warning; on streams, on ranks and after kills."""

from __future__ import annotations

import copy
import itertools
import json
import os
import pickle
import random
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from budgets import cases, slow
from example_streams import StatefulIterator
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import Program
from subjects import ids
from torch.utils.data import Dataset
from worlds import ranks_of

from dataporter import (
    ConfigurationError,
    DataPorterError,
    Failure,
    ResumableDataLoader,
    TooManyFailuresError,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*failed .on_error="),
    pytest.mark.filterwarnings("ignore:this pass has no batch"),
]


class Bad(Dataset[int]):
    def __init__(self, length: int, bad: set[int], pause: float = 0) -> None:
        self.length, self.bad, self.pause = length, bad, pause

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        time.sleep(self.pause)
        if index in self.bad:
            raise ValueError(f"sample {index} is broken")
        return index


def loader_of(
    length: int = 20,
    batch_size: int = 4,
    bad: set[int] | None = None,
    pause: float = 0,
    **arguments: Any,
) -> ResumableDataLoader[Any]:
    arguments = {"on_error": "skip", "seed": 3, **arguments}
    bad = {2, 3, 9, 17} if bad is None else bad
    return ResumableDataLoader(Bad(length, bad, pause), batch_size, **arguments)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def indices(path: Path) -> list[Any]:
    return [line["index"] for line in lines(path)]


# ---- the file


def test_each_failure_has_a_line_as_soon_as_it_counts(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    loader = loader_of(failures=file, num_workers=1)
    batches = iter(loader)
    assert not file.exists()
    next(batches)
    assert lines(file) == [
        {
            "index": index,
            "name": None,
            "epoch": 0,
            "step": 0,
            "position": index,
            "error": "ValueError",
            "message": f"sample {index} is broken",
            "seed": 3,
            "rank": 0,
        }
        for index in (2, 3)
    ]
    next(batches)
    assert indices(file) == [2, 3]
    assert loader.failures.file == str(file)
    list(loader)
    assert [line["epoch"] for line in lines(file)] == [0, 0, 1, 1, 1, 1]


@settings(max_examples=cases(30))
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=4), st.integers(1, 5))
def test_a_rolled_back_run_writes_no_line_twice(
    lives: list[tuple[int, int]], batch_size: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "bad.jsonl")

        def build() -> ResumableDataLoader[Any]:
            return loader_of(
                batch_size=batch_size, on_error=lambda *_: 0, failures=file, strategy="advanced"
            )

        loader = build()
        for steps, back in lives:
            states = [loader.state_dict()]
            for _ in itertools.islice(loader, steps):
                states.append(loader.state_dict())
            loader = build()
            loader.load_state_dict(states[max(0, len(states) - 1 - back)])
        while loader.epoch < 2:
            list(loader)
        expected = [(epoch, index) for epoch in (0, 1) for index in (2, 3, 9, 17)]
        found = [(line["epoch"], line["index"]) for line in lines(file)]
        assert sorted(found) == expected
        assert loader.failures.total == len(expected)


def test_another_world_writes_no_line_of_the_one_before_again(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    arguments = {"failures": file, "strategy": "distributed", "on_error": lambda *_: 0}
    for rank in range(2):
        list(loader_of(bad=set(range(20)), rank=rank, world_size=2, batch_size=2, **arguments))
    ranks = [tmp_path / f"bad.rank{rank}.jsonl" for rank in range(2)]
    assert sorted(index for path in ranks for index in indices(path)) == list(range(20))
    # All that the two ranks did is lost, and one goes on from the start.
    loader = loader_of(bad=set(range(20)), **arguments)
    list(loader)
    assert not file.exists()
    list(loader)
    assert [line["epoch"] for line in lines(file)] == 20 * [1]


def test_an_epoch_that_is_read_again_writes_no_line_again(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    loader = loader_of(failures=file)
    list(loader), list(loader)
    before = lines(file)
    loader.seek(epoch=0)
    list(loader), list(loader)
    assert lines(file) == before
    assert loader.failures.total == 16, "but each counts"


def test_runs_of_two_seeds_are_kept_apart(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    for seed in (3, 4, 3):
        list(loader_of(failures=file, seed=seed))
    assert [line["seed"] for line in lines(file)] == 4 * [3] + 4 * [4]


def test_a_line_that_a_lost_machine_has_torn_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    list(loader_of(failures=file))
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    list(loader_of(failures=file))
    first, second, third, torn, again = file.read_bytes().splitlines()
    assert b"\n".join((first, second, third, again)) + b"\n" == whole
    assert torn == whole.splitlines()[3][:-19]


def test_a_file_that_cannot_be_written_costs_a_warning_and_no_batch(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    loader = loader_of(failures=folder / "bad.jsonl")
    folder.rmdir()
    with pytest.warns(RuntimeWarning, match=r"bad.jsonl' could not be written .*loader.failures"):
        assert sum(len(batch) for batch in loader) == 16
    assert loader.failures.total == 4


def test_a_loader_built_from_the_attributes_of_another_has_its_file(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    loader = loader_of(failures=file)
    again = loader_of(failures=loader.failures)
    assert again.failures.file == str(file)
    assert loader_of(failures=loader_of().failures).failures.file is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"failures": 5}, r"failures=5: expected the path of a file"),
        ({"failures": ""}, r"failures='': expected the path of a file"),
        ({"failures": "no such folder/bad.jsonl"}, r"in a folder that does not exist"),
        ({"failures": "."}, r"failures='\.' is a folder"),
        ({"max_failures": -1}, r"max_failures=-1: expected a whole number from 0, or a fraction"),
        ({"max_failures": 1.0}, r"max_failures=1\.0: expected"),
        ({"max_failures": True}, r"max_failures=True: expected"),
        ({"max_failures": "5"}, r"max_failures='5': expected"),
        ({"max_failures": 0, "on_error": "raise"}, r"max_failures=0: on_error='raise'.*'skip'"),
        ({"failures": "bad.jsonl", "on_error": "raise"}, r"failures=.*on_error='raise'.*'skip'"),
    ],
)
def test_a_wrong_argument_is_named(arguments: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        loader_of(**arguments)


# ---- the limit


@pytest.mark.parametrize("workers", [0, *slow(2)])
@pytest.mark.parametrize("limit", range(5))
def test_the_batch_beyond_the_limit_waits_in_the_state(limit: int, workers: int) -> None:
    loader = loader_of(max_failures=limit, num_workers=workers)
    seen: list[int] = []
    states = [loader.state_dict()]
    if limit == 4:
        assert len([seen.extend(batch.tolist()) for batch in loader]) == 5
        return
    with pytest.raises(TooManyFailuresError) as caught:  # noqa: PT012  # the loop is what raises
        for batch in loader:
            seen += batch.tolist()
            states.append(loader.state_dict())
    error = caught.value
    assert isinstance(error, DataPorterError)
    assert isinstance(error, RuntimeError)
    assert error.total == {0: 2, 1: 2, 2: 3, 3: 4}[limit]
    assert [failure.index for failure in error.failures] == [2, 3, 9, 17][: error.total]
    assert f"{error.total} samples failed in epoch 0, and max_failures={limit}" in str(error)
    assert "sample index 2 (epoch 0, step 0, position 2): ValueError" in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.failures, again.total) == (str(error), error.failures, error.total)
    assert loader.state_dict() == states[-1]
    resumed = loader_of(max_failures=10, num_workers=workers)
    resumed.load_state_dict(loader.state_dict())
    seen += [index for batch in resumed for index in batch.tolist()]
    assert seen == [index for index in range(20) if index not in (2, 3, 9, 17)]
    assert resumed.failures.total == 4


def test_a_loop_that_goes_on_all_the_same_counts_what_it_passes_over() -> None:
    loader = loader_of(max_failures=2)
    batches, seen = iter(loader), []
    while True:
        try:
            seen.append(ids(next(batches)))
        except TooManyFailuresError:
            seen.append([])
        except StopIteration:
            break
    assert seen == [[0, 1], [4, 5, 6, 7], [], [12, 13, 14, 15], [], []]
    assert (loader.epoch, loader.failures.total) == (1, 4)


def test_the_same_few_samples_do_not_add_up_over_the_epochs() -> None:
    loader = loader_of(max_failures=4)
    for _ in range(5):
        assert len(list(loader)) == 5
    assert loader.failures.total == 20
    loader.max_failures = 3
    with pytest.raises(TooManyFailuresError, match="failed in epoch 5"):
        list(loader)


def test_an_epoch_that_begins_again_counts_again() -> None:
    loader = loader_of(max_failures=4)
    for _ in range(3):
        loader.seek(epoch=0)
        assert len(list(loader)) == 5
    loader.set_epoch(7)
    next(iter(loader))
    loader.set_epoch(7)
    assert len(list(loader)) == 5


@given(st.integers(0, 25), st.integers(0, 10), st.booleans())
@settings(max_examples=cases(40))
def test_the_limit_holds_across_resumes(stop: int, limit: int, fraction: bool) -> None:
    allowed: Any = (limit + 0.5) / 30 if fraction else limit

    def build() -> ResumableDataLoader[Any]:
        bad = set(range(1, 100, 7)) | {50, 51, 52}
        return loader_of(100, 4, bad, max_failures=allowed, shuffle=True)

    def run(loader: ResumableDataLoader[Any], steps: int | None = None) -> list[Any]:
        found: list[Any] = []
        try:
            for batch in itertools.islice(loader, steps):
                found.append(batch.tolist())
        except TooManyFailuresError as error:
            found.append(str(error))
        return found

    expected = run(build())
    stopped = build()
    start = run(stopped, stop)
    if start and isinstance(start[-1], str):
        return
    resumed = build()
    resumed.load_state_dict(stopped.state_dict())
    assert start + run(resumed) == expected


def test_a_fraction_is_of_the_samples_so_far_and_judges_few_at_the_end() -> None:
    few = loader_of(100, 10, {0, 1, 2, 3, 4, 5}, max_failures=0.05)
    with pytest.raises(TooManyFailuresError, match=r"0\.05 of the 100 samples so far"):
        list(few)
    assert (few.epoch, few.step) == (0, 10), "the epoch is not over"
    assert len(few.failures) == 6
    few.max_failures = 0.06
    again = loader_of(100, 10, {0, 1, 2, 3, 4, 5}, max_failures=0.06)
    again.load_state_dict(few.state_dict())
    assert list(again) == []
    assert again.epoch == 1

    many = loader_of(1000, 10, set(range(0, 200, 2)), max_failures=0.2)
    with pytest.raises(TooManyFailuresError, match=r"15 samples failed.*of the 30 samples so far"):
        list(many)
    early = loader_of(1000, 10, set(range(0, 20, 2)), max_failures=0.2)
    assert len(list(early)) == 100
    exactly = loader_of(100, 50, set(range(0, 100, 3)) - {0, 3, 6, 9, 12}, max_failures=0.29)
    assert len(list(exactly)) == 2  # 0.29 * 100 is 28.999999999999996


def test_on_several_ranks_a_fraction_is_of_the_own_share() -> None:
    bad = set(range(0, 40, 4))  # all on rank 0
    for rank in range(2):
        arguments = {"rank": rank, "world_size": 2, "max_failures": 0.2}
        loader = loader_of(80, 2, bad, **arguments)
        if rank:
            assert len(list(loader)) == 20
        else:
            with pytest.raises(TooManyFailuresError, match=r"on rank 0.*of the 40 samples so far"):
                list(loader)


# ---- the warning


def passes(loader: ResumableDataLoader[Any], *steps: int | None) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for count in steps:
            for _ in itertools.islice(loader, count):
                pass
    return [str(one.message) for one in caught if "failed (on_error=" in str(one.message)]


def test_one_warning_sums_up_a_pass(tmp_path: Path) -> None:
    (said,) = passes(loader_of(), None)
    assert said == (
        "4 samples failed (on_error='skip') in epoch 0: sample index 2 (epoch 0, step 0, position "
        "2): ValueError: sample 2 is broken; sample index 3 (epoch 0, step 0, position 3): "
        "ValueError: sample 3 is broken; sample index 9 (epoch 0, step 2, position 9): ValueError: "
        "sample 9 is broken; and 1 more. loader.failures has the records; failures='bad.jsonl' "
        "keeps a line for each"
    )
    file = tmp_path / "bad.jsonl"
    (said,) = passes(loader_of(failures=file), None)
    assert said.endswith(f"loader.failures has the records, and {file} a line for each")
    (said,) = passes(loader_of(on_error=lambda error, index: 0), None)
    assert said.startswith("4 samples failed (on_error=<lambda>)")
    assert passes(loader_of(bad=set()), None) == []


def test_a_pass_that_is_left_is_summed_up_when_the_next_one_begins() -> None:
    loader = loader_of()
    assert passes(loader, 3) == []
    left, whole = passes(loader, None)
    assert left.startswith("3 samples failed (on_error='skip') in epoch 0")
    assert whole.startswith("4 samples failed (on_error='skip') in epoch 1")


def test_what_a_load_has_undone_is_not_summed_up() -> None:
    loader = loader_of()
    state = loader.state_dict()
    assert passes(loader, 3) == []
    loader.load_state_dict(state)
    (said,) = passes(loader, None)
    assert said.startswith("4 samples failed")


def test_a_copy_does_not_sum_up_what_its_original_will() -> None:
    loader = loader_of()
    assert passes(loader, 3) == []
    again = copy.deepcopy(loader)
    again.seek(epoch=5)
    (said,) = passes(again, None)
    assert "in epoch 5" in said


# ---- streams


class Failing(StatefulIterator):
    failing: tuple[int, ...] = (0, 4, 5, 13, 28, 29)

    def __iter__(self) -> Any:
        iterator = super().__iter__()
        original = type(iterator).__next__
        failing = self.failing

        class Fails(type(iterator)):  # type: ignore[misc]  # of an object
            def __next__(self) -> Any:
                found = original(self)
                if found["index"] in failing:
                    raise ValueError(f"sample {found['index']} is broken")
                return found

        iterator.__class__ = Fails
        return iterator

    def sample_name(self, index: tuple[int, int]) -> str:
        return f"line {index[1]} of shard {index[0]}"


def stream_of(workers: int, **arguments: Any) -> ResumableDataLoader[Any]:
    arguments = {"batch_size": 2, "seed": 3, "on_error": "skip", **arguments}
    return ResumableDataLoader(Failing(30), num_workers=workers, **arguments)


@pytest.mark.parametrize("workers", [0, *slow(2)])
@pytest.mark.parametrize("on_error", ["skip", "function"])
def test_a_stream_counts_once_wherever_it_is_stopped(workers: int, on_error: str) -> None:
    """Also where a batch, or the end of a shard, has nothing but failures."""
    function: Any = "skip" if on_error == "skip" else lambda error, index: {"index": -1}
    arguments = {"on_error": function, "collate_fn": list}
    whole = stream_of(workers, **arguments)
    steps = len(list(whole))
    expected = list(whole.failures), whole.failures.total
    assert expected[1] == len(Failing.failing) == len(expected[0])
    first = expected[0][0]
    assert first == Failure((0, 0), "line 0 of shard 0", 0, 0, 0, "ValueError", first.message)
    for stop in range(steps + 1):
        stopped = stream_of(workers, **arguments)
        batches = iter(stopped)
        for _ in range(stop):
            next(batches)
        state = json.loads(json.dumps(stopped.state_dict()))
        delivered = stopped.failures.total
        resumed = stream_of(workers, **arguments)
        resumed.load_state_dict(state)
        assert resumed.failures.total == delivered
        list(resumed)
        assert (list(resumed.failures), resumed.failures.total) == expected


@pytest.mark.parametrize("workers", [0, *slow(1)])
def test_a_stream_has_a_limit_and_a_file(workers: int, tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    loader = stream_of(workers, max_failures=3, failures=file)
    seen = []
    beyond = pytest.raises(TooManyFailuresError, match=r"line 5 of shard 0.*and 1 more")
    with beyond as caught:
        for batch in loader:
            seen += ids(batch["index"])
    assert caught.value.total == 4
    assert [line["index"] for line in lines(file)] == [[0, 0], [0, 4], [0, 5]]
    resumed = stream_of(workers, max_failures=0.5, failures=file)
    resumed.load_state_dict(loader.state_dict())
    seen += [index for batch in resumed for index in ids(batch["index"])]
    assert seen == [index for index in range(30) if index not in Failing.failing]
    assert [line["index"][1] for line in lines(file)] == list(Failing.failing)
    with pytest.raises(TooManyFailuresError, match=r"0\.1 of the .* samples so far"):
        list(stream_of(workers, max_failures=0.1))


def test_a_sample_that_a_function_gives_fills_its_batch() -> None:
    """Also where an incomplete batch would be dropped."""
    loader = stream_of(0, drop_last=True, on_error=lambda *_: {"index": -1}, collate_fn=list)
    assert [len(batch) for batch in loader] == 15 * [2]


@pytest.mark.parametrize("build", [loader_of, lambda: stream_of(0)], ids=["index", "stream"])
def test_ranks_may_load_states_that_differ_in_their_failures(build: Any) -> None:
    loader = build()
    next(iter(loader))
    state = loader.state_dict()
    assert state["failures"][0] > 0
    terms = [
        loader.setup.format.resume({**state, "failures": failures}, None, "error").terms
        for failures in (state["failures"], [0, 0, []])
    ]
    assert terms[0] == terms[1]


# ---- kills


def life(folder: Path, workers: int) -> None:
    """Train on from the last checkpoint, saved every third batch."""
    loader = loader_of(
        60, 4, set(range(3, 60, 5)), shuffle=True, on_error="replace", pause=0.002,
        failures=folder / "bad.jsonl", num_workers=workers,
    )  # fmt: skip
    checkpoint = folder / "state.json"
    if checkpoint.exists():
        loader.load_state_dict(json.loads(checkpoint.read_text()))
    while loader.epoch < 3:
        for step, _ in enumerate(loader):
            if step % 3 == 2:
                written = checkpoint.with_suffix(f".{os.getpid()}")
                written.write_text(json.dumps(loader.state_dict()))
                os.replace(written, checkpoint)
            time.sleep(0.003)
    (folder / "ledger").write_text(repr(loader.failures))


@pytest.mark.parametrize("workers", [(2, 0), *slow(((0, 0, 0),), ((2, 0, 1),), ((2, 2, 2),))])
def test_a_killed_run_has_the_ledger_and_the_lines_of_the_uninterrupted_one(
    workers: tuple[int, ...], tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir(), killed.mkdir()
    life(whole, 0)
    kills = 0
    for number in workers[:-1]:
        program = Program(life, killed, number)
        written = len(lines(killed / "bad.jsonl"))
        deadline = time.monotonic() + 40
        while program.poll() is None and len(lines(killed / "bad.jsonl")) < written + 9:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.03))
        program.kill()
        kills += program.wait(10) != 0
    assert Program(life, killed, workers[-1]).wait(60) == 0
    assert kills
    expected = (whole / "ledger").read_text()
    assert (killed / "ledger").read_text() == expected.replace(str(whole), str(killed))
    text = [sorted((folder / "bad.jsonl").read_text().splitlines()) for folder in (whole, killed)]
    assert text[0] == text[1]
    assert len(text[0]) > 20


# ---- ranks


def rank_life(folder: str, state: Any) -> Any:
    warnings.simplefilter("ignore")
    rank = dist.get_rank()
    loader = loader_of(
        48, 3, set(range(1, 48, 6)), shuffle=True, failures=Path(folder, "bad.jsonl"),
        max_failures=100,
    )  # fmt: skip
    if state is not None:
        loader.load_state_dict(state[rank] if isinstance(state, list) else state)
    before = loader.failures.total
    batches = iter(loader)
    for _ in range(2):
        next(batches)
    own, whole = loader.state_dict(), loader.state_dict(gather=True)
    dcp.save({"loader": loader}, checkpoint_id=Path(folder, "dcp"))
    dist.barrier()
    again = loader_of(48, 3, shuffle=True)
    dcp.load({"loader": again}, checkpoint_id=Path(folder, "dcp"))
    dist.barrier()
    return before, own, whole, again.state_dict()


def resumed_rank(folder: str, states: list[Any]) -> Any:
    return [rank_life(folder, state) for state in states]


def total(state: Any) -> int:
    return state["failures"][0]


def test_each_rank_has_its_own_ledger_and_gathering_joins_them(tmp_path: Path) -> None:
    folder = str(tmp_path)
    ranks = ranks_of(2, rank_life, folder, None)
    owns, wholes = [one[1] for one in ranks], [one[2] for one in ranks]
    assert wholes[0] == wholes[1]
    assert total(wholes[0]) == sum(map(total, owns)) > max(map(total, owns)) > 0
    assert [{**own, "failures": 0} for own in owns] == 2 * [{**wholes[0], "failures": 0}]
    # torch.distributed.checkpoint keeps the state of one of them, whole.
    assert all(one[3] in owns for one in ranks)
    found = [indices(tmp_path / f"bad.rank{rank}.jsonl") for rank in range(2)]
    assert [len(one) for one in found] == list(map(total, owns))
    assert not (tmp_path / "bad.jsonl").exists()

    # States that differ in their failures alone load, each on its rank.
    resumed = ranks_of(2, resumed_rank, folder, json.loads(json.dumps([owns, wholes[0]])))
    parts, more = ([one[number] for one in resumed] for number in range(2))
    assert [one[0] for one in parts] == list(map(total, owns))
    # What all ranks have loaded counts once.
    assert [one[0] for one in more] == 2 * [total(wholes[0])]
    assert more[0][2] == parts[0][2]
    added = [total(one[1]) - one[0] for one in more]
    assert total(more[0][2]) == total(wholes[0]) + sum(added)
    counted = Counter()
    for index, *_, count in more[0][2]["failures"][2]:
        counted[index] += count
    assert set(counted.values()) == {1}, "a sample of an epoch is on one rank"
    assert sum(counted.values()) == total(more[0][2])
