"""Accelerate: `prepare()` returns the loader itself, which behaves like theirs, and resumes."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import DataLoaderConfiguration
from benchmarks.frameworks.cases import ACCELERATE, Case, torchrun, verdict
from benchmarks.frameworks.journal import read_journals
from benchmarks.frameworks.subject import EPOCHS, LENGTH
from benchmarks.frameworks.trial import attempt, samples_of_epochs
from example_streams import Sharded, Stateful, numbers
from killed_example import uninterrupted_and_resumed
from torch import nn
from torch.utils.data import DataLoader, RandomSampler
from torchrun import finished
from torchrun import torchrun as launched
from worlds import ranks_of

from dataporter import (
    ConfigurationError,
    DevicePrefetcher,
    ResumableDataLoader,
    StateMismatchError,
)
from dataporter.integrations.accelerate import prepare
from dataporter.integrations.accelerate import skip_first_batches as jump

RANKS = Path(__file__).parents[1] / "prepared_ranks.py"


def accelerator_with(accumulate: int = 1, **configuration: Any) -> Accelerator:
    return Accelerator(
        cpu=True,
        gradient_accumulation_steps=accumulate,
        dataloader_config=DataLoaderConfiguration(**configuration),
    )


def loader_of(*arguments: Any, **named: Any) -> ResumableDataLoader[Any]:
    return ResumableDataLoader(range(10), *arguments, shuffle=True, **{"seed": 3, **named})


def lists(loader: Any) -> list[list[int]]:
    return [batch.tolist() for batch in loader]


@pytest.mark.parametrize("case", ACCELERATE, ids=lambda case: case.what)
def test_a_killed_training_resumes_exactly(case: Case, tmp_path: Path) -> None:
    assert verdict(case, "dataporter", tmp_path) is None


def test_a_state_of_two_processes_loads_into_one_and_into_four(tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    attempt("accelerate", killed, 0, kill_at=7, launcher=torchrun(2))
    for ranks in (1, 4):
        home = shutil.copytree(killed, tmp_path / f"on-{ranks}")
        resumed = attempt("accelerate", home, 1, launcher=torchrun(ranks))
        before = [entry for entry in read_journals(home, 0) if entry.step < resumed[0].step]
        counted = samples_of_epochs([*before, *resumed])
        assert len(counted) == EPOCHS
        for samples in counted.values():
            assert set(samples) == set(range(LENGTH))
            # Only the padding that makes the ranks' last batches equally long appears twice.
            assert samples.total() - LENGTH == -LENGTH % ranks


def test_prepare_returns_the_loader_which_shows_where_its_epoch_ends() -> None:
    accelerator = accelerator_with(accumulate=2)
    loader = loader_of(4)
    model = nn.Linear(1, 1)
    prepared, model = accelerator.prepare(loader, model)
    assert prepared is loader
    assert accelerator.prepare(loader) is loader
    assert accelerator._dataloaders.count(loader) == 1
    assert not accelerator.gradient_state.in_dataloader
    seen = []
    for batch in loader:
        with accelerator.accumulate(model):
            state = accelerator.gradient_state
            assert state.active_dataloader is loader
            seen.append((state.end_of_dataloader, state.remainder, accelerator.sync_gradients))
            gathered = accelerator.gather_for_metrics(batch)
            assert gathered.tolist() == batch.tolist()
    assert seen == [(False, -1, False), (False, -1, True), (True, 2, True)]
    assert not accelerator.gradient_state.in_dataloader
    assert loader.total_batch_size == 4


def prepared_by_both(accelerator: Accelerator, loader: Any) -> Any:
    return accelerator.prepare(prepare(accelerator, loader))


def training(
    prepared: Callable[[Accelerator, Any], Any], folder: Path, **configuration: Any
) -> Any:
    """All that a training sees of a loader, what it saves, and what a resumed one sees."""
    accelerator = accelerator_with(accumulate=2, **configuration)
    given = loader_of(4)
    loader, model = prepared(accelerator, given), accelerator.prepare(nn.Linear(1, 1))
    state, seen = accelerator.gradient_state, []
    for batch in loader:
        with accelerator.accumulate(model):
            gathered = accelerator.gather_for_metrics(batch)
            seen.append((batch.tolist(), gathered.tolist(), accelerator.sync_gradients))
            seen.append((state.end_of_dataloader, state.remainder, loader.total_batch_size))
        if loader.step == 1:
            accelerator.save_state(str(folder))
    saved = torch.load(folder / "dl_state_dict.bin")
    registered = loader is given, accelerator._dataloaders.count(loader), state.in_dataloader
    accelerator = accelerator_with(accumulate=2, **configuration)
    resumed = prepared(accelerator, loader_of(4))
    accelerator.load_state(str(folder))
    return seen, saved, registered, lists(resumed)


@pytest.mark.parametrize("explicit", [prepare, prepared_by_both])
@pytest.mark.parametrize(
    "configuration", [{}, {"even_batches": False}, {"split_batches": True}], ids=str
)
def test_a_loader_prepared_explicitly_equals_one_prepared_by_the_accelerator(
    tmp_path: Path, explicit: Any, configuration: dict[str, Any]
) -> None:
    magic = training(Accelerator.prepare, tmp_path / "magic", **configuration)
    assert training(explicit, tmp_path / "explicit", **configuration) == magic
    seen, _, registered, resumed = magic
    assert [batch for batch, *_ in seen[2::2]] == resumed
    assert registered == (True, 1, False)


def test_a_loader_prepared_explicitly_needs_no_look_up(monkeypatch: Any) -> None:
    monkeypatch.setattr("dataporter.integrations.callers.search", lambda *_: iter(()))
    accelerator, loader, unprepared = accelerator_with(), loader_of(4), loader_of(4)
    assert prepare(accelerator, loader) is loader
    assert accelerator.prepare(loader) is loader
    assert accelerator.prepare(unprepared) is not unprepared, "only a look-up finds its accelerator"


def test_explicit_settings_stay_until_the_loader_is_prepared_explicitly_again() -> None:
    loader = prepare(accelerator_with(even_batches=False), loader_of(4))
    another = accelerator_with()
    assert another.prepare(loader) is loader
    assert loader.tail == "uneven"
    assert prepare(another, loader) is loader
    assert loader.tail == "pad"
    assert another._dataloaders.count(loader) == 1


def test_explicit_preparing_refuses_the_same() -> None:
    loader = loader_of(4)
    with pytest.raises(ConfigurationError, match="leave dispatch_batches= out"):
        prepare(accelerator_with(dispatch_batches=True), loader)
    assert lists(loader) == lists(loader_of(4))
    for wrong in ((loader, accelerator_with()), (accelerator_with(), DataLoader(range(3)))):
        with pytest.raises(ConfigurationError, match="expected an Accelerator and a Resumable"):
            prepare(*wrong)  # type: ignore[arg-type]


def test_a_pass_that_is_left_is_no_longer_the_active_one() -> None:
    accelerator = accelerator_with()
    outer, inner = accelerator.prepare(loader_of(4), loader_of(5))
    for _ in outer:
        for _ in inner:
            assert accelerator.gradient_state.active_dataloader is inner
            break
        assert accelerator.gradient_state.active_dataloader is outer
        break
    assert not accelerator.gradient_state.in_dataloader


def test_batches_go_to_the_device_as_the_accelerator_is_configured(monkeypatch: Any) -> None:
    placed = []
    monkeypatch.setattr(
        "dataporter.integrations.accelerate.send_to_device",
        lambda batch, device, non_blocking: placed.append((device, non_blocking)) or batch,
    )
    accelerator = accelerator_with(non_blocking=True)
    list(accelerator.prepare(loader_of(5)))
    assert placed == [(accelerator.device, True)] * 2
    placed.clear()
    list(accelerator.prepare(loader_of(5), device_placement=[False]))
    list(Accelerator(cpu=True, device_placement=False).prepare(loader_of(5)))
    list(accelerator.prepare(prepare(accelerator, loader_of(5), device_placement=False)))
    assert placed == []
    list(prepare(accelerator, loader_of(5)))
    assert placed == [(accelerator.device, True)] * 2


def test_a_state_saved_in_a_loop_resumes_with_the_next_batch(tmp_path: Path) -> None:
    expected = lists(loader_of(4)) + lists(loader_of(4))
    for stop in (1, 2, 3):
        accelerator = accelerator_with()
        batches = iter(accelerator.prepare(loader_of(4)))
        assert [next(batches).tolist() for _ in range(stop)] == expected[:stop]
        accelerator.save_state(str(tmp_path / f"{stop}"))
        accelerator = accelerator_with()
        resumed = accelerator.prepare(loader_of(4))
        accelerator.load_state(str(tmp_path / f"{stop}"))
        assert lists(resumed) == expected[stop:3]
        assert resumed.epoch == 1


def test_a_checkpoint_without_the_loader_warns(tmp_path: Path) -> None:
    accelerator = accelerator_with()
    accelerator.prepare(DataLoader(range(10), 4), loader_of(4))
    accelerator.save_state(str(tmp_path))
    for loaders, missing in (
        ([DataLoader(range(10), 4), loader_of(4)], []),
        ([loader_of(4), loader_of(4)], [0]),
        ([loader_of(4), loader_of(4), loader_of(4)], [0, 2]),
    ):
        accelerator = accelerator_with()
        accelerator.prepare(*loaders)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            accelerator.load_state(str(tmp_path))
        said = [str(one.message) for one in warned if "has no state of loader" in str(one.message)]
        assert [int(text.split("no state of loader ")[1][0]) for text in said] == missing


@pytest.mark.parametrize("num_workers", [0, 2])
def test_looking_for_the_end_of_a_stream_delivers_nothing(tmp_path: Path, num_workers: int) -> None:
    def prepared(accelerator: Accelerator) -> Any:
        return accelerator.prepare(ResumableDataLoader(Stateful(12), 4, num_workers=num_workers))

    accelerator = accelerator_with()
    batches = iter(prepared(accelerator))
    first = next(batches)
    accelerator.save_state(str(tmp_path))
    ends = []
    rest = []
    for batch in batches:
        rest.append(batch)
        ends.append(accelerator.gradient_state.end_of_dataloader)
    assert ends[-1]
    assert not any(ends[:-1])
    assert sorted(numbers([first, *rest])) == list(range(12))
    accelerator = accelerator_with()
    resumed = prepared(accelerator)
    accelerator.load_state(str(tmp_path))
    assert numbers(list(resumed)) == numbers(rest)


class Broken(list[int]):
    def __getitem__(self, index: Any) -> Any:
        if index == 4:
            raise KeyError(index)
        return super().__getitem__(index)


def test_a_sample_that_fails_leaves_the_batch_before_it_delivered() -> None:
    loader = accelerator_with().prepare(ResumableDataLoader(Broken(range(6)), 2))
    batches = iter(loader)
    assert next(batches).tolist() == [0, 1]
    assert next(batches).tolist() == [2, 3]
    with pytest.raises(KeyError):
        next(batches)
    assert loader.step == 2


def test_skip_first_batches_jumps_and_accelerates_function_says_why_it_does_not() -> None:
    accelerator = accelerator_with()
    loader = accelerator.prepare(loader_of(4, num_workers=1))
    expected = lists(loader_of(4))
    assert jump(loader, 2) is loader
    assert loader.step == 2
    assert lists(loader) == expected[2:]
    assert lists(jump(torch.utils.data.DataLoader(range(4)), 3)) == [[3]]
    for theirs in (skip_first_batches, accelerator.skip_first_batches):
        with pytest.raises(ConfigurationError, match="leave it out after load_state"):
            theirs(loader, 2)


@pytest.mark.parametrize(
    "loader",
    [
        loader_of(4),
        ResumableDataLoader(range(10), 4, sampler=RandomSampler(range(10))),
        ResumableDataLoader(range(10), batch_sampler=[[0, 1], [2]], num_workers=1),
        ResumableDataLoader(Stateful(12), 4, multiprocessing_context="fork", num_workers=1),
    ],
)
def test_accelerates_functions_are_refused_for_any_loader(loader: Any) -> None:
    accelerator = accelerator_with()
    for skipped in (loader, accelerator.prepare(loader)):
        with pytest.raises(ConfigurationError, match="leave it out after load_state"):
            skip_first_batches(skipped, 1)


def test_accelerates_function_that_builds_a_loader_is_refused() -> None:
    for loader in (loader_of(4), ResumableDataLoader(Stateful(12), 4)):
        with pytest.raises(ConfigurationError, match=r"use accelerator\.prepare\(\)"):
            prepare_data_loader(loader, num_processes=1, process_index=0)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_prefetcher_around_a_prepared_loader_is_refused(device: str) -> None:
    prefetched = DevicePrefetcher(accelerator_with().prepare(loader_of(4)), device)
    with pytest.raises(ConfigurationError, match="iterate over the loader itself"):
        iter(prefetched)


@pytest.mark.parametrize(("even", "tail"), [(False, "uneven"), (True, "pad")])
def test_uneven_inputs_are_joined_as_the_loader_was_built_or_not_at_all(
    monkeypatch: Any, even: bool, tail: Any
) -> None:
    accelerator = accelerator_with()
    loader = accelerator.prepare(loader_of(4, tail=tail))
    other = accelerator.prepare(loader_of(4, tail="pad" if tail == "uneven" else "uneven"))
    without_tail = accelerator.prepare(loader_of(4, drop_last=True))
    # On the CPU Accelerate changes nothing; this is its behaviour on several GPUs.
    monkeypatch.setattr(Accelerator, "multi_device", True, raising=False)
    monkeypatch.setattr("accelerate.accelerator.Join", lambda *_, **__: nullcontext())
    with accelerator.join_uneven_inputs([], even_batches=even):
        assert len(lists(loader)) == 3
        assert len(lists(without_tail)) == 2, "even in any case"
        with pytest.raises(ConfigurationError, match=f"build the loader with tail='{tail}'"):
            next(iter(other))
    assert len(lists(other)) == 3


def test_a_refused_configuration_changes_nothing() -> None:
    loader = loader_of(4)
    with pytest.raises(ConfigurationError, match="leave dispatch_batches= out"):
        accelerator_with(dispatch_batches=True).prepare(loader)
    assert lists(loader) == lists(loader_of(4))


def test_another_seed_is_refused_unless_the_loader_says_otherwise(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(loader_of(4, seed=1))
    next(iter(loader))
    accelerator.save_state(str(tmp_path))
    refusing = Accelerator(cpu=True)
    refusing.prepare(loader_of(4, seed=2))
    with pytest.raises(StateMismatchError, match="if a framework calls it, build the loader with"):
        refusing.load_state(str(tmp_path))
    warning = Accelerator(cpu=True)
    other = warning.prepare(loader_of(4, seed=2, on_mismatch="warn"))
    with pytest.warns(RuntimeWarning, match="seed: the state has 1, this loader has 2"):
        warning.load_state(str(tmp_path))
    assert (other.step, other.seed) == (1, 2)


class Unfinished(list[int]):
    unready = False

    def __len__(self) -> int:
        if self.unready:
            raise AttributeError("the index is not read yet")
        return super().__len__()


def test_an_attribute_missing_in_a_dataset_is_an_error_of_prepare() -> None:
    loader = ResumableDataLoader(Unfinished(range(6)), 2)
    loader.dataset.unready = True  # type: ignore[attr-defined]
    with pytest.raises(
        ConfigurationError, match=r"an attribute is missing .*the index is not read yet"
    ):
        accelerator_with(even_batches=False).prepare(loader)


def test_a_copy_of_a_prepared_loader_is_not_prepared() -> None:
    accelerator = accelerator_with()
    loader = accelerator.prepare(loader_of(4))
    next(iter(loader))
    for twin in (copy.copy(loader), pickle.loads(pickle.dumps(loader))):
        for _ in twin:
            assert not accelerator.gradient_state.in_dataloader
        assert accelerator.prepare(twin) is twin
    assert loader.step == 1


def test_a_position_set_before_prepare_stays() -> None:
    loader = loader_of(4)
    loader.seek(epoch=2, step=1)
    before = loader.sampler
    prepared = accelerator_with(split_batches=True).prepare(loader)
    assert prepared.sampler is not before, "the loader was rebuilt"
    assert (prepared.epoch, prepared.step) == (2, 1)


def test_dataporter_does_not_import_accelerate() -> None:
    from subprocess import run

    code = (
        "import sys, dataporter; loader = dataporter.ResumableDataLoader(range(3)); list(loader);"
        "sys.exit(getattr(loader, '_is_accelerate_prepared') or 'accelerate' in sys.modules)"
    )
    assert run([sys.executable, "-c", code]).returncode == 0


def test_the_example_killed_equals_the_example_uninterrupted(tmp_path: Path) -> None:
    alone, resumed = uninterrupted_and_resumed(
        tmp_path, "accelerate_training.py", "epoch 1, step 26:"
    )
    assert len(alone) == 3 * 57 + 1
    assert resumed[0].startswith("epoch 1, step 21:")
    assert alone[-len(resumed) :] == resumed


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of `prepared_ranks.py`, by rank."""
    directory = tmp_path_factory.mktemp("ranks")
    with launched(RANKS, 2, directory, directory=directory) as started:
        finished(started)
    return [json.loads((directory / f"rank-{rank}.json").read_text()) for rank in range(2)]


