"""What a state keeps of a custom sampler, beside the position: as values, and as JSON text."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from dataporter.errors import InvalidStateError

__all__ = ["Place", "Resume", "SamplerRecord", "Snapshot", "Way"]

Epochs = tuple[int | None, ...]

Way = Literal["snapshot", "start", "walk"]


class Snapshot(NamedTuple):
    """A sampler's own state within a pass.

    Attributes:
        step, digest: of the batches that this rank had drawn of the pass before.
        position: as in a progress, over all ranks.
        text: see ``snapshot.py``.
    """

    step: int
    position: int
    digest: int
    text: str


class Place(NamedTuple):
    """Where a pass stood when its last batch was delivered.

    Attributes:
        epoch: the loader's.
        epochs: of the sampler's parts in that pass.
        step, position, digest: as in a progress.
        start: the sampler's own state before the pass; None where it keeps none.
        snapshot: the last that was taken before.
    """

    epoch: int
    epochs: Epochs | None
    step: int
    position: int
    digest: int
    start: str | None = None
    snapshot: Snapshot | None = None


class Resume(NamedTuple):
    """How the pass that a loaded state is of is begun on the user's own sampler.

    Attributes:
        ways: to bring the sampler to the place, tried one after the other: its snapshot, its state
            before the pass and a walk, or the walk alone.
        lenient: warn of other indices, and do not raise.
        unchecked: the digest is another rank's, or unknown.
        replays: the place is in an earlier pass, after which this one begins: ``"place"``, or
            ``"end"`` where that pass ran to its end.
        memory: the sampler keeps its place on itself, so that another epoch set now needs it, too.
    """

    ways: tuple[Way, ...]
    lenient: bool = False
    unchecked: bool = False
    replays: Literal["place", "end"] | None = None
    memory: bool = False


@dataclass(frozen=True, slots=True)
class SamplerRecord:
    """What is known of a custom sampler in a pass, beside the position.

    Attributes:
        epochs: of the sampler's parts; None where no pass has begun since an epoch was set.
        driven: whether anybody has set an epoch, ever.
        passes: how many passes began before this one, over the resumes as well.
        start, snapshot: the sampler's own states, see :class:`Place`.
        earlier: the last place in an earlier pass.
        resume: not part of the state.
    """

    epochs: Epochs | None = None
    driven: bool = False
    passes: int = 0
    start: str | None = None
    snapshot: Snapshot | None = None
    earlier: Place | None = None
    resume: Resume | None = None

    def following(self, place: Place, *, chosen: bool, ended: bool) -> SamplerRecord:
        """The record of a pass that starts after one that was left or ended at ``place``.

        Args:
            chosen: its epoch was set, and did not just follow.
            ended: the pass before it ran to its end.
        """
        epochs, driven = (None, True) if chosen else (self.epochs, self.driven)
        # Until a pass has begun, the sampler is not yet where the loaded state says.
        resume = None if ended else self.resume
        if place.step == 0:
            return replace(self, epochs=epochs, driven=driven, resume=resume)
        if resume is not None:
            resume = resume._replace(replays="place") if resume.memory else None
        return SamplerRecord(epochs, driven, self.passes + 1, None, None, place, resume)

    def text(self) -> str:
        """As JSON, for the state."""
        return json.dumps(
            {
                "epochs": self.epochs,
                "driven": self.driven,
                "passes": self.passes,
                "start": self.start,
                "snapshot": self.snapshot,
                "earlier": self.earlier,
            },
            separators=(",", ":"),
        )

    @classmethod
    def from_text(cls, text: str) -> SamplerRecord:
        """The record that :meth:`text` wrote.

        Raises:
            InvalidStateError: the text is damaged.
        """
        try:
            return _read(json.loads(text))
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            shown = text if len(text) <= 80 else f"{text[:77]}..."
            raise InvalidStateError(
                f"the state's field 'sampler' is damaged ({error}): {shown!r}"
            ) from error


def _read(values: dict[str, Any]) -> SamplerRecord:
    earlier = values["earlier"]
    if earlier is not None:
        epoch, epochs, step, position, digest, start, snapshot = earlier
        earlier = Place(
            _number(epoch),
            _epochs(epochs),
            _number(step),
            _number(position),
            _number(digest),
            _text(start),
            _snapshot(snapshot),
        )
    return SamplerRecord(
        _epochs(values["epochs"]),
        bool(values["driven"]),
        _number(values["passes"]),
        _text(values["start"]),
        _snapshot(values["snapshot"]),
        earlier,
    )


def _number(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"expected a whole number, found {value!r}")
    return value


def _text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"expected a text, found {value!r}")
    return value


def _epochs(values: Any) -> Epochs | None:
    if values is None:
        return None
    if not all(value is None or type(value) is int for value in values):
        raise ValueError(f"expected epochs, found {values!r}")
    return tuple(values)


def _snapshot(values: Any) -> Snapshot | None:
    if values is None:
        return None
    step, position, digest, text = values
    if not isinstance(text, str):
        raise ValueError(f"expected a text, found {text!r}")
    return Snapshot(_number(step), _number(position), _number(digest), text)
