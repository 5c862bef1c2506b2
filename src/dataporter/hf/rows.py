"""Rows: the wrapper of a map-style dataset, which reads samples, or whole batches if possible."""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dataporter.convert import Conversion, KeyBasedDtypeConverter, Rules, converter_for
from dataporter.errors import ConfigurationError, LossyConversionError
from dataporter.hf.conversions import conversion_for, converted, noted
from dataporter.hf.forms import collate, rows_of, settled
from dataporter.hf.images import Decoding
from dataporter.hf.joined import UNLIKE, Piece, joined
from dataporter.hf.padding import masks_of, padding_for
from dataporter.hf.wrapper import UnifiedHFDatasetWrapper, columns_checked

if TYPE_CHECKING:
    from dataporter.hf.table import Table

__all__ = ["BatchedRows", "Rows"]


class Rows(UnifiedHFDatasetWrapper, reads="samples"):
    """A dataset that is read sample by sample, so that each is seeded and transformed alone."""

    def _set_up(
        self,
        rules: KeyBasedDtypeConverter | Rules | None,
        columns: Sequence[str] | None,
        pad: Mapping[str, float] | None,
    ) -> None:
        shape = self.hf_dataset.format
        self._is_formatted = shape["type"] == "custom"
        self._table: Table | None = None
        if self._is_formatted:
            given = {"batched": self.batched, "image_mode": self.image_mode, "pad": pad}
            _check_formatted(given)
            self.columns = None if columns is None else tuple(columns)
            self._conversion = conversion_for(rules, None)
            self._converter = converter_for(rules)
            self._padding = padding_for(None, (), ())
            return
        if shape["format_kwargs"]:
            raise ConfigurationError(
                f"the dataset's format has arguments, {shape['format_kwargs']}, which the wrapper "
                "does not apply: remove the format (dataset.with_format(None)), and pass "
                "dtype_conversions="
            )
        present = [
            name
            for name in self.hf_dataset.column_names
            if name in shape["columns"] or shape["output_all_columns"]
        ]
        self.columns = columns_checked(columns, present)
        masks = masks_of(pad or (), self.columns).values()
        features = self.hf_dataset.features
        self._conversion = conversion_for(rules, self.columns, features, masks)
        self._padding = padding_for(pad, self.columns, self._read_from().lists)

    def __len__(self) -> int:
        return len(self.hf_dataset)

    def __getitem__(self, index: int) -> Any:
        row = self._row(index)
        if self._is_formatted:
            return self._formatted(row)
        rows = np.array([row], dtype=np.int64)
        if self.transform is not None and self.batched:
            return rows_of(self.transform(self._batch(rows)), 1)[0]
        sample = rows_of(self._forms(rows), 1)[0]
        return sample if self.transform is None else self.transform(sample)

    def collate(self, samples: Sequence[Any]) -> Any:
        """A batch of samples of this dataset: a ``collate_fn`` for a plain ``DataLoader``."""
        return self._whole(collate(samples), None)

    def __collate__(self, samples: list[Any]) -> Any:
        return self.collate(samples)

    @property
    def collation(self) -> Any:
        """What ``collate`` depends on: datasets in which it is equal make the same batches."""
        masks = sorted(self._padding.masks.values())
        rules: tuple[Any, ...] = ()
        if masks and self._conversion is not None:
            names = [form.name for form in self._conversion.forms]
            rules = tuple(zip(self._conversion.patterns, names))
        return dict(self._padding.values), masks, rules

    @property
    def fingerprint(self) -> str:
        """The dataset's fingerprint, and one of the arguments that the samples depend on.

        The conversions are left out, since they may change before a resume; so is ``transform``,
        since its code has no fingerprint that is the same in another process.
        """
        arguments = [self.columns, self.image_mode, dict(self._padding.values)]
        digest = blake2b(json.dumps(arguments).encode(), digest_size=6).hexdigest()
        return f"{self.hf_dataset._fingerprint}-{digest}"

    def __repr__(self) -> str:
        return f"{UnifiedHFDatasetWrapper.__name__}({self.hf_dataset!r})"

    def __getstate__(self) -> dict[str, Any]:
        # The table holds addresses of this process.
        return {**self.__dict__, "_table": None}

    def _read_from(self) -> Table:
        if self._table is None:
            # Imported late: it needs pyarrow, which is installed with datasets.
            from dataporter.hf.table import Table

            assert self.columns is not None
            decoding = Decoding(self.image_mode, self._conversion)
            rows = self.hf_dataset
            self._table = Table(
                rows.data.table, rows.features, self.columns, decoding, rows._indices
            )
        return self._table

    def _row(self, index: Any) -> int:
        row, length = operator.index(index), len(self)
        if not -length <= row < length:
            raise IndexError(f"index {row} is out of bounds for a dataset of {length} samples")
        return row % length

    def _forms(self, rows: NDArray[np.int64]) -> dict[str, Any]:
        forms = self._read_from().read(rows)
        return forms if self._conversion is None else _narrow(forms, self._conversion, rows)

    def _batch(self, rows: NDArray[np.int64]) -> Any:
        return self._whole(self._forms(rows), rows)

    def _whole(self, batch: Any, rows: NDArray[np.int64] | None) -> Any:
        """The converted columns, padded and in the forms of a batch."""
        padded = self._padding.padded(batch)
        if self._conversion is not None and padded is not batch:
            masks = {name: padded[name] for name in padded.keys() - batch.keys()}
            padded.update(_narrow(masks, self._conversion, rows))
        return settled(padded)

    def _formatted(self, row: int) -> Any:
        sample = self.hf_dataset[row]
        if self.columns is not None:
            columns_checked(self.columns, list(sample))
            sample = {name: sample[name] for name in self.columns}
        if self._converter is not None:
            sample = self._converter.convert_sample(sample)
        return sample if self.transform is None else self.transform(sample)


