"""Snapshots: whether the state of a streamed Hugging Face dataset is all that it depends on."""

from __future__ import annotations

from typing import Any

__all__ = ["snapshots_are_exact"]


def snapshots_are_exact(hf_iterable: Any) -> bool:
    """Whether ``load_state_dict`` goes on with the very next sample.

    The state of ``datasets`` says nothing of what lies in the buffer of a ``shuffle``, which is
    refilled with other samples; and behind ``with_format("arrow")`` (or another format of tables) a
    batched ``map`` or ``filter`` may skip a batch.

    Args:
        hf_iterable: a ``datasets.IterableDataset``.
    """
    waiting = [hf_iterable._ex_iterable]
    while waiting:
        source = waiting.pop()
        kinds = {kind.__name__ for kind in type(source).__mro__}
        if "BufferShuffledExamplesIterable" in kinds:
            return False
        if "MappedExamplesIterable" in kinds and source.batched:
            formatting = source.formatting
            if formatting is not None and formatting.is_table:
                return False
        inner = getattr(source, "ex_iterable", None)
        waiting += [] if inner is None else [inner]
        waiting += getattr(source, "ex_iterables", ())
    return True
