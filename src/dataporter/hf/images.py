"""Images: as Pillow decodes them, tensors of channels, height and width; as floats from 0 to 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from dataporter.errors import ConfigurationError
from dataporter.hf.forms import stacked
from dataporter.hf.memory import Where
from dataporter.hf.nodes import Objects

__all__ = ["Images", "mode_checked", "scaled", "tensor_of"]

# By what the values of an image are divided to be from 0 to 1; others have no such limit.
_LEVELS = {torch.uint8: 255, torch.uint16: 65535}


class Images:
    """Reads a column of images.

    Args:
        stored: the files' bytes or paths.
        decode: makes a Pillow image of them.
        mode: Pillow's mode to bring them to, or None for what they are.
        dtype: a float to scale them to, or None for what Pillow has.
    """

    def __init__(
        self,
        stored: Objects,
        decode: Callable[[Any], Any],
        mode: str | None,
        dtype: torch.dtype | None,
    ) -> None:
        self._stored, self._decode, self._mode, self._dtype = stored, decode, mode, dtype

    def read(self, where: Where) -> Any:
        if not len(where.places):
            return torch.empty((0, 0, 0, 0), dtype=self._dtype or torch.uint8)
        form = stacked(
            [
                None if value is None else tensor_of(self._decode(value), self._mode)
                for value in self._stored.read(where)
            ]
        )
        if self._dtype is None:
            return form
        if isinstance(form, torch.Tensor):
            return scaled(form, self._dtype)
        return [None if image is None else scaled(image, self._dtype) for image in form]


def tensor_of(image: Any, mode: str | None) -> torch.Tensor:
    """A Pillow image as a tensor (channels, height, width); a grayscale image has one channel.

    Images of one bit a pixel become 0 and 255. Those with a palette keep their indices, which in
    masks are the classes; ``mode="RGB"`` looks the colours up.
    """
    if mode is not None and image.mode != mode:
        image = image.convert(mode)
    elif image.mode == "1":
        image = image.convert("L")
    pixels = np.array(image)  # a copy: torch takes only what it may write to
    if not pixels.dtype.isnative:
        pixels = pixels.astype(pixels.dtype.newbyteorder("="))
    if pixels.ndim == 2:
        return torch.from_numpy(pixels[None])
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def scaled(image: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """An image, or several, as floats from 0 to 1: divided in float32, then rounded.

    What has no largest value (float images, 32-bit whole numbers) is left as it is.
    """
    levels = _LEVELS.get(image.dtype)
    if levels is None:
        return image
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    return image.to(wide).div_(levels).to(dtype)


def mode_checked(mode: str | None) -> str | None:
    """A mode that Pillow converts to.

    Raises:
        ConfigurationError: it knows none of that name.
    """
    if mode is None:
        return None
    from PIL import Image

    try:
        Image.new("RGB", (1, 1)).convert(mode)
    except (ValueError, TypeError) as error:
        raise ConfigurationError(
            f"image_mode={mode!r}: expected a mode that Pillow converts to, such as 'RGB', 'L' or "
            f"'RGBA' ({error})"
        ) from error
    return mode
