"""The reference: the uninterrupted run that all others are compared with."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from dataporter.tools.verification.factory import Factory, Setting
from dataporter.tools.verification.processes import Outcome, Task, VerificationError
from dataporter.tools.verification.recording import Event, Job, Recording, record, state_file

__all__ = [
    "Interruption",
    "Reference",
    "end_of",
    "interruptions_in",
    "notes_on",
    "recorded",
    "reference_at_end",
    "settings_of",
]

# Batches before and after the end of an epoch that is too long to be run.
_BEFORE_END = 3
_AFTER_END = 3


@dataclass(frozen=True, slots=True)
class Interruption:
    """Where a run is interrupted.

    Attributes:
        name: as the report shows it.
        after: number of batches and ends of passes before it.
    """

    name: str
    after: int


@dataclass(frozen=True, slots=True)
class Reference:
    """An uninterrupted run, and all that a trial needs to be made beside it.

    Attributes:
        factory: makes the loader.
        facts: about the loader.
        events: the batches and ends of passes that the run delivered.
        settings: of the trials; the run itself had the workers of the first one.
        interruptions: where trials are interrupted.
        directory: below which runs save their states.
        seconds: time limit of a process: one that takes longer hangs.
        begun_at: the step to which the run jumped first.
    """

    factory: Factory
    facts: Mapping[str, Any]
    events: Sequence[Event]
    settings: tuple[Setting, ...]
    interruptions: tuple[Interruption, ...]
    directory: Path
    seconds: float
    begun_at: int = 0

    @property
    def setting(self) -> Setting:
        """The setting with which all others are compared."""
        return self.settings[0]

    @property
    def is_shared(self) -> bool:
        """Whether runs in all settings start from this one's first state and must equal it."""
        is_sharded = not self.facts["stream"] or self.facts.get("cut") == "shards"
        return bool(self.facts["ours"]) and is_sharded

    @property
    def may_change_workers(self) -> bool:
        """Whether a loader that fails to resume with another number of workers is at fault."""
        return self.is_shared or not self.facts["ours"]

    @property
    def strategy(self) -> str:
        """The loader's strategy, or its class if it has none, for a sentence."""
        strategy = self.facts.get("strategy")
        return f"a {self.facts['loader']}" if strategy is None else f"strategy={strategy!r}"

    @property
    def middle(self) -> Interruption | None:
        """The interruption in mid-epoch; None: the epoch is too short for one."""
        return next((one for one in self.interruptions if one.name == "mid-epoch"), None)

    @property
    def has_ended(self) -> bool:
        """Whether the run reached the end of the epoch."""
        return any(event.is_end for event in self.events)

    def states(self, name: str) -> str:
        """The directory of the states of a run."""
        return str(self.directory / name.replace(" ", "-"))

    def first_state(self, setting: Setting) -> str | None:
        """The state with the reference's seed from which a run starts; None: it starts without."""
        if not self.facts["ours"] or not (self.is_shared or setting == self.setting):
            return None
        return str(state_file(self.states("reference"), 0))

    def task(self, job: Job, host: str, *, expects_kill: bool = False) -> Task:
        """The task to record a job."""
        return Task(partial(record, job), host, self.seconds, expects_kill)


def recorded(outcome: Outcome | None) -> Recording:
    """The recording of an uninterrupted run.

    Raises:
        VerificationError: the loader cannot be made, fails, or delivers no batch.
    """
    if outcome is None:
        raise VerificationError("there was no time to run the loader: raise --max-seconds")
    found = outcome.found
    if not isinstance(found, Recording) or not found.facts:
        raise VerificationError(outcome.error)
    if found.error is not None:
        raise VerificationError(f"the loader failed without any interruption: {found.error}")
    if all(event.is_end for event in found.events):
        raise VerificationError("the loader gave no batch: its dataset is empty")
    return found


def interruptions_in(events: Sequence[Event], rng: random.Random) -> list[Interruption]:
    """Where to interrupt a run: where loaders go wrong, and at a random step."""
    end = next((index for index, event in enumerate(events) if event.is_end), None)
    last = len(events) if end is None else end
    found = [Interruption("start", 0)]
    if last >= 2:
        found.append(Interruption("mid-epoch", last // 2))
    if last >= 4:
        steps = [step for step in range(1, last) if step != last // 2]
        found.append(Interruption("random step", rng.choice(steps)))
    if end is not None:
        found.append(Interruption("last step", end))
        if len(events) > end + 1:
            found.append(Interruption("end of epoch", end + 1))
        if len(events) > end + 2:
            found.append(Interruption("second epoch", end + 2 + (len(events) - end - 3) // 2))
    return [one for one in found if one.after < len(events)]


def end_of(reference: Reference) -> Job | None:
    """The run of the last batches of an epoch whose end the reference did not reach.

    None: it did, or the loader cannot jump there.
    """
    facts = reference.facts
    length = facts.get("length")
    if reference.has_ended or not facts["ours"] or facts["stream"] or not length:
        return None
    return Job(
        reference.factory,
        reference.setting,
        events=_BEFORE_END + 1 + _AFTER_END,
        state=reference.first_state(reference.setting),
        seek=max(0, length - _BEFORE_END),
        is_reference=True,
        states=str(reference.directory / "end" / "reference"),
    )


def reference_at_end(reference: Reference, job: Job, events: Sequence[Event]) -> Reference:
    """The reference of trials at the end of the epoch: a run that jumped close to it."""
    found = interruptions_in(events, random.Random(0))
    at_end = tuple(one for one in found if one.name in ("last step", "end of epoch"))
    return replace(
        reference,
        events=events,
        interruptions=at_end,
        directory=reference.directory / "end",
        begun_at=job.seek or 0,
    )


def settings_of(
    facts: Mapping[str, Any], workers: Sequence[int], engines: Sequence[str] | None
) -> tuple[list[Setting], list[str]]:
    """The settings of workers and engine to try, and notes on those the loader cannot have."""
    notes: list[str] = []
    kinds: Sequence[str] = engines or (str(facts.get("worker_kind", "process")),)
    if "thread" in kinds and (not facts.get("ours") or facts.get("stream")):
        what = "a stream" if facts.get("ours") else f"a {facts['loader']}"
        notes.append(f"threads: {what} works with processes only")
        kinds = ("process",)
    settings: list[Setting] = []
    for count in workers:
        if count == 0:
            settings.append(Setting(num_workers=0))
            continue
        for kind in kinds:
            named = "thread" if kind == "thread" else "process"
            settings.append(Setting(num_workers=count, worker_kind=named))  # type: ignore[arg-type]  # one of the two
    return settings, notes


def notes_on(reference: Reference, steps: int | None, seconds: float) -> list[str]:
    """What the trials do not cover.

    Args:
        steps: number of batches that the user asked for.
        seconds: time limit of the reference.
    """
    notes = []
    facts = reference.facts
    if not reference.has_ended:
        within = "" if steps else f" ({seconds:.0f} s)"
        begun = end_of(reference)
        how = (
            f"that is not covered: raise --{'steps' if steps else 'max-seconds'}"
            if begun is None
            else f"runs that jump to step {begun.seek} (seek) cover it"
        )
        notes.append(
            f"the end of the epoch was not reached in {len(reference.events)} batches{within}, so "
            f"{how}"
        )
    if not reference.may_change_workers:
        notes.append(
            "the stream has no shards, so each worker reads it independently and their number "
            "cannot change; each number of workers is compared with itself"
        )
    if not facts["stateful"]:
        notes.append(
            f"a {facts['loader']} has no state: the new process rereads the batches before the "
            "interruption and discards them"
        )
    return notes
