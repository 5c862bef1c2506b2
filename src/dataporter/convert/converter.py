"""`KeyBasedDtypeConverter`: converts the leaves that rules name to narrower forms, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from dataporter.convert.casting import OnLoss
from dataporter.convert.conversion import Conversion, Converted, Originals, as_tensor
from dataporter.convert.forms import Cast, Form, dtype_named, form_named
from dataporter.convert.missed import report_missed
from dataporter.convert.paths import Match, Matcher, parse, shown
from dataporter.convert.reused import Reused
from dataporter.errors import ConfigurationError, InvalidStateError
from dataporter.keywords import names_keywords
from dataporter.structure import Step, parts_of, rebuilt

__all__ = ["KeyBasedDtypeConverter", "Rules", "converter_for", "leaves_of"]

# Path → dtype, or a list of {"path": ..., "dtype": ...}.
Rules = Mapping[str, Any] | Sequence[Mapping[str, Any]]

_PATHS_SHOWN = 20
_VERSION = 1


class KeyBasedDtypeConverter:
    r"""Converts the leaves that its rules name to narrower dtypes; no value changes silently.

    Args:
        rules: path → dtype, or a list of ``{"path": ..., "dtype": ...}``. A path joins keys (of
            mappings, and fields of named tuples and dataclasses) by dots; ``[0]`` is an index of a
            list or tuple, ``*`` one level, ``**`` any number of levels; a backslash escapes a dot
            in a key. If several rules fit a leaf, the most specific wins: the one with most keys
            and indices, then the one with fewest ``**``, then the one with most ``*``. Dtypes are
            those of torch or NumPy, by object or name. ``"uint8:scale"`` stores floats that are
            multiples of 1/255, as in images, by their numerators. ``"bits"`` packs masks of 0 and
            1 along the last dimension, eight to a byte: (..., length) → (..., length / 8).
            Subclasses of NumPy arrays, such as masked arrays, are not converted.
        on_loss: what to do if a value does not fit: ``"error"``; ``"saturate"``: take the nearest
            value of the dtype; ``"wrap"``: take the value of ``torch.Tensor.to``, unchecked. Whole
            numbers fit if they keep their value, also as floats; finite floats must stay finite.
        rtol: how far a float may be rounded, relative to its size; 0 allows no rounding. By default
            rounding is not checked.
        strict: raise, rather than warn, if a rule matches nothing in the first batch or, where
            samples are converted, in the first sample.

    Raises:
        ConfigurationError: (a ``ValueError``) a path or dtype is invalid, or two rules have the
            same path.

    Example:
        >>> converter = KeyBasedDtypeConverter({"labels": "int32", "inputs.*": "float16"})
        >>> batch = {"labels": torch.tensor([1, 2]), "inputs": {"image": torch.zeros(2, 3)}}
        >>> small = converter.convert_batch(batch)
        >>> small["labels"].dtype, small["inputs"]["image"].dtype
        (torch.int32, torch.float16)
        >>> converter.widen(small)["labels"].dtype
        torch.int64
    """

    @names_keywords
    def __init__(
        self,
        rules: Rules,
        *,
        on_loss: OnLoss = "error",
        rtol: float | None = None,
        strict: bool = False,
    ) -> None:
        if on_loss not in ("error", "saturate", "wrap"):
            raise ConfigurationError(f"on_loss={on_loss!r}: expected 'error', 'saturate' or 'wrap'")
        if rtol is not None and not (isinstance(rtol, int | float) and 0 <= rtol < float("inf")):
            raise ConfigurationError(f"rtol={rtol!r}: expected a number of 0 or more, or None")
        pairs = _pairs(rules)
        self.conversion = Conversion(
            Matcher(parse(path) for path, _ in pairs),
            tuple(_form(path, wanted) for path, wanted in pairs),
            on_loss,
            rtol,
        )
        self.strict = strict
        self._memory = Reused()
        self._originals: dict[int, list[str]] = {}
        self._checked: set[str] = set()

    @property
    def rules(self) -> dict[str, str]:
        """Path → name of the dtype or form."""
        conversion = self.conversion
        return {
            shown(pattern): form.name
            for pattern, form in zip(conversion.patterns, conversion.forms)
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.rules!r})"

    def convert_batch(self, batch: Any) -> Any:
        """A batch with the leaves that the rules name converted.

        Containers keep their types. Leaves that no rule names are passed through without a copy.
        The given batch is not modified.

        Args:
            batch: nested mappings, lists, tuples, named tuples and dataclasses of tensors and NumPy
                arrays; or a single tensor or array, whose path is ``""``. Other leaves are kept.

        Raises:
            LossyConversionError: (a ``ValueError``) a value would change; names the path, value,
                sample, and smallest dtype that fits.
            ConfigurationError: (a ``ValueError``) two rules that fit a leaf are equally specific;
                NumPy lacks the dtype for an array; a form takes other values; or, with
                ``strict=True``, a rule matches nothing in the first batch.
        """
        converted = self.conversion.batch(batch, self._memory)
        self.note(converted)
        return converted.batch

    def convert_sample(self, sample: Any) -> Any:
        """The same for a sample, before collation: numbers become tensors without dimensions.

        For datasets that convert their own samples. A worker records the original dtypes for itself
        only, so convert one sample in the training process too before you call :meth:`widen`.

        Raises:
            LossyConversionError: (a ``ValueError``) a value would change.
            ConfigurationError: (a ``ValueError``) as for :meth:`convert_batch`, of the first sample
                that this process converts.
        """
        converted = self.conversion.sample(sample)
        if "sample" not in self._checked:
            worker = get_worker_info()
            # Of several workers one warns, but each refuses.
            if self.strict or worker is None or worker.id == 0:
                where = "number, tensor or array in the first sample"
                self._check(converted.originals, sample, where, in_batch=False)
            self._checked.add("sample")
        self._remember(converted.originals)
        return converted.batch

    def widen(self, batch: Any, *, like: Any = None) -> Any:
        """A converted batch with its original dtypes, on its current device.

        Args:
            batch: the result of :meth:`convert_batch`, on any device; leaves that are not in the
                form of their rule are kept.
            like: the same batch on the CPU. Reading the length of ``"bits"`` rows from it avoids
                a synchronisation with the device.

        Raises:
            ConfigurationError: (a ``ValueError``) the original dtype is unknown, because the rule
                has converted nothing or leaves of several dtypes; two rules that fit a leaf are
                equally specific; or rows of ``"bits"`` of several lengths were joined.
        """
        start = self.conversion.matcher.start
        return self._widened(batch, batch if like is None else like, start, ())

    def state_dict(self) -> dict[str, Any]:
        """The original dtypes seen, in JSON types: path → names, one entry for each rule."""
        patterns = self.conversion.patterns
        originals = {
            shown(patterns[rule]): list(names) for rule, names in sorted(self._originals.items())
        }
        return {"version": _VERSION, "originals": originals}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the original dtypes by those that another converter has seen.

        Entries of rules that this converter does not have are ignored.

        Raises:
            InvalidStateError: (a ``ValueError``) the state is not one that ``state_dict()``
                returned.
        """
        numbers = {shown(pattern): rule for rule, pattern in enumerate(self.conversion.patterns)}
        originals = state.get("originals") if isinstance(state, Mapping) else None
        if not isinstance(originals, Mapping) or state.get("version") != _VERSION:
            raise InvalidStateError(
                f"expected the dict that KeyBasedDtypeConverter.state_dict() returned (version "
                f"{_VERSION}), got {str(state)[:80]}"
            )
        loaded: dict[int, list[str]] = {}
        for path, names in originals.items():
            if not isinstance(names, list | tuple) or not all(_is_dtype(name) for name in names):
                raise InvalidStateError(
                    f"the converter's state has {names!r} for path {path!r}: expected names of "
                    "dtypes"
                )
            if path in numbers:
                loaded[numbers[path]] = list(names)
        self._originals = loaded

    def note(self, converted: Converted) -> None:
        """Record the original dtypes of a batch that was converted elsewhere, such as in a worker.

        Warns, or raises with ``strict=True``, if a rule matches nothing in the first batch.
        """
        originals = converted.originals
        if "batch" not in self._checked:
            where = "tensor or array in the first batch"
            self._check(originals, converted.batch, where, in_batch=True)
            self._checked.add("batch")
        self._remember(originals)

    def _remember(self, originals: Originals) -> None:
        for rule, name in originals:
            names = self._originals.setdefault(rule, [])
            form = self.conversion.forms[rule]
            if name not in names:
                names.append(name)
            # A leaf that was narrow already says nothing about the others, seen before or later.
            if len(names) > 1 and isinstance(form, Cast) and form.name in names:
                names.remove(form.name)

    def _check(self, matched: Originals, batch: Any, where: str, *, in_batch: bool) -> None:
        """Report the rules that have matched no leaf of the first batch or sample."""
        rules = {rule for rule, _ in matched}
        patterns = self.conversion.patterns
        missed = [pattern for rule, pattern in enumerate(patterns) if rule not in rules]
        if missed:
            listed, there = _leaves_shown(batch), _paths_in(batch, in_batch=in_batch)
            report_missed(missed, where, listed, there, strict=self.strict)

    def _widened(self, value: Any, like: Any, match: Match, path: tuple[Step, ...]) -> Any:
        if isinstance(value, torch.Tensor | np.ndarray):
            rule = match.rule(path)
            return value if rule is None else self._widened_leaf(value, like, rule, path)
        parts = parts_of(value)
        if parts is None:
            return value
        changes = {}
        others = parts_of(like) or parts
        for part, other in zip(parts, others):
            following = match[part.step]
            if following is not None:
                wide = self._widened(part.value, other.value, following, (*path, part.step))
                if wide is not part.value:
                    changes[part.key] = wide
        return rebuilt(value, changes)

    def _widened_leaf(self, leaf: Any, like: Any, rule: int, path: tuple[Step, ...]) -> Any:
        form = self.conversion.forms[rule]
        tensor = as_tensor(leaf)
        if tensor is None or tensor.dtype not in form.dtypes:
            return leaf
        names = self._originals.get(rule, [])
        where = f"path {shown(path)!r} (rule {shown(self.conversion.patterns[rule])!r})"
        if not names:
            raise ConfigurationError(
                f"{where} is {form.name}, but this converter has converted nothing there, so the "
                "original dtype is unknown: convert a batch first, or load the state of the "
                "converter that converted it"
            )
        if len(names) > 1:
            raise ConfigurationError(
                f"{where} can be widened to {' or '.join(names)}, since the rule has converted all "
                "of them: write one rule for each"
            )
        original = dtype_named(names[0])
        other = as_tensor(like)
        try:
            wide = form.widen(tensor, original, tensor if other is None else other, self._memory)
        except ConfigurationError as error:
            raise ConfigurationError(f"path {shown(path)!r}: {error}") from None
        if wide is tensor:
            return leaf
        return wide if isinstance(leaf, torch.Tensor) else wide.numpy()


