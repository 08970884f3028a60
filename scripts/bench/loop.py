"""Training loop against a bare one: python scripts/bench/loop.py [--data FOLDER] [--epochs 10].

The shipped defaults (rows, checkpoints, MLflow) train an epoch, evaluation apart; a bare loop with
the same network, optimiser and batch size trains one on preloaded float tensors cut by
`randperm(n).split(B)`. Epochs alternate; the figure is the median of the ratios of the pairs.
"""

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor
from torch.nn import functional as F

import spurcor.training.trainer
from spurcor.analysis.contract import Analyses
from spurcor.config import resolvers
from spurcor.config.schema import Loss, TrainConfig
from spurcor.data.groups import Split
from spurcor.data.splits import Splits
from spurcor.runs import build
from spurcor.runs.watcher import watch
from spurcor.sweeps import read as sweeps
from spurcor.system import places
from spurcor.system.terminal import Terminal
from spurcor.tracking import Record, Trackers
from spurcor.training.metrics import evaluate
from spurcor.training.trainer import Trainer


def read(*overrides: str) -> TrainConfig:
    """The configuration of a command line."""
    resolvers.register()
    with initialize_config_dir(str(places.CONF), version_base="1.3"):
        cfg = compose("train", list(overrides), return_hydra_config=True)
    return sweeps.read(cfg, cfg.hydra.runtime.choices)


class TurnTaking:
    """Two threads that train an epoch each in turn, so that pairs are interleaved."""

    def __init__(self) -> None:
        self.turns = {"ours": threading.Semaphore(0), "bare": threading.Semaphore(0)}
        self.seconds: dict[str, list[float]] = {"ours": [], "bare": []}

    def begin(self, who: str) -> None:
        """Wait for the turn, then start the clock."""
        self.turns[who].acquire()
        self.started = time.perf_counter()

    def pause(self, who: str) -> None:
        """Stop the clock at the end of the epoch's training."""
        self.seconds[who].append(time.perf_counter() - self.started)

    def hand_over(self, who: str) -> None:
        """Let the other go on."""
        self.turns["bare" if who == "ours" else "ours"].release()


class ClockedTrainer(Trainer):
    """Hands the turn over after each epoch; the row, its file and checkpoints count."""

    turns: TurnTaking

    def _end_epoch(self, *arguments: object, **options: object) -> None:
        super()._end_epoch(*arguments, **options)  # type: ignore[arg-type]
        self.turns.pause("ours")
        self.turns.hand_over("ours")
        self.turns.begin("ours")


def evaluate_once() -> None:
    """Evaluation is apart: the first epoch, which warms up, is evaluated, later rows repeat it."""
    entries: dict[str, float | None] = {}

    def remembered(
        predict: Callable[[Tensor], Tensor], splits: Splits, loss: Loss
    ) -> dict[str, float | None]:
        if not entries:
            entries.update(evaluate(predict, splits, loss))
        return entries

    spurcor.training.trainer.evaluate = remembered


def bare_epochs(cfg: TrainConfig, turns: TurnTaking, num_epochs: int) -> Iterator[float]:
    """The plain alternative: nothing but what a step needs."""
    splits, method = build.build(cfg)
    train = splits[Split.TRAIN]
    x, y = splits.transform(train.images.pixels), train.y
    optimizer = cfg.optimizer.build(params=list(method.parameters()))
    method.train()
    for _ in range(num_epochs):
        turns.begin("bare")
        for index in torch.randperm(len(y)).split(cfg.train.batch_size or len(y)):
            loss = F.cross_entropy(method.predict(x[index]), y[index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        turns.pause("bare")
        yield turns.seconds["bare"][-1]
        turns.hand_over("bare")


def measure(name: str, overrides: list[str], num_pairs: int) -> None:
    """Print the ratio of a configuration."""
    evaluate_once()
    turns = TurnTaking()
    num_epochs = num_pairs + 1  # the first pair warms up
    with tempfile.TemporaryDirectory() as outputs, ExitStack() as stack:
        cfg = read(*overrides, f"method.epochs={num_epochs}", f"paths.outputs={outputs}")
        directory = Path(outputs) / "run"
        directory.mkdir()
        splits, method = build.build(cfg)
        trackers = Trackers.open(cfg, stack)
        record = Record.of_run(directory, cfg)
        trackers.start(record)
        observer = stack.enter_context(watch(Terminal(), lambda rows: trackers.rows(record, rows)))
        trainer = ClockedTrainer(
            directory,
            cfg.train,
            build.context_of(cfg, splits, directory),
            observer,
            Analyses.build(cfg.analysis),
        )
        trainer.turns = turns
        bare = threading.Thread(
            target=lambda: list(bare_epochs(cfg, turns, num_epochs)), daemon=True
        )
        bare.start()

        def ours() -> None:
            turns.begin("ours")
            trainer.fit(method)

        thread = threading.Thread(target=ours, daemon=True)
        thread.start()
        turns.turns["ours"].release()
        while bare.is_alive() and thread.is_alive():
            bare.join(1)
        bare.join(0 if thread.is_alive() else 60)
        if bare.is_alive():
            raise RuntimeError("the training failed")
        thread.join(60)
    pairs = list(zip(turns.seconds["ours"][1:], turns.seconds["bare"][1:], strict=False))
    ratios = sorted(ours_ / bare_ for ours_, bare_ in pairs)
    bare_ms = 1000 * statistics.median(bare_ for _, bare_ in pairs)
    print(
        f"{name}: median ratio {statistics.median(ratios):.3f} of {len(ratios)} pairs"
        f" (from {ratios[0]:.3f} to {ratios[-1]:.3f}); a bare epoch takes {bare_ms:.0f} ms",
        flush=True,
    )


def main() -> None:
    """Digits always, dominoes where its data is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="a data root with MNIST and CIFAR-10")
    parser.add_argument("--epochs", type=int, default=10, help="pairs of epochs")
    options = parser.parse_args()
    measure("digits", ["dataset=digits"], options.epochs)
    if options.data:
        # A large pool leaves 2,000 images to train on: an epoch of seconds instead of minutes.
        dominoes = ["dataset=dominoes", "dataset.augment=false", "dataset.pool_size=48000"]
        dominoes += ["backbone=small_cnn", "train.batch_size=64", f"paths.data={options.data}"]
        measure("dominoes without augmentation", dominoes, options.epochs)


if __name__ == "__main__":
    main()
