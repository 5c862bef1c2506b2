"""Leaves: at which paths of a sample a dataset's features may hold numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dataporter.convert.paths import Pattern, Wildcard
from dataporter.hf.schema import content_of, dtype_of_value, is_list_feature

__all__ = ["leaves_in"]


def leaves_in(features: Mapping[str, Any], names: Iterable[str]) -> list[Pattern]:
    """The paths of the columns' numbers, tensors and images; ``*`` is any index of a list.

    A list of numbers is a tensor, or, where a null is among them, a list of numbers. What only
    ``datasets`` knows how to decode may be anything.

    Args:
        features: of the dataset.
        names: the columns.
    """
    return [(name, *path) for name in names for path in dict.fromkeys(_leaves(features.get(name)))]


def _leaves(feature: Any) -> Iterator[Pattern]:
    if isinstance(feature, Mapping):
        for name, inner in feature.items():
            yield from ((name, *path) for path in _leaves(inner))
    elif is_list_feature(feature):
        for path in _leaves(content_of(feature)):
            if not path or path[0] is Wildcard.ONE:
                yield path  # stacked
            yield (Wildcard.ONE, *path)
    elif getattr(feature, "shape", None) is not None or dtype_of_value(feature) is not None:
        yield ()
    elif hasattr(feature, "decode_example"):
        if type(feature).__name__ != "Image":
            yield (Wildcard.ANY,)
        elif feature.decode:
            yield ()
    elif not hasattr(feature, "pa_type"):
        yield (Wildcard.ANY,)
