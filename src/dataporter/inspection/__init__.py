"""Inspection: which loader states a checkpoint holds, and what comes next after a resume."""

from dataporter.inspection.checkpoints import inspect_checkpoint
from dataporter.inspection.report import CheckpointReport

__all__ = ["CheckpointReport", "inspect_checkpoint"]
