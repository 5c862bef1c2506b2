"""The cursor: a loader's position, and the one object that changes (C1-C3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeAlias, TypeVar

from dataporter.fetch.failure import Failure
from dataporter.loader.draws import Draws, unlike_others
from dataporter.schedule.progress import EpochProgress
from dataporter.state.format import StateFormat
from dataporter.state.ledger import NO_FAILURES, Ledger

__all__ = ["MOST_READ_AHEAD", "AnyCursor", "Cursor", "Mark"]

MOST_READ_AHEAD = 3

_DRAWS = Draws()

P = TypeVar("P", bound=EpochProgress)


@dataclass(frozen=True, slots=True)
class Mark:
    """A position that was taken at a batch; ``state_dict(at=mark)`` is the state as of then.

    Attributes:
        seed, progress: of the loader at that batch.
        format: of its states then: its batch size or its workers may change later.
        ledger: the failures up to that batch.
        revoked: how often the position had been set to another batch.
    """

    seed: int
    progress: Any
    format: StateFormat
    ledger: Ledger
    revoked: int = 0


@dataclass(slots=True)
class Cursor(Generic[P]):
    """Where the next batch comes from.

    Attributes:
        beginning: the progress of an epoch of which nothing was delivered.
        progress: what was delivered of the current epoch.
        origin: the progress from which on the present batch size and world count in this epoch:
            where the last pass began, or where the position was set to since.
        seed: the loader's; None until it is needed for the first time.
        draws: what an epoch draws from torch's generators; the first value is the seed.
        waiting: the next pass resumes at ``progress``; otherwise a pass has begun in this epoch,
            and the next one starts the epoch after it, or the same ``again``.
        again: the epoch was set once more since its pass began.
        held: an epoch whose pass starts over if it is left early; of ``loader.epochs()``.
        set_since: the position was set since the last pass began, also to where it was.
        loaded: a state was loaded, and no pass has begun since.
        revoked: how often the position was set to another batch; passes that began before that
            deliver nothing more.
        ledger: the samples that failed, of all batches that were delivered.
    """

    progress: P
    origin: P
    beginning: Callable[[int], P]
    seed: int | None = None
    draws: Draws = _DRAWS
    waiting: bool = True
    again: bool = False
    held: int | None = None
    set_since: bool = False
    loaded: bool = False
    revoked: int = 0
    ledger: Ledger = NO_FAILURES
    # The last progresses of the pass and its ledgers, the present ones last; how often the pass
    # has ended since; and which pass that was.
    _trail: tuple[tuple[P, Ledger], ...] = ()
    _ends: int = 0
    _ended: object | None = None
    # The pass that moves the cursor: the last that began, unless the position was set since; and
    # whether its epoch has draws to make.
    _pass: object | None = None
    _draws_are_due: bool = False

    @classmethod
    def at_epoch(
        cls,
        beginning: Callable[[int], P],
        epoch: int,
        seed: int | None,
        draws: Draws = _DRAWS,
    ) -> Cursor[P]:
        """A cursor at the start of an epoch."""
        first = beginning(epoch)
        return cls(first, first, beginning, seed, draws)

    @property
    def moved(self) -> bool:
        """Whether it stands elsewhere than at the start of epoch 0."""
        return not (self.waiting and self.progress == self.beginning(0))

    def settled_seed(self) -> int:
        """The seed; when it is first needed, the value that a pass would draw now."""
        if self.seed is None:
            self.seed = self.draws.seed()
        return self.seed

    def seed_among_ranks(self) -> int:
        """As :meth:`settled_seed`, where ranks agree on the seeds of several loaders in turn."""
        if self.seed is None:
            self.seed = unlike_others(self.draws.seed())
        return self.seed

    def upcoming(self) -> P:
        """Where a pass that starts now begins."""
        if self.waiting:
            return self.progress
        epoch: int = self.progress.epoch
        again = self.again or epoch == self.held
        following: P = self.progress.following(epoch if again else epoch + 1, chosen=again)
        return following

    def left_early(self) -> int | None:
        """How many batches a pass had delivered that the next one abandoned; None without one."""
        if self.waiting:
            return None
        step: int = self.progress.step - self.origin.step
        return step

    def begin(self, this_pass: object, start: P | None = None) -> P:
        """Where a pass that starts now begins; from here on it moves the cursor.

        Args:
            start: in place of where it would begin.
        """
        self.progress = self.origin = self.upcoming() if start is None else start
        self._pass, self.waiting, self.again = this_pass, True, False
        self.set_since, self.loaded = False, False
        self._draws_are_due = not (self.progress.step or self.progress.delivered)
        self.ledger = self.ledger.begun(self.progress.epoch, self.progress.step)
        # The end of a pass is where the next one begins, for a loop that lags behind.
        self._trail = (*(self._trail[:-1] if self._ends else ()), (self.progress, self.ledger))
        self._ends, self._ended = 0, None
        return self.progress

    def behind(self, read_ahead: int | None) -> tuple[P, Ledger]:
        """The present progress and ledger, or those of a loop which lags behind.

        Args:
            read_ahead: how many times the loop has asked, for a batch or for the end of the pass,
                beyond what it has used: 0 to ``MOST_READ_AHEAD``. Such a loop is in its pass until
                it begins another, whether it has seen the end or not. None: nothing was asked
                beyond, and after its end the pass is over.
        """
        if read_ahead is None:
            return self.progress, self.ledger
        trail = self._trail or ((self.progress, self.ledger),)
        return trail[max(0, len(trail) - 1 - max(0, read_ahead - self._ends))]

    def mix(self, phases: Any) -> None:
        """Take these phases of a mixture, which change nothing before the next request."""

        def mixed(progress: Any) -> Any:
            return progress._replace(mixture=phases)

        self.progress, self.origin = mixed(self.progress), mixed(self.origin)
        self._trail = tuple((mixed(progress), ledger) for progress, ledger in self._trail)

    def as_mixed(self, mark: Mark) -> Any:
        """The progress of a mark, with the changes of a mixture that were set since."""
        if mark.revoked != self.revoked or getattr(self.progress, "mixture", None) is None:
            return mark.progress
        present: Any = self.progress
        return mark.progress._replace(mixture=present.mixture)

    def begin_again(self) -> None:
        """Let the pass that has begun, and has delivered nothing, begin anew."""
        self._pass = None

    def is_moved_by(self, this_pass: object) -> bool:
        """Whether this is the pass that moves the cursor."""
        return this_pass is self._pass

    def deliver(self, this_pass: object, delivers: Any, failures: tuple[Failure, ...] = ()) -> None:
        """Count what a batch delivers, unless its pass no longer moves the cursor."""
        if this_pass is self._pass:
            self._draw()
            self.progress = self.progress.after(delivers)
            self.ledger = self.ledger.after(failures)
            self._trail = (*self._trail[-MOST_READ_AHEAD:], (self.progress, self.ledger))
            self.waiting = False

    def close(self, this_pass: object, delivers: Any) -> None:
        """Count what the end of a pass delivers, beside its batches; None if nothing."""
        if this_pass is self._pass and delivers is not None:
            self.progress = self.progress.closed(delivers)

    def finish(self, this_pass: object, failures: tuple[Failure, ...] = ()) -> None:
        """A pass has ended, or its loop has asked again: the next epoch is waiting."""
        if this_pass is self._pass:
            self._draw()  # no batch has
            self.ledger = self.ledger.after(failures)
            trail = self._trail
            self._stand_at(self.progress.following(self.progress.epoch + 1, ended=True))
            self._trail, self._ends, self._ended = trail, 1, this_pass
        elif this_pass is self._ended:
            self._ends += 1

    def _draw(self) -> None:
        if self._draws_are_due:
            self.draws.make()
            self._draws_are_due = False

    def jump(self, progress: P, *, loaded: bool = False) -> None:
        """Resume here at the next pass; passes under way are over."""
        self._stand_at(progress)
        self.revoked += 1
        self.set_since, self.loaded = True, loaded

    def _stand_at(self, progress: P) -> None:
        self.again = False
        self.progress, self.origin, self.waiting, self._pass = progress, progress, True, None
        self._trail, self._ends, self._ended = (), 0, None

    def move(self, seed: int, progress: P) -> None:
        """Stand at the same position of another world; a pass that was left is over."""
        waiting, again, self.seed = self.waiting, self.again, seed
        self._stand_at(progress)
        self.waiting, self.again = waiting, again

    def set_epoch(self, epoch: int) -> None:
        """Start this epoch at the next pass; a position in it that waits for that pass stays."""
        self.set_since = True
        if epoch != self.progress.epoch:
            self._stand_at(self.progress.start_of(epoch, chosen=True))
        elif not self.waiting:
            self.again = True

    def __getstate__(self) -> dict[str, Any]:
        # A copy has no pass under way: its next one resumes where this one is.
        state = {field.name: getattr(self, field.name) for field in fields(self)}
        no_pass = {"_trail": (), "_ends": 0, "_ended": None, "_pass": None}
        return {**state, **no_pass, "waiting": True, "again": False, "held": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


AnyCursor: TypeAlias = Cursor[Any]
