"""Hooks: a loader asks the integrations whether a framework is calling."""

from __future__ import annotations

from types import FrameType
from typing import Any, Protocol

__all__ = ["Hooks", "install", "installed"]


class Hooks(Protocol):
    """Recognises frameworks by the frames that call a loader.

    Some frameworks use a loader without calling anything that is made for them: they copy its
    attributes, or put another loader around it. ``integrations`` installs hooks that see this.
    """

    def iterating(self, loader: Any, caller: FrameType) -> None:
        """``iter(loader)`` was called; raises if the caller must not do so."""

    def reading_arguments(self, loader: Any, caller: FrameType) -> None:
        """An attribute was read that only a copy of the loader needs; raises as above."""

    def is_prepared(self, loader: Any, caller: FrameType) -> bool:
        """Whether the ``Accelerator`` that asks may take the loader as it is."""

    def counts_passes(self, caller: FrameType) -> bool:
        """Whether ``set_epoch`` received a number of passes, not an epoch."""

    def puts_sampler(self, caller: FrameType) -> str | None:
        """What to say where a framework has put its own sampler into the arguments."""


class _NoHooks:
    def iterating(self, loader: Any, caller: FrameType) -> None:
        """No framework is known."""

    def reading_arguments(self, loader: Any, caller: FrameType) -> None:
        """No framework is known."""

    def is_prepared(self, loader: Any, caller: FrameType) -> bool:
        return False

    def counts_passes(self, caller: FrameType) -> bool:
        return False

    def puts_sampler(self, caller: FrameType) -> str | None:
        return None


_installed: Hooks = _NoHooks()


def install(hooks: Hooks) -> None:
    """Let all loaders of this process ask these hooks."""
    global _installed
    _installed = hooks


def installed() -> Hooks:
    """The hooks that are installed."""
    return _installed
