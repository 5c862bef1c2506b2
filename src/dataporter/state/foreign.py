"""Foreign: what `load_state_dict` received in place of a state, and what to pass."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from dataporter.errors import InvalidStateError
from dataporter.state.found import Found, as_subscripts, states_in

__all__ = ["is_torchdatas", "refuse_foreign"]

# What a dict with these keys is. Lightning's own keys tell its checkpoints from others.
_KINDS: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"pytorch-lightning_version", "loops"}), "a checkpoint of Lightning"),
    (frozenset({"state", "param_groups"}), "the state of an optimizer"),
    (frozenset({"last_epoch", "_step_count"}), "the state of a learning rate scheduler"),
    (frozenset({"scale", "growth_factor"}), "the state of a GradScaler"),
    (frozenset({"num_canonical_nodes", "sample_in_epoch"}), "a state of MosaicML Streaming"),
    (frozenset({"log_history", "global_step"}), "the state of a Transformers Trainer"),
)
_MOST_SHOWN = 4


def is_torchdatas(state: object) -> bool:
    """Whether this is a state of torchdata's ``StatefulDataLoader``."""
    if not isinstance(state, Mapping) or "_iterator_finished" not in state:
        return False
    return "_sampler_iter_yielded" in state or "_snapshot" in state


def refuse_foreign(state: object) -> None:
    """Raise for what is known to be something else than a state of a loader.

    Raises:
        InvalidStateError: the message says what it is, and what to pass.
    """
    if isinstance(state, str | bytes | os.PathLike):
        raise InvalidStateError(
            f"load_state_dict expected the dict that state_dict() returned, got a "
            f"{type(state).__name__}: read the file or the text first, as by torch.load(path) or "
            "json.loads(text), and pass the loader's state in it"
        )
    found = [one for one in states_in(state) if one.kind == "loader" and one.keys]
    if found:
        raise InvalidStateError(_holds(found))
    if is_torchdatas(state):
        raise InvalidStateError(
            "this is a state of torchdata's StatefulDataLoader, which only a ResumableDataLoader "
            "of a map-style dataset can load: pass it to one with the same sampler"
        )
    if (what := _kind(state)) is not None:
        raise InvalidStateError(
            f"this is {what}, not the state of a ResumableDataLoader: save loader.state_dict() in "
            "the checkpoint as well, as under 'loader', and pass "
            "load_state_dict(checkpoint['loader'])"
        )


def _holds(found: list[Found]) -> str:
    calls = [f"load_state_dict(checkpoint{as_subscripts(one.keys)})" for one in found]
    if len(found) == 1:
        which = f"the state of a ResumableDataLoader: pass that state alone, {calls[0]}"
    else:
        more = ", ..." if len(found) > _MOST_SHOWN else ""
        which = (
            f"the states of {len(found)} ResumableDataLoaders: pass the one of this loader, "
            f"{' or '.join(calls[:_MOST_SHOWN])}{more}"
        )
    lightnings = found[0].keys[0] == "dataporter" or "loops" in found[0].keys
    by_itself = "; trainer.fit(ckpt_path=...) does so by itself" if lightnings else ""
    return f"this is a checkpoint that holds {which}{by_itself}"


def _kind(state: Any) -> str | None:
    if isinstance(state, torch.Tensor):
        return "a tensor, such as the state of a random generator"
    if not isinstance(state, Mapping):
        return None
    for keys, what in _KINDS:
        if keys <= state.keys():
            return what
    if state and all(isinstance(value, torch.Tensor) for value in state.values()):
        return f"a model's state dict (with {next(iter(state))!r})"
    return None
