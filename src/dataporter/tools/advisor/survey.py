"""Survey: the values of samples at each path, and the narrow forms that have held all so far."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from dataporter.convert.casting import Loss, narrowest, new
from dataporter.convert.conversion import as_tensor
from dataporter.convert.forms import Bits, Cast, Form, Scaled
from dataporter.convert.paths import Pattern, Wildcard
from dataporter.structure import Step, parts_of

__all__ = ["Leaf", "Survey"]

# Beyond so many indices of a list, or so many keys, a level becomes one "*": such a list has items
# of one kind, and such keys are ids.
_MOST_INDICES = 16
_MOST_KEYS = 256
# Nested levels multiply. Leaves beyond so many paths are left out, and counted.
_MOST_PATHS = 4096

_NARROWER = {
    torch.float64: (torch.float16, torch.bfloat16, torch.float32),
    torch.float32: (torch.float16, torch.bfloat16),
}


@dataclass(slots=True)
class Leaf:
    """The values seen at a path.

    Attributes:
        dtypes: of the leaves.
        items: samples or batches that have a leaf here; approximate through a wildcard.
        values: how many numbers were seen.
        before: their bytes.
        low, high: the smallest and largest finite numbers.
        has_more: whether some are infinite or nan.
        is_plain: whether all are dense tensors that torch can cast.
        exact: forms that restore every value exactly, with the bytes they take; without the dtypes
            of whole numbers, which follow from the range.
        near: dtypes that restore every value within the tolerance.
        last_item: the last sample or batch that has a leaf here.
    """

    dtypes: set[torch.dtype] = field(default_factory=set)
    items: int = 0
    values: int = 0
    before: int = 0
    low: Any = None
    high: Any = None
    has_more: bool = False
    is_plain: bool = True
    exact: dict[Form, int] = field(default_factory=dict)
    near: list[torch.dtype] = field(default_factory=list)
    last_item: int = 0

    def add(self, tensor: torch.Tensor, item: int, *, in_numpy: bool, packs: bool) -> None:
        """Add a leaf of sample or batch number ``item``, counted from 1.

        Args:
            in_numpy: whether it stays a NumPy array, which cannot be bfloat16.
            packs: whether it has a dimension to pack along.
        """
        dtype = tensor.dtype
        if not self.dtypes:
            self.exact = dict.fromkeys(_candidates(dtype), 0)
            self.near = list(_NARROWER.get(dtype, ()))
        self.dtypes.add(dtype)
        self.items += item != self.last_item
        self.last_item = item
        if not _is_plain(tensor):
            self.is_plain, self.exact, self.near = False, {}, []
            return
        self.values += tensor.numel()
        self.before += tensor.numel() * tensor.element_size()
        self._widen_range(tensor)
        if in_numpy:
            self.exact.pop(Cast(torch.bfloat16), None)
            self.near = [to for to in self.near if to is not torch.bfloat16]
        if not packs or self.low not in (None, 0, 1) or self.high not in (None, 0, 1):
            self.exact.pop(Bits(), None)
        if len(self.dtypes) > 1:
            self.exact, self.near = {}, []

    def judge(self, tensor: torch.Tensor, tolerance: float) -> None:
        """Keep the forms that hold this leaf too."""
        taken = {form: _bytes_in(form, tensor) for form in self.exact}
        self.exact = {
            form: self.exact[form] + more for form, more in taken.items() if more is not None
        }
        self.near = [
            to
            for to in self.near
            if taken.get(Cast(to)) is not None
            or (tolerance and narrowest(tensor, (to,), rtol=tolerance) is not None)
        ]

    def merge(self, other: Leaf) -> None:
        """Add the values seen at a path that is now merged into this one."""
        if not other.dtypes:
            return
        if not self.dtypes:
            self.exact, self.near = other.exact, other.near
        elif self.dtypes | other.dtypes != self.dtypes & other.dtypes:
            self.exact, self.near = {}, []
        else:
            self.exact = {
                form: size + other.exact[form]
                for form, size in self.exact.items()
                if form in other.exact
            }
            self.near = [dtype for dtype in self.near if dtype in other.near]
        self.dtypes |= other.dtypes
        self.items = max(self.items, other.items)
        self.last_item = max(self.last_item, other.last_item)
        self.values += other.values
        self.before += other.before
        self.has_more |= other.has_more
        self.is_plain &= other.is_plain
        self._reach(other.low, other.high)

    def _widen_range(self, tensor: torch.Tensor) -> None:
        if not tensor.numel() or tensor.dtype.is_complex:
            return
        if not tensor.dtype.is_floating_point:
            numbers = tensor.numpy()
            self._reach(int(numbers.min()), int(numbers.max()))
            return
        floats = tensor.float() if tensor.element_size() == 1 else tensor
        low, high = torch.aminmax(floats)
        if not (low.isfinite() and high.isfinite()):
            self.has_more = True
            floats = floats[floats.isfinite()]
            if not len(floats):
                return
            low, high = torch.aminmax(floats)
        self._reach(low.item(), high.item())

    def _reach(self, low: Any, high: Any) -> None:
        if low is not None:
            self.low = low if self.low is None else min(self.low, low)
            self.high = high if self.high is None else max(self.high, high)


@dataclass(slots=True, eq=False)
class _Node:
    leaf: Leaf = field(default_factory=Leaf)
    # Types of the values here that no rule converts.
    others: set[str] = field(default_factory=set)
    children: dict[Step | Wildcard, _Node] = field(default_factory=dict)

    def merge(self, other: _Node) -> None:
        self.leaf.merge(other.leaf)
        self.others |= other.others
        if Wildcard.ONE in self.children or Wildcard.ONE in other.children:
            self.unite()
            other.unite()
        for step, child in other.children.items():
            if step in self.children:
                self.children[step].merge(child)
            else:
                self.children[step] = child

    def unite(self) -> None:
        """Merge all children into one."""
        first, *others = self.children.values() or (_Node(),)
        for other in others:
            first.merge(other)
        self.children = {Wildcard.ONE: first}

    def paths(self, path: Pattern = ()) -> Iterator[tuple[Pattern, Leaf]]:
        if self.leaf.dtypes:
            yield path, self.leaf
        for step, child in self.children.items():
            yield from child.paths((*path, step))

    def kinds(self, path: Pattern = ()) -> Iterator[tuple[Pattern, str]]:
        for kind in sorted(self.others):
            yield path, kind
        for step, child in self.children.items():
            for below, kind in child.kinds():
                # One line for all values of a list.
                yield (*path, Wildcard.ONE if isinstance(step, int) else step, *below), kind

    def size(self) -> int:
        return 1 + sum(child.size() for child in self.children.values())


@dataclass(slots=True, eq=False)
class Survey:
    """Collects the values of samples or batches.

    Attributes:
        tolerance: how far a float may be rounded, relative to its size.
        in_batches: whether items come from a loader, so that Python's numbers are not leaves.
        batched: whether the first dimension of each item is that of its samples.
        items: how many were added.
        left_out: leaves beyond the largest number of paths.
    """

    tolerance: float
    in_batches: bool
    batched: bool
    items: int = 0
    left_out: int = 0
    _root: _Node = field(default_factory=_Node)
    _paths: int = 1

    def add(self, item: Any) -> None:
        """Add one sample or batch."""
        self.items += 1
        self._walk(item, self._root)

    def paths(self) -> Iterator[tuple[Pattern, Leaf]]:
        """All paths at which a leaf was seen."""
        return self._root.paths()

    def others(self) -> list[tuple[Pattern, str]]:
        """Paths and types of the values that no rule converts."""
        return list(dict.fromkeys(self._root.kinds()))

    def _walk(self, value: Any, node: _Node) -> None:
        if isinstance(value, torch.Tensor | np.ndarray):
            tensor = as_tensor(value)
            if tensor is None:
                node.others.add(f"{type(value).__name__} of {value.dtype}")
                return
            packs = tensor.ndim > self.batched
            self._look(tensor, node.leaf, in_numpy=value is not tensor, packs=packs)
            return
        numbers = None if self.in_batches else _as_numbers(value)
        if numbers is not None:  # all at once, since each token of a list is a leaf
            if Wildcard.ONE not in node.children:
                if self._paths >= _MOST_PATHS or self.left_out:
                    self.left_out += len(value)
                    return
                node.unite()
                self._paths = self._root.size()
            self._look(numbers, node.children[Wildcard.ONE].leaf, in_numpy=False, packs=False)
            return
        parts = parts_of(value)
        if parts is None:
            self._number(value, node)
            return
        if self.in_batches and _is_ragged(value) and not self.left_out:
            # One for each sample, so that each path would be that of a place in the batch.
            node.unite()
            self._paths = self._root.size()
        for part in parts:
            child = self._child(node, part.step)
            if child is None:
                self.left_out += 1
            else:
                self._walk(part.value, child)

    def _number(self, value: Any, node: _Node) -> None:
        is_number = isinstance(value, bool | int | float | complex | np.generic)
        # As default_collate does: 64 bits for Python's numbers.
        tensor = as_tensor(np.asarray(value)) if is_number and not self.in_batches else None
        if tensor is None:
            node.others.add(type(value).__name__)
            return
        in_numpy = isinstance(value, np.generic)
        self._look(tensor, node.leaf, in_numpy=in_numpy, packs=False)

    def _look(self, tensor: torch.Tensor, leaf: Leaf, *, in_numpy: bool, packs: bool) -> None:
        if _is_plain(tensor):
            tensor = tensor.detach().as_subclass(torch.Tensor).cpu().resolve_conj().resolve_neg()
        leaf.add(tensor, self.items, in_numpy=in_numpy, packs=packs)
        leaf.judge(tensor, self.tolerance)

    def _child(self, node: _Node, step: Step) -> _Node | None:
        if Wildcard.ONE in node.children:
            return node.children[Wildcard.ONE]
        if step not in node.children:
            # After a leaf was left out, no level may become a "*", which would include it.
            if self._paths >= _MOST_PATHS or self.left_out:
                return None
            node.children[step] = _Node()
            self._paths += 1
            indices = sum(isinstance(known, int) for known in node.children)
            if indices > _MOST_INDICES or len(node.children) - indices > _MOST_KEYS:
                node.unite()
                self._paths = self._root.size()
                return node.children[Wildcard.ONE]
        return node.children[step]


def _is_plain(tensor: torch.Tensor) -> bool:
    return (
        tensor.layout is torch.strided
        and not tensor.is_nested
        and not tensor.is_quantized
        and not tensor.is_meta
    )


def _is_ragged(value: Any) -> bool:
    """Whether it holds tensors that could not be stacked, as a batch of lists of some lengths."""
    if type(value) is not list or not all(isinstance(one, torch.Tensor) for one in value):
        return False
    return len({one.shape for one in value}) > 1 and len({one.dtype for one in value}) == 1


def _as_numbers(value: Any) -> torch.Tensor | None:
    """A long list of Python's numbers as one tensor, with the dtype each would have alone."""
    if type(value) not in (list, tuple) or len(value) <= _MOST_INDICES:
        return None
    kinds = set(map(type, value))
    if len(kinds) != 1 or not kinds <= {bool, int, float}:
        return None
    return as_tensor(np.asarray(value))


def _candidates(dtype: torch.dtype) -> tuple[Form, ...]:
    if dtype.is_complex or (dtype.is_floating_point and dtype.itemsize == 1):
        return ()
    if dtype.is_floating_point:
        return (*map(Cast, _NARROWER.get(dtype, ())), Scaled(), Bits())
    return (Bits(),)


def _bytes_in(form: Form, tensor: torch.Tensor) -> int | None:
    """The bytes of the tensor in this form, or None if a value would not be restored."""
    if isinstance(form, Cast):
        held = narrowest(tensor, (form.dtype,), rtol=0)
        return None if held is None else tensor.numel() * form.dtype.itemsize
    narrow = form.narrow(tensor, on_loss="error", rtol=None, empty=new)
    return None if isinstance(narrow, Loss) else narrow.numel() * narrow.element_size()
