"""Lightning as `pytorch_lightning`: the same callback for its other package."""

from __future__ import annotations

from pytorch_lightning import Callback

from dataporter.integrations.lightning_hooks import LoaderHooks

__all__ = ["ResumableCallback", "callbacks"]


class ResumableCallback(LoaderHooks, Callback):  # type: ignore[misc]  # mypy does not follow it
    """Makes ``fit(ckpt_path=...)`` resume exactly, whenever the checkpoint was taken.

    Where DataPorter is installed as a package, every ``Trainer`` has one already: it is one of the
    entry points (``pytorch_lightning.callbacks_factory``). A second one changes nothing.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[ResumableCallback()], accelerator="cpu", logger=False)
    """


def callbacks() -> list[Callback]:
    """The entry point: the callbacks that each ``Trainer`` gets."""
    return [ResumableCallback()]
