"""`ResumableDataLoader`: torch's DataLoader, going on from the exact next sample."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, IterableDataset, IterDataPipe, Sampler

from dataporter.checks import seed_checked, whole_number
from dataporter.convert import Converted, KeyBasedDtypeConverter, Rules, converter_for
from dataporter.datasets.rows import length_of, rows_of
from dataporter.engines import Engine, Reply, Usage
from dataporter.errors import ConfigurationError, UnsupportedDatasetError
from dataporter.fetch.fetch import OnError
from dataporter.fetch.fetched import Fetched
from dataporter.integrations.callers import refuse_copy, refuse_takeover
from dataporter.loader import arguments as configure
from dataporter.loader.cursor import MOST_READ_AHEAD, Cursor
from dataporter.loader.delivery import Delivery
from dataporter.loader.flow import Flow
from dataporter.loader.indexed import IndexedFlow
from dataporter.loader.samplers import OrderSampler, refuse_resumable
from dataporter.loader.serving import WorkerKind, engine_for
from dataporter.loader.setup import flow_for
from dataporter.orders import Order
from dataporter.orders.by_name import generator_seed, order_for
from dataporter.ranks.agreement import Ranks
from dataporter.ranks.world import find_world, seed_of_sampler, world_of_sampler
from dataporter.schedule.plan import Tail
from dataporter.schedule.planned import PlannedSchedule
from dataporter.schedule.progress import Progress
from dataporter.schedule.sampled import SampledSchedule
from dataporter.schedule.schedule import Schedule
from dataporter.state.resume import OnMismatch
from dataporter.state.strategies import ResumptionStrategy
from dataporter.streams import StreamProgress, warn_of_length

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh
    from tqdm import tqdm

__all__ = ["ResumableDataLoader", "create_resumable_dataloader"]

Batch = TypeVar("Batch", covariant=True)


class ResumableDataLoader(DataLoader[Batch]):
    """A ``torch.utils.data.DataLoader`` that can stop anywhere and go on from the next sample.

    Every batch is a function of (dataset, seed, epoch, step), so the state is only a place: it
    costs nothing to take and nothing to resume from, and the number of workers, prefetching and
    pinning may change in between. Random augmentation is part of it: the global generators of
    Python, NumPy and torch are seeded before each sample (``simple``: each batch), and are put back
    in the training process.

    Args:
        dataset: a map-style dataset; a dict of equally long arrays, read by row; or an
            ``IterableDataset``: a stream, see ``num_shards``.
        batch_size, shuffle, sampler, batch_sampler, num_workers, collate_fn, pin_memory, drop_last,
            timeout, worker_init_fn, multiprocessing_context, generator, prefetch_factor,
            persistent_workers, pin_memory_device, in_order: as in torch. ``drop_last`` is
            ``tail="drop"``.
        strategy: ``"simple"``, ``"advanced"``, ``"distributed"`` or a strategy object; see the
            classes. By default ``"distributed"`` in a world of several ranks, ``"simple"`` with a
            sampler or batch sampler of your own, else ``"advanced"``.
        seed: 0..2**63-1. By default drawn from ``generator``, or else from torch's default
            generator, when it is first needed; the ranks of a process group share the first one's.
        order: ``"shuffled"`` (with ``shuffle=True`` the default), ``"sequential"``, ``"blocks"``
            (for data read from disk: :class:`~dataporter.BlockShuffledOrder`), ``"torch"`` (the
            order that torch's loader gives for a generator of this seed) or an
            :class:`~dataporter.Order`.
        rank, world_size: data-parallel rank and number of ranks. By default those of
            ``process_group``, else of ``torch.distributed``'s default group where it is
            initialised, else, with ``strategy="distributed"``, of torchrun's environment, else 0
            of 1. With rank and world size given, nothing is ever communicated. With nothing given,
            a loader that is older than the process group joins it when it is first used after.
        process_group: the ranks that share the data out, where those are not all there are (tensor,
            pipeline or context parallelism): a process group, or a ``DeviceMesh`` of one
            dimension, such as ``mesh["dp"]``; pass ``seed`` as well, since groups beside this one
            share none with it. All ranks of the group, the default one included, build the loader
            and load its state together; they compare what they hold.
        tail: what becomes of an incomplete last global batch. ``"pad"``, the default: shared
            evenly, with as few samples repeated as make the ranks equal (see :meth:`padding`).
            ``"drop"``: left out, as by ``drop_last=True``. ``"uneven"``: shared with none repeated,
            so that ranks may differ by one sample and by one step.
        on_error: what happens when a sample raises. ``"raise"``: its exception, with a note that
            names index, epoch and step. ``"skip"``: the batch comes without it, with a warning. A
            function ``(exception, index) → sample``: what it returns takes the sample's place.
        converter: a :class:`~dataporter.KeyBasedDtypeConverter`, or its rules (path → dtype). The
            workers convert what they collate, so that all that is moved and held is small. It may
            be another one after a resume, or from the next pass on, or none: the samples stay the
            same. What it raises is not for ``on_error``.
        worker_kind: ``"process"``, or ``"thread"``: no copies and no start-up, for datasets whose
            reading releases Python's lock. Threads share the global generators, which are not
            seeded then: random augmentation is exact where it draws from
            :func:`~dataporter.sample_rng`, and a warning tells of datasets that do not.
        worker_restarts: how many workers that die (killed by the kernel, say) are replaced in a
            pass, without losing or repeating anything. Past it, or when a batch has killed two
            workers, :class:`~dataporter.WorkerDiedError` is raised.
        num_shards: into how many shards a stream is cut that offers it (Hugging Face's do; see
            :class:`~dataporter.ShardedStream`); by default into all it has, up to 64. Any number of
            workers and ranks can take the shards over at a resume. A stream that is not cut is read
            by each worker, as torch does; it goes on from its own ``state_dict()`` where it has
            one, and is read again up to its place where not, with as many workers and ranks as
            before.
        snapshot_every: how many batches of a shard come with one ``state_dict()`` of the stream. A
            resume reads up to so many batches again; more is cheaper where a state is large.

    Raises:
        ConfigurationError: (a ``ValueError``) an argument is wrong or contradicts another.
        RankMismatchError: (a ``ValueError``) the group's ranks were given different arguments, or
            datasets of another length.
        UnsupportedDatasetError: (a ``TypeError``) the dataset has no length.

    While batches are read, a :class:`~dataporter.LossyConversionError` (a ``ValueError``) is raised
    where ``converter`` would change a value.

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
        converter: KeyBasedDtypeConverter | Rules | None = None,
        worker_kind: WorkerKind = "process",
        worker_restarts: int = 3,
        num_shards: int | None = None,
        snapshot_every: int = 1,
    ) -> None:
        self._arguments = configure.arguments_of(locals())
        own_sampler = sampler if sampler is not None else batch_sampler
        world = find_world(
            rank,
            world_size,
            process_group,
            launched=getattr(strategy, "name", strategy) == "distributed",
            later=True,
        )
        iterable = isinstance(dataset, IterableDataset)
        # torch's own pipes look at the loader that they are in; so they go through torch's.
        piped = isinstance(dataset, IterDataPipe)
        self._ranks = Ranks(None if piped else world.group)
        said = rank is not None or process_group is not None or own_sampler is not None
        self._joins = not said and not piped and world.group is None and world.size == 1
        with self._ranks.agreed("ResumableDataLoader()") as terms:
            configure.reject_misplaced(self._arguments, process_group)
            if own_sampler is not None:
                refuse_resumable(own_sampler)
                world = world_of_sampler(own_sampler, world)
            self.rank, self.world_size, _ = world
            self.strategy = configure.strategy_for(strategy, world, own_sampler)
            self.order: Order | None = None
            tail_for = configure.tail_of_stream if iterable else configure.tail_for
            self.tail = tail_for(tail, drop_last=bool(drop_last))
            self.on_error = configure.on_error_checked(on_error)
            self.converter = converter_for(converter)
            self.worker_kind = configure.worker_kind_checked(worker_kind)
            self.worker_restarts = whole_number("worker_restarts", worker_restarts)
            self._given_seed = seed_checked(seed)
            self._cursor: Cursor[Any] = Cursor.at_first_epoch(
                StreamProgress if iterable else Progress, self._given_seed, generator
            )
            self._flow: Flow | None = None
            source: Schedule | None = None
            rows = rows_of(dataset)
            self._engine: Engine | None = None
            self._said_length: int | None = None
            self._engine_converter: KeyBasedDtypeConverter | None = None
            self._engine_workers = num_workers
            # For a framework that drives the loader: what each pass goes through on its way to
            # the training loop, and whether state_dict() brings the ranks' parts together.
            self.pass_through: Callable[[Delivery[Batch]], Iterator[Batch]] | None = None
            self.gathers_state = False

            if own_sampler is None and not iterable:
                self.order = order_for(order, shuffle)
                if self._cursor.seed is None:
                    self._cursor.seed = generator_seed(self.order, generator)
                batch_size = configure.batch_size_checked(batch_size)
                length = length_of(rows)
                source = planned = PlannedSchedule.of(
                    self.order, length, batch_size or 1, self.rank, self.world_size, self.tail
                )
                sampler, shuffle = OrderSampler(planned, self._cursor), None
            super().__init__(
                dataset,  # type: ignore[arg-type]  # torch asks for a Dataset, and takes sequences
                batch_size,
                shuffle,
                sampler,
                batch_sampler,
                num_workers,
                collate_fn,
                pin_memory,
                drop_last or tail == "drop",
                timeout,
                worker_init_fn,
                multiprocessing_context,
                generator,
                prefetch_factor=prefetch_factor,
                persistent_workers=persistent_workers,
                pin_memory_device=pin_memory_device,
                in_order=in_order,
            )
            if own_sampler is not None and not iterable:
                source = sampled = SampledSchedule.of(self, world.rank, world.size)
                if self._cursor.seed is None:
                    self._cursor.seed = seed_of_sampler(own_sampler)
                if (epoch := sampled.built_at_epoch()) is not None:
                    self._cursor.set_epoch(epoch)
            if not piped:
                self._flow = flow_for(self, rows, source)
            if self._flow is not None:
                configure.world_checked(world, self._cursor.seed, in_order=in_order or iterable)
                terms.equal = {**self._flow.terms(), "seed": self._cursor.seed}
            if self._ranks.several:
                # All ranks draw, so that their generators stay alike; the first one's counts.
                terms.first = self._cursor.settled_seed()
        if self._ranks.several:
            self._cursor.seed = terms.first

    # ---- the stream

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # torch names a private class
        """A pass: what is left of the epoch that a state, ``seek`` or ``set_epoch`` asked for;
        otherwise the first epoch, or the one after the last that was begun (C3).
        """
        if self._flow is None:
            batches = super().__iter__()
            self.converter = converter = converter_for(self.converter)
            return batches if converter is None else map(converter.convert_batch, batches)
        self._resumable()
        refuse_takeover(self, sys._getframe(1))
        a_pass: Delivery[Batch] = Delivery(self._cursor, self._begin_pass, self.__len__, self._note)
        return a_pass if self.pass_through is None else self.pass_through(a_pass)

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank, wherever in it the loader stands (C4)."""
        length = None if self._flow is None else self._resumable().length()
        if length is None:
            return super().__len__()
        self._said_length = length
        return length

    def _begin_pass(self, a_pass: object) -> Iterator[Reply]:
        cursor, flow = self._cursor, self._resumable()
        if self._cursor is not cursor:
            raise ConfigurationError(
                "a process group came up between iter(loader) and the first batch, so that this "
                "iterator would read every rank's share: call iter() again"
            )
        if self._joins:  # alone for good, unless the environment tells of others
            find_world(None, None, launched=self.strategy.name == "distributed")
        if (epoch := flow.requested_epoch()) is not None:
            self._cursor.set_epoch(epoch)
        self.converter = converter = converter_for(self.converter)
        # Anew, because torch lets people set collate_fn, num_workers and the like, or change the
        # dataset, between two passes; workers that persist have seen it as it was. But for the
        # converter, since what is widened goes by the one that is here, and for how many there are.
        before = self._engine_converter, self._engine_workers
        is_as_ever = self.persistent_workers and before == (converter, self.num_workers)
        if self._engine is None or not is_as_ever:
            self._engine_converter, self._engine_workers = converter, self.num_workers
            seeded = self.num_workers == 0 or self.worker_kind == "process"
            self._engine = engine_for(
                self,
                flow.fetch_builder(
                    self.collate_fn,
                    batched=self.batch_sampler is not None,
                    seeds_each=self.strategy.seeds_each if seeded else "nothing",
                    on_error=self.on_error,
                ),
                worker_kind=self.worker_kind,
                worker_restarts=self.worker_restarts,
                conversion=None if converter is None else converter.conversion,
            )
        progress = self._cursor.begin(a_pass)
        self._flow = flow.for_pass(self.num_workers, progress)
        return self._flow.serve(self._engine, progress, self._cursor.settled_seed())

    def _note(self, fetched: Fetched) -> None:
        # Whichever is set by now, it was this one that has converted the batch.
        if self._engine_converter is not None:
            self._engine_converter.note(Converted(fetched.batch, fetched.originals))
        if fetched.shard is not None and self._said_length is not None:
            warn_of_length(self.dataset, self._said_length, self.step + 1)

    # ---- the state

    def state_dict(
        self, *, gather: bool | None = None, read_ahead: int | None = None
    ) -> dict[str, Any]:
        """Where the stream stands: after the last batch that was delivered (C1).

        Args:
            gather: with a stream that several ranks read, and of which each knows its own shards
                only: bring all of them together. All ranks call this, after the same number of
                batches. Without it such a state is this rank's part, and says so. By default
                ``gathers_state``, which is False unless a framework has set it.
            read_ahead: for who runs the loop for others: how many times, up to 3, it has asked for
                a batch that is not used yet, or for the end instead. Those batches do not count,
                and nor does the end of the pass, if it has been seen: the state is within the pass
                until the next one begins.

        Returns:
            A flat dict of JSON types, the same on every rank (but for the parts above), to be kept
            with the model's checkpoint: ``torch.save``, ``torch.load(weights_only=True)``,
            ``json`` and ``torch.distributed.checkpoint`` all carry it.

        Raises:
            ConfigurationError: (a ``ValueError``) ``gather`` without a process group to do it, or a
                ``read_ahead`` that is not within 0..3.
            RankMismatchError: (a ``ValueError``) the ranks hold different loaders, or are in
                different epochs, unless one has just ended an epoch in which others still are.
            UnsupportedDatasetError: (a ``TypeError``) the dataset is one of torch's DataPipes.
        """
        self._resumable()
        progress = self._cursor.progress
        if read_ahead is not None:
            if whole_number("read_ahead", read_ahead) > MOST_READ_AHEAD:
                raise ConfigurationError(
                    f"read_ahead={read_ahead}: expected 0 to {MOST_READ_AHEAD}, since what lies "
                    "further back is not kept"
                )
            progress = self._cursor.in_pass(read_ahead)
        return self._state_at(progress, self.gathers_state if gather is None else gather)

    def _state_at(self, progress: Any, gather: bool) -> dict[str, Any]:
        flow = self._resumable()
        state = flow.state(self._cursor.settled_seed(), progress)
        if not gather or self.world_size == 1 or isinstance(flow, IndexedFlow):
            return state
        if not self._ranks.several:
            raise ConfigurationError(
                f"gather=True on rank {self.rank} of {self.world_size}: rank and world size were "
                "given, so there is no process group to bring the ranks' parts together; save each "
                "rank's state_dict(), and load it on the same rank"
            )
        with self._ranks.agreed("state_dict(gather=True)") as terms:
            terms.equal = {**flow.terms(), "seed": self.seed}
        return flow.joined(self._ranks.gathered(state))

    def load_state_dict(self, state: Mapping[str, Any], on_mismatch: OnMismatch = "error") -> None:
        """Go on from a state at the next ``iter()``. Nothing is applied when it is refused.

        Where the world came from a process group, all its ranks call this, each with the same
        state (or each with its part of a stream's): it is applied on all of them or on none.

        Args:
            state: what ``state_dict()`` returned, on any rank; a part on the rank that gave it.
            on_mismatch: what to do when the state belongs to another dataset or configuration:
                refuse it, or warn and go on as near to it as the strategy's count gets.

        Raises:
            InvalidStateError: (a ``ValueError``) not a state, damaged, or from a newer schema.
            StateMismatchError: (a ``ValueError``) a state of another dataset or configuration.
            RankMismatchError: (a ``ValueError``) another rank has another state, or has refused it.
            UnsupportedDatasetError: (a ``TypeError``) the dataset is one of torch's DataPipes.
        """
        flow = self._resumable()
        with self._ranks.agreed("load_state_dict()") as terms:
            resumption = flow.resumption(state, self._given_seed, on_mismatch)
            terms.equal = dict(resumption.terms)
        self._cursor.seed = resumption.seed
        self._jump(resumption.progress)

    def set_epoch(self, epoch: int) -> None:
        """Start ``epoch`` at the next pass; the current epoch stays as it is (C3).

        Raises:
            ConfigurationError: ``epoch`` is no whole number of 0 or more.
        """
        self._cursor.set_epoch(whole_number("epoch", epoch))

    def seek(self, *, epoch: int | None = None, step: int = 0) -> None:
        """Jump to a batch: the next pass begins with it. No data is read.

        Args:
            epoch: counted from 0; by default the current one.
            step: batches of that epoch to pass over, 0..len(loader).

        Raises:
            ConfigurationError: there is no such epoch or step.
            UnsupportedDatasetError: a stream has no steps to jump to, but for the first.
        """
        step = whole_number("step", step)
        epoch = self.epoch if epoch is None else whole_number("epoch", epoch)
        if step == 0:
            self._jump(self._resumable().beginning(epoch))
            return
        source = self._indexed()
        if isinstance(source, PlannedSchedule) and step > (steps := source.epoch_steps()):
            raise ConfigurationError(f"seek(step={step}): an epoch has {steps} steps")
        self._jump(source.progress_at(epoch, step, self._cursor.settled_seed()))

    def samples_at(self, epoch: int, step: int) -> NDArray[np.int64] | list[Any]:
        """Which samples a batch has, on this rank, without reading any.

        For an epoch in whose middle the batch size or the world changed, this is known while the
        loader is in it, from the change on; for any other epoch the present batch size and world
        are taken for granted.

        Returns:
            Indices into the dataset, int64 of shape (batch,); with a sampler of your own a list of
            what it yields (it is walked up to the step).

        Raises:
            ConfigurationError: there is no such epoch or step.
        """
        epoch, step = whole_number("epoch", epoch), whole_number("step", step)
        origin = self._cursor.origin if epoch == self.epoch else Progress(epoch)
        return self._indexed().samples_at(origin, step, self._cursor.settled_seed())

    def padding(self, step: int) -> NDArray[np.bool_]:
        """Which samples of a batch of the current epoch are repeats, on this rank (``tail="pad"``).

        For evaluation. Only an epoch's last step has any, and in the pass it is known also after a
        resume with another batch size or world.

        Returns:
            bool of shape (batch,), True where the sample is there for a second time.

        Raises:
            ConfigurationError: no such step on this rank, or a sampler of your own shares out.

        Example:
            >>> loader = ResumableDataLoader(range(5), 2, rank=1, world_size=2, seed=1)
            >>> [batch.tolist() for batch in loader]
            [[2, 3], [0]]
            >>> [batch[~loader.padding(step)].tolist() for step, batch in enumerate(loader)]
            [[2, 3], []]
        """
        step = whole_number("step", step)
        return self._indexed().padding(self._cursor.origin, step)

    @property
    def epoch(self) -> int:
        """The current epoch, counted from 0; after the end of a pass the one that comes next."""
        epoch: int = self._cursor.progress.epoch
        return epoch

    @property
    def step(self) -> int:
        """Batches of this epoch that were delivered: the number of the one that comes next."""
        step: int = self._cursor.progress.step
        return step

    @property
    def position(self) -> int:
        """Samples of this epoch that were delivered, over all ranks; of a stream, on this one."""
        delivered: int = self._cursor.progress.delivered
        return delivered

    @property
    def remaining(self) -> int:
        """Batches that this epoch still has on this rank."""
        return self._resumable().remaining(self._cursor.progress)

    @property
    def seed(self) -> int:
        """The seed of order and augmentation."""
        return self._cursor.settled_seed()

    def progress(self, **options: Any) -> tqdm[Batch]:
        """The pass that begins next, behind a bar of tqdm's that starts where the pass does.

        In a world of several ranks only the first shows it. Make one for each pass.

        Args:
            **options: for tqdm, as ``disable=False``, ``leave=False``, or an ``iterable=`` around
                this loader, such as a :class:`~dataporter.DevicePrefetcher`.

        Example:
            >>> loader = ResumableDataLoader(range(6), batch_size=2)
            >>> for batch in (bar := loader.progress(disable=True)):
            ...     bar.set_postfix(loss=0.5)
        """
        from dataporter.loader.progress_bar import bar_over

        flow = self._resumable()
        begins = self._cursor.upcoming()
        return bar_over(self, begins.epoch, begins.step, lambda: flow.remaining(begins), options)

    def usage(self) -> Usage:
        """The worker processes of the last pass, and the memory they share with this one."""
        return Usage() if self._engine is None else self._engine.usage()

    # ---- what holds it together

    use_stateful_dataloader = True  # so that Accelerate saves and loads the state

    @property
    def _is_accelerate_prepared(self) -> bool:
        # Accelerator.prepare() asks, and returns a loader as it is that says yes.
        if "accelerate" not in sys.modules:
            return False
        from dataporter.integrations.accelerate import prepare_for_caller

        return prepare_for_caller(self, sys._getframe(1))

    @_is_accelerate_prepared.setter
    def _is_accelerate_prepared(self, prepared: bool) -> None:
        """It marks all that it returns."""

    @property
    def multiprocessing_context(self) -> Any:
        """As in torch's loader. Whoever builds another loader of this one reads it."""
        refuse_copy(self, sys._getframe(1))
        return DataLoader.multiprocessing_context.fget(self)  # type: ignore[attr-defined]

    @multiprocessing_context.setter
    def multiprocessing_context(self, context: Any) -> None:
        DataLoader.multiprocessing_context.fset(self, context)  # type: ignore[attr-defined]

    def _rebuild(self, **changes: Any) -> None:
        """Become the loader that other arguments, or a process group that is up now, would make.

        The place stays: a state that was loaded is carried over.

        Args:
            **changes: arguments of the class that take the place of those given when it was built.

        Raises:
            DataPorterError: what building such a loader, or loading this one's state into it,
                raises; this loader is then as it was.
        """
        new = object.__new__(type(self))
        # torch's class has no word in this: what it guards against changing is built together.
        new.__dict__.update(self.__dict__, _DataLoader__initialized=False)
        ResumableDataLoader.__init__(
            new, **{**self._arguments, **changes}, process_group=self._ranks.group
        )
        if self._cursor.moved:
            flow: Any = self._flow
            new.load_state_dict(flow.state(self._cursor.settled_seed(), self._cursor.progress))
            new._cursor.waiting = self._cursor.waiting  # a pass that was left is over
        # What torch lets people set after the loader was built.
        kept = {name: self.__dict__[name] for name in configure.SETTABLE if name not in changes}
        self.__dict__ = {**new.__dict__, **kept, "_arguments": self._arguments}

    def _jump(self, progress: Any) -> None:
        self._cursor.jump(progress)
        if self._flow is not None:
            self._flow.overlook_requested_epoch()

    def _resumable(self) -> Flow:
        if self._flow is None:
            raise UnsupportedDatasetError(
                f"dataset of type {type(self.dataset).__name__} is a DataPipe, which torch's own "
                "loader runs; it is iterated over as there, and not resumed: make it an "
                "IterableDataset"
            )
        if self._joins and find_world(None, None).size > 1:
            self._rebuild()
        return self._flow

    def _indexed(self) -> Schedule:
        flow = self._resumable()
        if not isinstance(flow, IndexedFlow):
            raise UnsupportedDatasetError(
                f"dataset of type {type(self.dataset).__name__} is an IterableDataset: what its "
                "samples are is seen when they are read, so that it has no place to jump to or to "
                "look at; state_dict() and load_state_dict() go on from where it was"
            )
        return flow.source

    def __copy__(self) -> ResumableDataLoader[Batch]:
        # A copy stands where this loader does and goes its own way; only the data is shared.
        rows = self._flow.rows if isinstance(self._flow, IndexedFlow) else self.dataset
        return copy.deepcopy(self, {id(shared): shared for shared in (self.dataset, rows)})

    def __getstate__(self) -> dict[str, Any]:
        # A copy, or a loader sent to another process, starts workers of its own, in no framework.
        return {**self.__dict__, "_engine": None, "pass_through": None, "gathers_state": False}


def create_resumable_dataloader(
    dataset: Dataset[Any] | Mapping[str, Any] | Any,
    batch_size: int | None = 1,
    shuffle: bool | None = None,
    strategy: str | ResumptionStrategy | None = None,
    **arguments: Any,
) -> ResumableDataLoader[Any]:
    """A :class:`ResumableDataLoader`, with the arguments most runs need up front.

    Args:
        dataset, batch_size, shuffle, strategy: as in :class:`ResumableDataLoader`.
        **arguments: any other argument of :class:`ResumableDataLoader`.

    Raises:
        ConfigurationError: (a ``ValueError``) an argument is wrong or contradicts another.
        UnsupportedDatasetError: (a ``TypeError``) the dataset has no length.

    Example:
        >>> loader = create_resumable_dataloader(range(10), batch_size=4)
        >>> [batch.tolist() for batch in loader]
        [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    """
    return ResumableDataLoader(
        dataset, batch_size=batch_size, shuffle=shuffle, strategy=strategy, **arguments
    )
