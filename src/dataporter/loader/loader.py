"""`ResumableDataLoader`: torch's DataLoader that resumes at the exact next sample."""

from __future__ import annotations

import copy
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from dataporter.checks import is_one_of, whole_number
from dataporter.convert import KeyBasedDtypeConverter, Rules, converter_for
from dataporter.engines import Reply, Usage
from dataporter.errors import ConfigurationError, UnsupportedDatasetError
from dataporter.fetch.fetched import Fetched
from dataporter.fetch.on_error import OnError
from dataporter.keywords import names_keywords
from dataporter.loader.arguments import SETTABLE, WorkerKind, check_arguments, check_on_error
from dataporter.loader.cursor import MOST_READ_AHEAD, AnyCursor, Cursor, Mark
from dataporter.loader.delivery import Adapter, Delivery
from dataporter.loader.draws import draws_of
from dataporter.loader.failures import Failures, Reporter, Reporting
from dataporter.loader.hooks import installed
from dataporter.loader.joining import Membership
from dataporter.loader.mixing import Mixing
from dataporter.loader.order_sampler import OrderSampler
from dataporter.loader.outer_loop import (
    epochs_until,
    warn_of_discarded_position,
    warn_of_empty_pass,
    warn_of_left_pass,
)
from dataporter.loader.pass_time import PassTime
from dataporter.loader.progress_bar import bar_over
from dataporter.loader.replaced import Endless, OwnSampler
from dataporter.loader.replicated import is_replicated, refuse_replicated, settle_unjoined
from dataporter.loader.samplers import refuse_resumable
from dataporter.loader.serving import OwnAttributes, Serving
from dataporter.loader.setup import Setup, setup_of
from dataporter.loader.together import settling
from dataporter.loader.torchdata_state import converted
from dataporter.orders import Order
from dataporter.ranks.agreement import Ranks
from dataporter.ranks.world import find_world
from dataporter.schedule.plan import Tail
from dataporter.state.foreign import is_torchdatas
from dataporter.state.ledger import joined
from dataporter.state.resume import OnMismatch
from dataporter.state.strategies import ResumptionStrategy
from dataporter.streams.stream import warn_of_length

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh
    from tqdm import tqdm

__all__ = ["ResumableDataLoader"]

Batch = TypeVar("Batch", covariant=True)
Indices: TypeAlias = NDArray[np.int64] | list[Any]


