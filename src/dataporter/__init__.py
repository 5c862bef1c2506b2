"""Exactly resumable, drop-in data loading for PyTorch."""

from dataporter.device import DevicePrefetcher
from dataporter.errors import (
    ConfigurationError,
    DataPorterError,
    DatasetChangedError,
    InvalidStateError,
    RankMismatchError,
    SampleError,
    StateMismatchError,
    UnsupportedDatasetError,
    WorkerDiedError,
    WorkerTimeoutError,
)
from dataporter.loader import ResumableDataLoader, create_resumable_dataloader
from dataporter.orders import Order, SequentialOrder, ShuffledOrder, TorchOrder
from dataporter.rng import sample_rng
from dataporter.samplers import ResumableDistributedSampler, ResumableSampler
from dataporter.strategies import (
    AdvancedResumptionStrategy,
    DistributedResumptionStrategy,
    ResumptionStrategy,
    SimpleResumptionStrategy,
)

__version__ = "0.1.0"

__all__ = [
    "AdvancedResumptionStrategy",
    "ConfigurationError",
    "DataPorterError",
    "DatasetChangedError",
    "DevicePrefetcher",
    "DistributedResumptionStrategy",
    "InvalidStateError",
    "Order",
    "RankMismatchError",
    "ResumableDataLoader",
    "ResumableDistributedSampler",
    "ResumableSampler",
    "ResumptionStrategy",
    "SampleError",
    "SequentialOrder",
    "ShuffledOrder",
    "SimpleResumptionStrategy",
    "StateMismatchError",
    "TorchOrder",
    "UnsupportedDatasetError",
    "WorkerDiedError",
    "WorkerTimeoutError",
    "create_resumable_dataloader",
    "sample_rng",
]
