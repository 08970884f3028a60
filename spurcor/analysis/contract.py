"""The interface of an analysis, and the analyses of a run: measured in training, then finished."""

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
    """The values that an analysis measured, in the order of the moments, as CPU tensors."""

    def __init__(self) -> None:
        self.moments: list[Moment] = []
        self.columns: dict[str, list[Tensor]] = {}

    def add(self, moment: Moment, values: Mapping[str, Tensor]) -> None:
        """Append the values of one moment; the names must be the same every time."""
        self.moments.append(moment)
        for name, value in values.items():
            self.columns.setdefault(name, []).append(value.detach().cpu())

    def stacked(self) -> dict[str, Tensor]:
        """Return the values of all moments (T, ...) by name."""
        return {name: torch.stack(values) for name, values in self.columns.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return moments and values, as few tensors."""
        moments = [(moment.phase, moment.epoch, moment.step) for moment in self.moments]
        return {"moments": moments, "columns": self.stacked()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.moments = [Moment(*moment) for moment in state["moments"]]
        self.columns = {name: list(value) for name, value in state["columns"].items()}


@dataclass(frozen=True)
class FinishedRun:
    """A finished run, as passed to `Analysis.finish`.

    The method holds the selected weights, in eval mode; `series` has the analysis's measurements.
    The analysis may write to its own `folder`; trackers show `folder/plots/*.png`.
    """

    directory: Path
    folder: Path
    config: TrainConfig
    splits: Splits
    method: Method
    series: Series


class Analysis(ABC):
    """An analysis built from a file in conf/analysis; it does not affect training.

    An analysis of a finished run, for example of its stored predictions, implements `finish` and,
    if needed, `check`; one that measures the weights during training also `measures`, `due`,
    `requests` and `measure`.
    """

    def check(self, method: Method, splits: Splits) -> None:  # noqa: B027 - most fit everything
        """Refuse what it cannot analyse by UserError or ValueError, before anything is written."""

    @property
    def measures(self) -> bool:
        """Whether it measures weights, and can thus also measure those kept by a finished run."""
        return False

    def due(self, epoch: int) -> bool:
        """Return whether to measure after this many finished epochs of a phase."""
        return False

    def requests(self) -> Iterable[Request]:
        """Return the statistics `measure` needs; computed once for all analyses that are due."""
        return ()

    def measure(
        self, method: Method, splits: Splits, found: Mapping[Samples, GroupStatistics]
    ) -> Mapping[str, Tensor]:
        """Return values by `<quantity>/<split>` for a method in eval mode, always the same names.

        Scalars become row entries `<analysis>/<quantity>/<split>`; all values are stored in
        `arrays.npz`. `splits` lacks the splits that the phase trains on (`Phase.consumed`); their
        statistics in `found` are NaN.
        """
        raise NotImplementedError(f"{type(self).__name__} measures nothing during training")

    @abstractmethod
    def finish(self, ended: FinishedRun) -> Mapping[str, Any]:
        """Draw plots and return plain values for the analysis's result.json.

        Trackers log the numbers of its entry `metrics`, if any, as metrics of the run.
        """


class Analyses:
    """The analyses of a run, by folder name (`<name>-<hash of options>`, within `analysis/`)."""

    def __init__(self, analyses: Mapping[str, Analysis], options: Mapping[str, Any]) -> None:
        self._analyses, self._options = dict(analyses), dict(options)
        self.series = {folder: Series() for folder in self._analyses}

    def __bool__(self) -> bool:
        return bool(self._analyses)

    @classmethod
    def build(cls, nodes: Mapping[str, Node]) -> "Analyses":
        """Build the analyses of a configuration."""
        named = {analysis_name(name, node): node for name, node in nodes.items()}
        return cls(
            {folder: node.build() for folder, node in named.items()},
            {folder: plain(node.arguments) for folder, node in named.items()},
        )

    def without(self, folders: Iterable[str]) -> "Analyses":
        """Return the analyses except for these folders, with empty series."""
        left = {name: one for name, one in self._analyses.items() if name not in set(folders)}
        return Analyses(left, self._options)

    @property
    def folders(self) -> list[str]:
        """The folder name of each analysis."""
        return list(self._analyses)

    @property
    def measure_weights(self) -> bool:
        """Whether any of them measures weights."""
        return any(analysis.measures for analysis in self._analyses.values())

    def check(self, method: Method, splits: Splits) -> None:
        """See `Analysis.check`."""
        for folder, analysis in self._analyses.items():
            try:
                analysis.check(method, splits)
            except ValueError as error:
                raise UserError(f"analysis.{_name(folder)}: {error}") from error

    def due(self, epoch: int) -> bool:
        """Return whether any of them measures after this many finished epochs of a phase."""
        return any(analysis.due(epoch) for analysis in self._analyses.values())

    def measure(
        self, method: Method, splits: Splits, moment: Moment, *, stored: bool = False
    ) -> dict[str, float | None]:
        """Measure all that are due and return their row entries.

        With `stored`, for weights kept by a finished run, all that measure weights are due. The
        caller puts the method into eval mode and restores the random state.
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
        """Write each analysis's files except result.json, whose contents are returned."""
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
        """Return the measurements; a checkpoint is their only copy until the run ends."""
        return {folder: series.state_dict() for folder, series in self.series.items()}

    def load_state_dict(self, state: Mapping[str, Any], coming: Sequence[tuple[str, int]]) -> None:
        """Continue from `state_dict`; an analysis added since starts empty, with a warning.

        `coming` lists the (phase, finished epochs) pairs still to be measured.
        """
        for folder, analysis in self._analyses.items():
            if folder in state:
                self.series[folder].load_state_dict(state[folder])
            elif analysis.measures:
                left = (f"epoch {epoch} of {name}" for name, epoch in coming if analysis.due(epoch))
                log.warning(
                    "analysis: %s was added after the run had started; first measurement: %s",
                    _name(folder),
                    next(left, "never, because all the epochs it asks for are over"),
                )


def _name(folder: str) -> str:
    """Return the name of the analysis that a folder belongs to."""
    return folder.rpartition("-")[0]


def _save(path: Path, series: Series) -> None:
    """Write phase, epoch and step (T,) of each moment, and its values (T, ...), to an npz file."""
    moments = series.moments
    arrays: dict[str, Any] = {
        "phase": np.array([moment.phase for moment in moments]),
        "epoch": np.array([moment.epoch for moment in moments]),
        "step": np.array([moment.step for moment in moments]),
    }
    arrays |= {name: value.numpy() for name, value in series.stacked().items()}
    with replacing(path) as beside, beside.open("wb") as file:
        np.savez_compressed(file, **arrays)
