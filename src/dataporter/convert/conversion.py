"""Conversion: a converter's rules as a value, applied to a batch or sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from dataporter.convert.casting import Empty, Loss, OnLoss, new
from dataporter.convert.forms import Form, name_of
from dataporter.convert.paths import Match, Matcher, Pattern, shown
from dataporter.errors import ConfigurationError, LossyConversionError
from dataporter.structure import Step, parts_of, rebuilt

__all__ = ["Conversion", "Converted", "Originals", "as_tensor"]

# (rule's number, name of a dtype it converted); small enough to send with every batch.
Originals = tuple[tuple[int, str], ...]


class Converted(NamedTuple):
    """A converted batch, and the dtypes that its leaves had before."""

    batch: Any
    originals: Originals


@dataclass(frozen=True, slots=True)
class Conversion:
    """The rules of a converter, as a value that is sent to workers.

    Attributes:
        matcher: finds the rule of a leaf.
        forms: the form to which each rule converts a leaf.
        on_loss: see :class:`KeyBasedDtypeConverter`.
        rtol: see :class:`KeyBasedDtypeConverter`.
    """

    matcher: Matcher
    forms: tuple[Form, ...]
    on_loss: OnLoss
    rtol: float | None

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """The rules' paths."""
        return self.matcher.patterns

    def batch(self, batch: Any, empty: Empty = new) -> Converted:
        """The batch with the leaves that the rules name converted; all others are not copied.

        Args:
            batch: nested containers of tensors and arrays, or one tensor.
            empty: makes the converted tensors; converted arrays take memory from torch.

        Raises:
            LossyConversionError: a value does not fit.
            ConfigurationError: a form cannot hold such a tensor or array at all, or two rules that
                fit its path are equally specific.
        """
        walk = _Walk(self, empty, in_batch=True)
        return Converted(walk.converted(batch, self.matcher.start, ()), tuple(walk.originals))

    def sample(self, sample: Any) -> Converted:
        """The same for a sample, in which Python's numbers are leaves too."""
        walk = _Walk(self, new, in_batch=False)
        return Converted(walk.converted(sample, self.matcher.start, ()), tuple(walk.originals))


@dataclass(slots=True, eq=False)
class _Walk:
    """One walk through a batch or sample, which collects the original dtypes."""

    conversion: Conversion
    empty: Empty
    in_batch: bool
    originals: dict[tuple[int, str], None]

    def __init__(self, conversion: Conversion, empty: Empty, *, in_batch: bool) -> None:
        self.conversion, self.empty, self.in_batch = conversion, empty, in_batch
        self.originals = {}

    def converted(self, value: Any, match: Match, path: tuple[Step, ...]) -> Any:
        if isinstance(value, torch.Tensor | np.ndarray):
            rule = match.rule(path)
            return value if rule is None else self._converted_leaf(value, rule, path)
        parts = parts_of(value)
        if parts is None:
            is_leaf = isinstance(value, bool | int | float | complex | np.generic)
            rule = match.rule(path) if is_leaf and not self.in_batch else None
            return value if rule is None else self._number(value, rule, path)
        changes = {}
        for part in parts:
            following = match[part.step]
            if following is not None:
                narrow = self.converted(part.value, following, (*path, part.step))
                if narrow is not part.value:
                    changes[part.key] = narrow
        return rebuilt(value, changes)

    def _converted_leaf(self, leaf: Any, rule: int, path: tuple[Step, ...]) -> Any:
        tensor, form = as_tensor(leaf), self.conversion.forms[rule]
        if tensor is None:
            return leaf
        self.originals[rule, name_of(tensor.dtype)] = None
        if form.holds(tensor):
            return leaf
        empty = self.empty if isinstance(leaf, torch.Tensor) else new
        narrow = self._narrow(tensor, form, path, empty)
        if isinstance(leaf, torch.Tensor):
            return narrow
        try:
            return narrow.numpy()
        except TypeError as error:
            raise ConfigurationError(
                f"path {shown(path)!r} is a NumPy array, and NumPy has no {form.name}: make it a "
                "tensor, or choose another dtype"
            ) from error

    def _number(self, value: Any, rule: int, path: tuple[Step, ...]) -> Any:
        # As default_collate does: 64 bits for Python's numbers.
        try:
            array = np.asarray(value)
        except OverflowError:
            return value
        tensor = as_tensor(array)
        if tensor is None:
            return value
        self.originals[rule, name_of(tensor.dtype)] = None
        narrow = self._narrow(tensor, self.conversion.forms[rule], path, new)
        return narrow.numpy()[()] if isinstance(value, np.generic) else narrow

    def _narrow(
        self, tensor: torch.Tensor, form: Form, path: tuple[Step, ...], empty: Empty
    ) -> torch.Tensor:
        conversion = self.conversion
        try:
            narrow = form.narrow(
                tensor, on_loss=conversion.on_loss, rtol=conversion.rtol, empty=empty
            )
        except ConfigurationError as error:
            raise ConfigurationError(f"path {shown(path)!r}: {error}") from None
        if isinstance(narrow, Loss):
            raise self._lossy(narrow, tensor, form, path)
        return narrow

    def _lossy(
        self, loss: Loss, tensor: torch.Tensor, form: Form, path: tuple[Step, ...]
    ) -> LossyConversionError:
        sample = loss.index[0] if self.in_batch and loss.index else None
        where = "" if sample is None else f" of sample {sample} of the batch"
        if len(loss.index) > (sample is not None):
            where += f", at {list(loss.index)} of {list(tensor.shape)}"
        rounding = "" if self.conversion.rtol is None else f" within rtol={self.conversion.rtol}"
        fits = None if loss.fits is None else name_of(loss.fits)
        advice = (
            "this leaf cannot be narrowed" if fits is None else f"the smallest that fits is {fits}"
        )
        return LossyConversionError(
            f"path {shown(path)!r}: {loss.value!r}{where} ({name_of(tensor.dtype)}) does not fit "
            f"{form.name}{rounding}: it would become {loss.becomes!r}; {advice}. Change the rule, "
            "or pass on_loss='saturate' or 'wrap'",
            path=shown(path),
            value=loss.value,
            sample=sample,
            dtype=form.name,
            fits=fits,
        )


def as_tensor(leaf: Any) -> torch.Tensor | None:
    """A leaf as a tensor, which shares its memory if possible; None if torch cannot hold it."""
    if isinstance(leaf, torch.Tensor):
        return leaf
    # Other classes of arrays add something that a tensor would lose, such as a mask or a unit.
    if type(leaf) not in (np.ndarray, np.memmap):
        return None
    if not leaf.dtype.isnative:
        leaf = leaf.astype(leaf.dtype.newbyteorder("="))
    elif not leaf.flags.writeable or any(
        stride < 0 or stride % leaf.itemsize for stride in leaf.strides
    ):
        # torch accepts neither read-only arrays nor fields of packed records.
        leaf = leaf.copy()
    try:
        return torch.from_numpy(leaf)
    except (TypeError, ValueError):
        return None
