"""Examination: whether a custom sampler can resume from a saved progress, without moving it."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from dataporter.schedule.memory import has_memory, ways_by_state
from dataporter.schedule.progress import Progress
from dataporter.schedule.sampler_record import Place, Resume, SamplerRecord, Way
from dataporter.schedule.walk import Differs, WalkedSampler, reached

__all__ = ["OTHER_INDICES", "Fault", "examined", "nearest"]

OTHER_INDICES = (
    "the sampler yields other indices than when the state was saved: build it as it was (dataset, "
    "seed, shuffle, weights), with nothing drawn or skipped, since the loader skips what was "
    "delivered. A sampler that keeps its place or its random state "
    "on itself needs state_dict() and load_state_dict(); otherwise draw from set_epoch(), from a "
    "torch.Generator in an attribute, or from the global generators, which the loader sets"
)
_MEMORY = (
    "it keeps its place or its random state on itself, so that a new one gives the first pass "
    "only: give it state_dict() and load_state_dict(), or derive its order from set_epoch() alone"
)
_NO_COPY = (
    "it cannot be copied, to see whether it gives the same order in each pass: give it "
    "state_dict() and load_state_dict(), or __deepcopy__"
)
_GATHER = (
    "the state is another rank's part, and the ranks' samplers give different numbers of samples, "
    "or keep a state: save state_dict(gather=True), which all ranks call together"
)


class Fault(NamedTuple):
    """A field of the state in which the sampler differs, and what to do."""

    field: str
    saved: object
    present: object
    advice: str


def examined(
    own: WalkedSampler, progress: Progress, seed: int, *, begun: int, foreign: bool
) -> tuple[Progress, list[Fault]]:
    """How a saved progress is resumed on a sampler, and what speaks against it.

    Args:
        own: the user's sampler, which stays as it is.
        begun: how many passes over it began here.
        foreign: the progress is another rank's, whose sampler gives other indices.
    """
    record = progress.sampler or SamplerRecord()
    at_start = progress.step == 0
    place = record.earlier if at_start else progress.place()
    is_fresh = record.passes == 0 and begun == 0
    if at_start and is_fresh:
        return progress, []
    with own.looked_at() as sampler:
        if sampler is None:
            return _unseen(own, progress, record, place, is_fresh=is_fresh, foreign=foreign)
    ways: tuple[Way, ...] = ()
    if place is not None and not foreign and (place.start or place.snapshot):
        kept = {"snapshot": place.snapshot, "start": place.start}
        found = ways_by_state(own, place.epochs, place.epoch, seed)
        ways = tuple(way for way in found if kept[way] is not None)
    memory = True
    if at_start or not (ways or is_fresh):
        memory = _remembers(own, place, progress, seed)
    if not memory:
        ways = ("walk",)
    elif not ways:
        if at_start or not is_fresh:
            advice = _GATHER if foreign else _MEMORY
            return progress, [_not_resumable(own, record, advice)]
        ways = ("walk",)
    if place is None:
        return progress, []
    resume = Resume(ways, unchecked=foreign, memory=memory)
    with own.looked_at() as sampler:
        assert sampler is not None
        sampler.epochs.write(place.epochs or ())
        try:
            walk = reached(
                sampler, place, seed, ways, by_position=bool(progress.early), unchecked=foreign
            )
        except Differs as differs:
            return progress, [_differing(place, differs.walk.digest, foreign=foreign)]
        if not at_start:
            if foreign:
                record = SamplerRecord(record.epochs, record.driven, record.passes)
                progress = progress._replace(digest=walk.digest)
            return _with(progress, record, resume), []
        if not memory:
            return progress, []
        ended = walk.draw() is None
    replays = resume._replace(replays="end" if ended else "place")
    return _with(progress, record, replays), []


def nearest(own: WalkedSampler, progress: Progress, seed: int) -> Progress:
    """The same batch of the epoch, whatever its indices are; the sampler stays as it is."""
    record = progress.sampler or SamplerRecord()
    if progress.step == 0:
        return progress
    resume = Resume(("walk",), lenient=True)
    record = replace(record, start=None, snapshot=None)
    place = progress.place()
    with own.looked_at() as sampler:
        if sampler is None:
            return _with(progress, record, resume._replace(unchecked=True))._replace(early=())
        sampler.epochs.write(place.epochs or ())
        try:
            walk = reached(sampler, place._replace(start=None, snapshot=None), seed, ("walk",))
        except Differs as differs:
            walk = differs.walk
    there = Progress(progress.epoch, walk.step, walk.position, (), walk.digest)
    return _with(there, record, resume)


def _remembers(own: WalkedSampler, place: Place | None, progress: Progress, seed: int) -> bool:
    if own.is_known:
        return False
    copy = own.copied()
    if copy is None:
        return True
    if place is None:
        return has_memory(copy, None, progress.epoch, seed)
    return has_memory(copy, place.epochs, place.epoch, seed)


def _unseen(
    own: WalkedSampler,
    progress: Progress,
    record: SamplerRecord,
    place: Place | None,
    *,
    is_fresh: bool,
    foreign: bool,
) -> tuple[Progress, list[Fault]]:
    """As :func:`examined`, of a sampler that cannot be copied: the pass itself has to show."""
    ways: tuple[Way, ...] = ()
    if place is not None and not foreign:
        kept = {"snapshot": place.snapshot, "start": place.start}
        ways = tuple(way for way, text in kept.items() if text is not None)  # type: ignore[misc]
    if not ways:
        if not is_fresh:
            return progress, [_not_resumable(own, record, _NO_COPY)]
        ways = ("walk",)
    resume = Resume(ways, unchecked=foreign, memory=True)
    if progress.step == 0:
        resume = resume._replace(replays="end")
    return _with(progress, record, resume), []


def _with(progress: Progress, record: SamplerRecord, resume: Resume) -> Progress:
    return progress._replace(sampler=replace(record, resume=resume))


def _not_resumable(own: WalkedSampler, record: SamplerRecord, advice: str) -> Fault:
    return Fault(
        "sampler",
        f"pass {record.passes + 1} over a {own.name}",
        f"a {own.name} of which that pass is unknown",
        advice,
    )


def _differing(place: Place, digest: int, *, foreign: bool) -> Fault:
    if foreign or digest == place.digest:
        return Fault("position", place.position, "another one", _GATHER)
    return Fault("order_digest", place.digest, digest, OTHER_INDICES)
