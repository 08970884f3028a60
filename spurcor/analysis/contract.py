"""The contract of an analysis, and those of a run: measured as it trains, written at its end."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spurcor.analysis.statistics import GroupStatistics, Request, Samples, collect
from spurcor.config.nodes import Node, plain
from spurcor.config.schema import TrainConfig, analysis_name
from spurcor.data.splits import Splits
from spurcor.errors import UserError
from spurcor.system.files import replacing
from spurcor.training.method import Method
from spurcor.training.metrics import none_if_undefined
from spurcor.training.moments import Moment

log = logging.getLogger(__name__)


class Series:
    """Values that an analysis measured, in the order of the moments; all are CPU tensors."""

    def __init__(self) -> None:
        self.moments: list[Moment] = []
        self.columns: dict[str, list[Tensor]] = {}

    def add(self, moment: Moment, values: Mapping[str, Tensor]) -> None:
        """One moment's values, the same names every time."""
        self.moments.append(moment)
        for name, value in values.items():
            self.columns.setdefault(name, []).append(value.detach().cpu())

    def stacked(self) -> dict[str, Tensor]:
        """Per name, the values of all moments (T, ...)."""
        return {name: torch.stack(values) for name, values in self.columns.items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything, in a few tensors."""
        moments = [(moment.phase, moment.epoch, moment.step) for moment in self.moments]
        return {"moments": moments, "columns": self.stacked()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.moments = [Moment(*moment) for moment in state["moments"]]
        self.columns = {name: list(value) for name, value in state["columns"].items()}


@dataclass(frozen=True)
class FinishedRun:
    """A run at its end, as an analysis finishes on it.

    The method holds the selected weights, in eval mode; `series` is what the analysis measured. It
    may write into `folder`, which is its own: trackers show `folder/plots/*.png`.
    """

    directory: Path
    folder: Path
    config: TrainConfig
    splits: Splits
    method: Method
    series: Series


class Analysis(ABC):
    """What a file in conf/analysis builds. It does not affect training.

    One that looks at a run's end, say at its stored predictions, needs `finish` and perhaps
    `check`; one that looks at the weights during training, `due`, `requests` and `measure` too.
    """

    def check(self, method: Method, splits: Splits) -> None:  # noqa: B027 - most fit everything
        """Refuse what it cannot analyse by a UserError; called before anything is written."""

    @property
    def measures(self) -> bool:
        """Whether it looks at weights, and so at those that a finished run has kept."""
        return False

    def due(self, epoch: int) -> bool:
        """Whether to measure after this many finished epochs of a phase."""
        return False

    def requests(self) -> Iterable[Request]:
        """Statistics that `measure` needs, computed once for all analyses that are due."""
        return ()

    def measure(
        self, method: Method, splits: Splits, found: Mapping[Samples, GroupStatistics]
    ) -> Mapping[str, Tensor]:
        """Values by `<quantity>/<split>`, of a method in eval mode, the same names every time.

        Single numbers become row entries `<analysis>/<quantity>/<split>`; all go to `arrays.npz`.
        `splits` lacks what the phase trains on (`Phase.consumed`), of which what is `found` is NaN.
        """
        raise NotImplementedError(f"{type(self).__name__} measures nothing during training")

    @abstractmethod
    def finish(self, ended: FinishedRun) -> Mapping[str, Any]:
        """What result.json says of the run under `analysis`, plain values; draw plots.

        Trackers show the numbers of its entry `metrics`, if there is one, as metrics of the run.
        """


class Analyses:
    """The analyses of a run by the folder's name of each, `analysis/<name>-<hash of options>`."""

    def __init__(self, analyses: Mapping[str, Analysis], options: Mapping[str, Any]) -> None:
        self._analyses, self._options = dict(analyses), dict(options)
        self.series = {folder: Series() for folder in self._analyses}

    def __bool__(self) -> bool:
        return bool(self._analyses)

    @classmethod
    def build(cls, nodes: Mapping[str, Node]) -> "Analyses":
        """Those that a configuration names."""
        named = {analysis_name(name, node): node for name, node in nodes.items()}
        return cls(
            {folder: node.build() for folder, node in named.items()},
            {folder: plain(node.arguments) for folder, node in named.items()},
        )

    def without(self, folders: Iterable[str]) -> "Analyses":
        """The others, with nothing measured yet."""
        left = {name: one for name, one in self._analyses.items() if name not in set(folders)}
        return Analyses(left, self._options)

    @property
    def folders(self) -> list[str]:
        """Names of their folders."""
        return list(self._analyses)

    @property
    def measure_weights(self) -> bool:
        """Whether any of them looks at weights."""
        return any(analysis.measures for analysis in self._analyses.values())

    def check(self, method: Method, splits: Splits) -> None:
        """See `Analysis.check`."""
        for folder, analysis in self._analyses.items():
            try:
                analysis.check(method, splits)
            except ValueError as error:
                raise UserError(f"analysis.{_name(folder)}: {error}") from error

    def due(self, epoch: int) -> bool:
        """Whether any of them measures then."""
        return any(analysis.due(epoch) for analysis in self._analyses.values())

    def measure(
        self, method: Method, splits: Splits, moment: Moment, *, stored: bool = False
    ) -> dict[str, float | None]:
        """Row entries of those that are due, or of all that look at weights if they are `stored`.

        The caller has put the method into eval mode, and restores what is drawn here.
        """
        chosen = {
            folder: analysis
            for folder, analysis in self._analyses.items()
            if (analysis.measures if stored else analysis.due(moment.epoch))
        }
        found = collect([r for one in chosen.values() for r in one.requests()], method, splits)
        entries: dict[str, float | None] = {}
        for folder, analysis in chosen.items():
            values = analysis.measure(method, splits, found)
            self.series[folder].add(moment, values)
            for key, value in values.items():
                if value.dim() == 0:
                    entries[f"{_name(folder)}/{key}"] = none_if_undefined(float(value))
        return entries

    def finish(
        self, directory: Path, config: TrainConfig, method: Method, splits: Splits
    ) -> dict[str, dict[str, Any]]:
        """Write all files of each but its result.json, of which the content is returned."""
        parts = {}
        for folder, analysis in self._analyses.items():
            place, series = directory / "analysis" / folder, self.series[folder]
            place.mkdir(parents=True, exist_ok=True)
            if series.moments:
                _save(place / "arrays.npz", series)
            ended = FinishedRun(directory, place, config, splits, method, series)
            parts[folder] = {"options": self._options[folder], **analysis.finish(ended)}
            if analysis.measures:
                first = series.moments[0] if series.moments else None
                parts[folder]["first"] = first and {"phase": first.phase, "epoch": first.epoch}
        return parts

    def state_dict(self) -> dict[str, Any]:
        """The measurements, which are in no other file while the run continues."""
        return {folder: series.state_dict() for folder, series in self.series.items()}

    def load_state_dict(self, state: Mapping[str, Any], coming: Sequence[tuple[str, int]]) -> None:
        """Continue from `state_dict`; an analysis added since then starts now, with a warning.

        `coming`: phase and finished epochs of the remaining moments.
        """
        for folder, analysis in self._analyses.items():
            if folder in state:
                self.series[folder].load_state_dict(state[folder])
            elif analysis.measures:
                left = (f"epoch {epoch} of {name}" for name, epoch in coming if analysis.due(epoch))
                log.warning(
                    "analysis: %s was added after the run had started; first measurement: %s",
                    _name(folder),
                    next(left, "none, since all its epochs are over"),
                )


def _name(folder: str) -> str:
    """The analysis that a folder is of."""
    return folder.rpartition("-")[0]


def _save(path: Path, series: Series) -> None:
    """Phase, epoch and step (T,) of each moment, and its values (T, ...)."""
    moments = series.moments
    arrays: dict[str, Any] = {
        "phase": np.array([moment.phase for moment in moments]),
        "epoch": np.array([moment.epoch for moment in moments]),
        "step": np.array([moment.step for moment in moments]),
    }
    arrays |= {name: value.numpy() for name, value in series.stacked().items()}
    with replacing(path) as beside, beside.open("wb") as file:
        np.savez_compressed(file, **arrays)
