"""Replaced samplers and iterators of a loader, and loaders built from another one (C13)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from subjects import Indices
from subjects import ids as ids_of
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from dataporter import ConfigurationError, ResumableDataLoader

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


class Repeating:
    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield from iter(self.sampler)


class Infinite(ResumableDataLoader[Any]):
    """As the loaders of vision trainers that keep their workers over all epochs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        object.__setattr__(self, "batch_sampler", Repeating(self.batch_sampler))
        self.iterator = super().__iter__()

    def __len__(self) -> int:
        return len(self.batch_sampler.sampler)  # type: ignore[union-attr]  # it is Repeating

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for _ in range(len(self)):
            yield next(self.iterator)

    def reset(self) -> None:
        self.iterator = self._get_iterator()


class MultiEpochs(ResumableDataLoader[Any]):
    """The same, by the flag that torch's class sets when it is initialised."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._DataLoader__initialized = False
        if self.batch_sampler is None:
            self.sampler: Any = Repeating(self.sampler)
        else:
            self.batch_sampler: Any = Repeating(self.batch_sampler)
        self._DataLoader__initialized = True
        self.iterator = super().__iter__()

    def __len__(self) -> int:
        return len((self.batch_sampler or self.sampler).sampler)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for _ in range(len(self)):
            yield next(self.iterator)


def ids(batch: Any) -> list[int]:
    return [batch] if isinstance(batch, int) else ids_of(batch)


LOADERS = pytest.mark.parametrize("loader", [Infinite, MultiEpochs])


def stream(loader: Any, epochs: int) -> list[list[int]]:
    return [ids(batch) for _ in range(epochs) for batch in loader]


def arguments(**others: Any) -> dict[str, Any]:
    return {"dataset": Indices(10), "batch_size": 4, "shuffle": True, "seed": 3, **others}


@LOADERS
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [4, None])
def test_an_infinite_loader_delivers_all_epochs_and_resumes(
    loader: Any, workers: int, batch_size: int | None
) -> None:
    if batch_size is None and loader is Infinite:
        pytest.skip("it wants a batch sampler")
    given = arguments(batch_size=batch_size, num_workers=workers)
    plain = ResumableDataLoader(**given)
    expected = [ids(batch) for _ in range(3) for batch in plain]
    assert stream(loader(**given), 3) == expected
    running = loader(**given)
    states = [running.state_dict()]
    for _ in range(2):
        for _ in running:
            states.append(running.state_dict())
    for done, state in list(enumerate(states))[:: 1 if batch_size and not workers else 4]:
        resumed = loader(**given)
        resumed.load_state_dict(state)
        found = [ids(next(resumed.iterator)) for _ in range(len(expected) - done)]
        assert found == expected[done:]


@LOADERS
def test_a_state_that_is_loaded_into_a_running_infinite_loader_counts(loader: Any) -> None:
    expected = stream(loader(**arguments()), 3)
    running = loader(**arguments())
    state = running.state_dict()
    stream(running, 2)
    running.load_state_dict(state)
    assert stream(running, 3) == expected
    running.set_epoch(1)
    assert stream(running, 2) == expected[3:]


def test_a_loader_that_yields_from_its_passes_is_infinite_as_well() -> None:
    class Forever(ResumableDataLoader[Any]):
        def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
            while True:
                yield from super().__iter__()

    expected = stream(ResumableDataLoader(**arguments()), 3)
    loader = Forever(**arguments())
    batches = iter(loader)
    assert [ids(next(batches)) for _ in range(4)] == expected[:4]
    resumed = Forever(**arguments())
    resumed.load_state_dict(loader.state_dict())
    batches = iter(resumed)
    assert [ids(next(batches)) for _ in range(5)] == expected[4:]


def test_a_wrapper_that_changes_nothing_changes_nothing() -> None:
    class Named:
        def __init__(self, sampler: Any) -> None:
            self.inner, self.name = sampler, "train"

        def __iter__(self) -> Iterator[Any]:
            return iter(self.inner)

    loader = ResumableDataLoader(**arguments())
    object.__setattr__(loader, "batch_sampler", Named(loader.batch_sampler))
    assert stream(loader, 2) == stream(ResumableDataLoader(**arguments()), 2)


class EveryOther(Repeating):
    def __iter__(self) -> Iterator[Any]:
        return iter(list(self.sampler)[::2])


@pytest.mark.parametrize("kind", ["wrapped", "other", "index_sampler", "inner", "batch_size"])
def test_another_sampler_is_refused_at_the_first_iter(kind: str) -> None:
    class Other(ResumableDataLoader[Any]):
        @property
        def _index_sampler(self) -> Any:
            return [[1, 2]]

    loader: Any = ResumableDataLoader(**arguments())
    if kind == "wrapped":
        object.__setattr__(loader, "batch_sampler", EveryOther(loader.batch_sampler))
        name = "EveryOther"
    elif kind == "other":
        other = BatchSampler(SequentialSampler(range(10)), 2, False)
        object.__setattr__(loader, "batch_sampler", other)
        name = "BatchSampler"
    elif kind == "index_sampler":
        loader, name = ResumableDataLoader(**arguments()), "list"
        loader.__class__ = Other
    elif kind == "inner":
        loader.batch_sampler.sampler, name = SequentialSampler(range(10)), r"BatchSampler\.sampler"
    else:
        loader.batch_sampler.batch_size, name = 2, r"BatchSampler\.batch_size was 4 .* is 2 now"
    with pytest.raises(ConfigurationError, match=rf"{name}.* settled its batches"):
        iter(loader)


def test_a_hook_around_torchs_iterator_is_called() -> None:
    """As graph libraries filter each batch: by _get_iterator, which torch's __iter__ calls."""

    class Filtered(ResumableDataLoader[Any]):
        def _get_iterator(self) -> Any:
            return (-batch for batch in super()._get_iterator())

    loader = Filtered(torch.arange(6), 2)
    assert [batch.tolist() for batch in loader] == [[0, -1], [-2, -3], [-4, -5]]
    batches = iter(loader)
    next(batches)
    resumed = Filtered(torch.arange(6), 2)
    resumed.load_state_dict(loader.state_dict())
    assert len(list(resumed)) == 2


