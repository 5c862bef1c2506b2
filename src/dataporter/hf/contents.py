"""Contents: what is known of the data behind a stream before any of it is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import blake2b
from pathlib import PurePath
from typing import Any

from dataporter.hf.pipeline import sources_of

__all__ = ["contents_of"]


def contents_of(hf_iterable: Any) -> list[str]:
    """A text for each data source of a stream; none where nothing is known of it.

    It is the same on each machine: of a file it is the name without the folder, of a table its
    length and first row, of a generator the plain values among its arguments. A ``shuffle`` has its
    seed: the shards of streams that are shuffled in another order have other samples.

    Args:
        hf_iterable: a ``datasets.IterableDataset``.

    Example:
        >>> from datasets import Dataset
        >>> rows = Dataset.from_dict({"n": range(8)}).to_iterable_dataset(num_shards=4)
        >>> contents_of(rows.shard(2, 0)) == contents_of(rows.shard(2, 1))
        False
    """
    known = []
    for step in sources_of(hf_iterable):
        arguments = getattr(step, "kwargs", None)
        if isinstance(arguments, Mapping):
            known += [text for name in sorted(arguments) for text in _known(arguments[name])]
    seeds = [repr(seed) for seed in map(seed_of, sources_of(hf_iterable)) if seed is not None]
    return [*known, *seeds] if known else []


def _known(value: Any) -> Iterator[str]:
    if isinstance(value, str | PurePath):
        # A web address has the same last part as a path.
        yield str(value).replace("\\", "/").rstrip("/").rpartition("/")[2]
    elif isinstance(value, bool | int | float):
        yield repr(value)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _known(inner)
    elif hasattr(value, "data") and hasattr(value, "_indices"):  # a datasets.Dataset
        row = 0 if value._indices is None or not len(value) else value._indices[0][0].as_py()
        first = value.data.table.slice(row, 1).to_pylist()
        yield f"{len(value)} rows {blake2b(repr(first).encode(), digest_size=8).hexdigest()}"


def seed_of(step: Any) -> Any:
    """The seed of a step that shuffles; None for other steps, and where it is unknown."""
    bits = getattr(getattr(step, "generator", None), "bit_generator", None)
    return getattr(getattr(bits, "seed_seq", None), "entropy", None)