def stopping_rank() -> list[tuple[bool, bool]]:
    """Of each step: whether gradients are synchronised, and whether it is the last."""
    accelerator = accelerator_with(accumulate=3)
    loader = ResumableDataLoader(Sharded(31), 2, seed=3, stop_together=True)
    model = nn.Linear(1, 1)
    model, loader = accelerator.prepare(model, loader)
    found = []
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(batch["index"][:, None].float()).mean())
        found.append((accelerator.sync_gradients, loader.end_of_dataloader))
    return found


def test_ranks_that_stop_together_agree_on_the_last_batch() -> None:
    first, second = ranks_of(2, stopping_rank)
    assert first == second
    assert [ends for _, ends in first].index(True) == len(first) - 1
    assert first[-1] == (True, True)


ALL = set(range(21))


@pytest.mark.parametrize(
    "scenario", ["built_before", "simple_built_before", "built_after", "split_batches", "explicit"]
)
def test_two_ranks_share_each_sample_once(two_ranks: list[dict[str, Any]], scenario: str) -> None:
    first, second = (found[scenario] for found in two_ranks)
    own = [index for found in (first, second) for batch in found["own"] for index in batch]
    assert set(own) == ALL
    assert len(own) == 22
    assert [len(batch) for batch in first["own"]] == [4, 4, 3]
    # gather_for_metrics removes the sample that is there twice.
    assert sorted(first["gathered"]) == sorted(ALL)
    assert first["gathered"] == second["gathered"]
    assert first["ends"] == [False, False, True]
    assert first["length"] == 3


