"""Hooks: where a loader asks the integrations whether a framework is calling."""

from __future__ import annotations

from types import FrameType
from typing import Any, Protocol

__all__ = ["Hooks", "install", "installed"]


class Hooks(Protocol):
    """Recognises frameworks by the frame that calls a loader.

    Some frameworks use a loader without calling anything that is made for them: they copy its
    attributes, or put another loader around it. ``integrations`` installs what recognises them.
    """

    def iterating(self, loader: Any, caller: FrameType) -> None:
        """``iter(loader)`` was called; raises where a framework must not."""

    def reading_arguments(self, loader: Any, caller: FrameType) -> None:
        """An attribute was read that only copies of a loader need; raises as above."""

    def is_prepared(self, loader: Any, caller: FrameType) -> bool:
        """Whether an ``Accelerator`` that asks may take the loader as it is."""

    def counts_passes(self, caller: FrameType) -> bool:
        """Whether ``set_epoch`` was called with a count of passes, and not with an epoch."""


class _NoHooks:
    def iterating(self, loader: Any, caller: FrameType) -> None:
        """No framework is known."""

    def reading_arguments(self, loader: Any, caller: FrameType) -> None:
        """No framework is known."""

    def is_prepared(self, loader: Any, caller: FrameType) -> bool:
        return False

    def counts_passes(self, caller: FrameType) -> bool:
        return False


_installed: Hooks = _NoHooks()


def install(hooks: Hooks) -> None:
    """Let all loaders of this process ask these hooks."""
    global _installed
    _installed = hooks


def installed() -> Hooks:
    """The hooks that are installed."""
    return _installed
