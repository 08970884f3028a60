"""Weights & Biases tracker: everything is sent from one background thread."""

import logging
import os
import queue
import shlex
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from spurcor.system.files import read_json, write_json
from spurcor.system.passwords import masked
from spurcor.tracking import Record, Status, Tracker, metrics_of, require
from spurcor.tracking.names import shortened

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)
CLOSE_SECONDS = 60.0  # without progress at the end of a run
INIT_SECONDS = 30.0
GROUP_LENGTH, TAG_LENGTH = 128, 64


class WandbTracker(Tracker):
    """One W&B run per record that has rows or files, grouped by sweep.

    The id of the W&B run is stored in the record's folder, so a requeued or resumed run continues
    it, while a rerun is a new W&B run. Offline, a process that sends a record writes a folder with
    all of it and removes those of earlier processes, so `wandb sync` finds each run once.
    """

    title = "W&B"

    def __init__(
        self,
        outputs: Path,
        project: str = "spurcor",
        entity: str | None = None,
        mode: Literal["offline", "online"] = "offline",
    ) -> None:
        require("wandb")
        self.outputs, self.project, self.entity, self.mode = outputs, project, entity, mode
        self.failure: Exception | None = None
        self._complete = True  # no file was skipped
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._worker: threading.Thread | None = None
        self._moved = 0.0
        self._runs: dict[Path, wandb.Run] = {}

    @property
    def alive(self) -> bool:
        """Whether everything was accepted so far."""
        return self.failure is None and self._complete

    @property
    def address(self) -> str:
        """The command that uploads offline runs, or the address of the project."""
        if self.mode == "offline":
            return f"wandb sync {shlex.quote(str(self.outputs / 'wandb'))}/offline-run-*"
        host = os.environ.get("WANDB_BASE_URL", "https://wandb.ai").replace("//api.", "//")
        return masked(f"{host}/{self.entity}/{self.project}" if self.entity else host)

    # --- calls by the run, which only queue -------------------------------------------------------

    def prepare(self) -> None:
        """Import wandb."""
        # Before the import: wandb would send error reports even when offline.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb  # noqa: F401

    def start(self, record: Record) -> None:
        """Do nothing: W&B shows a run with its first row or file, and groups need no parent."""

    def log(self, record: Record, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log rows to the history, with their own step and time."""
        frozen = [dict(row) for row in rows]
        self._put(lambda: self._log(record, frozen))

    def result(self, record: Record, row: Mapping[str, Any]) -> None:
        """Update the summary, which W&B's tables of runs show."""
        numbers = dict(metrics_of(row))
        self._put(lambda: self._run(record).summary.update(numbers))

    def artifact(self, record: Record, path: Path, folder: str = "") -> None:
        """Copy a file to the files of the W&B run."""
        self._put(lambda: self._save(record, path, folder))

    def finish(self, record: Record, status: Status) -> None:
        """Finish the W&B run, if it has any rows or files."""
        self._put(lambda: self._finish(record, status))

    def close(self) -> None:
        """Wait until all is sent or has failed, or no task has finished for too long."""
        if self._worker is None:
            return
        self._queue.put(None)
        self._moved = time.monotonic()
        while self._worker.is_alive() and time.monotonic() - self._moved < CLOSE_SECONDS:
            self._worker.join(0.1)
        if self._worker.is_alive():
            self._fail(TimeoutError(f"no answer for {CLOSE_SECONDS:.0f} s"))

    def _put(self, task: Callable[[], None]) -> None:
        if self._worker is None:  # no thread if only the address is read
            self._worker = threading.Thread(target=self._work, name="wandb", daemon=True)
            self._worker.start()
        self._queue.put(task)

    # --- the thread -------------------------------------------------------------------------------

    def _work(self) -> None:
        while (task := self._queue.get()) is not None:
            if self.failure is not None:
                continue
            try:
                task()
                self._moved = time.monotonic()
            except Exception as error:  # a tracker must never stop a run
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        if self.failure is not None:
            return
        self.failure = error
        text = str(error).strip().splitlines()
        log.warning(
            "W&B fails (%s); python -m spurcor.sync sends what it misses",
            masked(text[0])[:200] if text else type(error).__name__,
        )

    def _run(self, record: Record) -> "wandb.Run":
        if record.directory not in self._runs:
            self._runs[record.directory] = self._init(record)
        return self._runs[record.directory]

    def _init(self, record: Record) -> "wandb.Run":
        self.prepare()
        import wandb

        self.outputs.mkdir(parents=True, exist_ok=True)
        sweeps = [key.removeprefix("sweep.") for key in record.tags if key.startswith("sweep.")]
        return wandb.init(
            project=self.project,
            entity=self.entity,
            dir=self.outputs,
            id=_id(record),
            name=record.name,
            group=shortened(record.sweep, GROUP_LENGTH),
            job_type=record.kind,
            tags=[shortened(tag, TAG_LENGTH) for tag in (record.kind, *sweeps)],
            config={**record.params, "spurcor.directory": str(record.directory)},
            mode=self.mode,
            resume="allow" if self.mode == "online" else None,
            reinit="create_new",
            settings=wandb.Settings(
                console="off",  # the terminal is the user's, and the log is train.log
                silent=True,
                disable_git=True,
                save_code=False,
                init_timeout=INIT_SECONDS,
                x_disable_stats=True,
                x_disable_meta=True,
            ),
        )

    def _log(self, record: Record, rows: Sequence[Mapping[str, Any]]) -> None:
        run = self._run(record)
        for row in rows:
            if row["step"] >= run.step:  # otherwise already logged, and W&B would warn for each
                numbers = {**dict(metrics_of(row)), "_timestamp": row["time"] / 1000}
                run.log(numbers, step=int(row["step"]))

    def _save(self, record: Record, path: Path, folder: str) -> None:
        run = self._run(record)
        # A copy, since W&B would link it; in a folder, since W&B writes a config.yaml of its own.
        copy = Path(run.dir, "spurcor", folder, path.name)
        try:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        except OSError as error:  # only this file is lost
            self._complete = False
            log.warning("W&B refuses %s (%s)", path, error.strerror)
            return
        run.save(str(copy), base_path=run.dir, policy="now")

    def _finish(self, record: Record, status: Status) -> None:
        run = self._runs.pop(record.directory, None)
        if run is None:
            return
        run.finish(exit_code=0 if status == "FINISHED" else 1)
        if self.mode == "offline":
            mine = Path(run.settings.sync_dir)
            for other in mine.parent.glob(f"offline-run-*-{run.id}"):
                if other != mine:
                    shutil.rmtree(other)


def _id(record: Record) -> str:
    """Return the id of the record's W&B run, created on first use."""
    path = record.directory / "wandb.json"
    if not path.exists():
        name = record.label.replace("/", "-")
        write_json(path, {"id": f"{name[-100:]}-{uuid.uuid4().hex[:8]}"})
    return str(read_json(path)["id"])