def converter_for(converter: Any) -> KeyBasedDtypeConverter | None:
    """The converter, the one that the rules describe, or None.

    Raises:
        ConfigurationError: the argument is neither a converter nor rules.
    """
    if converter is None or isinstance(converter, KeyBasedDtypeConverter):
        return converter
    return KeyBasedDtypeConverter(converter)


def _pairs(rules: Any) -> list[tuple[str, Any]]:
    if isinstance(rules, Mapping):
        return list(rules.items())
    expected = "expected {path: dtype, ...} or a list of {'path': ..., 'dtype': ...}"
    if isinstance(rules, str | bytes) or not isinstance(rules, Sequence):
        raise ConfigurationError(f"rules {rules!r}: {expected}")
    for rule in rules:
        if not isinstance(rule, Mapping) or set(rule) != {"path", "dtype"}:
            raise ConfigurationError(f"rule {rule!r}: {expected}")
    return [(rule["path"], rule["dtype"]) for rule in rules]


def _form(path: str, wanted: Any) -> Form:
    try:
        return form_named(wanted)
    except ConfigurationError as error:
        raise ConfigurationError(f"rule {path!r}: {error}") from error.__cause__


def _is_dtype(name: Any) -> bool:
    return isinstance(name, str) and isinstance(getattr(torch, name, None), torch.dtype)


