"""Hugging Face datasets: samples of tensors, read from Arrow memory a batch at a time."""

from dataporter.hf import rows, stream  # noqa: F401  # they register their classes
from dataporter.hf.contents import contents_of
from dataporter.hf.pipeline import Node, alone, node_of, unsplittable, without_node
from dataporter.hf.snapshots import draws_in_threads, reads_ahead, snapshots_are_exact
from dataporter.hf.wrapper import UnifiedHFDatasetWrapper

__all__ = [
    "Node",
    "UnifiedHFDatasetWrapper",
    "alone",
    "contents_of",
    "draws_in_threads",
    "node_of",
    "reads_ahead",
    "snapshots_are_exact",
    "unsplittable",
    "without_node",
]
