"""Exactly resumable, drop-in data loading for PyTorch."""

from dataporter._version import __version__
from dataporter.checkpoints.atomic import load_latest, save_atomically
from dataporter.checkpoints.preemption import PreemptionGuard
from dataporter.convert import KeyBasedDtypeConverter
from dataporter.datasets.mixture import Mixture
from dataporter.datasets.mixture_arguments import LinearWeights
from dataporter.errors import (
    CheckpointNotFoundError,
    ConfigurationError,
    DataPorterError,
    DatasetChangedError,
    InvalidStateError,
    LossyConversionError,
    MissingLibraryError,
    RankMismatchError,
    SampleError,
    StateMismatchError,
    TooManyFailuresError,
    TooManyOpenFilesError,
    UnreadableCheckpointError,
    UnsupportedDatasetError,
    WorkerDiedError,
    WorkerTimeoutError,
)
from dataporter.fetch.failure import Failure
from dataporter.hf import UnifiedHFDatasetWrapper
from dataporter.integrations import callers as _callers  # noqa: F401  # installs the hooks
from dataporter.loader.create import create_resumable_dataloader
from dataporter.loader.device import DevicePrefetcher
from dataporter.loader.loader import ResumableDataLoader
from dataporter.loader.samplers import ResumableDistributedSampler, ResumableSampler
from dataporter.orders import (
    BlockShuffledOrder,
    Order,
    SequentialOrder,
    ShuffledOrder,
    TorchOrder,
    WeightedOrder,
    balanced,
)
from dataporter.seeding.samples import sample_rng
from dataporter.shared.sequence import SharedSequence
from dataporter.state.remainder import remainder
from dataporter.state.strategies import (
    AdvancedResumptionStrategy,
    DistributedResumptionStrategy,
    ResumptionStrategy,
    SimpleResumptionStrategy,
)
from dataporter.streams import MixtureStream, ShardedStream, ShuffledStream, StreamRepeat
from dataporter.tools.advisor.advisor import suggest_conversions
from dataporter.tools.advisor.suggestion import ConversionPlan
from dataporter.tools.inspection import CheckpointReport, inspect_checkpoint
from dataporter.tools.memory_report import MemoryReport, memory_report
from dataporter.tools.verification import VerificationError, VerifyReport, verify

__all__ = [
    "AdvancedResumptionStrategy",
    "BlockShuffledOrder",
    "CheckpointNotFoundError",
    "CheckpointReport",
    "ConfigurationError",
    "ConversionPlan",
    "DataPorterError",
    "DatasetChangedError",
    "DevicePrefetcher",
    "DistributedResumptionStrategy",
    "Failure",
    "InvalidStateError",
    "KeyBasedDtypeConverter",
    "LinearWeights",
    "LossyConversionError",
    "MemoryReport",
    "MissingLibraryError",
    "Mixture",
    "MixtureStream",
    "Order",
    "PreemptionGuard",
    "RankMismatchError",
    "ResumableDataLoader",
    "ResumableDistributedSampler",
    "ResumableSampler",
    "ResumptionStrategy",
    "SampleError",
    "SequentialOrder",
    "ShardedStream",
    "SharedSequence",
    "ShuffledOrder",
    "ShuffledStream",
    "SimpleResumptionStrategy",
    "StateMismatchError",
    "StreamRepeat",
    "TooManyFailuresError",
    "TooManyOpenFilesError",
    "TorchOrder",
    "UnifiedHFDatasetWrapper",
    "UnreadableCheckpointError",
    "UnsupportedDatasetError",
    "VerificationError",
    "VerifyReport",
    "WeightedOrder",
    "WorkerDiedError",
    "WorkerTimeoutError",
    "__version__",
    "balanced",
    "create_resumable_dataloader",
    "inspect_checkpoint",
    "load_latest",
    "memory_report",
    "remainder",
    "sample_rng",
    "save_atomically",
    "suggest_conversions",
    "verify",
]
