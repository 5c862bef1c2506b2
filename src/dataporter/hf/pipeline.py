"""Pipelines: the steps of a streamed Hugging Face dataset, and which of them forbid splitting it.

A shard holds some of the data sources, and each step of the pipeline runs in each shard by itself.
That leaves the samples as they are only if every step treats each sample alone, or only reorders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from typing import Any, NamedTuple

__all__ = [
    "STEPS",
    "Node",
    "alone",
    "inner_of",
    "node_of",
    "sources_of",
    "unsplittable",
    "without_node",
]


class Node(NamedTuple):
    """The part of a stream that ``split_dataset_by_node`` gave to one node."""

    rank: int
    world_size: int


def unsplittable(hf_iterable: Any) -> str | None:
    """The steps that a split would change, such as ``"take(5)"``; None if there are none.

    A step of an unknown class is one of them.

    Args:
        hf_iterable: a ``datasets.IterableDataset``.

    Example:
        >>> from datasets import Dataset
        >>> rows = Dataset.from_dict({"n": range(8)}).to_iterable_dataset(num_shards=4)
        >>> unsplittable(rows.map(dict))
        >>> unsplittable(rows.map(dict, batched=True).take(5))
        'map(batched=True) and take(5)'
    """
    found = list(dict.fromkeys(_unsplittable_steps(hf_iterable._ex_iterable)))
    if _is_formatted(hf_iterable) and any(map(_mixes_tables, sources_of(hf_iterable))):
        found.append("with_format() of concatenated tables and other streams")
    if not _is_plain(hf_iterable):
        found.append(f"{type(hf_iterable).__name__}, a subclass of IterableDataset,")
    if hf_iterable._starting_state_dict is not None:
        found.append("load_state_dict()")
    if (node := node_of(hf_iterable)) is not None:
        found.append(f"split_dataset_by_node(rank={node.rank}, world_size={node.world_size})")
    return " and ".join(found) or None


def node_of(hf_iterable: Any) -> Node | None:
    """The node whose part of the data this stream is; None if it is all of them."""
    distributed = hf_iterable._distributed
    if distributed is None or distributed.world_size == 1:
        return None
    return Node(distributed.rank, distributed.world_size)


def without_node(hf_iterable: Any) -> Any:
    """The stream that ``split_dataset_by_node`` was called with."""
    whole = _twin(hf_iterable)
    whole._distributed = None
    return whole


def alone(hf_iterable: Any) -> Any:
    """The same stream with a separate position.

    ``datasets`` keeps the position in the steps, and streams made of one another share them:
    reading ``rows.take(8)`` would move the position of ``rows.skip(8)``.
    """
    twin = _twin(hf_iterable)
    twin._ex_iterable = _copied(hf_iterable._ex_iterable)
    # A number or a tensor of it, which set_epoch changes in place.
    twin._epoch = hf_iterable._epoch + 0
    return twin


def sources_of(hf_iterable: Any) -> Iterator[Any]:
    """All steps, from the last one of the pipeline to its data sources."""
    waiting = [hf_iterable._ex_iterable]
    while waiting:
        step = waiting.pop()
        yield step
        waiting += reversed(inner_of(step))


def _twin(hf_iterable: Any) -> Any:
    # copy() would return an object with the very same attributes: its __getstate__ is its __dict__.
    twin = object.__new__(type(hf_iterable))
    vars(twin).update(vars(hf_iterable))
    return twin


def inner_of(step: Any) -> list[Any]:
    """The steps, or the data sources, that a step reads."""
    one = getattr(step, "ex_iterable", None)
    return [*getattr(step, "ex_iterables", ()), *([] if one is None else [one])]


def _copied(step: Any) -> Any:
    twin = copy(step)
    if hasattr(step, "ex_iterable"):
        twin.ex_iterable = _copied(step.ex_iterable)
    if hasattr(step, "ex_iterables"):
        twin.ex_iterables = [_copied(inner) for inner in step.ex_iterables]
    return twin


def _is_plain(hf_iterable: Any) -> bool:
    # The shards of a subclass are plain streams, without what it overrides.
    kind = type(hf_iterable)
    return (kind.__module__, kind.__name__) == ("datasets.iterable_dataset", "IterableDataset")


def _unsplittable_steps(step: Any) -> Iterator[str]:
    """The steps that a split would change, in the order of the pipeline."""
    if step.num_shards == 1:
        # Nothing below it is ever split.
        return
    for inner in inner_of(step):
        yield from _unsplittable_steps(inner)
    kind = type(step)
    judge = STEPS.get(kind.__name__) if kind.__module__ in _MODULES else None
    name = (
        f"{kind.__name__}, a step that this release does not know,"
        if judge is None
        else (judge(step))
    )
    if name is not None:
        yield name


def _alone(step: Any) -> None:
    """For steps that treat each sample by itself, or only change the order."""


def _mapped(step: Any) -> str | None:
    function = getattr(step.function, "func", step.function)
    is_theirs = getattr(function, "__module__", "") in _MODULES
    name = getattr(function, "__name__", "") if is_theirs else ""
    if getattr(step, "is_batch_accumulate_arrow_table_function", False):  # not before 4.9
        return "batch(by_column=...)"
    if name in ("_batch_fn", "_batch_arrow_table") and step.batch_size != 1:
        return f"batch({step.batch_size})"
    if name == "add_column_fn":
        return f"add_column({step.function.keywords['name']!r})"
    return _called("map", step)


def _filtered(step: Any) -> str | None:
    return _called("filter", step)


def _called(name: str, step: Any) -> str | None:
    groups = step.batched and step.batch_size != 1
    options = ["batched=True"] * groups + ["with_indices=True"] * step.with_indices
    return f"{name}({', '.join(options)})" if options else None


def _interleaved(step: Any) -> str | None:
    # Each source to its end, whatever the turns: only the order depends on the shards.
    if step.stopping_strategy == "all_exhausted_without_replacement":
        return None
    return f"interleave_datasets(stopping_strategy={step.stopping_strategy!r})"


def _concatenated(step: Any) -> str | None:
    # The first of the streams in a shard decides whether the samples of all are decoded.
    kinds = [inner.features if inner.is_typed else None for inner in step.ex_iterables]
    if all(kind == kinds[0] for kind in kinds):
        return None
    return "concatenate_datasets() of streams with and without features"


def _mixes_tables(step: Any) -> bool:
    """Whether a shard could be read as tables, where the whole cannot be."""
    if type(step).__name__ != "VerticallyConcatenatedMultiSourcesExamplesIterable":
        return False
    return len({inner.iter_arrow is None for inner in step.ex_iterables}) > 1


def _is_formatted(hf_iterable: Any) -> bool:
    # The values of a format differ: a null of a table becomes nan, and otherwise None.
    formats = [getattr(step, "formatting", None) for step in sources_of(hf_iterable)]
    return any(each is not None for each in (hf_iterable._formatting, *formats))


def _repeated(step: Any) -> str | None:
    # Without an end, a short shard would come more often than a long one.
    return "repeat(None)" if step.num_times is None else None


def _regrouped(step: Any) -> str | None:
    drops = step.drop_last_batch and step.batch_size != 1
    return "map(batched=True, drop_last_batch=True)" if drops else None


_MODULES = ("datasets.iterable_dataset", "datasets.packaged_modules.spark.spark")

# By class of datasets 4.0 to 5.2: the call that made a step which a split would change, or None for
# one that it leaves as it is. Read in its source; a class that is not here counts as unknown.
STEPS: dict[str, Callable[[Any], str | None]] = {
    "ExamplesIterable": _alone,
    "ArrowExamplesIterable": _alone,
    "ShuffledDataSourcesExamplesIterable": _alone,
    "ShuffledDataSourcesArrowExamplesIterable": _alone,
    "SparkExamplesIterable": _alone,
    "SelectColumnsIterable": _alone,
    "FormattedExamplesIterable": _alone,
    "VerticallyConcatenatedMultiSourcesExamplesIterable": _concatenated,
    "BufferShuffledExamplesIterable": _alone,
    "InterleavedShardsExamplesIterable": _alone,
    "RebatchedArrowExamplesIterable": _regrouped,
    "MappedExamplesIterable": _mapped,
    "FilteredExamplesIterable": _filtered,
    "RepeatExamplesIterable": _repeated,
    "CyclingMultiSourcesExamplesIterable": _interleaved,
    "RandomlyCyclingMultiSourcesExamplesIterable": _interleaved,
    "TakeExamplesIterable": lambda step: f"take({step.n})",
    "SkipExamplesIterable": lambda step: f"skip({step.n})",
    "StepExamplesIterable": lambda step: f"every {step.step}th sample",
    "HorizontallyConcatenatedMultiSourcesExamplesIterable": lambda _: "concatenation by columns",
}