class BatchedRows(Rows, reads="batches"):
    """A dataset that is read batch by batch."""

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        rows = self._rows(indices)
        if self.transform is not None:
            return rows_of(self.transform(self._batch(rows)), len(rows))
        return rows_of(self._forms(rows), len(rows))

    def __getbatch__(self, indices: NDArray[np.int64]) -> Any:
        batch = self._batch(self._rows(indices))
        return batch if self.transform is None else self.transform(batch)

    def __joinbatch__(
        self, parts: Sequence[tuple[BatchedRows, NDArray[np.int64], NDArray[np.int64]]]
    ) -> Any:
        pieces = [
            Piece(dataset._forms(dataset._rows(indices)), places)
            for dataset, places, indices in parts
        ]
        forms = joined(pieces, sum(len(places) for _, places, _ in parts))
        return NotImplemented if forms is UNLIKE else self._whole(forms, None)

    @property
    def draws(self) -> bool:
        """Whether reading a batch may draw from a random generator."""
        return self.transform is not None

    def _rows(self, indices: Any) -> NDArray[np.int64]:
        rows, length = np.array(indices, dtype=np.int64), len(self)
        # Read as unsigned, a negative number is huge.
        if len(rows) and not rows.view(np.uint64).max() < length:
            for index in rows.tolist():
                self._row(index)
            rows %= length
        return rows


def _narrow(forms: Any, conversion: Conversion, rows: NDArray[np.int64] | None) -> Any:
    try:
        return converted(forms, conversion)
    except LossyConversionError as error:
        if rows is not None:
            noted(error, rows.tolist())
        raise


def _check_formatted(given: Mapping[str, Any]) -> None:
    if refused := [name for name, value in given.items() if value]:
        raise ConfigurationError(
            f"{', '.join(refused)}: not possible with the dataset's with_transform, which makes "
            "samples one by one; remove it (dataset.with_format(None)) and pass transform=, or "
            "leave these arguments out"
        )
