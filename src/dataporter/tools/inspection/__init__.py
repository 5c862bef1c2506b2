"""Inspection: the loader states in a checkpoint, and what comes next after a resume."""

from dataporter.tools.inspection.checkpoints import inspect_checkpoint
from dataporter.tools.inspection.report import CheckpointReport

__all__ = ["CheckpointReport", "inspect_checkpoint"]