@pytest.mark.parametrize("sampled", [True, False])
def test_a_loader_is_rebuilt_from_its_public_attributes(sampled: bool) -> None:
    """As an engine does that puts its own batch sampler into a loader of the same class."""
    if sampled:
        loader = ResumableDataLoader(Indices(6), 2, sampler=RandomSampler(range(6)), seed=1)
    else:
        loader = ResumableDataLoader(Indices(6), 2, shuffle=True, strategy="advanced", seed=1)
    names = [name for name in vars(loader) if not name.startswith("_")]
    for name in ("batch_size", "sampler", "drop_last", "batch_sampler", "dataset_kind"):
        if name in names:
            names.remove(name)
    batches = BatchSampler(SequentialSampler(range(6)), 3, drop_last=False)
    given = {name: getattr(loader, name) for name in names}
    rebuilt = type(loader)(**given, batch_sampler=batches)
    assert [ids(batch) for batch in rebuilt] == [[0, 1, 2], [3, 4, 5]]
    plain: DataLoader[Any] = DataLoader(Indices(6), batch_sampler=batches)
    ours = {name for name in names if name not in vars(plain)}
    ours_only = {"on_error", "max_failures", "converter", "worker_kind", "worker_restarts"}
    assert ours == ours_only | {"on_mismatch"}


class Shaken:
    """Repeats, and draws from the global generator at each beginning."""

    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[Any]:
        torch.rand(1)
        while True:
            yield from iter(self.sampler)


def test_finding_out_whether_a_sampler_repeats_draws_nothing() -> None:
    """Else a resumed run, which asks once more, would train with other dropout masks."""
    loader = ResumableDataLoader(Indices(4), 2, seed=1)
    object.__setattr__(loader, "batch_sampler", Shaken(loader.batch_sampler))
    before = torch.get_rng_state()
    iter(loader)
    assert torch.equal(torch.get_rng_state(), before)
