"""Stream: the wrapper of a streamed dataset, an `IterableDataset` with shards and a state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from torch.utils.data import IterableDataset

from dataporter._torch import without_worker_info
from dataporter.convert import KeyBasedDtypeConverter, Rules, converter_for
from dataporter.errors import ConfigurationError, SampleError
from dataporter.hf.contents import contents_of
from dataporter.hf.conversions import conversion_for
from dataporter.hf.forms import collate, settled
from dataporter.hf.images import Decoding
from dataporter.hf.padding import masks_of, padding_for
from dataporter.hf.pipeline import Node, alone, node_of, unsplittable, without_node
from dataporter.hf.snapshots import draws_in_threads, reads_ahead, snapshots_are_exact
from dataporter.hf.wrapper import UnifiedHFDatasetWrapper, columns_checked

if TYPE_CHECKING:
    from dataporter.hf.blocks import Blocks

__all__ = ["StreamedSamples"]


class StreamedSamples(UnifiedHFDatasetWrapper, IterableDataset[Any], reads="stream"):
    """Yields the same samples as the wrapper of a map-style dataset of the same rows.

    Each of torch's workers reads its share of the shards, as ``datasets`` distributes them. The
    result of :meth:`shard` is not split again among workers.
    """

    def _set_up(
        self,
        rules: KeyBasedDtypeConverter | Rules | None,
        columns: Sequence[str] | None,
        pad: Mapping[str, float] | None,
    ) -> None:
        if self.batched:
            raise ConfigurationError(
                "batched=True: a stream yields samples one by one; pass a transform for samples, "
                "or use the dataset's own map (dataset.map(function, batched=True))"
            )
        stream = self.hf_dataset
        if stream._formatting is not None:
            # Read as Python objects: the tensors of a format have lost the stored dtypes.
            stream = stream.with_format(None)
            stream.set_epoch(self.hf_dataset.epoch)
        self._stream: Any = stream
        self._is_share = False
        # The state to begin at, and the position of a share that is read by blocks.
        self._loaded: dict[str, Any] | None = None
        self._blocks: Blocks | None = None
        present = stream.column_names
        known = columns if present is None else columns_checked(columns, present)
        self.columns = None if known is None else tuple(known)
        masks = () if self.columns is None else masks_of(pad or (), self.columns).values()
        conversion = conversion_for(rules, self.columns, stream.features, masks)
        # Without features, the first sample shows whether the rules match anything.
        self._converter = converter_for(rules) if stream.features is None else None
        self._conversion, self._decoding = conversion, Decoding(self.image_mode, conversion)
        names = tuple(pad or ()) if self.columns is None else self.columns
        self._padding = padding_for(pad, names, names)

    def __iter__(self) -> Iterator[Any]:
        for sample in self._samples():
            if self._converter is not None:
                sample = self._converter.convert_sample(sample)
            elif self._conversion is not None:
                sample = self._conversion.sample(sample).batch
            yield sample if self.transform is None else self.transform(sample)

    def collate(self, samples: Sequence[Any]) -> Any:
        """A batch of samples of this dataset, padded: a ``collate_fn`` for a ``DataLoader``."""
        batch = collate(samples)
        padded = self._padding.padded(batch)
        if self._conversion is not None and padded is not batch:
            masks = {name: padded[name] for name in padded.keys() - batch.keys()}
            padded.update(self._conversion.batch(masks).batch)
        return settled(padded)

    def __collate__(self, samples: list[Any]) -> Any:
        return self.collate(samples)

    @property
    def num_shards(self) -> int:
        """The number of shards of the dataset."""
        return int(self._stream.num_shards)

    def shard(self, num_shards: int, index: int, contiguous: bool = True) -> StreamedSamples:
        """The wrapper of one share of the shards; workers do not split it again."""
        stream = self._stream.shard(num_shards, index, contiguous=contiguous)
        share = self._around(stream, is_share=True)
        share.set_epoch(self._stream.epoch)
        return share

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that determines the shuffling, from the next ``iter()`` on."""
        self._stream.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The state of the dataset after the last sample it yielded."""
        if self._loaded is not None:
            return dict(self._loaded)
        if self._blocks is not None:
            return self._blocks.state_dict()
        return dict(self._stream.state_dict())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a state at the next ``iter()``; exact if ``snapshots_are_exact``."""
        self._loaded = dict(state)

    @property
    def snapshots_are_exact(self) -> bool:
        """Whether a loaded state resumes at the exact next sample (no shuffle buffer)."""
        return snapshots_are_exact(self._stream)

    @property
    def reads_ahead(self) -> bool:
        """Whether the stream computes samples ahead, or again, so that random draws may differ.

        A loader does not use the state of a stream that reads ahead and draws random numbers.
        """
        return reads_ahead(self._stream)

    @property
    def draws_in_threads(self) -> bool:
        """Whether the stream's functions run in threads of ``datasets``, beside the loader."""
        return self.transform is None and draws_in_threads(self._stream)

    @property
    def unsplittable(self) -> str | None:
        """The steps of the stream that a split into shards would change; None if there are none."""
        return unsplittable(self._stream)

    def __whole__(self) -> StreamedSamples:
        return self._around(alone(self._stream), is_share=True)

    def __node__(self) -> Node | None:
        return node_of(self._stream)

    def __contents__(self) -> list[str]:
        return contents_of(self._stream)

    def __without_node__(self) -> StreamedSamples:
        return self._around(without_node(self._stream))

    def __repr__(self) -> str:
        return f"{UnifiedHFDatasetWrapper.__name__}({self._stream!r})"

    def __getstate__(self) -> dict[str, Any]:
        # A block has open files.
        return {**self.__dict__, "_blocks": None}

    def _around(self, stream: Any, *, is_share: bool = False) -> StreamedSamples:
        """The wrapper of another stream."""
        wrapper = copy(self)
        wrapper._stream, wrapper._is_share = stream, is_share or self._is_share
        wrapper._loaded = wrapper._blocks = None
        return wrapper

    def _samples(self) -> Iterator[dict[str, Any]]:
        """The samples, from the loaded state on."""
        # Imported late: they need pyarrow, which is installed with datasets.
        from dataporter.hf.blocks import BLOCK, Blocks, has_blocks
        from dataporter.hf.examples import sample_of

        loaded, self._loaded = self._loaded, None
        is_of_blocks = loaded is None or BLOCK in loaded
        if self._is_share and is_of_blocks and has_blocks(self._stream, self.columns):
            assert self.columns is not None
            self._blocks = Blocks(self._stream, self.columns, self._decoding, loaded)
            return self._blocks
        self._blocks = None
        if loaded is not None:
            self._stream.load_state_dict(loaded)
        features = self._stream.features
        return (
            sample_of(self._chosen(each), features, self._decoding) for each in self._examples()
        )

    def _examples(self) -> Iterator[Mapping[str, Any]]:
        examples: Iterator[Mapping[str, Any]] = iter(self._stream)
        if not self._is_share:
            return examples
        # The first example decides: a worker would take its share of what is a share already.
        with without_worker_info():
            first = list(islice(examples, 1))
        return chain(first, examples)

    def _chosen(self, example: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.columns is None:
            return example
        missing = [name for name in self.columns if name not in example]
        if missing:
            raise SampleError(
                f"columns names {missing}, but a sample of the stream has {list(example)}: correct "
                "columns=, or fill the missing values"
            )
        return {name: example[name] for name in self.columns}
