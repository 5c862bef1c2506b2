"""Forms: how a rule stores a leaf (as a dtype, scaled bytes or bits), and how that is undone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from dataporter.convert.casting import (
    Empty,
    Loss,
    OnLoss,
    cast,
    narrowest,
    new,
    widened,
)
from dataporter.convert.dense import dense, index_of, seen_as
from dataporter.errors import ConfigurationError

__all__ = ["Bits", "Cast", "Form", "Scaled", "dtype_named", "form_named", "name_of"]

_SCALED, _BITS = "uint8:scale", "bits"
_LEVELS = 255
# Elements: a block of floats, both rooms and the bytes are in half of a core's usual L2 cache.
_BLOCK = 1 << 16


class Form(Protocol):
    """A narrow form of a tensor.

    Attributes:
        name: as it is written in a rule.
        dtypes: the dtypes of narrowed tensors.
    """

    @property
    def name(self) -> str: ...

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]: ...

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is in this form already, so that it is kept."""

    def narrow(
        self, source: torch.Tensor, *, on_loss: OnLoss, rtol: float | None, empty: Empty
    ) -> torch.Tensor | Loss:
        """The source in this form, or the loss that prevents it."""

    def widen(
        self, tensor: torch.Tensor, original: torch.dtype, like: torch.Tensor, empty: Empty
    ) -> torch.Tensor:
        """The tensor in its original dtype; ``like`` has the same values, maybe on the CPU.

        ``empty`` makes a result on the CPU.
        """


@dataclass(frozen=True, slots=True)
class Cast:
    """Another dtype."""

    dtype: torch.dtype

    @property
    def name(self) -> str:
        return name_of(self.dtype)

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        return (self.dtype,)

    def holds(self, tensor: torch.Tensor) -> bool:
        return tensor.dtype is self.dtype

    def narrow(
        self, source: torch.Tensor, *, on_loss: OnLoss, rtol: float | None, empty: Empty
    ) -> torch.Tensor | Loss:
        return cast(source, self.dtype, on_loss=on_loss, rtol=rtol, empty=empty)

    def widen(
        self, tensor: torch.Tensor, original: torch.dtype, like: torch.Tensor, empty: Empty
    ) -> torch.Tensor:
        return widened(tensor, original, empty)


@dataclass(frozen=True, slots=True)
class Scaled:
    """Floats that are multiples of 1/255, as images are, by their numerators."""

    name: str = _SCALED
    dtypes: tuple[torch.dtype, ...] = (torch.uint8,)

    def holds(self, tensor: torch.Tensor) -> bool:
        return tensor.dtype is torch.uint8

    def narrow(
        self, source: torch.Tensor, *, on_loss: OnLoss, rtol: float | None, empty: Empty
    ) -> torch.Tensor | Loss:
        if not source.dtype.is_floating_point:
            raise ConfigurationError(
                f"form {_SCALED!r} takes floats from 0 to 1, got {name_of(source.dtype)}: give it "
                "a dtype"
            )
        _check_dense(source, _SCALED)
        rows, order = dense(source.detach().cpu())
        target = empty(rows.shape, torch.uint8)
        flat, into = rows.view(-1), target.view(-1)
        dtype, room_size = _wide(source.dtype), min(_BLOCK, len(flat))
        scaled_room, again_room = torch.empty(2, room_size, dtype=dtype)
        half, differs = torch.tensor(0.5, dtype=dtype), np.empty(room_size, np.bool_)
        levels = into.numpy()
        for start in range(0, len(flat), _BLOCK):
            part, found = flat[start : start + _BLOCK], levels[start : start + _BLOCK]
            wide, count = part.to(dtype), len(part)
            # To the nearest level: adding a half before truncation rounds.
            scaled = torch.add(half, wide, alpha=_LEVELS, out=scaled_room[:count])
            if on_loss != "error":
                scaled.clamp_(0, _LEVELS).nan_to_num_(0)
            # A value outside 0 to 1 may become anything here: it does not survive the comparison
            # below. NumPy takes a third of torch's time to cast, and a fifth to compare.
            with np.errstate(invalid="ignore"):
                np.copyto(found, scaled.numpy(), "unsafe")
            if on_loss != "error":
                continue
            again = _levels_widened(found, again_room[:count], source.dtype)
            changed = np.not_equal(again.numpy(), wide.numpy(), out=differs[:count])
            if rtol is not None and changed.any():
                away = (again.double() - wide.double()).abs_()
                # Every number is within any share of infinity.
                near = (away <= rtol * wide.double().abs()) & wide.isfinite()
                changed &= ~near.numpy()
            if changed.any():
                first = int(changed.argmax())
                return Loss(
                    index_of(start + first, rows.shape, order),
                    part[first].item(),
                    again[first].item(),
                    # The scale is exact unless rtol is given, so this is too.
                    narrowest(source, (), like=source.dtype, rtol=rtol or 0.0),
                )
        return seen_as(target, order).to(source.device)

    def widen(
        self, tensor: torch.Tensor, original: torch.dtype, like: torch.Tensor, empty: Empty
    ) -> torch.Tensor:
        if original is torch.uint8:  # it was not converted
            return tensor
        # Division gives the same bits as torchvision's ToTensor. The divisor is a tensor, since
        # CUDA divides by a number by multiplying with its inverse.
        wide = _wide(original)
        levels = torch.full((), _LEVELS, dtype=wide, device=tensor.device)
        return widened(tensor, wide, empty).div_(levels).to(original)


