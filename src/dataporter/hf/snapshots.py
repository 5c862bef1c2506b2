"""Snapshots: whether the state of a streamed Hugging Face dataset is all that it depends on."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import iscoroutinefunction
from typing import Any

__all__ = ["reads_ahead", "snapshots_are_exact"]

# What gives out a sample before it reads the next one.
_ONE_BY_ONE = {
    "ArrowExamplesIterable",
    "SelectColumnsIterable",
    "StepExamplesIterable",
    "VerticallyConcatenatedMultiSourcesExamplesIterable",
    "HorizontallyConcatenatedMultiSourcesExamplesIterable",
    "MappedExamplesIterable",
    "FilteredExamplesIterable",
    "SkipExamplesIterable",
    "RepeatExamplesIterable",
    "TakeExamplesIterable",
    "FormattedExamplesIterable",
}


def snapshots_are_exact(hf_iterable: Any) -> bool:
    """Whether ``load_state_dict`` goes on with the very next sample.

    The state of ``datasets`` says nothing of what lies in the buffer of a ``shuffle``, which is
    refilled with other samples; and behind ``with_format("arrow")`` (or another format of tables) a
    batched ``map`` or ``filter`` may skip a batch.

    Args:
        hf_iterable: a ``datasets.IterableDataset``.
    """
    for source in _sources(hf_iterable):
        kinds = {kind.__name__ for kind in type(source).__mro__}
        # A buffer of one sample shuffles the shards alone, and holds nothing back.
        if "BufferShuffledExamplesIterable" in kinds and source.buffer_size > 1:
            return False
        if "MappedExamplesIterable" in kinds and source.batched:
            formatting = source.formatting
            if formatting is not None and formatting.is_table:
                return False
    return True


def reads_ahead(hf_iterable: Any) -> bool:
    """Whether samples may be computed together, or again, when one of them is asked for.

    Batched and asynchronous functions compute several, interleaved sources are read before it is
    their turn, and a generator is run again from its beginning when a state is loaded. What is
    drawn at random meanwhile is then drawn by the seed of the sample that was asked for, and after
    a resume that may be another one.

    Args:
        hf_iterable: a ``datasets.IterableDataset``.
    """
    return any(
        type(source).__name__ not in _ONE_BY_ONE
        or getattr(source, "batched", False)
        or iscoroutinefunction(getattr(source, "function", None))
        for source in _sources(hf_iterable)
    )


def _sources(hf_iterable: Any) -> Iterator[Any]:
    waiting = [hf_iterable._ex_iterable]
    while waiting:
        source = waiting.pop()
        yield source
        inner = getattr(source, "ex_iterable", None)
        waiting += [] if inner is None else [inner]
        waiting += getattr(source, "ex_iterables", ())