class ResumableDataLoader(DataLoader[Batch]):
    """A ``torch.utils.data.DataLoader`` that can stop anywhere and resume at the next sample.

    Every batch is a function of (dataset, seed, epoch, step), so the state is only a position: it
    costs nothing to take and nothing to resume from, and the number of workers, prefetching and
    pinning may change in between. This includes random augmentation: each sample (``simple``: each
    batch) draws from the global generators of Python, NumPy and torch as if they had been seeded
    for it, and the training's own generators stay as they are. A batch is read twice where a sample
    is the first to draw (``docs/exactness.md``). From torch's generator, each epoch draws what a
    pass of torch's loader draws.

    Args:
        dataset: a map-style dataset; a dict of equally long arrays, read by row; or an
            ``IterableDataset``: a stream, see ``num_shards``.
        batch_size, shuffle, sampler, batch_sampler, num_workers, collate_fn, pin_memory, drop_last,
            timeout, worker_init_fn, multiprocessing_context, generator, prefetch_factor,
            persistent_workers, pin_memory_device, in_order: as in torch. ``drop_last`` is
            ``tail="drop"``.
        strategy: ``"simple"``, ``"advanced"``, ``"distributed"`` or a strategy object; see the
            classes. By default ``"distributed"`` in a world of several ranks, ``"simple"`` with a
            custom sampler or batch sampler, else ``"advanced"``.
        seed: 0..2**63-1. By default the value that the first pass draws from ``generator``, or else
            from torch's default generator, as torch's loader does; if the seed is needed earlier,
            the value that a pass would draw then. The ranks of a process group share the first
            rank's.
        order: ``"shuffled"`` (the default with ``shuffle=True``), ``"sequential"``, ``"blocks"``
            (for data read from disk: :class:`~dataporter.BlockShuffledOrder`), ``"torch"`` (the
            order of torch's loader for a generator of this seed) or an :class:`~dataporter.Order`,
            such as :class:`~dataporter.WeightedOrder`.
        rank, world_size: data-parallel rank and number of ranks; with these given, the loader
            never communicates. By default those of ``process_group``, else of
            ``torch.distributed``'s default group where it is initialised, else, with
            ``strategy="distributed"``, of torchrun's environment, else 0 of 1. If the default group
            is initialised later, the loader joins it at the next ``iter()``, save or load.
        process_group: the ranks that share the data, where those are not all ranks (tensor,
            pipeline or context parallelism): a process group, or a ``DeviceMesh`` of one
            dimension, such as ``mesh["dp"]``. Pass ``seed`` as well, since groups beside this one
            share none with it. All ranks of the group, the default one included, build the loader
            and load its state together; they compare their arguments and states.
        tail: the treatment of an incomplete last global batch. ``"pad"``, the default: shared
            evenly, with as few samples repeated as make the ranks equal (see :meth:`padding`).
            ``"drop"``: left out, as by ``drop_last=True``. ``"uneven"``: shared without repeats, so
            that ranks may differ by one sample and by one step.
        on_error: the reaction to a sample that raises. ``"raise"``: its exception, with a note that
            names index, epoch and step. ``"skip"``: the batch comes without it. ``"replace"``:
            another sample takes its place, drawn by the seed, so that batches keep their shape. A
            function ``(exception, index) → sample``: the batch has its result in that place; a
            third parameter, or one named ``failure``, receives the :class:`~dataporter.Failure`.
            :attr:`failures` counts what failed, and a warning sums it up at the end of a pass.
        max_failures: number of samples that may fail on this rank in an epoch, or, below 1, which
            fraction of those that were delivered: of more than 10 failures at any time, and of
            fewer at the end of the epoch. Beyond it :class:`~dataporter.TooManyFailuresError` is
            raised in place of the batch.
        failures: path of a file that each failure adds a line of JSON to. A resumed run adds no
            line twice. In a world of several ranks, each has a file of its own:
            ``bad.rank0.jsonl`` for ``bad.jsonl``.
        converter: a :class:`~dataporter.KeyBasedDtypeConverter`, or its rules (path → dtype). The
            workers convert their batches, so that only small ones are moved and held. The converter
            may change at a resume or between passes: the samples stay the same. ``on_error`` does
            not apply to conversion errors.
        worker_kind: ``"process"``, or ``"thread"``: no copies and no start-up, for datasets whose
            reading releases Python's lock. Threads share the global generators, which are not
            seeded then: random augmentation is exact where it draws from
            :func:`~dataporter.sample_rng`, and a warning names generators that a dataset draws
            from.
        worker_restarts: number of workers that may be replaced in a pass after they died (killed by
            the kernel, say); no sample is lost or repeated. Beyond it, or when a batch has killed
            two workers, :class:`~dataporter.WorkerDiedError` is raised.
        num_shards: number of shards, for shardable streams (see :class:`~dataporter.ShardedStream`;
            Hugging Face's are); by default all of the stream's, up to 64, or one if a split would
            change its samples. Any number of workers and ranks can take the shards over at a
            resume. False does not split the stream. Such streams, and those that cannot be split,
            are read by each worker, as in torch; they resume from their own ``state_dict()``, or
            else by reading again up to the position, with as many workers and ranks as before.
        snapshot_every: number of batches of a shard per ``state_dict()`` of the stream, or of
            batches per ``state_dict()`` of a custom sampler. A resume reads, or draws, up to so
            many batches again; more is cheaper where such a state is large.
        steps_per_epoch: at most so many batches in an epoch, on each rank; the next pass begins the
            next epoch, in its own order, or continues the stream where this epoch ended. A resumed
            loop then ends where the uninterrupted one does, which a ``break`` after so many batches
            does not.
        stop_together: all ranks of the process group end an epoch at the same step, where the first
            of them has no batch left: before each batch, one all-reduce of 8 bytes. For streams,
            whose ranks may have different numbers of batches, and for ``tail="uneven"``; a training
            step that waits for all ranks would wait in vain. The batches that other ranks have left
            are dropped for this epoch. If a rank fails to read a batch, the others raise a
            :class:`~dataporter.RankMismatchError` at the same step.
        prefetch_next_epoch: with ``persistent_workers``, read the first batches of the next epoch
            while the last ones of this epoch are used. Such batches do not see what the dataset
            shares with the workers and the training changes between epochs (a curriculum's stage
            in shared memory, say). They are discarded if ``set_epoch``, ``seek`` or
            ``load_state_dict`` is called in between.
        on_mismatch: the reaction of :meth:`load_state_dict` to a state of another dataset or
            configuration: ``"error"``, or ``"warn"`` and resume as near to it as the strategy's
            count gets. Here for frameworks, which load the state themselves.
        fingerprint: a text that names the data, for the state: a resume on data of another name is
            refused. By default the dataset's attribute ``fingerprint`` or ``_fingerprint``, or else
            a digest of what is known of the content without reading samples: of arrays, subsets,
            and lists of files; None of most custom datasets (``docs/exactness.md`` has a table).

    Raises:
        ConfigurationError: (a ``ValueError``) an argument is wrong or contradicts another.
        RankMismatchError: (a ``ValueError``) the ranks of the group have different arguments, or
            datasets of different lengths or content.
        UnsupportedDatasetError: (a ``TypeError``) the dataset has no length, or is a DataPipe.

    Reading batches raises :class:`~dataporter.LossyConversionError` (a ``ValueError``) where
    ``converter`` would change a value.

    Example:
        >>> loader = ResumableDataLoader(range(6), batch_size=2, shuffle=True, seed=7)
        >>> batches = iter(loader)
        >>> _ = next(batches)
        >>> state = loader.state_dict()
        >>> rest = [batch.tolist() for batch in batches]
        >>> resumed = ResumableDataLoader(range(6), batch_size=2, shuffle=True)
        >>> resumed.load_state_dict(state)
        >>> [batch.tolist() for batch in resumed] == rest
        True
    """

    @names_keywords
    def __init__(
        self,
        dataset: Dataset[Any] | Mapping[str, Any] | Any,
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Sampler[Any] | Iterable[Any] | None = None,
        batch_sampler: Sampler[list[Any]] | Iterable[list[Any]] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: Any = None,
        generator: torch.Generator | None = None,
        *,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        pin_memory_device: str = "",
        in_order: bool = True,
        strategy: str | ResumptionStrategy | None = None,
        seed: int | None = None,
        order: str | Order | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        process_group: ProcessGroup | DeviceMesh | None = None,
        tail: Tail | None = None,
        on_error: OnError = "raise",
        max_failures: float | None = None,
        failures: str | os.PathLike[str] | Failures | None = None,
        converter: KeyBasedDtypeConverter | Rules | None = None,
        worker_kind: WorkerKind = "process",
        worker_restarts: int = 3,
        num_shards: int | Literal[False] | None = None,
        snapshot_every: int = 1,
        steps_per_epoch: int | None = None,
        stop_together: bool = False,
        prefetch_next_epoch: bool = False,
        on_mismatch: OnMismatch = "error",
        fingerprint: str | None = None,
    ) -> None:
        given = dict(locals())
        launched = is_one_of(getattr(strategy, "name", strategy), "distributed")
        world = find_world(rank, world_size, process_group, launched=launched, later=True)
        with Ranks(world.group).agreed("ResumableDataLoader()") as terms:
            arguments = check_arguments(given)
            refuse_resumable(arguments.custom_sampler)
            own = OrderSampler() if arguments.is_planned else None
            super().__init__(**arguments.for_torch(own))
            batches = self.sampler if self.batch_sampler is None else self.batch_sampler
            setup = setup_of(arguments, world, batches)
            self.on_error, self.converter = arguments.on_error, converter_for(converter)
            self.max_failures = arguments.max_failures
            self.on_mismatch = arguments.on_mismatch
            self.worker_kind = arguments.worker_kind
            self.worker_restarts = arguments.worker_restarts
            self._cursor: AnyCursor = Cursor.at_epoch(
                setup.beginning,
                setup.epochs.set_at_construction() or 0,
                setup.seed,
                draws_of(setup, generator),
            )
            if setup.ranks.several:
                terms.equal = setup.terms()
                terms.first = self._cursor.seed_among_ranks()
        if setup.ranks.several:
            self._cursor.seed = terms.first
        self._is_replicated = is_replicated(setup, terms.first)
        given_world = rank is not None or process_group is not None
        may_join = not given_world and arguments.custom_sampler is None and world == (0, 1, None)
        self._membership = Membership(setup, may_join)
        self._serving = Serving()
        self._mixing = Mixing(self) if setup.is_mixed else None
        self._reporter = Reporter()
        self._adapter: Adapter | None = None
        self._said_length: int | None = None
        self._time = PassTime()
        self._own_sampler = OwnSampler(self, is_planned=arguments.is_planned)
        # The iterators in use, and one whose first batch peek() has seen.
        self._passes: list[weakref.ref[Delivery[Batch]]] = []
        self._peeked: Delivery[Batch] | None = None
        self._peeked_with: dict[str, Any] = {}
        self._warned_of_left_pass = False
        if own is not None:
            own.follow(self._membership, self._cursor)
        self._show(setup)

    # ---- passes

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch names a private class
        """A pass: the rest of the epoch that a state, ``seek`` or ``set_epoch`` asked for;
        otherwise the first epoch, or the one after the last that was begun (C3).
        """
        self._join()
        installed().iterating(self, sys._getframe(1))
        if self._own_sampler.repeats_in(self):
            return Endless(self._get_iterator, self._is_superseded)
        return self._get_iterator()

    def _get_iterator(self) -> Iterator[Batch]:  # type: ignore[override]  # as above
        # A hook of torch's loader: subclasses put something around the iterator here.
        batches, self._peeked = self._peeked, None
        if batches is None or not batches.under_way:
            batches = self._new_pass()
        return batches if self._adapter is None else self._adapter.passes(batches)

    def _new_pass(self) -> Delivery[Batch]:
        time = PassTime()
        new: Delivery[Batch] = Delivery(
            self._cursor,
            partial(self._begin, time),
            self._check_peeked,
            self._begin_over,
            self.__len__,
            self._note,
            self._warn_of_empty_pass,
            self._reporter,
            time,
            settling(self.setup),
        )
        self._passes = [weakref.ref(new), *(ref for ref in self._passes if ref() is not None)]
        return new

    def _has_other_epoch(self) -> bool:
        """Whether a custom sampler was given another epoch since peek() began a pass over it."""
        epochs = self.setup.epochs
        if epochs.values() != epochs.begun_with or epochs.pending() not in (None, self.epoch):
            return True
        epochs.overlook()
        return False

    def _in_use(self) -> list[Delivery[Batch]]:
        return [batches for ref in self._passes if (batches := ref()) is not None]

    def epochs(self, stop: int) -> Iterator[int]:
        """The numbers of the epochs from the present one up to before ``stop``, for the outer loop.

        Begins with the epoch that a loaded state is in, and sets each epoch, also on a custom
        sampler. A pass that is left and begun again in the body starts the same epoch again.

        Args:
            stop: the number of epochs of the whole training.

        Raises:
            ConfigurationError: (a ``ValueError``) ``stop`` is no whole number of 0 or more.

        Example:
            >>> loader = ResumableDataLoader(range(4), batch_size=2)
            >>> for epoch in loader.epochs(2):
            ...     for batch in loader:
            ...         print(epoch, batch.tolist())
            0 [0, 1]
            0 [2, 3]
            1 [0, 1]
            1 [2, 3]
        """
        stop = whole_number("stop", stop)
        self._join()
        return epochs_until(stop, lambda: self._cursor, self._look, self._drive)

    def peek(self) -> Batch:
        """The next batch, which does not count: the next pass, or the present one, delivers it too.

        Within a pass it is that pass's next batch; otherwise the first one of the next pass.
        Reading it leaves the position as it is. A stream and a custom sampler cannot be asked
        twice: there this begins the pass, and the next ``iter()`` continues with it.

        Returns:
            The batch; changing it in place changes nothing that is delivered.

        Raises:
            ConfigurationError: (a ``ValueError``) the epoch of the stream or of the custom sampler
                has no batch left.

        Example:
            >>> loader = ResumableDataLoader(range(6), batch_size=2, shuffle=True, seed=7)
            >>> first = loader.peek()
            >>> (first == next(iter(loader))).all()
            tensor(True)
        """
        self._join()
        present = next((batches for batches in self._in_use() if batches.under_way), None)
        if present is not None and present is self._peeked and self._has_other_epoch():
            present = None
        if present is None and not self.setup.arguments.is_planned:
            present = self._peeked = self._new_pass()
            self._peeked_with = {name: getattr(self, name) for name in SETTABLE}
        if present is not None and (reply := present.peek()) is not None:
            return cast("Batch", _peeked(reply))
        if self.setup.arguments.is_planned:
            progress = self._cursor.upcoming()
            setup = self._membership.upcoming(self._cursor, next_pass=True)
            for upcoming in (progress, setup.start(progress.epoch + 1, progress)):
                reply = next(self._replies(setup, upcoming), None)
                if reply is not None:
                    return cast("Batch", _peeked(reply))
        raise ConfigurationError(
            f"peek(): epoch {self.epoch} has no batch left after step {self.step}; end its pass, "
            "and peek() shows the first batch of the next one"
        )

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank, wherever in it the loader stands (C4)."""
        under_way = any(batches.under_way for batches in self._in_use())
        setup = self._membership.upcoming(self._cursor, next_pass=not under_way)
        upcoming = self._cursor.upcoming()
        whole = setup.start(upcoming.epoch, upcoming) if setup.is_mixed else setup.beginning(0)
        self._said_length = length = setup.schedule.steps(whole)
        return length

    def _begin(self, time: PassTime, this_pass: object) -> Iterator[Reply]:
        self._membership.check()
        setup, cursor = self.setup, self._cursor
        if self._is_replicated:
            refuse_replicated(setup)
        settle_unjoined(setup)
        self._look()
        progress = cursor.upcoming()
        if self._membership.follow(cursor):
            setup = self.setup
            self._show(setup)
        setup.identify()
        self._membership.setup = setup = setup.with_workers(self.num_workers, progress)
        replies = self._replies(setup, progress)
        self._warn_of_left_pass()
        # Only now: a pass that cannot begin leaves the position as it was.
        self._reporter.begin(self._reporting(setup))
        cursor.begin(this_pass)
        self._time = time
        return replies

    def _begin_over(self, this_pass: object) -> Iterator[Reply] | None:
        """Begin a pass over a stream at its start, if it has begun at the end (``following``)."""
        cursor, setup = self._cursor, self.setup
        progress = cursor.progress
        if setup.stream is None or progress.step or not progress.continued:
            return None
        start = progress.start_of(progress.epoch)
        replies = self._replies(setup, start)
        cursor.begin(this_pass, start)
        return replies

    def _look(self) -> None:
        """Follow the epoch that the user has set on a custom sampler."""
        if (epoch := self.setup.epochs.requested()) is not None:
            self._set_epoch(epoch)

    def _check_peeked(self) -> None:
        """Take account of what was set since peek() began a pass that is now to deliver."""
        if self._has_other_epoch():
            self._look()
            self._cursor.begin_again()
            return
        for name, before in self._peeked_with.items():
            if (present := getattr(self, name)) is not before and present != before:
                raise ConfigurationError(
                    f"{name} was set to {present!r} after peek(), which has begun the pass with "
                    f"{before!r}, since this dataset or sampler cannot be asked for its first "
                    f"batch twice: set {name} before peek()"
                )

    def _replies(self, setup: Setup, progress: Any) -> Iterator[Reply]:
        if setup.is_mixed and self._mixing is None:  # of a copy
            self._mixing = Mixing(self)
        self.converter = converter_for(self.converter)
        check_on_error(self.on_error, setup.arguments)
        own = OwnAttributes(self.on_error, self.converter, self.worker_kind, self.worker_restarts)
        self._cursor.draws = draws_of(setup, self.generator)
        seed, anew = self._cursor.settled_seed(), self._cursor.set_since
        return self._serving.begin(self, own, setup, progress, seed, anew=anew, mixing=self._mixing)

    def _reporting(self, setup: Setup) -> Reporting:
        return Reporting(
            self.on_error,
            self.max_failures,
            setup.arguments.failures,
            self._cursor.settled_seed(),
            setup.rank,
            setup.world_size,
            setup.world_size if setup.stream is None else 1,
        )

    def _note(self, fetched: Fetched) -> None:
        self._serving.note(fetched)
        if fetched.shard is not None and self._said_length is not None:
            warn_of_length(self.dataset, self._said_length, self.step + 1)

    def _is_superseded(self) -> bool:
        return all(batches.superseded for batches in self._in_use())

    def _warn_of_empty_pass(self) -> None:
        if not self._own_sampler.repeats_in(self):
            warn_of_empty_pass(self._cursor)

    def _warn_of_left_pass(self) -> None:
        cursor, order = self._cursor, self.order
        if self._warned_of_left_pass or cursor.left_early() is None:
            return
        try:
            remaining: int | None = self.remaining
        except UnsupportedDatasetError:
            remaining = None
        is_sequential = order is not None and order.name == "sequential"
        self._warned_of_left_pass = warn_of_left_pass(
            cursor, is_sequential=is_sequential, remaining=remaining
        )

    # ---- the state

    @names_keywords
    def state_dict(self, *, at: Mark | None = None, gather: bool | None = None) -> dict[str, Any]:
        """The position: after the last batch that was delivered (C1).

        Args:
            at: the state as of a mark that :meth:`mark` took; by default as of now.
            gather: join what each rank knows for itself: the parts of a stream's or a custom
                sampler's state, and :attr:`failures`. All ranks call this after the same number of
                batches. Without it the state has this rank's part, and its failures. By default
                False; for a stream or a custom sampler True, if a framework drives the loader.

        Returns:
            A flat dict of JSON types, the same on every rank (but for what is above), to be saved
            with the model's checkpoint: ``torch.save``, ``torch.load(weights_only=True)``,
            ``json`` and ``torch.distributed.checkpoint`` all carry it.

        Raises:
            ConfigurationError: (a ``ValueError``) ``gather`` without a process group, or ``at`` is
                no mark.
            RankMismatchError: (a ``ValueError``) the ranks hold different loaders, or are in
                different epochs, unless one has just ended an epoch in which others still are.
        """
        self._join()
        setup = self.setup
        if at is None:
            cursor = self._cursor
            if cursor.waiting and self.step == 0:
                self._look()  # the next pass begins with what was set
            at = self.mark()
        elif not isinstance(at, Mark):
            raise ConfigurationError(f"at={at!r}: expected what mark() returned, or None")
        state = at.format.build(at.seed, self._cursor.as_mixed(at), at.ledger)
        is_part = state.get("rank") is not None
        if gather is None:
            driven = self._adapter is not None and self._adapter.gathers_state
            gather = is_part and driven and (setup.stream is not None or setup.ranks.several)
        if not gather or not (is_part or setup.ranks.several):
            return state
        if not setup.ranks.several:
            raise ConfigurationError(
                f"gather=True on rank {self.rank} of {self.world_size}: rank and world size were "
                "given, so there is no process group that could join the ranks' parts; save each "
                "rank's state_dict(), and load it on the same rank"
            )
        with setup.ranks.agreed("state_dict(gather=True)") as terms:
            terms.equal = {**at.format.terms(), "seed": at.seed}
        states, ledgers = zip(*setup.ranks.gathered((state, at.ledger)))
        whole = at.format.join(list(states))
        ledger = joined(ledgers, whole["epoch"])
        return {**whole, "failures": ledger.to_json(whole["epoch"])}

    @names_keywords
    def mark(self, *, read_ahead: int | None = None) -> Mark:
        """The position as of now, for ``state_dict(at=mark)`` later. Costs no state.

        Args:
            read_ahead: for loops that request batches before they use them: how many times the loop
                has asked, 0 to 3, for a batch that is not used yet, or for the end instead. Those
                batches do not count; and until the next pass begins the mark is within this one,
                even if its end has been seen.

        Raises:
            ConfigurationError: (a ``ValueError``) ``read_ahead`` is not within 0..3.
        """
        if read_ahead is not None and whole_number("read_ahead", read_ahead) > MOST_READ_AHEAD:
            raise ConfigurationError(
                f"read_ahead={read_ahead}: expected 0 to {MOST_READ_AHEAD}, since no position "
                "further back is kept"
            )
        progress, ledger = self._cursor.behind(read_ahead)
        format = self._membership.format_at(self._cursor, progress)
        return Mark(self._cursor.settled_seed(), progress, format, ledger, self._cursor.revoked)

    @names_keywords
    def load_state_dict(
        self, state: Mapping[str, Any], on_mismatch: OnMismatch | None = None
    ) -> None:
        """Resume from a state at the next ``iter()``. A refused state changes nothing.

        Where the world comes from a process group, all its ranks call this, each with the same
        state (or each with its part of a stream's): it is applied on all of them or on none.

        Args:
            state: from ``state_dict()``, on any rank; a part on the rank that saved it. Or the
                state of torchdata's ``StatefulDataLoader`` of a map-style dataset, where this
                loader delivers exactly the rest of that epoch.
            on_mismatch: in place of the loader's ``on_mismatch``.

        Raises:
            InvalidStateError: (a ``ValueError``) not a state, damaged, or from a newer schema.
            StateMismatchError: (a ``ValueError``) a state of another dataset or configuration.
            RankMismatchError: (a ``ValueError``) another rank has another state, or has refused it.
        """
        self._join()
        setup = self.setup.renewed()
        with setup.ranks.agreed("load_state_dict()") as terms:
            if is_torchdatas(state):
                epoch = setup.epochs.requested()
                epoch = self.epoch if epoch is None else epoch
                state = converted(state, setup, epoch, self._cursor.settled_seed)
            reaction = self.on_mismatch if on_mismatch is None else on_mismatch
            resumption = setup.format.resume(state, setup.arguments.seed, reaction)
            # A state of an epoch's start is accepted by datasets of any length.
            terms.equal = {**resumption.terms, "length of the dataset": setup.dataset_length}
        self._membership.take(setup)
        self._show(setup)
        self._cursor.seed = resumption.seed
        self._cursor.ledger = resumption.ledger.as_loaded()
        self._reporter.forget()
        self._jump(resumption.progress, loaded=True)
        setup.follow(resumption.progress)

    # ---- the position

    def set_epoch(self, epoch: int) -> None:
        """Start ``epoch`` at the next pass (C3).

        In the current epoch, a position that waits for the next pass (of a loaded state, say)
        stays; a pass that has begun stays as it is, and the next one starts the epoch again.

        Raises:
            ConfigurationError: ``epoch`` is no whole number of 0 or more.
        """
        epoch = whole_number("epoch", epoch)
        self._set_epoch(epoch)
        self._drive(epoch)

    def _drive(self, epoch: int) -> None:
        """Set the epoch of a custom sampler, which is the user's otherwise."""
        cursor = self._cursor
        if not (cursor.waiting and self.step > 0 and epoch == self.epoch):
            # A place within the epoch stays, and has the sampler's epoch of its own pass.
            self.setup.epochs.set(epoch)

    def _set_epoch(self, epoch: int) -> None:
        warn_of_discarded_position(self._cursor, epoch)
        self._cursor.set_epoch(epoch)

    @names_keywords
    def seek(self, *, epoch: int | None = None, step: int = 0) -> None:
        """Jump to a batch: the next pass begins with it. No data is read.

        Args:
            epoch: counted from 0; by default the current one.
            step: number of batches of that epoch to skip, 0..len(loader).

        An iterator that has begun before is over: its ``next()`` raises.

        Raises:
            ConfigurationError: there is no such epoch or step.
            UnsupportedDatasetError: a stream has no steps to jump to, but for the first.
        """
        step = whole_number("step", step)
        chosen = epoch is not None
        epoch = self.epoch if epoch is None else whole_number("epoch", epoch)
        with self.setup.epochs.kept_on_error():
            if chosen:
                self.setup.epochs.set(epoch)
            if step == 0:
                progress = self._cursor.progress.start_of(epoch, chosen=chosen)
            else:
                present = self._membership.in_world().of_present_length()
                lookup = present.knowing(self._cursor.progress).lookup
                self._check_limit(epoch, step)
                lookup.check(epoch, step)
                progress = lookup.progress_at(epoch, step, self.seed)
        if (setup := self.setup.of_present_length()) is not self.setup:
            self._membership.take(setup, agreed=False)
            self._show(setup)
        self._jump(progress)

    def samples_at(self, epoch: int, step: int) -> Indices:
        """The samples of a batch, on this rank, without reading any.

        In an epoch in which the batch size or the world changed, this is known while the loader is
        in it, from the change on; any other epoch is taken to have the present ones.

        Returns:
            Indices into the dataset, int64 of shape (batch,); with a custom sampler a list of what
            it yields (it is walked through up to the step); of a mixture a list of
            ``(source, index in it)``.

        Raises:
            ConfigurationError: there is no such epoch or step.
        """
        epoch, step = whole_number("epoch", epoch), whole_number("step", step)
        setup, _, origin = self._membership.standing(self._cursor)
        self._check_limit(epoch, step + 1)
        setup.knowing(origin).lookup.check(epoch, 0)
        origin = origin if epoch == self.epoch else setup.start(epoch, origin)
        return _named(setup, setup.lookup.samples_at(origin, step, self.seed))

    def seen(self) -> Indices:
        """The samples of this epoch that were delivered, over all ranks, without reading any.

        Known from the state alone, whatever batch sizes and worlds the epoch has had. A sample
        that failed counts as delivered, since its position is done; one that ``tail="pad"`` repeats
        comes once. With a custom sampler, it is walked through.

        Returns:
            int64: indices into the dataset, in the order in which they came. After the end of a
            pass none: the next epoch is the current one then. Of a mixture a list of
            ``(source, index in it)``.

        Raises:
            ConfigurationError: (a ``ValueError``) a custom sampler cannot be walked through, or
                gives each rank a share of its own.
            UnsupportedDatasetError: (a ``TypeError``) the dataset is a stream.

        Example:
            >>> loader = ResumableDataLoader(range(6), batch_size=4, shuffle=True, seed=7)
            >>> next(iter(loader)).tolist()
            [1, 0, 5, 3]
            >>> loader.seen().tolist(), loader.unseen().tolist()
            ([1, 0, 5, 3], [2, 4])
        """
        setup, progress, origin = self._membership.standing(self._cursor)
        return _named(setup, setup.lookup.seen(progress, origin, self.seed))

    def unseen(self) -> Indices:
        """The samples of this epoch that were not delivered; otherwise as :meth:`seen`.

        With those that ``drop_last`` or ``steps_per_epoch`` leave out of the epoch.
        """
        setup, progress, origin = self._membership.standing(self._cursor)
        return _named(setup, setup.lookup.unseen(progress, origin, self.seed))

    def padding(self, step: int) -> NDArray[np.bool_]:
        """Which samples of a batch of the current epoch are repeats added as padding, on this rank.

        For evaluation with ``tail="pad"``: only an epoch's last step has any. In the pass it is
        also known after a resume with another batch size or world.

        Returns:
            bool of shape (batch,), True where the sample is a repeat.

        Raises:
            ConfigurationError: there is no such step on this rank, or a custom sampler shards.

        Example:
            >>> loader = ResumableDataLoader(range(5), 2, rank=1, world_size=2, seed=1)
            >>> [batch.tolist() for batch in loader]
            [[2, 3], [0]]
            >>> [batch[~loader.padding(step)].tolist() for step, batch in enumerate(loader)]
            [[2, 3], []]
        """
        setup, _, origin = self._membership.standing(self._cursor)
        return setup.lookup.padding(origin, whole_number("step", step))

    def _check_limit(self, epoch: int, steps: int) -> None:
        limit = self.setup.arguments.steps_per_epoch
        if limit is not None and steps > limit:
            raise ConfigurationError(
                f"epoch {epoch} has no step {steps - 1}: steps_per_epoch={limit} ends each epoch "
                f"after {limit} steps"
            )

    @property
    def epoch(self) -> int:
        """The current epoch, counted from 0; after the end of a pass the next one."""
        epoch: int = self._cursor.progress.epoch
        return epoch

    @property
    def step(self) -> int:
        """Batches of this epoch that were delivered: the number of the next one."""
        step: int = self._cursor.progress.step
        return step

    @property
    def position(self) -> int:
        """The state's ``position``: all samples of this epoch before it, over all ranks, were
        delivered. It lags behind :attr:`delivered` only with ``in_order=False``.
        """
        position: int = self._cursor.progress.position
        return position

    @property
    def delivered(self) -> int:
        """Samples of this epoch that were delivered, over all ranks; of a stream, on this rank."""
        delivered: int = self._cursor.progress.delivered
        return delivered

    @property
    def remaining(self) -> int:
        """Batches in the rest of this epoch on this rank.

        Raises:
            UnsupportedDatasetError: (a ``TypeError``) the length of the epoch is unknown.
        """
        try:
            setup, progress, _ = self._membership.standing(self._cursor)
            return setup.schedule.steps(progress)
        except (TypeError, NotImplementedError) as error:
            stream = " is an IterableDataset" if self.setup.stream is not None else ""
            raise UnsupportedDatasetError(
                f"dataset of type {type(self.dataset).__name__}{stream}: the length of its epochs "
                f"is unknown ({error}): give it, or the custom sampler, __len__"
            ) from error

    @property
    def seed(self) -> int:
        """The seed of order and augmentation."""
        return self._cursor.settled_seed()

    # Properties and no attributes: code that builds a loader of the same class from the attributes
    # of another one passes all of them to the constructor.

    @property
    def rank(self) -> int:
        """The data-parallel rank of this loader."""
        return self.setup.rank

    @property
    def world_size(self) -> int:
        """The number of data-parallel ranks."""
        return self.setup.world_size

    @property
    def strategy(self) -> ResumptionStrategy:
        """What the state counts, and what may change at a resume."""
        return self.setup.strategy

    @property
    def order(self) -> Order | None:
        """The order of the samples; None for a custom sampler and for a stream."""
        return self.setup.order

    @property
    def tail(self) -> Tail:
        """The treatment of an incomplete last global batch."""
        return self.setup.tail

    @property
    def failures(self) -> Failures:
        """The samples that failed and that ``on_error`` has handled, on this rank.

        A sequence of :class:`~dataporter.Failure`, one for each sample and type of error: the
        first 64 of them, or fewer if they are long (8,000 bytes). Its ``total`` is the exact number
        of failures, and a file (``failures="bad.jsonl"``) has all of them. A failure counts when
        its batch is delivered; after a load the failures are those of the state.

        Example:
            >>> class Scan:
            ...     files = ["a.png", "b.png", "c.png"]
            ...     def __len__(self):
            ...         return 3
            ...     def __getitem__(self, index):
            ...         if index == 1:
            ...             raise OSError("truncated")
            ...         return index
            >>> loader = ResumableDataLoader(Scan(), batch_size=3, on_error="skip")
            >>> next(iter(loader)).tolist()
            [0, 2]
            >>> loader.failures
            <1 failure:
              sample index 1 (b.png) (epoch 0, step 0, position 1): OSError: truncated>
        """
        ledger = self._cursor.ledger
        return Failures(ledger.records, ledger.total, self.setup.arguments.failures)

    def progress(self, **options: Any) -> tqdm[Batch]:
        """The next pass, behind a progress bar (tqdm) that starts where the pass does.

        In a world of several ranks only the first shows it. Make one for each pass.

        Args:
            **options: for tqdm, as ``disable=False``, ``leave=False``, or an ``iterable=`` around
                this loader, such as a :class:`~dataporter.DevicePrefetcher`.

        Example:
            >>> loader = ResumableDataLoader(range(6), batch_size=2)
            >>> for batch in (bar := loader.progress(disable=True)):
            ...     bar.set_postfix(loss=0.5)
        """
        return bar_over(
            self,
            self._membership.upcoming(self._cursor, next_pass=True),
            self._cursor.upcoming(),
            options,
        )

    @property
    def wait_seconds(self) -> float:
        """Seconds that the training loop has waited for batches in this pass: in ``next()``.

        Of the last pass that has begun, in this process; after its end until the next one begins.
        A :class:`~dataporter.DevicePrefetcher` has its own, with the waits for copies.

        Example:
            >>> loader = ResumableDataLoader(range(6), batch_size=2)
            >>> for batch in loader:
            ...     line = f"data-bound: {loader.wait_share:.0%}"
            >>> 0 < loader.wait_seconds < 60 and 0 < loader.wait_share <= 1
            True
        """
        return self._time.wait_seconds

    @property
    def wait_share(self) -> float:
        """The share of this pass that the loop has waited for batches, from 0 to 1.

        Of the time from the first ``next()`` to the return of the last one; 0 before that.
        """
        return self._time.wait_share

    @property
    def batches_per_second(self) -> float:
        """Batches that this pass has delivered in a second of the time of :attr:`wait_share`."""
        return self._time.batches_per_second

    def usage(self) -> Usage:
        """The worker processes of the last pass, and the memory they share with this one."""
        return self._serving.usage()

    # ---- for the integrations and tools

    use_stateful_dataloader = True  # so that Accelerate saves and loads the state

    @property
    def setup(self) -> Setup:
        """The meaning of the arguments on this rank, frozen."""
        return self._membership.setup

    @property
    def adapter(self) -> Adapter | None:
        """The framework that drives the loader: each pass goes through it."""
        return self._adapter

    @adapter.setter
    def adapter(self, adapter: Adapter | None) -> None:
        self._adapter = adapter

    @property
    def _is_accelerate_prepared(self) -> bool:
        # Accelerator.prepare() reads it, and returns a loader unchanged where it is True.
        return installed().is_prepared(self, sys._getframe(1))

    @_is_accelerate_prepared.setter
    def _is_accelerate_prepared(self, prepared: bool) -> None:
        """Accelerate sets it on all that prepare() returns."""

    @property
    def multiprocessing_context(self) -> Any:
        """As in torch's loader. Code that builds a plain copy of this loader reads it."""
        installed().reading_arguments(self, sys._getframe(1))
        return DataLoader.multiprocessing_context.fget(self)  # type: ignore[attr-defined]

    @multiprocessing_context.setter
    def multiprocessing_context(self, context: Any) -> None:
        DataLoader.multiprocessing_context.fset(self, context)  # type: ignore[attr-defined]

    # ---- wiring

    def _join(self) -> None:
        if self._membership.join(self._cursor):
            self._show(self.setup)

    def _show(self, setup: Setup) -> None:
        # A subclass may have put another sampler in its place; and another loader's shows that one.
        sampler = self.sampler
        if setup.arguments.is_planned and isinstance(sampler, OrderSampler):
            sampler.show(setup)

    def _jump(self, progress: Any, *, loaded: bool = False) -> None:
        self._cursor.jump(progress, loaded=loaded)
        self.setup.epochs.overlook()

    def __copy__(self) -> ResumableDataLoader[Batch]:
        # A copy stands where this loader does and is independent; only the data is shared.
        rows = self.setup.rows
        return copy.deepcopy(self, {id(shared): shared for shared in (self.dataset, rows)})

    def __getstate__(self) -> dict[str, Any]:
        # A copy, or a loader sent to another process, has its own workers and no framework.
        without: dict[str, Any] = {"_adapter": None, "_passes": [], "_peeked": None}
        without |= {"_time": PassTime(), "_mixing": None}
        return {**self.__dict__, "_serving": Serving(), "_reporter": Reporter(), **without}


def _named(setup: Setup, indices: Indices) -> Indices:
    """Indices as a user knows them: of a mixture, each with its source."""
    if not setup.is_mixed:
        return indices
    named: list[Any] = setup.rows.named(indices)
    return named


def _peeked(reply: Reply) -> Any:
    if reply.failure is not None:
        raise reply.failure
    assert reply.fetched is not None
    return copy.deepcopy(reply.fetched.batch)
