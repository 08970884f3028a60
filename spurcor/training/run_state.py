"""Everything an interrupted run resumes from: its checkpoint, its best weights, and its rows."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from spurcor.config.schema import TrainOptions
from spurcor.data.groups import Split
from spurcor.errors import UserError
from spurcor.system.files import append_line, keep_lines, read_lines, sync
from spurcor.system.shapes import Row
from spurcor.training import checkpoint
from spurcor.training.best_weights import BestWeights
from spurcor.training.method import Method, Phase, RunContext
from spurcor.training.moments import Measures
from spurcor.training.progress import Progress

log = logging.getLogger(__name__)
KEYS = ("progress", "method", "phase", "analyses", "random", "fingerprints")  # in a checkpoint


class RunState:
    """The state of an unfinished run in its directory; saved and loaded as a whole."""

    def __init__(
        self, directory: Path, options: TrainOptions, context: RunContext, analyses: Measures
    ) -> None:
        self.directory, self.options = directory, options
        self.context, self.analyses = context, analyses
        self.progress = Progress()
        self.best = BestWeights(directory, self.progress)
        self.rows: list[dict[str, Any]] = []
        self._checkpoint, self._metrics = directory / "checkpoint.pt", directory / "metrics.jsonl"

    def add_row(self, row: dict[str, Any]) -> None:
        """Append a row to metrics.jsonl; rows after the last checkpoint are redone on resume."""
        self.rows.append(row)
        append_line(self._metrics, row)
        self.progress.rows += 1

    def save(self, method: Method, phase: Phase | None) -> None:
        """Write a checkpoint within `phase`, or between phases if it is None."""
        self.best.save()
        state = {
            "progress": asdict(self.progress),
            "method": method.state_dict(),
            "phase": None if phase is None else phase.state_dict(),
            "analyses": self.analyses.state_dict(),
            "random": checkpoint.random_state(),
            "fingerprints": self.context.splits.fingerprints,
        }
        sync(self._metrics)
        checkpoint.save(self._checkpoint, state)
        self.best.remove_earlier()

    def load(self, method: Method, phases: Sequence[Phase]) -> bool:
        """Return to the last checkpoint; return whether the next phase starts afresh.

        Raises UserError if the checkpoint is of other splits, does not fit this version of the
        code, or counts rows that metrics.jsonl has lost.
        """
        if not self._checkpoint.exists():
            keep_lines(self._metrics, 0)
            self.progress.environment = self._environment()
            return True
        state = checkpoint.load(self._checkpoint, KEYS)
        self._refuse_other_splits(state)
        self._load_progress(state)
        self._compare_environment()
        self._load_method(state, method, phases)
        with checkpoint.of_this_version(self._checkpoint):
            coming = self._coming(phases, inside=state["phase"] is not None)
            self.analyses.load_state_dict(state["analyses"], coming)
            checkpoint.restore_random_state(state["random"])
        self._load_rows()
        log.info("resumed after %d steps", self.progress.steps)
        return state["phase"] is None

    def _refuse_other_splits(self, state: Mapping[str, Any]) -> None:
        if state["fingerprints"] != self.context.splits.fingerprints:
            raise UserError(
                f"{self._checkpoint} was trained on other splits than the data set has now; restore"
                " the data, or pass rerun=true to set the run aside and start over"
            )

    def _load_progress(self, state: Mapping[str, Any]) -> None:
        with checkpoint.of_this_version(self._checkpoint):
            self.progress.load(state["progress"])
            if self.options.num_threads is None:
                torch.set_num_threads(self.progress.environment["num_threads"])

    def _compare_environment(self) -> None:
        progress, environment = self.progress, self._environment()
        if progress.environment != environment:
            log.warning(
                "resumed under %s after %s: the numbers may differ in the last digits",
                environment,
                progress.environment,
            )
            progress.environment, progress.moved = environment, True

    def _load_method(
        self, state: Mapping[str, Any], method: Method, phases: Sequence[Phase]
    ) -> None:
        current, inside = self.progress.phase, state["phase"] is not None
        for phase in phases[: current + inside]:
            phase.setup(self.context)  # registers the modules and buffers to load into
        with checkpoint.of_this_version(self._checkpoint):
            method.load_state_dict(state["method"])
            if inside:
                phases[current].load_state_dict(state["phase"])

    def _coming(self, phases: Sequence[Phase], *, inside: bool) -> list[tuple[str, int]]:
        """Return the (phase, epoch) pairs that are still to be measured."""
        return [
            (phase.name, epoch)
            for i, phase in enumerate(phases[self.progress.phase :])
            for epoch in range(0 if i else self.progress.epoch + inside, phase.epochs + 1)
        ]

    def _load_rows(self) -> None:
        keep_lines(self._metrics, self.progress.rows)
        self.rows = read_lines(self._metrics, Row)
        if len(self.rows) != self.progress.rows:
            raise UserError(
                f"{self._metrics} has lost rows that its checkpoint counts;"
                " pass rerun=true to set the run aside and start over"
            )

    def _environment(self) -> dict[str, Any]:
        return {
            "num_threads": torch.get_num_threads(),
            "device": self.context.splits.device.type,
            # Random crops are resampled on the images' device, which affects their rounding.
            "images": self.context.splits[Split.TRAIN].train_images.device.type,
            "precision": self.options.precision,
        }
