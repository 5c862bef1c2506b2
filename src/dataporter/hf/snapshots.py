"""Snapshots: whether the state of a streamed Hugging Face dataset is exact."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import iscoroutinefunction
from typing import Any

from dataporter.hf.contents import seed_of
from dataporter.hf.pipeline import inner_of, sources_of

__all__ = ["draws_in_threads", "reads_ahead", "snapshots_are_exact"]

# These yield each sample before they read the next one.
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

# These read their sources in threads.
_WITH_THREADS = {
    "CyclingMultiSourcesExamplesIterable",
    "RandomlyCyclingMultiSourcesExamplesIterable",
    "InterleavedShardsExamplesIterable",
}
# These call functions of the user, or a generator.
_WITH_FUNCTIONS = {"ExamplesIterable", "MappedExamplesIterable", "FilteredExamplesIterable"}


def snapshots_are_exact(hf_iterable: Any) -> bool:
    """Whether ``load_state_dict`` resumes at the exact next sample.

    The state of ``datasets`` leaves out the buffer of a ``shuffle``, which is refilled with other
    samples. After ``with_format("arrow")`` (or another format of tables), a batched ``map`` or
    ``filter`` may skip a batch.

    Args:
        hf_iterable: a ``datasets.IterableDataset``.
    """
    for source in sources_of(hf_iterable):
        kinds = {kind.__name__ for kind in type(source).__mro__}
        # With a buffer of one sample, only the shards are shuffled, and no sample is held back.
        if "BufferShuffledExamplesIterable" in kinds and (
            source.buffer_size > 1 or _is_without_seed(source)
        ):
            return False
        if "MappedExamplesIterable" in kinds and source.batched:
            formatting = source.formatting
            if formatting is not None and formatting.is_table:
                return False
    return True


def _is_without_seed(source: Any) -> bool:
    # NumPy draws 128 bits then. Another process has another order, in which a state means nothing:
    # what is reread there is compared with what was delivered.
    seed = seed_of(source)
    return isinstance(seed, int) and seed >= 1 << 64


def reads_ahead(hf_iterable: Any) -> bool:
    """Whether a request for one sample may compute several, or compute some again.

    Batched and asynchronous functions compute several samples, interleaved sources are read ahead,
    and a generator restarts from its beginning when a state is loaded. Random numbers drawn in the
    meantime depend on the seed of the requested sample, which may be another one after a resume.

    Args:
        hf_iterable: a ``datasets.IterableDataset``.
    """
    return any(map(_reads_ahead, sources_of(hf_iterable)))


def draws_in_threads(hf_iterable: Any) -> bool:
    """Whether any random numbers that the stream draws are drawn in other threads.

    ``datasets`` reads the sources of an interleaving in threads, and so the shards of a shuffled
    stream. What the functions in front of that draw depends on when these threads run.

    Args:
        hf_iterable: a ``datasets.IterableDataset``.
    """
    return set(_drawing_in_threads(hf_iterable._ex_iterable, in_threads=False)) == {True}


def _drawing_in_threads(step: Any, *, in_threads: bool) -> Iterator[bool]:
    """Of each step with a function that may draw: whether threads call it."""
    name = type(step).__name__
    function = getattr(step, "function", None)
    # Such as that of rename_column(), which is a map.
    is_theirs = getattr(function, "__module__", "").partition(".")[0] == "datasets"
    if name in _WITH_FUNCTIONS and not is_theirs:
        yield in_threads
    for inner in inner_of(step):
        yield from _drawing_in_threads(inner, in_threads=in_threads or name in _WITH_THREADS)


def _reads_ahead(source: Any) -> bool:
    name = type(source).__name__
    if name == "RebatchedArrowExamplesIterable":  # in front of a map, with one row at a time
        return bool(source.batch_size != 1)
    return (
        name not in _ONE_BY_ONE
        or getattr(source, "batched", False)
        or iscoroutinefunction(getattr(source, "function", None))
    )
