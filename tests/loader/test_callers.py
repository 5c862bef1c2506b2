"""Frameworks that use a loader without calling it by name: recognised by their frames."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from torch.utils.data import DataLoader

from dataporter import ConfigurationError, ResumableDataLoader


class Wrapped(DataLoader[Any]):
    """Made as by Ray Train's `prepare_data_loader`."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.__dict__.update(loader.__dict__)
        self._dataloader = loader

    def __iter__(self) -> Any:
        self.batches = iter(self._dataloader)
        self.fetch()
        return self

    def fetch(self) -> None:
        self.following = next(self.batches, None)

    def __next__(self) -> Any:
        batch = self.following
        self.fetch()
        if batch is None:
            raise StopIteration
        return batch


class Around:
    """Returns the loader's own iterator."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Any:
        return iter(self.loader)


class Overriding(ResumableDataLoader[Any]):
    def __iter__(self) -> Iterator[Any]:
        return super().__iter__()


class Generating(ResumableDataLoader[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from super().__iter__()


class Delegating(ResumableDataLoader[Any]):
    def __iter__(self) -> Iterator[Any]:
        return begun_by(super().__iter__)


def begun_by(begin: Any) -> Any:
    return begin()


class Nesting(ResumableDataLoader[Any]):
    """Reads its batches from another loader."""

    inner: Any = None

    def __iter__(self) -> Iterator[Any]:
        return iter(self.inner)


CLASSES = [ResumableDataLoader, Overriding, Generating, Delegating]


@pytest.mark.parametrize("subclass", CLASSES)
def test_a_loader_that_was_taken_over_says_what_to_do(subclass: Any) -> None:
    loader = subclass(range(6), 2)
    with pytest.raises(
        ConfigurationError, match=r"a Wrapped has .* a batch ahead .* use the loader"
    ):
        iter(Wrapped(loader))
    assert loader.step == 0
    assert len(list(loader)) == 3


def test_a_loader_that_changes_after_it_was_taken_over_is_refused_as_well() -> None:
    """Users may set attributes."""
    for name, value in (("on_error", "skip"), ("worker_kind", "thread")):
        loader: ResumableDataLoader[Any] = ResumableDataLoader(range(6), 2)
        wrapped = Wrapped(loader)
        setattr(loader, name, value)
        with pytest.raises(ConfigurationError, match="a Wrapped has"):
            iter(wrapped)


@pytest.mark.parametrize("subclass", CLASSES)
def test_wrappers_that_read_nothing_ahead_may_iterate(subclass: Any) -> None:
    loader = subclass(range(6), 2)
    assert len(list(Around(loader))) == 3


def test_loaders_of_other_classes_may_be_taken_over() -> None:
    assert len(list(Wrapped(DataLoader(range(6), 2)))) == 3


@pytest.mark.parametrize("subclass", CLASSES)
def test_a_loader_that_iterates_over_another_has_not_taken_it_over(subclass: Any) -> None:
    outer = Nesting(range(2), 1)
    outer.inner = subclass(range(6), 2)
    assert len(list(outer)) == 3


class Delegating(DataLoader[Any]):
    """Passes the reading of attributes on, and takes none of them over."""

    def __init__(self, loader: Any) -> None:
        self.__dict__["loader"] = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["loader"], name)

    def __iter__(self) -> Any:
        yield from self.__dict__["loader"]


def test_a_wrapper_that_delegates_is_left_alone() -> None:
    loader = ResumableDataLoader(range(17), 4, seed=1)
    expected = [batch.tolist() for batch in ResumableDataLoader(range(17), 4, seed=1)]
    assert [batch.tolist() for batch in Delegating(loader)] == expected
