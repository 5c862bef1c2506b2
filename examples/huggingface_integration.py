"""Train on Hugging Face datasets, map-style and streaming: kill, resume, and compare.

python examples/huggingface_integration.py

Trains on fashion_mnist and wikitext if the hub can be reached, and otherwise on local data:
scikit-learn's digits as images, the sources of the standard library as text.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import datasets
import torch
from torch import nn

from dataporter import (
    ResumableDataLoader,
    UnifiedHFDatasetWrapper,
    create_resumable_dataloader,
    save_atomically,
)

EPOCHS = 2
TOKENS = 64


# ---- the data


def images() -> datasets.Dataset:
    """Small images with labels, by index."""
    if hub_is_there():
        return datasets.load_dataset("fashion_mnist", split="train[:2000]")
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(10)})
    pictures = [Image.fromarray((pixels * 15).astype("uint8")) for pixels in digits.images]
    rows = {"image": pictures, "label": digits.target.tolist()}
    return datasets.Dataset.from_dict(rows, features=features)


def texts(directory: Path) -> datasets.IterableDataset:
    """Text as a stream, from the hub or from eight local files."""
    if hub_is_there():
        name = ("Salesforce/wikitext", "wikitext-2-raw-v1")
        return datasets.load_dataset(*name, split="train", streaming=True)
    files = [directory / f"sources-{number}.jsonl" for number in range(8)]
    if not files[-1].exists():
        sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:32]
        for number, file in enumerate(files):
            lines = [
                json.dumps({"text": line})
                for source in sources[number::8]
                for line in source.read_text(errors="replace").splitlines()[:100]
                if line.strip()
            ]
            file.write_text("\n".join(lines))
    return datasets.load_dataset(
        "json", data_files=list(map(str, files)), split="train", streaming=True
    )


def hub_is_there() -> bool:
    """Whether the hub answers; checked once, by the process that starts the others."""
    if "EXAMPLE_HUB" not in os.environ:
        import huggingface_hub

        try:
            huggingface_hub.HfApi().dataset_info("fashion_mnist", timeout=3)
            os.environ["EXAMPLE_HUB"] = "yes"
        except Exception:
            os.environ["EXAMPLE_HUB"] = "no"
    return os.environ["EXAMPLE_HUB"] == "yes"


def with_tokens(row: dict[str, str]) -> dict[str, list[int]]:
    """The text's bytes as token ids, cut or padded to one length."""
    ids = list(row["text"].encode()[:TOKENS])
    return {"input_ids": ids + [0] * (TOKENS - len(ids))}


# ---- the training


def loader_of(kind: str, directory: Path, workers: int) -> ResumableDataLoader:
    """A loader over images by index, or over text as a stream."""
    if kind == "map-style":
        dataset = UnifiedHFDatasetWrapper(
            images(), dtype_conversions={"image": "float32", "label": "int64"}
        )
        return create_resumable_dataloader(
            dataset, batch_size=64, shuffle=True, num_workers=workers, seed=1
        )
    stream = texts(directory).map(with_tokens)
    dataset = UnifiedHFDatasetWrapper(
        stream, columns=["input_ids"], dtype_conversions={"input_ids": "uint8"}
    )
    return create_resumable_dataloader(dataset, batch_size=64, num_workers=workers, seed=1)


def train(kind: str, directory: Path, workers: int, checkpoint: Path, log: Path) -> None:
    """Train to the end, from the checkpoint if it exists, and log one line per step."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.Linear(16, 10))
    loader = loader_of(kind, directory, workers)
    model(inputs_and_targets(loader.peek())[0])  # sizes it
    if checkpoint.exists():
        saved = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        loader.load_state_dict(saved["loader"])
    with log.open("a", buffering=1) as lines:
        for epoch in loader.epochs(EPOCHS):
            for batch in loader:
                inputs, targets = inputs_and_targets(batch)
                loss = nn.functional.cross_entropy(model(inputs), targets)
                model.zero_grad()
                loss.backward()
                with torch.no_grad():
                    for weights in model.parameters():
                        weights -= 0.1 * weights.grad
                batch_bytes = hashlib.sha256(inputs.numpy().tobytes()).hexdigest()[:16]
                print(epoch, loader.step - 1, batch_bytes, loss.item().hex(), file=lines)
                state = {"model": model.state_dict(), "loader": loader.state_dict()}
                save_atomically(state, checkpoint, keep=1)
        print("finished", file=lines)


def inputs_and_targets(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """An image and its label; or text, and the last digit of its first byte."""
    if "image" in batch:
        return batch["image"].flatten(1), batch["label"]
    ids = batch["input_ids"]
    return ids.float() / 255, ids[:, 0].long() % 10


# ---- killed, resumed, compared


def run(kind: str, directory: Path, workers: int, name: str, kill_after: int | None) -> bool:
    """Train in a separate process, killed after so many steps; return whether it was killed."""
    log = directory / f"{name}.log"
    before = len(steps_of(log))
    arguments = [kind, directory, workers, directory / f"{name}.pt", log]
    process = subprocess.Popen([sys.executable, __file__, *map(str, arguments)])
    try:
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            if kill_after is not None and len(steps_of(log)) - before >= kill_after:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        process.wait(10)
    finally:
        process.kill()
    return process.returncode == -signal.SIGKILL


def steps_of(log: Path) -> list[str]:
    """The steps that a training has logged."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [line for line in lines if line != "finished"]


def joined(lines: list[str]) -> list[str]:
    """The steps of both runs; the second run repeats those after the last checkpoint."""
    steps: dict[tuple[int, int], str] = {}
    for line in lines:
        epoch, step, *_ = line.split()
        steps[int(epoch), int(step)] = line
    return [steps[key] for key in sorted(steps)]


def main() -> int:
    """Run both kinds; return 0 if each step of the resumed runs equals the uninterrupted one."""
    differing = 0
    with tempfile.TemporaryDirectory() as folder:
        hub = "the hub's" if hub_is_there() else "local"
        for kind, workers in (("map-style", (2, 1)), ("streaming", (1, 2))):
            directory = Path(folder) / kind
            directory.mkdir()
            texts(directory)
            run(kind, directory, 0, "alone", None)
            alone = steps_of(directory / "alone.log")
            killed = run(kind, directory, workers[0], "killed", len(alone) // 2 - 5)
            run(kind, directory, workers[1], "killed", None)
            resumed = joined(steps_of(directory / "killed.log"))
            same = sum(one == other for one, other in zip(alone, resumed))
            exact = killed and same == len(alone) == len(resumed)
            differing += not exact
            print(
                f"{kind}, {hub} data: killed with {workers[0]} workers, resumed with {workers[1]}: "
                f"{same} of {len(alone)} steps are the uninterrupted run's, bit for bit"
            )
    return 1 if differing else 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        kind, folder, workers, saved_at, logged_at = sys.argv[1:]
        train(kind, Path(folder), int(workers), Path(saved_at), Path(logged_at))
    else:
        sys.exit(main())
