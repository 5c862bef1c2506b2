"""The arguments of a mixture, checked: weights by name become a blend of numbered sources."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset

from dataporter.checks import given, is_one_of, positive_number
from dataporter.datasets.rows import length_of, rows_of
from dataporter.errors import ConfigurationError, UnsupportedDatasetError
from dataporter.orders.mixture.apportion import MOST_SAMPLES
from dataporter.orders.mixture.phase import Stopping
from dataporter.orders.mixture.weights import Weights

__all__ = [
    "LinearWeights",
    "by_source",
    "converters_checked",
    "limits_checked",
    "mean_lengths",
    "names_checked",
    "sources_checked",
    "stopping_checked",
    "weights_checked",
]

_MOST_SOURCES = 1 << 15
_HEAVIEST = 1e300
# Digits of a proportion that follows from mean lengths.
_DIGITS = 9


@dataclass(frozen=True, slots=True)
class LinearWeights:
    """Weights that move on straight lines, for :class:`~dataporter.Mixture`.

    Args:
        knots: positions, in samples from the beginning of the run, with the weights that hold
            there. Between two knots the proportions move on a straight line, in up to 256 steps;
            behind the last they stay.

    Example:
        >>> from dataporter import LinearWeights, Mixture
        >>> start, end = {"easy": 1.0, "hard": 0.0}, {"easy": 0.2, "hard": 0.8}
        >>> weights = LinearWeights([(0, start), (1_000, end)])
        >>> data = Mixture({"easy": range(100), "hard": range(100)}, weights)
    """

    knots: Sequence[tuple[int, Mapping[str, float]]]


def sources_checked(sources: Any) -> dict[str, Any]:
    """By name, the sources as datasets of rows.

    Raises:
        ConfigurationError: no sources, or names that are no texts.
        UnsupportedDatasetError: a source is a stream, or has no length.
    """
    sources = names_checked(sources, "map-style datasets")
    for name, source in sources.items():
        if isinstance(source, IterableDataset):
            raise UnsupportedDatasetError(
                f"source {name!r} is a {type(source).__name__}, an IterableDataset, which has no "
                "length: mix streams by dataporter.MixtureStream"
            )
    rows = {name: rows_of(source) for name, source in sources.items()}
    if sum(map(length_of, rows.values())) > MOST_SAMPLES:
        raise ConfigurationError(f"the sources have more than {MOST_SAMPLES} samples together")
    return rows


def names_checked(sources: Any, kind: str) -> dict[str, Any]:
    """The sources by name.

    Args:
        kind: what they are, for messages.

    Raises:
        ConfigurationError: no sources, or names that are no texts.
    """
    if not isinstance(sources, Mapping) or not sources:
        raise ConfigurationError(
            f"{given('sources', sources)}: expected a dict of {kind} by name, such as "
            '{"web": web, "code": code}'
        )
    for name in sources:
        if not isinstance(name, str) or not name:
            raise ConfigurationError(
                f"sources has the name {name!r}: expected a text, by which a state knows the source"
            )
    if len(sources) > _MOST_SOURCES:
        raise ConfigurationError(
            f"a mixture of {len(sources)} sources: expected at most {_MOST_SOURCES}; join those "
            "that need no separate weight, such as by torch.utils.data.ConcatDataset"
        )
    return dict(sources)


def by_source(argument: str, values: Any, names: Iterable[str]) -> dict[str, Any]:
    """An optional argument that has values for some of the sources."""
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise ConfigurationError(
            f"{given(argument, values)}: expected a dict with values for some of the sources"
        )
    _refuse_unknown(argument, values, names)
    return dict(values)


def converters_checked(converters: Any, names: Iterable[str]) -> dict[str, Any]:
    """The converters of some of the sources."""
    checked = by_source("converters", converters, names)
    for name, converter in checked.items():
        if not callable(getattr(converter, "convert_sample", None)):
            raise ConfigurationError(
                f"{given('converters', converter)} for source {name!r}: expected a converter, such "
                'as KeyBasedDtypeConverter({"label": "int32"})'
            )
    return checked


def weights_checked(
    weights: Any, lengths: Mapping[str, int], means: Mapping[str, float] | None = None
) -> Weights:
    """The proportions of samples.

    Args:
        weights: as the user gave them; None: each source's length.
        lengths: of the sources.
        means: by source, the mean number of tokens of a sample, where the weights are of tokens.
    """
    if weights is None and not any(lengths.values()):
        raise ConfigurationError(
            f"all sources are empty ({', '.join(map(repr, lengths))}): a mixture needs a sample"
        )
    if weights is None:
        return Weights(((0, tuple(lengths.values())),))
    linear = isinstance(weights, LinearWeights)
    knots = weights.knots if isinstance(weights, LinearWeights) else weights
    if isinstance(knots, Mapping) and not linear:
        return Weights(((0, _proportions("weights", knots, lengths, means)),))
    if not isinstance(knots, Sequence) or isinstance(knots, str) or not knots:
        raise ConfigurationError(
            f"{given('weights', weights)}: expected a dict of weights by source, a list of "
            "(position, dict) for steps, or LinearWeights of such a list"
        )
    checked: list[tuple[int, tuple[float, ...]]] = []
    for number, knot in enumerate(knots):
        name = f"weights[{number}]"
        if not isinstance(knot, Sequence) or len(knot) != 2:
            raise ConfigurationError(
                f"{given(name, knot)}: expected (position, dict of weights); weights that hold all "
                'the time are a dict by source, such as {"web": 0.7, "code": 0.3}'
            )
        position, each = knot
        if isinstance(position, bool) or not isinstance(position, int | np.integer):
            raise ConfigurationError(
                f"{name} begins at {position!r}: expected a position, a whole number of samples "
                "from the beginning of the run"
            )
        before = checked[-1][0] if checked else 0
        if number == 0 and position != 0:
            raise ConfigurationError(
                f"the schedule of weights= begins at position {position}: its first entry must be "
                "at 0, the beginning of the run"
            )
        if position < before or (position == before and number and not linear):
            raise ConfigurationError(
                f"the schedule of weights= goes backwards: {name} is at position {position}, "
                f"after one at {before}; list the positions in ascending order"
            )
        if position > MOST_SAMPLES:
            raise ConfigurationError(f"{name} is at position {position}: at most {MOST_SAMPLES}")
        checked.append((int(position), _proportions(name, each, lengths, means)))
    return Weights(tuple(checked), linear)


def _proportions(
    argument: str, weights: Any, lengths: Mapping[str, int], means: Mapping[str, float] | None
) -> tuple[float, ...]:
    if not isinstance(weights, Mapping):
        raise ConfigurationError(
            f"{given(argument, weights)}: expected a dict of weights by source"
        )
    _refuse_unknown(argument, weights, lengths)
    if missing := [name for name in lengths if name not in weights]:
        raise ConfigurationError(
            f"{argument} names no weight for {', '.join(map(repr, missing))}: give each source "
            "one; 0 leaves a source out"
        )
    for name, weight in weights.items():
        if not _is_weight(weight):
            raise ConfigurationError(
                f"{argument}: {name!r} has the weight {weight!r}; expected a number from 0 to "
                f"{_HEAVIEST:g}"
            )
    if not any(weights.values()):
        raise ConfigurationError(f"{argument} are all 0: give a source a weight above 0")
    if empty := [name for name, weight in weights.items() if weight and not lengths[name]]:
        raise ConfigurationError(
            f"source {empty[0]!r} is empty, but {argument} give it {weights[empty[0]]!r}: give it "
            "0, or leave the source out"
        )
    if means is None:
        return tuple(_plain(weights[name]) for name in lengths)
    proportions = {name: weights[name] / means[name] for name in lengths}
    for name, proportion in proportions.items():
        if not _is_weight(proportion) or (weights[name] and not proportion):
            raise ConfigurationError(
                f"{argument}: {weights[name]!r} of {name!r} over its mean length {means[name]!r} "
                "is no number of ordinary size; give weights and lengths that are"
            )
    return tuple(float(f"{proportion:.{_DIGITS}g}") for proportion in proportions.values())


def _is_weight(weight: Any) -> bool:
    if not isinstance(weight, Real) or isinstance(weight, bool):
        return False
    number: Any = weight
    return bool(0 <= number <= _HEAVIEST)


def _plain(weight: Any) -> float:
    """The weight as JSON carries it."""
    return int(weight) if weight == int(weight) and weight < MOST_SAMPLES else float(weight)


def mean_lengths(unit: Any, lengths: Any, sizes: Mapping[str, int]) -> dict[str, float] | None:
    """By source, the mean number of tokens of its samples; None where weights are of samples."""
    if is_one_of(unit, "samples"):
        if lengths is not None:
            raise ConfigurationError(
                "lengths= without unit='tokens': pass unit='tokens' if the weights are proportions "
                "of tokens, or leave lengths= out"
            )
        return None
    if not is_one_of(unit, "tokens"):
        raise ConfigurationError(f"{given('unit', unit)}: expected 'samples' or 'tokens'")
    found = by_source("lengths", lengths, sizes)
    if missing := [name for name in sizes if name not in found]:
        raise ConfigurationError(
            f"unit='tokens' needs lengths= for {', '.join(map(repr, missing))}: for each source "
            "the number of tokens of each sample, or their mean"
        )
    return {name: _mean(name, found[name], sizes[name]) for name in sizes}


def _mean(name: str, lengths: Any, size: int) -> float:
    is_mean = isinstance(lengths, Real) and not isinstance(lengths, bool)
    values = np.asarray(lengths)
    if values.dtype.kind not in "iuf":
        raise ConfigurationError(
            f"lengths of {name!r} are {values.dtype}: expected the number of tokens of each sample"
        )
    if not is_mean and (values.ndim != 1 or len(values) != size):
        raise ConfigurationError(
            f"lengths of {name!r} has shape {values.shape}: expected a number, the mean, or one "
            f"number for each of the source's {size} samples"
        )
    mean = float(values.mean()) if values.size else 1.0
    if not (math.isfinite(mean) and mean > 0) or (values.size and values.min() < 0):
        raise ConfigurationError(
            f"lengths of {name!r} have the mean {mean} and the least {values.min()}: expected "
            "numbers of tokens, of 0 or more, whose mean is above 0"
        )
    return mean


def stopping_checked(stopping: Any) -> Stopping:
    """The length of an epoch, by name or as a number of samples."""
    if is_one_of(stopping, "first_exhausted", "all_exhausted"):
        return stopping  # type: ignore[no-any-return]  # one of the literals
    if isinstance(stopping, str) or positive_number("stopping", stopping) > MOST_SAMPLES:
        raise ConfigurationError(
            f"{given('stopping', stopping)}: expected 'first_exhausted', 'all_exhausted' or a "
            f"number of samples of at most {MOST_SAMPLES}"
        )
    return int(stopping)


def limits_checked(max_passes: Any, names: Sequence[str]) -> tuple[int | None, ...]:
    """For each source the number of passes after which it ends."""
    limits = by_source("max_passes", max_passes, names)
    for name, limit in limits.items():
        if limit is not None:
            positive_number(f"max_passes[{name!r}]", limit)
    return tuple(None if (n := limits.get(name)) is None else int(n) for name in names)


def _refuse_unknown(argument: str, values: Mapping[Any, Any], names: Iterable[str]) -> None:
    known = list(names)
    if unknown := [name for name in values if name not in known]:
        raise ConfigurationError(
            f"{argument} names {', '.join(map(repr, unknown))}, but the sources are "
            f"{', '.join(map(repr, known))}: use these names"
        )
