"""Kinds: what each argument of a loader may be, checked before anything uses it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch

from dataporter.checks import flag, given, is_one_of, positive_number, seed_checked, whole_number
from dataporter.errors import ConfigurationError
from dataporter.fetch.on_error import on_error_checked
from dataporter.loader.failures import file_checked, limit_checked
from dataporter.state.resume import on_mismatch_checked

__all__ = ["kinds_checked", "refuse_without_workers"]


def kinds_checked(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, each of the kind that a loader takes.

    Args:
        arguments: by name, or the loader's attributes of these names; others pass unchecked.

    Raises:
        ConfigurationError: (a ``ValueError``) an argument is of another kind.
    """
    return {
        name: _CHECKS[name](name, value) if name in _CHECKS else value
        for name, value in arguments.items()
    }


def refuse_without_workers(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that need workers, where there are none."""
    for name in ("prefetch_factor", "persistent_workers", "multiprocessing_context"):
        value = arguments[name]
        if arguments["num_workers"] == 0 and value is not None and value is not False:
            raise ConfigurationError(
                f"{given(name, value)} without workers: pass num_workers=1 or more, or leave "
                f"{name}= out"
            )


def _batch_size(name: str, value: Any) -> int:
    # torch takes nothing but int here.
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise ConfigurationError(
        f"{given(name, value)}: expected a whole number of 1 or more, or None to get single samples"
    )


def _worker_kind(name: str, value: Any) -> Any:
    if is_one_of(value, "process", "thread"):
        return value
    raise ConfigurationError(f"{given(name, value)}: expected 'process' or 'thread'")


def _shards(name: str, value: Any) -> int:
    if isinstance(value, bool | np.bool_):
        if value:
            raise ConfigurationError(
                f"{given(name, value)}: expected a number of shards, False not to split the "
                "stream, or None"
            )
        return False
    return whole_number(name, value)


def _optional(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    return lambda name, value: None if value is None else check(name, value)


def _flag_or_none(name: str, value: Any) -> bool:
    # torch takes None for False here.
    return False if value is None else flag(name, value)


def _strict_flag(name: str, value: Any) -> bool:
    # torch takes nothing but bool here.
    if isinstance(value, bool):
        return value
    raise ConfigurationError(f"{given(name, value)}: expected True or False")


def _seconds(name: str, value: Any) -> Any:
    if isinstance(value, Real) and not isinstance(value, bool):
        seconds = float(value)
        if seconds >= 0 and not math.isinf(seconds):
            return value
    raise ConfigurationError(
        f"{given(name, value)}: expected a number of seconds, 0 (no limit) or more"
    )


def _function(name: str, value: Any) -> Any:
    if callable(value):
        return value
    raise ConfigurationError(f"{given(name, value)}: expected a function, or None")


def _generator(name: str, value: Any) -> Any:
    if isinstance(value, torch.Generator):
        return value
    raise ConfigurationError(
        f"{given(name, value)}: expected a torch.Generator, or None; pass a number as seed="
    )


def _text(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return value
    raise ConfigurationError(f"{given(name, value)}: expected a string, such as 'cuda', or ''")


def _fingerprint(name: str, value: Any) -> str:
    if isinstance(value, str) and value:
        return value
    raise ConfigurationError(
        f"{given(name, value)}: expected a text that is another one for other data, such as "
        "'wiki-2026-11', or None"
    )


def _indices(name: str, value: Any) -> Any:
    yields = "lists of indices" if name == "batch_sampler" else "indices"
    if isinstance(value, type):
        raise ConfigurationError(
            f"{given(name, value)} is a class: pass an object of it, such as "
            f"{name}={value.__name__}(...)"
        )
    is_iterable = isinstance(value, Iterable) or hasattr(type(value), "__getitem__")
    if is_iterable and not isinstance(value, str | bytes | Mapping):
        return value
    raise ConfigurationError(f"{given(name, value)}: expected an iterable of {yields}, or None")


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "batch_size": _optional(_batch_size),
    "shuffle": _optional(flag),
    "sampler": _optional(_indices),
    "batch_sampler": _optional(_indices),
    "num_workers": whole_number,
    "collate_fn": _optional(_function),
    "pin_memory": _flag_or_none,
    "drop_last": _strict_flag,
    "timeout": _seconds,
    "worker_init_fn": _optional(_function),
    "generator": _optional(_generator),
    "prefetch_factor": _optional(positive_number),
    "persistent_workers": _flag_or_none,
    "pin_memory_device": _text,
    "in_order": flag,
    "on_error": on_error_checked,
    "max_failures": _optional(limit_checked),
    "failures": _optional(file_checked),
    "worker_kind": _worker_kind,
    "worker_restarts": whole_number,
    "num_shards": _optional(_shards),
    "seed": lambda _, value: seed_checked(value),
    "snapshot_every": positive_number,
    "steps_per_epoch": _optional(positive_number),
    "stop_together": flag,
    "prefetch_next_epoch": flag,
    "fingerprint": _optional(_fingerprint),
    "on_mismatch": on_mismatch_checked,
}
