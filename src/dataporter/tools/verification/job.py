"""A job: what a new process is to do with a fresh loader, and the recording that it leaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dataporter.tools.verification.digest import Leaf
from dataporter.tools.verification.factory import Factory
from dataporter.tools.verification.setting import Setting

__all__ = ["Event", "Job", "Recording"]


@dataclass(frozen=True, slots=True)
class Job:
    """Run a loader in a process of its own, and record what it gives.

    Attributes:
        factory, setting: what loader.
        events: how many batches and ends of passes to record; None: as ``steps`` says.
        steps: how many batches to record; None: an epoch and a bit of the next.
        state: the file of the state to go on from; None: from the start.
        replay: how many events to throw away first, of a loader without a state.
        save: after which events to save the state; ``states`` is the directory for that.
        is_reference: save the state before the first batch, of a loader of this package, so that
            runs in other settings can be started with the same seed; and list the libraries.
        kill_after: SIGKILL at some moment after so many events, with the state saved at each.
        kill_worker_after: SIGKILL to a worker after so many events.
        keep: bytes of batches to keep, so that a difference can be shown.
        seconds: no further event is begun after so long; 0: no limit.
        store: a file through which the ranks of a process group find each other.
    """

    factory: Factory
    setting: Setting
    events: int | None = None
    steps: int | None = None
    state: str | None = None
    replay: int = 0
    save: tuple[int, ...] = ()
    states: str | None = None
    is_reference: bool = False
    kill_after: int | None = None
    kill_worker_after: int | None = None
    keep: int = 16 << 20
    seconds: float = 0.0
    store: str | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """A batch that was delivered, or the end of a pass (which has no leaves).

    Attributes:
        epoch, step: of the batch; at the end of a pass, of what would have come.
        leaves: of the batch.
        indices: which samples, where the loader knows.
        repeats: which of them are there for a second time, to make the ranks equal.
        is_end: whether this is the end of a pass.
    """

    epoch: int
    step: int
    leaves: tuple[Leaf, ...] = ()
    indices: tuple[Any, ...] | None = None
    repeats: tuple[bool, ...] = ()
    is_end: bool = False


@dataclass(slots=True)
class Recording:
    """What came of a job.

    Attributes:
        events: what the loader gave.
        error: why it ended early, in one line.
        stopped: whether it was for want of time that it ended early.
        libraries: the modules of others that it has imported, where its workers are forks.
        varied: False where the loader could not be had with this setting, as ``error`` says.
        facts: about the loader: class, strategy, length, workers.
        state_seconds: what each ``state_dict()`` took.
        state_bytes: of the largest state as ``torch.save`` writes it.
        resume_seconds: from before ``load_state_dict`` to the first batch.
        warnings: what the loader warned of.
    """

    events: list[Event] = field(default_factory=list)
    error: str | None = None
    stopped: bool = False
    libraries: tuple[str, ...] = ()
    varied: bool = True
    facts: dict[str, Any] = field(default_factory=dict)
    state_seconds: list[float] = field(default_factory=list)
    state_bytes: int = 0
    resume_seconds: float | None = None
    warnings: list[str] = field(default_factory=list)
