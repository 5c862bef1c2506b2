"""Real photographs as JPEGs: scikit-learn includes two, cropped here into many."""

from __future__ import annotations

import io

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

__all__ = ["Photographs"]


class Photographs:
    """JPEGs of 400 x 400, decoded and resized to (3, 224, 224) uint8 on each read."""

    def __init__(self) -> None:
        whole = load_sample_images().images
        self.files = [
            self._encoded(image[top : top + 400, left : left + 400])
            for image in whole
            for top in (0, 27)
            for left in range(0, 240, 30)
        ]

    @staticmethod
    def _encoded(pixels: NDArray[np.uint8]) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "JPEG", quality=90)
        return buffer.getvalue()

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(io.BytesIO(self.files[index % len(self.files)])) as image:
            small = image.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(small)).permute(2, 0, 1)
