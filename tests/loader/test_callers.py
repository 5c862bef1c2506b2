"""What frameworks do to a loader without a word: told by who calls, and refused or overheard."""

from __future__ import annotations

from typing import Any

import pytest
from torch.utils.data import DataLoader

from dataporter import ConfigurationError, ResumableDataLoader


class Wrapped(DataLoader[Any]):
    """As Ray Train's `prepare_data_loader` makes it."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.__dict__.update(loader.__dict__)
        self._dataloader = loader

    def __iter__(self) -> Any:
        self.batches = iter(self._dataloader)
        self.following = next(self.batches, None)
        return self

    def __next__(self) -> Any:
        batch, self.following = self.following, next(self.batches, None)
        if batch is None:
            raise StopIteration
        return batch


class Around:
    """Hands on what the loader gives, when it is asked."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __iter__(self) -> Any:
        return iter(self.loader)


def test_a_loader_that_was_taken_over_says_what_to_do() -> None:
    loader: ResumableDataLoader[Any] = ResumableDataLoader(range(6), 2)
    with pytest.raises(
        ConfigurationError, match=r"a Wrapped has .* a batch ahead .* use the loader"
    ):
        iter(Wrapped(loader))
    assert loader.step == 0
    assert len(list(loader)) == 3


def test_loaders_of_others_and_wrappers_that_read_nothing_ahead_are_let_alone() -> None:
    assert len(list(Wrapped(DataLoader(range(6), 2)))) == 3
    loader: ResumableDataLoader[Any] = ResumableDataLoader(range(6), 2)
    assert len(list(Around(loader))) == 3


def test_a_subclass_that_takes_part_in_iterating_is_no_taker() -> None:
    class Own(ResumableDataLoader[Any]):
        def __iter__(self) -> Any:
            return super().__iter__()

    assert len(list(Own(range(6), 2))) == 3
