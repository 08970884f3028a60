"""The training loop: phases, rows, checkpoints and exact resume, for any method and data set."""

import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from spurcor.config.schema import TrainOptions
from spurcor.data.splits import Splits
from spurcor.data.streams import Stream
from spurcor.models import weights
from spurcor.seeding import derive_seed
from spurcor.system import signals
from spurcor.system.files import write_json
from spurcor.system.signals import Interrupted
from spurcor.training import checkpoint, predictions, selection
from spurcor.training.method import Method, Phase, RunContext, untouched
from spurcor.training.metrics import evaluate, none_if_undefined
from spurcor.training.moments import Enough, Measures, Moment, Pruned, never
from spurcor.training.progress import Clock, Progress, Selected
from spurcor.training.run_state import RunState
from spurcor.training.step_log import StepLog


class Observer(Protocol):
    """Interface of whatever follows a run: the terminal and the trackers."""

    def step(self, progress: Progress, phase: Phase, num_steps: int) -> None:
        """Follow an update."""

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Receive all rows that a checkpoint holds, which are therefore final."""

    def row(self, row: Mapping[str, Any], phase: Phase) -> None:
        """Receive a row just written after an evaluation."""


class Trainer:
    """Trains a method in a run directory; the same call resumes an interrupted run."""

    def __init__(
        self,
        directory: Path,
        options: TrainOptions,
        context: RunContext,
        observer: Observer,
        analyses: Measures,
        enough: Enough = never,
    ) -> None:
        self.directory, self.options, self.context = directory, options, context
        self.observer, self.analyses, self._enough = observer, analyses, enough
        self._state = RunState(directory, options, context, analyses)
        self.progress, self._best = self._state.progress, self._state.best
        self._steps = StepLog(self.progress)
        self._clock = Clock()
        self._stop: int | None = None

    def fit(self, method: Method, phases: Sequence[Phase] | None = None) -> Progress:
        """Run all phases; on return everything is on disk and the method holds the last weights.

        Raises Interrupted after saving a checkpoint if the process was asked to stop, and Pruned if
        `enough`, which sees all rows after each evaluation, says so.
        """
        splits, progress = self.context.splits, self.progress
        phases = method.phases() if phases is None else phases
        plan = [{"name": phase.name, "epochs": phase.epochs} for phase in phases]
        write_json(self.directory / "phases.json", {"phases": plan})
        fresh = self._resume(method, phases)
        with signals.handled(self._remember):
            for phase in phases[progress.phase :]:
                streams = self._enter(phase, method, fresh)
                if fresh and self.analyses.due(0):
                    self._add_row(method, phase, splits, evaluated=False)
                num_steps = len(next(iter(streams.values())))
                position = progress.epoch * num_steps + progress.step
                feeds = {role: stream.start(position) for role, stream in streams.items()}
                while progress.epoch < phase.epochs and not self._exhausted():
                    for _ in range(progress.step, num_steps):
                        batches = {role: next(feed) for role, feed in feeds.items()}
                        self._steps.add(phase.step(batches), batches)
                        self._boundary(method, phase, num_steps)
                    self._steps.flush(phase)
                    phase.end_epoch()
                    progress.epoch, progress.step = progress.epoch + 1, 0
                    self._end_epoch(method, phase, splits, last_phase=phase is phases[-1])
                self._leave(phase, method, last_phase=phase is phases[-1])
                fresh = True
                if self._stop is not None:
                    raise Interrupted(self._stop)
        return progress

    # --- phases -----------------------------------------------------------------------------------

    def _enter(self, phase: Phase, method: Method, fresh: bool) -> Mapping[str, Stream]:
        if fresh:
            # A phase's random draws must not depend on what ran before it.
            torch.manual_seed(derive_seed(self.context.seed, phase.name))
            phase.setup(self.context)
            method.eval()
            with torch.no_grad():
                phase.begin(self.context)
        method.train()
        return phase.streams(self.context)

    def _exhausted(self) -> bool:
        stopping = self.options.early_stopping
        return stopping is not None and self.progress.watched.exhausted(stopping.patience)

    def _leave(self, phase: Phase, method: Method, *, last_phase: bool) -> None:
        phase.end(self.context)
        if phase.selection is not None and not last_phase:
            self._keep(method, phase)
        self.progress.next_phase()
        self._save(method, None)

    def _keep(self, method: Method, phase: Phase) -> None:
        """Keep the selected and last weights, state and metrics of a phase for later phases."""
        folder, selected = self.context.kept(phase.name), self.progress.selected
        assert selected is not None
        folder.mkdir(parents=True, exist_ok=True)
        weights.save_weights(folder / "model.safetensors", self._best.load())
        weights.save_weights(folder / "last.safetensors", weights.snapshot(method))
        checkpoint.save(folder / "state.pt", phase.state_dict())
        with untouched(method):
            splits = self.context.splits
            predictions.write_phase(folder, method.predict, splits, selected=selected.facts)
        self._best.clear()

    # --- steps ------------------------------------------------------------------------------------

    def _boundary(self, method: Method, phase: Phase, num_steps: int) -> None:
        if self._steps.full:
            self._steps.flush(phase)
        self.observer.step(self.progress, phase, num_steps)
        due = self._clock.unsaved() >= self.options.checkpoint_seconds
        if self._stop is not None or (due and self.progress.step < num_steps):
            self._steps.flush(phase)
            self._save(method, phase)
        if self._stop is not None:
            raise Interrupted(self._stop)

    # --- epochs -----------------------------------------------------------------------------------

    def _end_epoch(self, method: Method, phase: Phase, splits: Splits, *, last_phase: bool) -> None:
        progress, options = self.progress, self.options
        if progress.epoch in options.keep_epochs and last_phase:
            folder = self.directory / "weights"
            folder.mkdir(exist_ok=True)
            name = f"{phase.name}-{progress.epoch}.safetensors"
            weights.save_weights(folder / name, weights.snapshot(method))
        evaluated = progress.epoch % options.eval_every == 0 or progress.epoch == phase.epochs
        if evaluated or self.analyses.due(progress.epoch):
            self._add_row(method, phase, splits, evaluated=evaluated)
        if evaluated:
            row = self._state.rows[-1]
            wanted = options.selection if last_phase else phase.selection
            if wanted is not None:
                self._select(method, row, wanted)
            if (stopping := options.early_stopping) is not None and stopping.metric in row:
                progress.watched.add(selection.score(row, stopping.metric))
            self.observer.row(row, phase)
            ended = last_phase and (progress.epoch == phase.epochs or self._exhausted())
            if not ended and self._stop is None and self._enough(self._state.rows):
                self._save(method, phase)
                raise Pruned(f"after epoch {progress.epoch} of {phase.name}")
        if self._clock.unsaved() >= options.checkpoint_seconds:
            self._save(method, phase)

    def _add_row(self, method: Method, phase: Phase, splits: Splits, *, evaluated: bool) -> None:
        """Write a row: values logged since the last one, evaluation and analyses."""
        progress = self.progress
        row: dict[str, Any] = {
            "phase": phase.name,
            "epoch": progress.epoch,
            "step": progress.steps,
            "time": time.time_ns() // 1_000_000,
            "seconds": 0.0,
        }
        moment = Moment(phase.name, progress.epoch, progress.steps)
        reported = splits.without(phase.consumed)
        with untouched(method):
            if evaluated:
                row |= self._steps.means()
                if progress.epoch == min(self.options.eval_every, phase.epochs):
                    constants = phase.constants().items()
                    row |= {f"train/{k}": none_if_undefined(float(v)) for k, v in constants}
                row |= evaluate(method.predict, reported, self.options.loss)
            row |= self.analyses.measure(method, reported, moment)
        self._clock.add_to(progress)
        row["seconds"] = round(progress.seconds, 3)
        self._state.add_row(row)

    def _select(self, method: Method, row: Mapping[str, Any], wanted: str) -> None:
        criterion = selection.default_criterion(row, wanted)
        score = selection.score(row, criterion)
        if self.progress.best.add(score, selection.tie_breaker(row)):
            undefined = score is None  # then the last epoch is selected
            chosen = Selected(None if undefined else criterion, row["phase"], row["epoch"])
            self._best.choose(method, chosen)

    # --- state ------------------------------------------------------------------------------------

    def _save(self, method: Method, phase: Phase | None) -> None:
        self._clock.add_to(self.progress)
        self._state.save(method, phase)
        self.observer.rows(self._state.rows)
        self._clock.saved()

    def _resume(self, method: Method, phases: Sequence[Phase]) -> bool:
        """Return to the last checkpoint; return whether the next phase starts afresh."""
        self._clock = Clock()
        fresh = self._state.load(method, phases)
        self.observer.rows(self._state.rows)
        return fresh

    def _remember(self, number: int) -> None:
        """Note a signal: a checkpoint is saved at the next step boundary, where training stops."""
        if number == signal.SIGINT and self._stop is not None:
            raise KeyboardInterrupt  # a second Ctrl-C: the user does not want to wait
        self._stop = number