@dataclass(frozen=True, slots=True)
class Bits:
    """Masks of 0 and 1, packed along the last dimension, eight to a byte.

    (..., length) → (..., length / 8) of uint8, the first value in the lowest bit. If the length is
    no multiple of 8, rows have one more byte and are int8: a 1 and zeros follow a row's last value
    and mark its length.
    """

    name: str = _BITS
    dtypes: tuple[torch.dtype, ...] = (torch.uint8, torch.int8)

    def holds(self, tensor: torch.Tensor) -> bool:
        return False

    def narrow(
        self, source: torch.Tensor, *, on_loss: OnLoss, rtol: float | None, empty: Empty
    ) -> torch.Tensor | Loss:
        _check_dense(source, _BITS)
        if not source.ndim:
            raise ConfigurationError(
                f"form {_BITS!r} packs along the last dimension, got a tensor without dimensions: "
                "give it a dtype"
            )
        mask = cast(source, torch.bool, on_loss=on_loss, rtol=None, empty=new)
        if isinstance(mask, Loss):
            return mask
        if not math.prod(source.shape[:-1]):  # no rows to pack
            return source
        mask = mask.detach().cpu()
        length, rest = source.shape[-1], source.shape[-1] % 8
        whole = length - rest
        shape = (*source.shape[:-1], length // 8 + (rest > 0))
        packed = empty(shape, torch.int8 if rest else torch.uint8)
        into = packed.numpy().view(np.uint8)
        into[..., : whole // 8] = np.packbits(mask[..., :whole].numpy(), axis=-1, bitorder="little")
        if rest:
            end = np.zeros((*source.shape[:-1], 8), dtype=np.bool_)
            end[..., :rest] = mask[..., whole:].numpy()
            end[..., rest] = True
            into[..., -1:] = np.packbits(end, axis=-1, bitorder="little")
        return packed.to(source.device)

    def widen(
        self, tensor: torch.Tensor, original: torch.dtype, like: torch.Tensor, empty: Empty
    ) -> torch.Tensor:
        if not math.prod(tensor.shape[:-1]):
            return tensor
        length = tensor.shape[-1] * 8
        if tensor.dtype is torch.int8:
            ends = torch.stack(torch.aminmax(like[..., -1].view(torch.uint8)))
            shortest, longest = (end.bit_length() - 1 for end in ends.tolist())
            if shortest != longest or shortest < 0:
                raise ConfigurationError(
                    f"form {_BITS!r}: the rows of {list(tensor.shape)} bytes do not end at "
                    "the same length; widen them before they are padded, cut, or joined"
                )
            length += longest - 8
        shifts = torch.arange(8, dtype=torch.uint8, device=tensor.device)
        bits = tensor.view(torch.uint8).unsqueeze(-1).bitwise_right_shift(shifts).bitwise_and_(1)
        return widened(bits.flatten(-2)[..., :length], original, empty)


def _check_dense(source: torch.Tensor, form: str) -> None:
    if source.layout is not torch.strided or source.is_nested:
        kind = "nested" if source.is_nested else str(source.layout).removeprefix("torch.")
        raise ConfigurationError(
            f"form {form!r} takes dense tensors, got a {kind} one: give it a dtype"
        )


def _levels_widened(
    levels: NDArray[np.uint8], room: torch.Tensor, original: torch.dtype
) -> torch.Tensor:
    """The levels as ``Scaled.widen`` gives them, in the dtype of ``room``, to which they go."""
    wide = room.numpy()
    np.copyto(wide, levels)
    np.divide(wide, _LEVELS, out=wide)
    return room if original is room.dtype else room.copy_(room.to(original))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32


def form_named(wanted: Any) -> Form:
    """The form that a rule names.

    Args:
        wanted: a dtype of torch or NumPy, or its name (first as torch means it: ``"int"`` has 32
            bits); ``"uint8:scale"``; ``"bits"``.

    Raises:
        ConfigurationError: the form is unknown, or torch cannot cast to the dtype.
    """
    if isinstance(wanted, str) and wanted in (_SCALED, _BITS):
        return Scaled() if wanted == _SCALED else Bits()
    return Cast(dtype_named(wanted))


def dtype_named(wanted: Any) -> torch.dtype:
    """A dtype by object or name.

    Raises:
        ConfigurationError: the dtype is unknown, or torch cannot cast to it.
    """
    dtype = _dtype_of(wanted)
    if dtype is None:
        raise ConfigurationError(
            f"dtype {wanted!r}: expected a dtype of torch or NumPy or its name ('float16', "
            f"'int32', 'uint8', 'bool' ...), {_SCALED!r} or {_BITS!r}"
        )
    try:
        torch.zeros(1).to(dtype).to(torch.complex64 if dtype.is_complex else torch.float32)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(
            f"dtype {wanted!r}: torch {torch.__version__} does not cast to it ({reason}); choose "
            "another dtype"
        ) from error
    return dtype


def name_of(dtype: torch.dtype) -> str:
    """``"int32"`` for ``torch.int32``."""
    return str(dtype).removeprefix("torch.")


def _dtype_of(wanted: Any) -> torch.dtype | None:
    if isinstance(wanted, torch.dtype):
        return wanted
    if isinstance(wanted, str):
        dtype = getattr(torch, wanted.removeprefix("torch."), None)
        if isinstance(dtype, torch.dtype):
            return dtype
    elif not isinstance(wanted, np.dtype) and not (
        isinstance(wanted, type) and issubclass(wanted, np.generic)
    ):
        return None
    try:
        like = np.dtype(wanted).newbyteorder("=")
        return torch.from_numpy(np.empty(0, dtype=like)).dtype
    except (TypeError, ValueError):
        return None
