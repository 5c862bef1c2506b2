"""Keywords: a misspelt one, or another library's, gets an error that names ours."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from functools import wraps
from typing import NamedTuple, ParamSpec, TypeVar

__all__ = ["FOREIGN", "Foreign", "names_keywords"]

P = ParamSpec("P")
R = TypeVar("R")


class Foreign(NamedTuple):
    """An argument of another library.

    Attributes:
        library: whose name it is.
        ours: the names that this package has for it, the likeliest first; none where it has no use.
        note: what to know about it.
    """

    library: str
    ours: tuple[str, ...] = ()
    note: str = ""


_ELASTIC = "leave it out, since any number of ranks can resume without it"

FOREIGN = {
    "num_replicas": Foreign("torch's DistributedSampler", ("world_size",)),
    "strict": Foreign("torch's Module.load_state_dict", ("on_mismatch",), 'on_mismatch="warn"'),
    "snapshot_every_n_steps": Foreign("torchdata", ("snapshot_every",)),
    # Transformers' TrainingArguments, and the Trainer's own.
    "per_device_train_batch_size": Foreign("Transformers", ("batch_size",)),
    "per_device_eval_batch_size": Foreign("Transformers", ("batch_size",)),
    "dataloader_num_workers": Foreign("Transformers", ("num_workers",)),
    "dataloader_pin_memory": Foreign("Transformers", ("pin_memory",)),
    "dataloader_drop_last": Foreign("Transformers", ("drop_last",)),
    "dataloader_persistent_workers": Foreign("Transformers", ("persistent_workers",)),
    "dataloader_prefetch_factor": Foreign("Transformers", ("prefetch_factor",)),
    "train_dataset": Foreign("Transformers", ("dataset",)),
    "data_collator": Foreign("Transformers", ("collate_fn",)),
    "data_seed": Foreign("Transformers", ("seed",)),
    # Accelerate's DataLoaderConfiguration.
    "even_batches": Foreign("Accelerate", ("tail",), 'tail="pad" or tail="uneven"'),
    "split_batches": Foreign("Accelerate", (), "give it to the Accelerator"),
    "dispatch_batches": Foreign("Accelerate", (), "leave it out: each rank reads its own share"),
    "use_seedable_sampler": Foreign("Accelerate", (), "leave it out: the order follows from seed="),
    "use_stateful_dataloader": Foreign("Accelerate", (), "leave it out: this loader has a state"),
    "use_distributed_sampler": Foreign("Lightning", (), "give it to the Trainer, or leave it out"),
    # MosaicML Streaming.
    "shuffle_seed": Foreign("MosaicML Streaming", ("seed",)),
    "shuffle_algo": Foreign("MosaicML Streaming", ("order",), 'such as order="blocks"'),
    "shuffle_block_size": Foreign(
        "MosaicML Streaming", ("order",), "order=BlockShuffledOrder(block, buffer)"
    ),
    "num_canonical_nodes": Foreign("MosaicML Streaming", (), _ELASTIC),
    "predownload": Foreign("MosaicML Streaming", ("prefetch_factor",), "batches for each worker"),
    # Others.
    "worker_count": Foreign("Grain", ("num_workers",)),
    "worker_buffer_size": Foreign("Grain", ("prefetch_factor",)),
    "prefetch_batches": Foreign("Ray Data", ("prefetch_factor",), "batches for each worker"),
    "local_shuffle_seed": Foreign("Ray Data", ("seed",)),
    "dp_rank": Foreign("torchtitan", ("rank",)),
    "dp_world_size": Foreign("torchtitan", ("world_size",)),
    "shard_id": Foreign("DALI", ("rank",)),
    "num_threads": Foreign("DALI", ("num_workers",)),
    "bs": Foreign("fastai", ("batch_size",)),
    "random_state": Foreign("scikit-learn", ("seed",)),
    "buffer_size": Foreign("Hugging Face's shuffle()", ("window",)),
}


def names_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function name the keyword that an unknown one stands for.

    Its signature stays as it is, for readers, ``inspect`` and type checkers.

    Example:
        >>> @names_keywords
        ... def load(*, batch_size: int = 1) -> int:
        ...     return batch_size
        >>> load(batchsize=2)
        Traceback (most recent call last):
        TypeError: load() got an unexpected keyword argument 'batchsize': did you mean batch_size=?
    """
    signature = inspect.signature(function).parameters
    known = [name for name in signature if name != "self"]
    path = function.__qualname__.rpartition("<locals>.")[2].removesuffix(".__init__")

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in signature:
                raise TypeError(
                    f"{path}() got an unexpected keyword argument {name!r}{_meant(name, known)}"
                )
        return function(*args, **kwargs)

    return called


def _meant(name: str, known: list[str]) -> str:
    foreign = FOREIGN.get(name)
    if foreign is not None:
        ours = next((one for one in foreign.ours if one in known), None)
        if ours is not None:
            note = f" ({foreign.note})" if foreign.note else ""
            return f", the name in {foreign.library}: write {ours}={note}"
        if not foreign.ours:
            return f", the name in {foreign.library}: {foreign.note}"
    if close := get_close_matches(name.lower(), known, n=1):
        return f": did you mean {close[0]}=?"
    return f": expected some of {', '.join(known)}"
