"""`UnifiedHFDatasetWrapper`: wraps a Hugging Face dataset, map-style or streamed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch.utils.data import Dataset

from dataporter.convert import KeyBasedDtypeConverter, Rules
from dataporter.errors import ConfigurationError, MissingLibraryError, UnsupportedDatasetError
from dataporter.hf.images import mode_checked
from dataporter.keywords import names_keywords

if TYPE_CHECKING:
    import datasets

__all__ = ["UnifiedHFDatasetWrapper", "columns_checked"]


Kind = Literal["samples", "batches", "stream"]
# The class for each kind. Each registers itself, so that this module does not import them.
_KINDS: dict[Kind, type[UnifiedHFDatasetWrapper]] = {}


class UnifiedHFDatasetWrapper(Dataset[Any]):
    """A Hugging Face dataset as a torch dataset: samples are dicts of tensors.

    A ``datasets.Dataset`` is read from its Arrow memory, a whole batch at once. An
    ``IterableDataset`` becomes a ``torch.utils.data.IterableDataset``. Numbers keep their stored
    dtype, lists and arrays of numbers become tensors, images uint8 tensors (channels, height,
    width), structs dicts; all other values are those of the dataset itself.

    ``default_collate`` defines the batch. Where it fails (nulls, rows of several lengths, dates),
    and for lists of anything but numbers, the batch has a list of the samples' values.
    :meth:`collate` does the same for a plain ``DataLoader``.

    Args:
        hf_dataset: a ``Dataset``, an ``IterableDataset``, or a split of a ``DatasetDict``. Only
            the columns that its format selects are read; the type of the format is ignored. A
            function set by ``with_transform`` is still called, sample by sample.
        dtype_conversions: path → dtype, as for :class:`~dataporter.KeyBasedDtypeConverter`, or a
            converter. A float dtype scales images to 0..1.
        columns: the columns to read, in this order; by default all.
        transform: called with each sample or, with ``batched=True``, with each batch; its result
            replaces the sample or batch. The loader seeds it for each sample or batch.
        batched: whether ``transform`` takes batches. Not for streams.
        image_mode: the mode of Pillow to which images are converted, such as ``"RGB"``.
        pad: column → number. In a batch, the column's lists are padded to the longest, and an int8
            mask is added: ``"attention_mask"`` if ``"input_ids"`` is padded, which is then the
            only mask; otherwise the column's name with ``"_mask"``. Samples are not padded.

    Raises:
        ConfigurationError: (a ``ValueError``) an argument names something that does not exist, or
            does not apply to this dataset.
        UnsupportedDatasetError: (a ``TypeError``) the dataset is of another type, such as a
            ``DatasetDict`` without a chosen split.
        MissingLibraryError: (an ``ImportError``) ``datasets`` is not installed.

    Reading raises :class:`~dataporter.LossyConversionError` (a ``ValueError``) if a conversion
    would change a value.

    Example:
        >>> from datasets import Dataset
        >>> rows = Dataset.from_dict({"ids": [[1, 2], [3]], "label": [0, 1]})
        >>> dataset = UnifiedHFDatasetWrapper(
        ...     rows, dtype_conversions={"label": "int32"}, pad={"ids": 0}
        ... )
        >>> dataset[1]
        {'ids': tensor([3]), 'label': tensor(1, dtype=torch.int32)}
        >>> dataset.collate([dataset[0], dataset[1]])["ids"]
        tensor([[1, 2],
                [3, 0]])
    """

    def __new__(cls, hf_dataset: Any = None, *_: Any, **arguments: Any) -> UnifiedHFDatasetWrapper:
        if cls is not UnifiedHFDatasetWrapper:
            return super().__new__(cls)
        transforms_samples = arguments.get("transform") is not None and not arguments.get("batched")
        return super().__new__(_KINDS[_kind_of(hf_dataset, transforms_samples=transforms_samples)])

    def __init_subclass__(cls, *, reads: Kind) -> None:
        super().__init_subclass__()
        _KINDS[reads] = cls

    @names_keywords
    def __init__(
        self,
        hf_dataset: datasets.Dataset | datasets.IterableDataset,
        dtype_conversions: KeyBasedDtypeConverter | Rules | None = None,
        *,
        columns: Sequence[str] | None = None,
        transform: Callable[[Any], Any] | None = None,
        batched: bool = False,
        image_mode: str | None = None,
        pad: Mapping[str, float] | None = None,
    ) -> None:
        if batched and transform is None:
            raise ConfigurationError("batched=True needs a transform for batches: pass transform=")
        self.hf_dataset = hf_dataset
        self.transform = transform
        self.batched = batched
        self.image_mode = mode_checked(image_mode)
        self._set_up(dtype_conversions, columns, pad)

    def _set_up(
        self,
        rules: KeyBasedDtypeConverter | Rules | None,
        columns: Sequence[str] | None,
        pad: Mapping[str, float] | None,
    ) -> None:
        raise NotImplementedError  # each kind overrides it

    def collate(self, samples: Sequence[Any]) -> Any:
        """A batch of samples of this dataset: a ``collate_fn`` for a plain ``DataLoader``."""
        raise NotImplementedError  # each kind overrides it


# Python would show that of __new__.
_signature = inspect.signature(UnifiedHFDatasetWrapper.__init__)
UnifiedHFDatasetWrapper.__signature__ = _signature.replace(  # type: ignore[attr-defined]
    parameters=[one for one in _signature.parameters.values() if one.name != "self"]
)


def _kind_of(hf_dataset: Any, *, transforms_samples: bool) -> Kind:
    try:
        import datasets
    except ImportError as error:
        raise MissingLibraryError(
            "UnifiedHFDatasetWrapper needs Hugging Face's datasets, which cannot be imported "
            f"({error}): pip install datasets"
        ) from error
    if isinstance(hf_dataset, datasets.IterableDataset):
        return "stream"
    if isinstance(hf_dataset, datasets.Dataset):
        by_sample = transforms_samples or hf_dataset.format["type"] == "custom"
        return "samples" if by_sample else "batches"
    if isinstance(hf_dataset, dict) and type(hf_dataset).__name__.endswith("DatasetDict"):
        splits = list(hf_dataset)
        name = splits[0] if splits else "train"
        raise UnsupportedDatasetError(
            f"hf_dataset is a {type(hf_dataset).__name__} with the splits {splits}: choose one, "
            f"such as dataset[{name!r}], or pass split= to load_dataset"
        )
    raise UnsupportedDatasetError(
        f"hf_dataset is a {type(hf_dataset).__name__}: expected a datasets.Dataset or a "
        "datasets.IterableDataset"
    )


def columns_checked(columns: Sequence[str] | None, present: Sequence[str]) -> tuple[str, ...]:
    """The chosen columns, or all.

    Raises:
        ConfigurationError: a column is missing, or named twice.
    """
    if columns is None:
        return tuple(present)
    if isinstance(columns, str):
        raise ConfigurationError(f"columns={columns!r}: expected a list of names")
    unknown = [name for name in columns if name not in present]
    if unknown:
        raise ConfigurationError(
            f"columns names {unknown}, but the dataset's columns are {list(present)}: choose from "
            "these"
        )
    if len(set(columns)) < len(columns):
        raise ConfigurationError(f"columns={list(columns)} has a name twice: give each once")
    return tuple(columns)
