"""`suggest_conversions`: reads samples, and suggests rules that narrow them exactly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader

from dataporter.checks import positive_number, whole_number
from dataporter.convert.forms import Bits, Cast, Form, Scaled, name_of
from dataporter.convert.paths import Pattern, Wildcard, parse, shown
from dataporter.errors import ConfigurationError
from dataporter.tools.advisor.samples import Looked, is_batched, look
from dataporter.tools.advisor.suggestion import Certainty, ConversionPlan, Suggestion
from dataporter.tools.advisor.survey import Leaf, Survey
from dataporter.tools.advisor.worker import forks_workers, in_worker

__all__ = ["suggest_conversions"]

# Without uint16, uint32 and uint64, for which torch has few operations.
_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32)
_PATHS_SHOWN = 20


def suggest_conversions(
    source: Any,
    samples: int = 1000,
    *,
    tolerance: float | None = None,
    maximum: Mapping[str, int] | None = None,
    widened: bool = False,
    seed: int = 0,
) -> ConversionPlan:
    """Read samples, and suggest for each path the narrowest dtype that keeps every value seen.

    Whole numbers get the smallest of uint8, int8, int16 and int32 that holds their range. Floats
    get float16, bfloat16 or (if they are float64) float32, if every value survives the round trip.
    A suggestion is a guess if only some samples were read, or if samples are random (drawn from a
    global generator or :func:`~dataporter.sample_rng`); the plan's converter raises an error if a
    guess is wrong. Leaves whose dtype changes get no suggestion.

    Args:
        source: a dataset with ``__len__`` and ``__getitem__``, a dict of equally long arrays, an
            iterable dataset (its first samples are read), or a ``DataLoader`` or
            :class:`~dataporter.ResumableDataLoader`. The paths of a loader are those of its
            batches, made with its ``collate_fn`` and without its ``converter``: in this process,
            or in one worker if the loader's workers are forks. Its position does not change, nor
            does a stream that can be copied or has a state. Python's numbers in the samples of a
            dataset count as the tensors that ``default_collate`` makes of them.
        samples: the largest number of samples to read.
        tolerance: how far a float may be rounded, relative to its size; by default not at all.
            Rounded suggestions are marked.
        maximum: path → the largest whole number possible, such as a vocabulary's size, if a sample
            cannot show it.
        widened: whether batches are widened again on the device (``DevicePrefetcher(widen=)`` or
            ``converter.widen``). If so, two forms that are not dtypes are suggested as well:
            ``"bits"`` for masks of 0 and 1, and ``"uint8:scale"`` for floats that are multiples of
            1/255.
        seed: determines which samples are read, if there are more.

    Returns:
        The plan: ``print`` it, or use its ``converter()`` or ``as_rules()``.

    Raises:
        ConfigurationError: (a ``ValueError``) an argument is invalid, ``maximum`` names an unknown
            path or is less than a value seen, or there are no samples.
        UnsupportedDatasetError: (a ``TypeError``) the source is none of the above.
        SampleError: (a ``RuntimeError``) no sample could be read.

    An exception from a sample has a note that names its index.

    Example:
        >>> dataset = [{"ids": torch.arange(9) + number, "mask": True} for number in range(300)]
        >>> plan = suggest_conversions(dataset, samples=100, maximum={"ids": 50_000})
        >>> plan.as_rules()
        {'ids': 'int32'}
        >>> plan.before, plan.after
        (73.0, 37.0)
        >>> suggest_conversions(dataset).as_rules()
        {'ids': 'int16'}
    """
    samples = positive_number("samples", samples)
    tolerance = _tolerance_checked(tolerance)
    limits = _limits_checked(maximum)
    seed = whole_number("seed", seed)
    if forks_workers(source):
        work = partial(_surveyed, source, samples, seed, tolerance, moves=True)
        survey, looked = in_worker(source, work)
    else:
        survey, looked = _surveyed(source, samples, seed, tolerance)
    leaves = {shown(path): (path, leaf) for path, leaf in survey.paths()}
    _check_limits(limits, {path: leaf for path, (_, leaf) in leaves.items()})
    suggestions = tuple(
        _judged(path, leaf, looked, survey, limits.get(text), widened=widened)
        for text, (path, leaf) in leaves.items()
    )
    return ConversionPlan(
        suggestions, looked.samples, looked.length, tolerance, tuple(_notes(looked, survey))
    )


def _surveyed(
    source: Any, samples: int, seed: int, tolerance: float, *, moves: bool = False
) -> tuple[Survey, Looked]:
    """The values of some samples or batches."""
    is_loader = isinstance(source, DataLoader)
    survey = Survey(tolerance, in_batches=is_loader, batched=is_batched(source))
    return survey, look(source, samples, seed=seed, visit=survey.add, moves=moves)


def _judged(
    path: Pattern,
    leaf: Leaf,
    looked: Looked,
    survey: Survey,
    maximum: int | None,
    *,
    widened: bool,
) -> Suggestion:
    """The suggestion for a path."""
    high = leaf.high if maximum is None else max(leaf.high, maximum)
    ways = _ways(leaf, high) if _can_be_named(path) else {}
    best = _smallest(ways, leaf.before, widened=widened)
    certainty: Certainty = "guess"
    is_proven = looked.is_all and not looked.draws
    if is_proven or maximum is not None or leaf.dtypes == {torch.bool}:
        certainty = "certain"
    return Suggestion(
        path=shown(path),
        dtypes=tuple(sorted(map(name_of, leaf.dtypes))),
        low=leaf.low,
        high=leaf.high,
        values=leaf.values,
        form=None if best is None else best.name,
        certainty=None if best is None else certainty,
        rounded=isinstance(best, Cast) and best.dtype in leaf.near and best not in leaf.exact,
        headroom=_headroom(best, leaf.low, high),
        before=leaf.before / looked.samples,
        after=(leaf.before if best is None else ways[best]) / looked.samples,
        notes=tuple(_notes_on(path, leaf, ways, best, looked, survey, maximum)),
    )


def _ways(leaf: Leaf, high: Any) -> dict[Form, int]:
    """The forms that hold every value seen, with the bytes they take, the best first."""
    if len(leaf.dtypes) != 1 or not leaf.values or not leaf.is_plain:
        return {}
    (dtype,) = leaf.dtypes
    exact = dict(leaf.exact)
    if _is_whole(dtype):
        if high > 1:
            exact.pop(Bits(), None)
        exact = {Cast(to): leaf.values * to.itemsize for to in _held_by(leaf.low, high)} | exact
    # Exact forms come first, so that they win over others of the same size.
    near = {Cast(to): leaf.values * to.itemsize for to in leaf.near}
    ways = exact | {form: size for form, size in near.items() if form not in exact}
    return {form: size for form, size in ways.items() if size < leaf.before}


def _held_by(low: int, high: int) -> Iterator[torch.dtype]:
    for dtype in _WHOLE:
        limits = torch.iinfo(dtype)
        if limits.min <= low and high <= limits.max:
            yield dtype


def _smallest(ways: dict[Form, int], before: int, *, widened: bool) -> Form | None:
    allowed = [form for form in ways if widened or isinstance(form, Cast)]
    return min(allowed, key=ways.__getitem__, default=None)


def _headroom(form: Form | None, low: Any, high: Any) -> float | None:
    if not isinstance(form, Cast) or form.dtype.is_floating_point:
        return None
    limits = torch.iinfo(form.dtype)
    factors = [limits.max / high] if high > 0 else []
    if low < 0:
        factors.append(limits.min / low)
    return min(factors, default=None)


def _is_whole(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex or dtype is torch.bool)


def _can_be_named(path: Pattern) -> bool:
    """Whether a rule can name this path; it cannot name an empty key."""
    try:
        return parse(shown(path)) == path
    except ConfigurationError:
        return False


# ---- notes


def _notes_on(
    path: Pattern,
    leaf: Leaf,
    ways: dict[Form, int],
    best: Form | None,
    looked: Looked,
    survey: Survey,
    maximum: int | None,
) -> Iterator[str]:
    if not _can_be_named(path):
        yield "no suggestion: no rule can name a path with an empty key"
    elif not leaf.is_plain:
        yield "no suggestion: not a dense tensor"
    elif len(leaf.dtypes) > 1:
        yield "no suggestion: the dtype is not always the same"
    elif not leaf.values:
        yield "no suggestion: no values were seen"
    if maximum is not None:
        yield f"leaves room for numbers up to {maximum}"
    if Wildcard.ONE not in path and leaf.items < survey.items:
        looked_at = "batches" if survey.in_batches else "samples"
        yield f"present in {leaf.items:,} of {survey.items:,} {looked_at}"
    if leaf.has_more:
        yield "also holds infinity or nan"
    size = leaf.before if best is None else ways[best]
    for form in (Scaled(), Bits()):
        if form is not best and ways.get(form, size) < size:
            size = ways[form]
            yield (
                f"{form.name!r} would take {ways[form] / looked.samples:,.1f} bytes, if batches "
                "are widened again (widened=True)"
            )


def _notes(looked: Looked, survey: Survey) -> Iterator[str]:
    if looked.draws:
        yield "the dataset draws random numbers, so its values may differ next time"
    if looked.left_out:
        yield f"left out {looked.left_out:,} samples that raised an error (on_error=)"
    if looked.may_move:
        yield (
            "the stream can neither be copied nor restored by state_dict(), so it may have moved: "
            "make it anew before the training reads it"
        )
    if others := survey.others():
        there = ", ".join(f"{shown(path)!r} ({kind})" for path, kind in others[:_PATHS_SHOWN])
        more = f" and {len(others) - _PATHS_SHOWN} more" if len(others) > _PATHS_SHOWN else ""
        yield f"no rule converts {there}{more}"
    if survey.left_out:
        yield f"{survey.left_out:,} leaves were left out: there are too many different paths"


# ---- the arguments


def _tolerance_checked(tolerance: Any) -> float:
    if tolerance is None:
        return 0.0
    is_number = isinstance(tolerance, int | float) and not isinstance(tolerance, bool)
    if not is_number or not 0 <= tolerance < float("inf"):
        raise ConfigurationError(
            f"tolerance={tolerance!r}: expected a number of 0 or more, relative to the values "
            "(0.001 is a thousandth), or None"
        )
    return float(tolerance)


def _limits_checked(maximum: Any) -> dict[str, int]:
    if maximum is None:
        return {}
    if not isinstance(maximum, Mapping):
        raise ConfigurationError(f"maximum={maximum!r}: expected a dict of paths → whole numbers")
    limits = {}
    for path, limit in maximum.items():
        if not isinstance(limit, int) or isinstance(limit, bool):
            raise ConfigurationError(f"maximum of {path!r}: expected a whole number, got {limit!r}")
        limits[shown(parse(path))] = limit
    return limits


def _check_limits(limits: dict[str, int], leaves: dict[str, Leaf]) -> None:
    for path, limit in limits.items():
        if path not in leaves:
            there = ", ".join(map(repr, list(leaves)[:_PATHS_SHOWN]))
            more = f" and {len(leaves) - _PATHS_SHOWN} more" if len(leaves) > _PATHS_SHOWN else ""
            raise ConfigurationError(
                f"maximum of {path!r}: no number was seen there; the paths are {there}{more}"
            )
        leaf = leaves[path]
        if not all(map(_is_whole, leaf.dtypes)) or leaf.high is None:
            names = ", ".join(sorted(map(name_of, leaf.dtypes)))
            raise ConfigurationError(
                f"maximum of {path!r}: expected a path of whole numbers, but it holds {names}: "
                "leave it out"
            )
        if limit < leaf.high:
            raise ConfigurationError(
                f"maximum of {path!r}: {limit} is less than {leaf.high}, which was seen there: "
                "correct it, or the data"
            )
