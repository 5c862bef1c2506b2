"""A training with the Transformers Trainer, from its own checkpoints."""

from __future__ import annotations

import argparse
import os
from typing import Any

import torch
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from benchmarks.frameworks.journal import Journal
from benchmarks.frameworks.loop import end_of_rank, parser_of_program
from benchmarks.frameworks.subject import BATCH_SIZE, EPOCHS
from benchmarks.frameworks.text import Crops, CropStream, build_language_model
from dataporter.integrations.transformers import ResumableTrainer

__all__ = ["train"]


class Journaling(Trainer):
    """Records each batch and its loss."""

    journal: Journal
    done: int | None = None

    def training_step(self, model: Any, inputs: dict[str, Any], *arguments: Any) -> Any:
        shown = dict(inputs)
        inputs.pop("id")
        if self.done is None:
            # The Trainer counts updates, which may be fewer than the batches.
            accumulated, batches = self.args.gradient_accumulation_steps, self.steps_in_epoch
            updates = -(-batches // accumulated)
            epochs, updates = divmod(self.state.global_step, updates)
            self.done = epochs * batches + updates * accumulated
        loss = super().training_step(model, inputs, *arguments)
        # The epoch is right only after the step, apart from rounding.
        epoch = int((self.state.epoch or 0) + 1e-6)
        self.journal.write(self.done, epoch, shown, loss.detach())
        self.done += 1
        return loss

    def set_initial_training_values(self, args: Any, dataloader: Any) -> Any:
        values = super().set_initial_training_values(args, dataloader)
        self.steps_in_epoch = values[5]
        return values


class JournalingResumable(ResumableTrainer, Journaling):
    """The same with our loader."""


class JournalingStateful(Journaling):
    """The same with torchdata's loader, which the Trainer replaces by a plain one."""

    def get_train_dataloader(self) -> Any:
        from torchdata.stateful_dataloader import StatefulDataLoader

        return self.accelerator.prepare(
            StatefulDataLoader(
                self.train_dataset,
                self._train_batch_size,
                sampler=self._get_train_sampler(),
                collate_fn=self.data_collator,
                num_workers=self.args.dataloader_num_workers,
            )
        )


def train(options: argparse.Namespace) -> None:
    """Train to the end, from the last checkpoint if there is one."""
    torch.set_num_threads(1)
    folder = str(options.home / "checkpoints")
    args = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.accumulate,
        num_train_epochs=EPOCHS,
        max_steps=options.max_steps,
        save_strategy="steps",
        save_steps=options.every,
        eval_strategy="steps" if options.evaluate else "no",
        eval_steps=options.every - 1,
        train_sampling_strategy=options.sampling,
        logging_steps=1,
        dataloader_num_workers=options.workers,
        remove_unused_columns=False,
        seed=1,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
    )
    kinds = {
        "dataporter": JournalingResumable,
        "torch": Journaling,
        "torchdata": JournalingStateful,
    }
    trainer = kinds[options.loader](
        build_language_model(),
        args,
        train_dataset=CropStream() if options.stream else Crops(),
        eval_dataset=Crops() if options.evaluate else None,
        compute_metrics=None,
    )
    trainer.journal = Journal(
        options.home, options.attempt, args.process_index, kill_at=options.kill_at
    )
    saved = get_last_checkpoint(folder) if os.path.isdir(folder) else None
    trainer.train(resume_from_checkpoint=saved)
    trainer.save_state()
    end_of_rank()


if __name__ == "__main__":
    parser = parser_of_program(__doc__ or "")
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    parser.add_argument("--evaluate", action="store_true")
    parser.add_argument("--max-steps", type=int, default=-1)
    parser.add_argument("--sampling", default="random")
    parser.add_argument("--stream", action="store_true")
    train(parser.parse_args())
