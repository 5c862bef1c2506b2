"""Rebuilding: a loader with other arguments, for all that vary one (tools, integrations)."""

from __future__ import annotations

from typing import Any

from dataporter.errors import ConfigurationError
from dataporter.loader.arguments import SETTABLE
from dataporter.loader.loader import ResumableDataLoader

__all__ = ["rebuild", "rebuilt"]


def rebuilt(loader: ResumableDataLoader[Any], **changes: Any) -> ResumableDataLoader[Any]:
    """A new loader of the same class, at the start of epoch 0.

    It has the arguments of ``loader``, with the attributes that users may set between two passes
    as they are now, and its process group. Where that has several ranks, all of them call this.

    Args:
        **changes: arguments that replace the loader's. A ``rank`` and ``world_size`` replace the
            process group; with ``num_workers=0`` the arguments that only workers have are left out.

    Raises:
        ConfigurationError: (a ``ValueError``) there is no such argument.
        DataPorterError: building the new loader failed.
    """
    setup = loader.setup
    arguments = setup.arguments.by_name()
    unknown = sorted(set(changes) - set(arguments))
    if unknown:
        raise ConfigurationError(
            f"{', '.join(unknown)}: a loader has no such argument; expected some of "
            f"{', '.join(arguments)}"
        )
    arguments |= {name: getattr(loader, name) for name in SETTABLE if name in arguments}
    arguments |= changes
    arguments |= _of_workers(arguments, changes)
    given_world = arguments["rank"] is not None
    if given_world:  # such ranks cannot ask one another
        arguments["stop_together"] = False
    new = object.__new__(type(loader))
    # A subclass keeps its attributes. torch's class lets its own be set only before it is
    # initialised.
    new.__dict__.update(loader.__dict__, _DataLoader__initialized=False)
    ResumableDataLoader.__init__(
        new, **arguments, process_group=None if given_world else setup.ranks.group
    )
    return new


def rebuild(loader: ResumableDataLoader[Any], **changes: Any) -> None:
    """Turn a loader into the one with other arguments, at the same position.

    Raises:
        DataPorterError: as :func:`rebuilt`, or the new loader refuses the position; ``loader`` is
            unchanged then.
    """
    new = rebuilt(loader, **changes)
    cursor = loader._cursor
    if cursor.moved:
        new.load_state_dict(loader.setup.format.build(loader.seed, cursor.progress, cursor.ledger))
        new._cursor.waiting = cursor.waiting  # a pass that was left is over
    new._cursor.ledger = cursor.ledger
    loader.__dict__ = new.__dict__


def _of_workers(arguments: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The arguments that torch's class refuses without workers, or wants with them."""
    if arguments["num_workers"]:
        return {"prefetch_factor": arguments["prefetch_factor"] or 2}
    without = {
        "prefetch_factor": None,
        "persistent_workers": False,
        "timeout": 0,
        "multiprocessing_context": None,
    }
    return {name: value for name, value in without.items() if name not in changes}
