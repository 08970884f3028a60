"""The training loop: phases, rows, checkpoints, exact resume; no method and no data set."""

import logging
import math
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from spurcor.config.schema import TrainOptions
from spurcor.data.groups import Batch, Split
from spurcor.data.splits import Splits
from spurcor.data.streams import Stream
from spurcor.errors import RunError, UserError
from spurcor.models import weights
from spurcor.seeding import derive_seed
from spurcor.system import signals
from spurcor.system.files import append_line, keep_lines, read_lines, sync, write_json
from spurcor.system.shapes import Row
from spurcor.system.signals import Interrupted
from spurcor.training import checkpoint, predictions, selection
from spurcor.training.method import Method, Phase, RunContext, untouched
from spurcor.training.metrics import evaluate
from spurcor.training.moments import Measures, Moment
from spurcor.training.selection import Best

log = logging.getLogger(__name__)

STATE = ("progress", "method", "phase", "analyses", "random", "fingerprints")  # of a checkpoint
CHECK_STEPS = 64  # losses stay on the device for this many steps before they are looked at


class Observer(Protocol):
    """Who watches a run: the terminal and the trackers."""

    def step(self, progress: "Progress", phase: Phase, num_steps: int) -> None:
        """After an update."""

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Rows that a checkpoint holds: they will not be taken back."""

    def row(self, row: Mapping[str, Any], phase: Phase) -> None:
        """A row just written after an evaluation."""


@dataclass
class Progress:
    """Where a run stands; all of it is in the checkpoint."""

    phase: int = 0
    epoch: int = 0  # finished epochs of the phase
    step: int = 0  # finished steps of the epoch
    rows: int = 0
    steps: int = 0  # updates since the run began
    images_seen: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)  # per logged value, over images
    images: int = 0  # images in `sums`
    selected: dict[str, Any] | None = None
    best: Best = field(default_factory=Best)  # in this phase, by what selects
    watched: Best = field(default_factory=Best)  # and by what stops early
    environment: dict[str, Any] = field(default_factory=dict)
    moved: bool = False  # resumed under another thread count, device or precision


class Trainer:
    """Trains a method in a run directory; the same call continues what was interrupted."""

    def __init__(
        self,
        directory: Path,
        options: TrainOptions,
        context: RunContext,
        observer: Observer,
        analyses: Measures,
    ) -> None:
        self.directory, self.options, self.context = directory, options, context
        self.observer, self.analyses = observer, analyses
        self.progress = Progress()
        self._rows: list[dict[str, Any]] = []
        self._pending: list[tuple[int, dict[str, Tensor]]] = []
        self._best: dict[str, Tensor] | None = None
        self._stop: int | None = None

    def fit(self, method: Method, phases: Sequence[Phase] | None = None) -> Progress:
        """Run all phases; on return everything is on disk and the method holds the last weights."""
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
                        self._record(phase.step(batches), batches)
                        self._boundary(method, phase, num_steps)
                    self._flush(phase)
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
            # A phase draws the same whatever came before it in this process or in this run.
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
        progress = self.progress
        phase.end(self.context)
        if phase.selection is not None and not last_phase:
            self._keep(method, phase)
        progress.phase, progress.epoch, progress.step = progress.phase + 1, 0, 0
        progress.best, progress.watched = Best(), Best()
        self._save(method, None)

    def _keep(self, method: Method, phase: Phase) -> None:
        """Leave to later phases, and to readers, where this one ended and where it was best."""
        folder, selected = self.context.kept(phase.name), self.progress.selected
        assert selected is not None
        folder.mkdir(parents=True, exist_ok=True)
        file = selected.pop("file", None)
        if self._best is None:
            self._best = weights.load_state(self.directory / file)
        weights.save_weights(folder / "model.safetensors", self._best)
        weights.save_weights(folder / "last.safetensors", weights.snapshot(method))
        checkpoint.save(folder / "state.pt", phase.state_dict())
        with untouched(method):
            splits = self.context.splits
            predictions.write_phase(folder, method.predict, splits, selected=selected)
        self.progress.selected, self._best = None, None

    # --- steps ------------------------------------------------------------------------------------

    def _record(self, values: dict[str, Tensor], batches: Mapping[str, Batch]) -> None:
        first = len(next(iter(batches.values())).y)
        self._pending.append((first, values))
        self.progress.step += 1
        self.progress.steps += 1
        self.progress.images_seen += sum(len(batch.y) for batch in batches.values())

    def _boundary(self, method: Method, phase: Phase, num_steps: int) -> None:
        if len(self._pending) >= CHECK_STEPS:
            self._flush(phase)
        self.observer.step(self.progress, phase, num_steps)
        due = time.monotonic() - self._saved_at >= self.options.checkpoint_seconds
        if self._stop is not None or (due and self.progress.step < num_steps):
            self._flush(phase)
            self._save(method, phase)
        if self._stop is not None:
            raise Interrupted(self._stop)

    def _flush(self, phase: Phase) -> None:
        """Add up what the last steps logged, in their order, and stop at the first bad number."""
        progress = self.progress
        names = list(self._pending[0][1]) if self._pending else []
        columns = {n: torch.stack([v[n] for _, v in self._pending]).tolist() for n in names}
        for i, (size, _) in enumerate(self._pending):
            progress.images += size
            for name in names:
                value = columns[name][i]
                if not math.isfinite(value):
                    step = progress.step - len(self._pending) + i + 1
                    key = " (optimizer.lr)" if phase.descends else ""
                    raise RunError(
                        f"{phase.name}: {name} is {value} at epoch {progress.epoch + 1}, step"
                        f" {step}; a smaller learning rate{key} may help"
                    )
                progress.sums[name] = progress.sums.get(name, 0.0) + value * size
        self._pending.clear()

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
            row = self._rows[-1]
            wanted = options.selection if last_phase else phase.selection
            if wanted is not None:
                self._select(method, row, wanted)
            if (stopping := options.early_stopping) is not None and stopping.metric in row:
                progress.watched.add(selection.score(row, stopping.metric))
            self.observer.row(row, phase)
        if time.monotonic() - self._saved_at >= options.checkpoint_seconds:
            self._save(method, phase)

    def _add_row(self, method: Method, phase: Phase, splits: Splits, *, evaluated: bool) -> None:
        """What was logged and evaluated since the last evaluation, and what analyses measure."""
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
                row |= {f"train/{k}": v / progress.images for k, v in progress.sums.items()}
                row |= evaluate(method.predict, reported, self.options.loss)
                progress.sums, progress.images = {}, 0
            row |= self.analyses.measure(method, reported, moment)
        self._tick()
        row["seconds"] = round(progress.seconds, 3)
        self._rows.append(row)
        append_line(self.directory / "metrics.jsonl", row)
        progress.rows += 1

    def _select(self, method: Method, row: Mapping[str, Any], wanted: str) -> None:
        criterion = selection.default_criterion(row, wanted)
        score = selection.score(row, criterion)
        if self.progress.best.add(score, selection.tie_breaker(row)):
            self._best = weights.snapshot(method)
            self.progress.selected = {
                "criterion": None if score is None else criterion,  # then it is the last epoch
                "phase": row["phase"],
                "epoch": row["epoch"],
            }

    # --- state ------------------------------------------------------------------------------------

    def _save(self, method: Method, phase: Phase | None) -> None:
        """Save everything; the best weights first, under a name that only this checkpoint knows."""
        progress = self.progress
        self._tick()
        if self._best is not None and progress.selected is not None:
            name = f"selected-{progress.rows}.safetensors"
            weights.save_weights(self.directory / name, self._best)
            progress.selected["file"], self._best = name, None
        state = {
            "progress": asdict(progress),
            "method": method.state_dict(),
            "phase": None if phase is None else phase.state_dict(),
            "analyses": self.analyses.state_dict(),
            "random": checkpoint.random_state(),
            "fingerprints": self.context.splits.fingerprints,
        }
        sync(self.directory / "metrics.jsonl")
        checkpoint.save(self.directory / "checkpoint.pt", state)
        kept = (progress.selected or {}).get("file")
        for path in self.directory.glob("selected-*.safetensors"):
            if path.name != kept:
                path.unlink()
        self.observer.rows(self._rows[: progress.rows])
        self._saved_at = time.monotonic()

    def _resume(self, method: Method, phases: Sequence[Phase]) -> bool:
        """Go back to the last checkpoint; returns whether the next phase begins afresh."""
        self._saved_at = self._clock = time.monotonic()
        progress, path = self.progress, self.directory / "checkpoint.pt"
        if not path.exists():
            keep_lines(self.directory / "metrics.jsonl", 0)
            progress.environment = self._environment()
            return True
        state = checkpoint.load(path, STATE)
        if state["fingerprints"] != self.context.splits.fingerprints:
            raise UserError(
                f"{path} was trained on other data splits than the data set gives now; rerun=true"
                " sets the run aside and starts over"
            )
        with checkpoint.of_this_version(path):
            values = {name: state["progress"][name] for name in vars(progress)}
            best = {name: Best(**values[name]) for name in ("best", "watched")}
            vars(progress).update(values, **best)
            if self.options.num_threads is None:
                torch.set_num_threads(progress.environment["num_threads"])
        if progress.environment != (environment := self._environment()):
            log.warning(
                "resumed under %s after %s: the numbers may differ in the last digits",
                environment,
                progress.environment,
            )
            progress.environment, progress.moved = environment, True
        inside = state["phase"] is not None
        for phase in phases[: progress.phase + inside]:
            phase.setup(self.context)  # what a phase registers on the method must be there to load
        with checkpoint.of_this_version(path):
            method.load_state_dict(state["method"])
            if inside:
                phases[progress.phase].load_state_dict(state["phase"])
        coming = [
            (phase.name, epoch)
            for i, phase in enumerate(phases[progress.phase :])
            for epoch in range(0 if i else progress.epoch + inside, phase.epochs + 1)
        ]
        with checkpoint.of_this_version(path):
            self.analyses.load_state_dict(state["analyses"], coming)
            checkpoint.restore_random_state(state["random"])
        keep_lines(self.directory / "metrics.jsonl", progress.rows)
        self._rows = read_lines(self.directory / "metrics.jsonl", Row)
        if len(self._rows) != progress.rows:
            raise UserError(
                f"{self.directory}/metrics.jsonl has lost rows that its checkpoint counts;"
                " rerun=true sets the run aside and starts over"
            )
        self.observer.rows(self._rows)
        log.info("resumed after %d steps", progress.steps)
        return not inside

    def _environment(self) -> dict[str, Any]:
        return {
            "num_threads": torch.get_num_threads(),
            "device": self.context.splits.device.type,
            # Random crops are resampled where the images are, and differ there in the last level.
            "images": self.context.splits[Split.TRAIN].train_images.device.type,
            "precision": self.options.precision,
        }

    def _tick(self) -> None:
        now = time.monotonic()
        self.progress.seconds += now - self._clock
        self._clock = now

    def _remember(self, number: int) -> None:
        """A checkpoint at the next step boundary, and the end there."""
        if number == signal.SIGINT and self._stop is not None:
            raise KeyboardInterrupt  # a person who does not want to wait
        self._stop = number
