"""`UnifiedHFDatasetWrapper`: one name for what wraps a Hugging Face dataset of either kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch.utils.data import Dataset

from dataporter.convert import KeyBasedDtypeConverter, Rules
from dataporter.errors import ConfigurationError, MissingLibraryError, UnsupportedDatasetError
from dataporter.hf.images import mode_checked

if TYPE_CHECKING:
    import datasets

__all__ = ["UnifiedHFDatasetWrapper", "columns_checked"]


Kind = Literal["samples", "batches", "stream"]
# The class for each kind of dataset. They register themselves, so that this module imports none.
_KINDS: dict[Kind, type[UnifiedHFDatasetWrapper]] = {}


class UnifiedHFDatasetWrapper(Dataset[Any]):
    """A Hugging Face dataset as a dataset of torch's: samples are dicts of tensors.

    A ``datasets.Dataset`` is read from its Arrow memory, a whole batch at once; what comes of an
    ``IterableDataset`` is a ``torch.utils.data.IterableDataset``. Numbers keep the dtype they are
    stored in, lists and arrays of them are tensors, images are uint8 tensors (channels, height,
    width), structs are dicts; everything else is what the dataset itself gives.

    A batch is what ``default_collate`` makes of the samples. Where that fails (nulls, rows of
    several lengths, dates), and for lists of anything but numbers, it is a list of the samples'
    values; :meth:`collate` does the same for a plain ``DataLoader``.

    Args:
        hf_dataset: a ``Dataset``, an ``IterableDataset``, or a split of a ``DatasetDict``. The
            columns that its format selects are the ones that are read; the format's type is
            not looked at. A function set by ``with_transform`` is called as ever, sample by sample.
        dtype_conversions: path → dtype, as a :class:`~dataporter.KeyBasedDtypeConverter` takes
            them, or a converter. A float for an image means scaled to 0..1.
        columns: which columns, and in which order; by default all.
        transform: called with each sample, or, with ``batched=True``, with each batch; what it
            returns takes its place. Its randomness is seeded by the loader, for each sample or
            each batch.
        batched: whether ``transform`` is for batches. Streams have none.
        image_mode: a mode of Pillow's that images are brought to, such as ``"RGB"``.
        pad: column → number. In a batch its lists are padded to the longest, and there is a mask
            beside it, int8: ``"attention_mask"`` where ``"input_ids"`` is padded, which is then
            the only one, or else the column's name and ``"_mask"``. A sample is not padded.

    Raises:
        ConfigurationError: (a ``ValueError``) an argument names what is not there, or makes no
            sense for this dataset.
        UnsupportedDatasetError: (a ``TypeError``) not such a dataset; a ``DatasetDict`` has to be
            asked for a split.
        MissingLibraryError: (an ``ImportError``) ``datasets`` is not installed.

    While data is read, a :class:`~dataporter.LossyConversionError` (a ``ValueError``) is raised
    where a conversion would change a value.

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
            raise ConfigurationError("batched=True says how transform= is called: pass one")
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
        raise NotImplementedError  # each kind has its own

    def collate(self, samples: Sequence[Any]) -> Any:
        """A batch of samples of this dataset: a ``collate_fn`` for a plain ``DataLoader``."""
        raise NotImplementedError  # each kind has its own


def _kind_of(hf_dataset: Any, *, transforms_samples: bool) -> Kind:
    try:
        import datasets
    except ImportError as error:
        raise MissingLibraryError(
            "UnifiedHFDatasetWrapper needs Hugging Face's datasets, which cannot be imported "
            f'({error}): pip install "dataporter[huggingface]"'
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
        ConfigurationError: one is not there, or is there twice.
    """
    if columns is None:
        return tuple(present)
    if isinstance(columns, str):
        raise ConfigurationError(f"columns={columns!r}: expected a list of names")
    unknown = [name for name in columns if name not in present]
    if unknown:
        raise ConfigurationError(
            f"columns names {unknown}, and the dataset's columns are {list(present)}"
        )
    if len(set(columns)) < len(columns):
        raise ConfigurationError(f"columns={list(columns)} has a name twice")
    return tuple(columns)
