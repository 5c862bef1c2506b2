"""Cases: where a run is interrupted, and in which settings it goes on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dataporter.tools.verification.job import Recording
from dataporter.tools.verification.setting import Setting

__all__ = ["PLACES", "Interruption", "interruptions_in", "other_batch_size", "settings_of"]


# In the order in which a report shows them.
PLACES = (
    *("left alone", "start", "mid-epoch", "random step"),
    *("last step", "end of epoch", "second epoch"),
)


@dataclass(frozen=True, slots=True)
class Interruption:
    """A place at which the run is interrupted.

    Attributes:
        name: as the report shows it.
        after: how many batches and ends of passes come before it.
    """

    name: str
    after: int


def interruptions_in(reference: Recording, rng: random.Random) -> list[Interruption]:
    """Where to interrupt: at the places where loaders go wrong, and at random."""
    events = reference.events
    total = len(events)
    end = next((place for place, event in enumerate(events) if event.is_end), None)
    last = total if end is None else end
    interruptions = [Interruption("start", 0)]
    if last >= 2:
        interruptions.append(Interruption("mid-epoch", last // 2))
    if last >= 4:
        taken = {last // 2}
        interruptions.append(
            Interruption("random step", rng.choice([n for n in range(1, last) if n not in taken]))
        )
    if end is not None:
        interruptions.append(Interruption("last step", end))
        if total > end + 1:
            interruptions.append(Interruption("end of epoch", end + 1))
        if total > end + 2:
            interruptions.append(Interruption("second epoch", end + 2 + (total - end - 3) // 2))
    return [interruption for interruption in interruptions if interruption.after < total]


def settings_of(
    facts: dict[str, Any], workers: Sequence[int], engines: Sequence[str] | None
) -> tuple[list[Setting], list[str]]:
    """The settings of workers and engine that are gone through, and what could not be varied."""
    notes: list[str] = []
    kinds: Sequence[str] = engines or (str(facts.get("worker_kind", "process")),)
    if "thread" in kinds and (not facts.get("ours") or facts.get("stream")):
        what = "a stream" if facts.get("ours") else f"a {facts['loader']}"
        notes.append(f"threads: {what} is read by processes only")
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


def other_batch_size(facts: dict[str, Any]) -> int | None:
    """A batch size to change to, of a loader whose strategy lets it change."""
    if facts.get("strategy") not in ("advanced", "distributed") or not facts.get("batch_size"):
        return None
    size = int(facts["batch_size"])
    return size // 2 + 1 if size > 2 else size + 1