def test_a_loader_built_before_the_accelerator_joins_its_ranks(two_ranks: list[Any]) -> None:
    before, after = two_ranks[1]["built_before"], two_ranks[1]["built_after"]
    assert before["same"]
    assert before["shares"] == [2, 8]
    assert before["own"] == after["own"]


def test_ranks_prepared_explicitly_equal_ranks_prepared_by_the_accelerator(
    two_ranks: list[Any],
) -> None:
    for found in two_ranks:
        assert found["explicit"] == found["built_after"]


def test_a_position_from_before_is_shared_as_well(two_ranks: list[Any]) -> None:
    own = [
        index
        for found in two_ranks
        for batch in found["waiting_position"]["own"]
        for index in batch
    ]
    assert {found["waiting_position"]["epoch"] for found in two_ranks} == {1}
    alone = ResumableDataLoader(range(21), 4, shuffle=True, seed=3)
    before = {int(index) for step in range(2) for index in alone.samples_at(1, step)}
    assert set(own) >= ALL - before
    assert len(own) == len(ALL - before) + 1


def test_split_batches_is_the_batch_of_all(two_ranks: list[Any]) -> None:
    assert two_ranks[0]["split_batches"]["batch_size"] == 4
    assert "expected a multiple of 2" in two_ranks[0]["split_of_an_odd_batch"]


