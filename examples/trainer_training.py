"""Train a tiny language model on Python's own source with the Transformers Trainer, and resume it.

    python examples/trainer_training.py [CHECKPOINT_DIRECTORY]

Stop it at any time and start it again: it resumes at the exact next sample, without skipping
through the data, also with a different `--batch-size` and under `torchrun`. It needs no network:
the model is built from a configuration, and its tokens are bytes.
"""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from dataporter.integrations.transformers import ResumableTrainer

LENGTH = 64  # bytes per sample


class Source(Dataset[dict[str, torch.Tensor]]):
    """A module's source code, split into samples."""

    def __init__(self, text: bytes) -> None:
        self.tokens = torch.tensor(list(text[: len(text) // LENGTH * LENGTH])).view(-1, LENGTH)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


def main() -> None:
    """Train to the end, from the last checkpoint if there is one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?", default="trainer-checkpoints")
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    set_seed(1)
    config = GPT2Config(vocab_size=256, n_positions=LENGTH, n_embd=32, n_layer=2, n_head=2)
    arguments = TrainingArguments(
        options.folder,
        num_train_epochs=3,
        per_device_train_batch_size=options.batch_size,
        learning_rate=3e-3,
        logging_steps=1,
        save_steps=5,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        seed=1,
    )
    training: Any = ResumableTrainer(
        GPT2LMHeadModel(config),
        arguments,
        train_dataset=Source(Path(textwrap.__file__).read_bytes()),
    )
    saved = get_last_checkpoint(options.folder) if Path(options.folder).exists() else None
    training.train(resume_from_checkpoint=saved)


if __name__ == "__main__":
    main()
