"""Bars start at the resumed step: `loader.progress()`, and tqdm and Rich as users write them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import torch.distributed as dist
from rich.console import Console
from rich.progress import Progress, track
from subjects import Indices, ids
from torch.utils.data import IterableDataset
from tqdm import tqdm
from worlds import ranks_of

from dataporter import DevicePrefetcher, ResumableDataLoader


class Counting(IterableDataset[int]):
    """A stream that does not say how long it is."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(10))


class Counted(Counting):
    def __len__(self) -> int:
        return 10


def loader_of(batch_size: int = 4, **arguments: Any) -> ResumableDataLoader[Any]:
    return ResumableDataLoader(Indices(40), batch_size, shuffle=True, seed=2, **arguments)


def after(steps: int, loader: ResumableDataLoader[Any]) -> ResumableDataLoader[Any]:
    """A new loader with the state of this one after so many batches."""
    assert len(list(islice(loader, steps))) == steps
    resumed = loader_of()
    resumed.load_state_dict(loader.state_dict())
    return resumed


def shown(bar: Any) -> tuple[str, int, int | None]:
    return bar.desc, bar.n, bar.total


@pytest.mark.parametrize("steps", [0, 3, 10])
def test_a_bar_starts_at_the_resumed_step_and_ends_full(steps: int) -> None:
    whole = [ids(batch) for batch in loader_of()]
    out = io.StringIO()
    loader = after(steps, loader_of())
    bar = loader.progress(file=out)
    assert shown(bar) == ("epoch 0", steps, 10)
    assert f"| {steps}/10 [" in out.getvalue()
    assert [ids(batch) for batch in bar] == whole[steps:]
    assert "| 10/10 [" in out.getvalue().rsplit("\r", 1)[1]
    # What is left of an epoch is not what the rate counts: the epoch's start was long ago.
    assert bar.format_dict["initial"] == steps
    assert shown(loader.progress(file=out)) == ("epoch 1", 0, 10)


def test_a_state_taken_behind_a_bar_is_exact() -> None:
    whole = [ids(batch) for batch in loader_of()]
    loader = loader_of(num_workers=2)
    bar = loader.progress(file=io.StringIO())
    states = []
    for _ in bar:
        bar.set_postfix(loss=0.1)
        states.append(loader.state_dict())
    for step, state in enumerate(states, start=1):
        resumed = loader_of()
        resumed.load_state_dict(state)
        bar = resumed.progress(file=io.StringIO())
        assert shown(bar) == ("epoch 0", step, 10)
        assert [ids(batch) for batch in bar] == whole[step:]


@pytest.mark.parametrize("leave_by", ["break", "exception"])
def test_a_loop_left_early_closes_its_bar_and_the_next_one_starts_anew(leave_by: str) -> None:
    loader = loader_of()
    bar = loader.progress(file=io.StringIO())

    def leave() -> None:
        for step, _ in enumerate(bar):
            if step == 2:
                if leave_by == "break":
                    return
                raise KeyError(step)

    if leave_by == "break":
        leave()
    else:
        with pytest.raises(KeyError):
            leave()
    assert bar not in tqdm._instances
    assert bar.n == 2
    # The pass was abandoned, so the one that comes is the next epoch's, from its start.
    assert (loader.epoch, loader.step) == (0, 3)
    following = loader.progress(file=io.StringIO())
    assert shown(following) == ("epoch 1", 0, 10)
    next(iter(following))
    assert (loader.epoch, loader.step) == (1, 1)


def test_another_batch_size_keeps_the_place_and_the_epochs_end() -> None:
    loader = loader_of()
    list(islice(loader, 3))
    resumed = loader_of(batch_size=7)
    resumed.load_state_dict(loader.state_dict())
    out = io.StringIO()
    bar = resumed.progress(file=out)
    begins = resumed.step
    assert bar.n == begins
    assert [len(batch) for batch in bar] == [7, 7, 7, 7]
    assert bar.n == bar.total == begins + 4


def test_a_stream_says_how_long_it_is_or_has_a_bar_without_an_end() -> None:
    out = io.StringIO()
    bar = ResumableDataLoader(Counting(), 2).progress(file=out)
    assert shown(bar) == ("epoch 0", 0, None)
    assert len(list(bar)) == 5
    assert "5batch [" in out.getvalue()
    loader: ResumableDataLoader[Any] = ResumableDataLoader(Counted(), 2)
    list(islice(loader, 2))
    resumed: ResumableDataLoader[Any] = ResumableDataLoader(Counted(), 2)
    resumed.load_state_dict(loader.state_dict())
    assert shown(resumed.progress(file=out)) == ("epoch 0", 2, 5)


def test_what_is_given_goes_before_what_is_set() -> None:
    loader = loader_of()
    bar = loader.progress(desc="training", unit="step", disable=False, file=io.StringIO())
    assert (bar.desc, bar.unit) == ("training", "step")
    around = DevicePrefetcher(loader, "cpu")
    assert len(list(loader.progress(iterable=around, file=io.StringIO()))) == 10
    assert loader.epoch == 1


def bars_of_rank() -> list[bool]:
    everyones = loader_of().progress(file=io.StringIO())
    own = loader_of(rank=0, world_size=1).progress(file=io.StringIO())
    wanted = loader_of().progress(file=io.StringIO(), disable=False)
    assert dist.is_initialized()
    return [not bar.disable for bar in (everyones, own, wanted)]


def test_only_the_first_of_several_ranks_shows_a_bar() -> None:
    assert ranks_of(2, bars_of_rank) == [[True, True, True], [False, False, True]]
    out = io.StringIO()
    assert loader_of(rank=1, world_size=2).progress(file=out).disable
    assert not loader_of(rank=0, world_size=2).progress(file=out).disable


def test_tqdm_by_hand() -> None:
    out = io.StringIO()
    loader = after(3, loader_of())
    for _ in tqdm(loader, initial=loader.step, total=len(loader), file=out):
        pass
    lines = out.getvalue().split("\r")
    assert "| 3/10 [" in lines[1]
    assert "| 10/10 [" in lines[-1]
    assert loader.step == 0


def test_rich_by_hand() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    loader = after(3, loader_of())
    with Progress(console=console) as progress:
        task = progress.add_task("epoch 0", completed=loader.step, total=len(loader))
        assert progress.tasks[task].percentage == 30
        for _ in loader:
            progress.advance(task)
        assert progress.tasks[task].completed == 10
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    loader = after(3, loader_of())
    bar = {"completed": loader.step, "total": len(loader), "auto_refresh": False}
    assert len(list(track(loader, console=console, **bar))) == 7
    assert "30%" in console.file.getvalue()
    assert "100%" in console.file.getvalue()
