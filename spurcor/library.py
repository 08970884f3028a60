"""The notebook API: train runs from overrides and open finished runs as objects.

```python
from spurcor import open_run
run = open_run("ra362293c36/seed0")
run.metrics("test").worst, run.features("val", layer="block2"), run.mistakes("test")
```
"""

import functools
from pathlib import Path
from typing import Any, Literal

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from spurcor.config import resolvers
from spurcor.config.schema import TrainConfig
from spurcor.data.groups import GroupedDataset
from spurcor.data.splits import Splits
from spurcor.errors import RunError, UserError
from spurcor.models import weights as checkpoint
from spurcor.runs import build, execute, lookup, refusals
from spurcor.runs.results import read_result
from spurcor.sweeps import manifest
from spurcor.sweeps import read as sweeps
from spurcor.system import places, terminal
from spurcor.system.files import read_lines
from spurcor.system.passwords import hidden
from spurcor.system.places import REPO
from spurcor.system.shapes import Row
from spurcor.system.terminal import Terminal
from spurcor.training.method import Method, untouched
from spurcor.training.metrics import GroupMetrics, apply, group_metrics
from spurcor.training.predictions import read_predictions


class FinishedRun:
    """A finished run: results are read from disk, data and model are built on first use."""

    def __init__(self, directory: Path, config: TrainConfig) -> None:
        self.directory, self.config = directory, config

    def __repr__(self) -> str:
        return f"<{self.name}: {self.directory}>"

    @property
    def name(self) -> str:
        """The data set, method, backbone and seed as one string."""
        names = (self.config.choices[group] for group in ("dataset", "method", "backbone"))
        return f"{' '.join(names)} seed {self.config.seed}"

    @property
    def result(self) -> dict[str, Any]:
        """The contents of result.json."""
        return read_result(self.directory)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, recorded during training."""
        return read_lines(self.directory / "metrics.jsonl", Row)

    @functools.cached_property
    def _built(self) -> tuple[Splits, Method]:
        splits, method = build.build(self.config, self.directory)
        refusals.refuse_leak(self.result["run"]["splits"], splits)
        checkpoint.load_weights(method, self.directory / "model.safetensors")
        return splits, method.eval()

    @property
    def splits(self) -> Splits:
        """The data splits, as in training."""
        return self._built[0]

    @property
    def method(self) -> Method:
        """The model in eval mode, with the weights of the selected epoch or of the last `load`."""
        return self._built[1]

    def load(self, weights: Literal["selected", "last"]) -> Method:
        """Load the weights of the selected or the last epoch into `method` and return it."""
        name = {"selected": "model.safetensors", "last": "last.safetensors"}[weights]
        checkpoint.load_weights(self.method, self.directory / name)
        return self.method

    def logits(self, split: str = "test", dfr: str | None = None) -> Tensor:
        """Return the stored logits (N, K) on a split, at the selected epoch or after a repair.

        `dfr` is the beginning of the repair's name. Raises UserError if there are no predictions on
        the split.
        """
        folder = self.directory if dfr is None else self._repair(dfr)
        if not (folder / "predictions.npz").exists():
            raise UserError(
                f"{folder} has no predictions, as after method=frozen; pass dfr=<repair>"
            )
        found = read_predictions(folder)
        if split not in found:
            raise UserError(
                f"split={split} was not evaluated; choose from {', '.join(sorted(found))}"
            )
        return torch.from_numpy(found[split]["logits"])

    def metrics(self, split: str = "test", dfr: str | None = None) -> GroupMetrics:
        """Return the group metrics of the stored predictions; arguments as in `logits`."""
        data = self.splits[split]
        return group_metrics(self.logits(split, dfr), data.y.cpu(), data.g.cpu(), data.spec)

    def mistakes(self, split: str = "test", dfr: str | None = None) -> Tensor:
        """Return the positions of misclassified samples in a split, most confident first."""
        self.splits[split].spec.require_classes("mistakes")
        logits, y = self.logits(split, dfr), self.splits[split].y.cpu()
        confidence, predicted = logits.softmax(dim=1).max(dim=1)
        wrong = (predicted != y).nonzero().squeeze(1)
        return wrong[confidence[wrong].argsort(descending=True)]

    def features(
        self, split: str = "test", layer: int | str = -1, pooling: str | None = None
    ) -> Tensor:
        """Return a layer's features (N, D) on a split, without augmentation, on the CPU."""
        backbone = self.method.backbone
        name = backbone.layer(layer)
        data: GroupedDataset = self.splits[split]

        def read(x: Tensor) -> Tensor:
            return backbone.features(x, [name], pooling)[name]

        with untouched(self.method):
            return apply(read, data, self.splits.transform).cpu()

    def _repair(self, beginning: str) -> Path:
        found = sorted(path.name for path in (self.directory / "dfr").glob(f"{beginning}*"))
        if len(found) != 1:
            known = sorted(path.name for path in (self.directory / "dfr").glob("*"))
            raise UserError(
                f"dfr={beginning} matches {len(found)} repairs of this run, which has"
                f" {', '.join(known) or 'none'}"
            )
        return self.directory / "dfr" / found[0]


def open_run(reference: str | Path, outputs: Path | str = REPO / "outputs") -> FinishedRun:
    """Open a finished run.

    `reference` is its folder, the first digits of its `identity[/seed<k>]`, or `mlflow:<run id>`.
    """
    directory = lookup.find_done(str(reference), Path(outputs).absolute())
    return FinishedRun(directory, lookup.read_config(directory))


def fit(*overrides: str) -> FinishedRun:
    """Train and repair as `python -m spurcor.train <overrides>` does, or open the finished run.

    With another `dfr=...`, that repair is added to a finished run. Warnings, progress bars and the
    final table are shown as in a terminal. Raises RunError if the run does not finish.
    """
    terminal.log_to_terminal()
    resolvers.register()
    typed = [hidden(override) for override in overrides]
    with initialize_config_dir(str(places.CONF), version_base="1.3"):
        composed = compose("train", typed, return_hydra_config=True)
    checked = sweeps.read(composed, composed.hydra.runtime.choices)
    point = manifest.Point(tuple(typed), checked)
    outcome = execute.execute(checked, Terminal(), lambda: manifest.write_manifest([point]))
    if outcome.status != "done":
        raise RunError(f"{outcome.directory}: {outcome.message or outcome.status}")
    return FinishedRun(outcome.directory, lookup.read_config(outcome.directory))