def test_uneven_batches_repeat_nothing(two_ranks: list[Any]) -> None:
    own = [index for found in two_ranks for batch in found["uneven_batches"] for index in batch]
    assert sorted(own) == sorted(ALL)


def test_drop_last_leaves_gathered_batches_whole(two_ranks: list[Any]) -> None:
    dropped = two_ranks[0]["dropped"]
    assert len(set(dropped["gathered"])) == len(dropped["gathered"]) == 16
    assert dropped["ends"] == [False, True]


def test_gathering_after_a_resume_with_another_batch_size(two_ranks: list[Any]) -> None:
    assert sorted(two_ranks[0]["another_batch_size"]) == sorted(ALL)


def test_a_custom_sampler_is_sharded_as_by_accelerate(two_ranks: list[Any]) -> None:
    first, second = (found["custom_sampler"] for found in two_ranks)
    # One draw for both ranks: they gather what the sampler yielded, and nothing twice.
    assert first["gathered"] == second["gathered"]
    assert len(first["gathered"]) == first["theirs_gathered"] == 21
    assert first["gathered"][:4] == first["own"][0]
    assert first["gathered"][4:8] == second["own"][0]
    for found in (first, second):
        assert [len(batch) for batch in found["own"]] == found["theirs"]
        assert found["again"] == found["rest"] == found["own"][1:]


def test_a_stream_in_shards_is_saved_for_all_ranks(two_ranks: list[Any]) -> None:
    delivered = []
    for found in (found["streams"] for found in two_ranks):
        assert found["again"] == found["rest"]
        delivered += found["delivered"] + found["rest"]
        assert "cannot be sharded" in found["unsharded"]
    assert sorted(delivered) == list(range(30))


def test_a_given_world_stays(two_ranks: list[Any]) -> None:
    assert [found["given_world"] for found in two_ranks] == [21, 21]
