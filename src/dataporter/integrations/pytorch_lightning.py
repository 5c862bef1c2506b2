"""Lightning under its other name: the same callback for its other package."""

from __future__ import annotations

from pytorch_lightning import Callback

from dataporter.integrations.lightning_hooks import LoaderHooks

__all__ = ["ResumableCallback", "callbacks"]


class ResumableCallback(LoaderHooks, Callback):  # type: ignore[misc]  # mypy does not follow it
    """Makes ``fit(ckpt_path=...)`` go on exactly, wherever in the training the checkpoint is from.

    Every ``Trainer`` has one by itself where DataPorter is installed as a package: it is one of its
    entry points (``pytorch_lightning.callbacks_factory``). A second one does no harm.

    Example:
        >>> from pytorch_lightning import Trainer
        >>> trainer = Trainer(callbacks=[ResumableCallback()], accelerator="cpu", logger=False)
    """


def callbacks() -> list[Callback]:
    """What the entry point gives to each ``Trainer``."""
    return [ResumableCallback()]
