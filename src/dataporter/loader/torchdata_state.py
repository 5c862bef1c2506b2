"""torchdata: a state of its `StatefulDataLoader` becomes one of ours, where that is exact.

Its state has the number of batches and, if the loader shuffled, the generator's state from before
the epoch; neither the epoch, nor the length of the dataset, nor how the samples were ordered. So
it is converted only if this loader's order is known to be that epoch's, and refused otherwise.
``order="torch"`` never is: torchdata draws its permutation before the workers' seed, torch after.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DistributedSampler, RandomSampler, SequentialSampler

from dataporter.errors import InvalidStateError, StateMismatchError
from dataporter.loader.setup import Setup
from dataporter.schedule.progress import Progress

__all__ = ["converted"]

_SAMPLER_ITER = "_sampler_iter_state"


@dataclass(frozen=True, slots=True)
class _Theirs:
    """A state of torchdata as its parts.

    Attributes:
        steps: number of batches that were delivered.
        steps_at_samples, samples: the sampler had yielded so many samples for so many batches;
            ``samples`` is None without batches.
        generator: the state of the sampler's generator before the epoch; None if the sampler has
            no state.
        path: the subscripts that lead to it.
        is_over: the loop over the epoch has ended.
    """

    steps: int
    steps_at_samples: int
    samples: int | None
    generator: Any
    path: str
    is_over: bool


def converted(
    state: Mapping[str, Any], setup: Setup, epoch: int, seed: Callable[[], int]
) -> dict[str, Any]:
    """The state with which this loader delivers the rest of torchdata's epoch, bit by bit.

    Args:
        setup: of this loader.
        epoch: the present one, which torchdata's state does not know.
        seed: gives the loader's seed. Called once nothing can go wrong any more.

    Raises:
        InvalidStateError: the state is damaged, or of an iterable dataset.
        StateMismatchError: this loader has another order, or its order cannot be compared.
    """
    theirs = _parsed(state, setup)
    if setup.is_mixed:
        raise StateMismatchError(
            "this loader reads a Mixture, whose order torchdata does not have: begin the mixture "
            "with a new epoch, without loading that state"
        )
    if setup.order is None:
        progress = _in_sampler(theirs, setup, epoch)
    elif setup.world_size > 1:
        raise StateMismatchError(
            f"torchdata's state is that of one rank, and this loader shards the data for "
            f"{setup.world_size} ranks in an order of its own: finish the epoch with "
            "sampler=DistributedSampler(...) as it was, or start the next one"
        )
    elif setup.order.name == "sequential" and theirs.generator is None:
        progress = _at(theirs, setup, epoch)
    else:
        was, advice = (
            ("that of a sampler without a state", "leave shuffle= and order= out, or pass it")
            if theirs.generator is None
            else ("shuffled by a generator of torch", _as_it_was(theirs))
        )
        raise StateMismatchError(
            f"this loader's order is {setup.order.name!r}, and torchdata's was {was}: {advice}"
        )
    return setup.format.build(seed(), progress)


def _parsed(state: Mapping[str, Any], setup: Setup) -> _Theirs:
    path = ""
    try:
        main, steps, since = state, state.get("_num_yielded"), 0
        if "_snapshot" in state:
            snapshot, path = state["_snapshot"], "['_snapshot']['_main_snapshot']"
            main, since = snapshot["_main_snapshot"], state["_steps_since_snapshot"]
            steps = snapshot["_snapshot_step"] + since
            parts = list(snapshot.get("_worker_snapshots", {}).values())
        else:
            parts = [state]
        iterable = any(part.get("fetcher_state") is not None for part in parts)
        datasets = any(part.get("dataset_state") is not None for part in parts)
        sampler = main[_SAMPLER_ITER] or {}
        inner, path = sampler, f"{path}[{_SAMPLER_ITER!r}]"
        if "sampler_iter_state" in sampler:
            inner, path = sampler["sampler_iter_state"], f"{path}['sampler_iter_state']"
        has_generator = isinstance(inner, Mapping) and "generator" in inner
        theirs = _Theirs(
            steps=_whole(steps),
            steps_at_samples=_whole(steps) - _whole(since),
            samples=_whole(sampler["samples_yielded"]) if "samples_yielded" in sampler else None,
            generator=inner["generator"] if has_generator else None,
            path=f"{path}['generator']",
            is_over=bool(state["_iterator_finished"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidStateError(
            f"this is a state of torchdata's StatefulDataLoader, but it is damaged ({error!r}): "
            "load another one"
        ) from error
    if iterable or setup.stream is not None:
        raise InvalidStateError(
            "this is a state of torchdata's StatefulDataLoader of an iterable dataset, or this "
            "loader's is one: where its workers stood in their streams cannot be carried over; "
            "finish the epoch with torchdata, and start the next one here"
        )
    if datasets:
        raise InvalidStateError(
            "this state of torchdata's StatefulDataLoader holds a state of the dataset, which a "
            "ResumableDataLoader of a map-style dataset has no place for: load it into the dataset "
            "yourself, and set every 'dataset_state' of the state to None"
        )
    return theirs


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"expected a whole number from 0, got {value!r}")
    return value


def _at(theirs: _Theirs, setup: Setup, epoch: int) -> Progress:
    """Where a loader of this order stands once it has delivered the same batches."""
    if theirs.is_over:
        if theirs.generator is not None:
            raise StateMismatchError(
                "torchdata's state is from after an epoch's end, and the order of its next epoch "
                "is not in it: start the next epoch without loading a state"
            )
        return Progress(epoch + 1)
    _check_batch_size(theirs, setup)
    lookup: Any = setup.lookup
    if theirs.steps > (steps := setup.schedule.steps(setup.beginning(epoch))):
        raise StateMismatchError(
            f"torchdata's state is at batch {theirs.steps}, and an epoch of this loader has "
            f"{steps} batches: resume on the dataset that it was saved with"
        )
    progress: Progress = lookup.progress_at(epoch, theirs.steps, 0)
    return progress


def _check_batch_size(theirs: _Theirs, setup: Setup) -> None:
    batch_size = setup.arguments.batch_size
    if setup.arguments.batch_sampler is not None or not theirs.steps_at_samples:
        return
    if (theirs.samples is None) != (batch_size is None):
        was = "None" if theirs.samples is None else "a number"
        raise StateMismatchError(
            f"batch_size: torchdata's loader had {was}, this loader has {batch_size}: pass it as "
            "it was"
        )
    if theirs.samples is None or batch_size is None:
        return
    full = theirs.steps_at_samples * batch_size
    # The last batch may be incomplete.
    if not (theirs.samples == full or full - batch_size < theirs.samples == len(setup.rows)):
        raise StateMismatchError(
            f"batch_size: torchdata's loader had read {theirs.samples} samples in "
            f"{theirs.steps_at_samples} batches, this loader has batch_size={batch_size}: pass "
            "batch_size= as it was"
        )


def _in_sampler(theirs: _Theirs, setup: Setup, epoch: int) -> Progress:
    """Where a loader with a custom sampler stands."""
    sampler: Any = setup.arguments.custom_sampler
    kind = type(sampler)
    if theirs.generator is None and issubclass(kind, SequentialSampler | DistributedSampler):
        return _at(theirs, setup, epoch)
    if theirs.generator is None:
        raise StateMismatchError(
            f"torchdata's state does not hold the order of a {kind.__name__}, so the rest of its "
            "epoch cannot be known: start the next epoch without loading a state"
        )
    if kind is not RandomSampler or sampler.replacement:
        raise StateMismatchError(f"sampler= is a {kind.__name__}: {_as_it_was(theirs)}")
    progress, order = _at(theirs, setup, 0), _permutation(theirs.generator, len(setup.rows))
    size = setup.arguments.batch_size or 1
    steps = setup.schedule.steps(Progress())
    for step in {min(theirs.steps, steps - 1), steps - 1}:
        if list(setup.lookup.samples_at(Progress(), step, 0)) != order[step * size :][:size]:
            raise StateMismatchError(
                f"the generator of sampler= (a RandomSampler) gives another order: "
                f"{_as_it_was(theirs)}"
            )
    return progress


def _permutation(generator_state: Any, length: int) -> list[int]:
    order: list[int] = torch.randperm(length, generator=_generator(generator_state)).tolist()
    return order


def _generator(state: Any) -> torch.Generator:
    generator = torch.Generator()
    try:
        generator.set_state(torch.as_tensor(state, dtype=torch.uint8))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidStateError(
            "this is a state of torchdata's StatefulDataLoader, but its 'generator' is not the "
            f"state of a torch.Generator ({error}): load another one"
        ) from error
    return generator


def _as_it_was(theirs: _Theirs) -> str:
    return (
        "build the loader with sampler=RandomSampler(dataset, generator=generator), where "
        f"generator = torch.Generator(); generator.set_state(state{theirs.path})"
    )