def leaves_of(batch: Any) -> list[tuple[str, Any]]:
    """The tensors and arrays of a batch that rules can name, each with its path."""
    return [
        (shown(path), leaf)
        for path, leaf in _leaves(batch, ())
        if isinstance(leaf, torch.Tensor | np.ndarray)
    ]


def _leaves(value: Any, path: tuple[Step, ...]) -> Iterator[tuple[tuple[Step, ...], Any]]:
    parts = parts_of(value)
    if parts is None:
        yield path, value
        return
    for part in parts:
        yield from _leaves(part.value, (*path, part.step))


def _leaves_shown(batch: Any) -> str:
    found = [f"{shown(path)!r} ({_kind(leaf)})" for path, leaf in _leaves(batch, ())]
    more = f" and {len(found) - _PATHS_SHOWN} more" if len(found) > _PATHS_SHOWN else ""
    return ", ".join(found[:_PATHS_SHOWN]) + more if found else "nothing"


def _kind(leaf: Any) -> str:
    if isinstance(leaf, torch.Tensor | np.ndarray):
        name = str(leaf.dtype).removeprefix("torch.")
        return name if as_tensor(leaf) is not None else f"{name}, which torch cannot hold"
    return type(leaf).__name__


def _paths_in(batch: Any, *, in_batch: bool) -> list[tuple[Step, ...]]:
    """The paths of the leaves that a rule can convert."""
    kinds = (torch.Tensor, *(() if in_batch else (bool, int, float, complex, np.generic)))
    return [
        path
        for path, leaf in _leaves(batch, ())
        if isinstance(leaf, kinds) or (isinstance(leaf, np.ndarray) and as_tensor(leaf) is not None)
    ]
