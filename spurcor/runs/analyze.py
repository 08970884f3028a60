"""Analyses of a finished run, computed from its stored weights."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from spurcor.analysis.contract import Analyses
from spurcor.errors import Damaged, UserError
from spurcor.models import weights
from spurcor.runs import results
from spurcor.runs.prepared import Prepared
from spurcor.runs.refusals import refuse_leak
from spurcor.system.files import read_lines, remove_leftovers, write_json
from spurcor.system.lock import lock_of, locked
from spurcor.system.shapes import Row
from spurcor.tracking import Record
from spurcor.training import checkpoint
from spurcor.training.method import Method, RunContext, untouched
from spurcor.training.moments import Moment


def analyze_stored(run: Prepared) -> None:
    """Compute the missing analyses of a finished run from its stored predictions and weights.

    Raises `Held` if another process is analysing the same run, and UserError if the run was trained
    on other data or was set aside meanwhile.
    """
    directory, splits = run.directory, run.splits
    place = directory / "analysis"
    if not _missing(run):
        return
    refuse_leak(results.read_result(directory)["run"]["splits"], splits)
    with locked(lock_of(place), run.guard):
        remove_leftovers(place)
        if not (analyses := _missing(run)):
            return
        if not (directory / "done").exists():
            raise UserError(f"run={directory} was set aside; repeat this once it is trained again")
        parts = _measured(run, analyses)
        with FileLock(run.guard):
            results.write_result(directory, analysis=parts)
            # Written last: each part that exists is then in the run's result.json, too.
            for folder, part in parts.items():
                write_json(place / folder / "result.json", part)
    record = Record.of_run(directory, run.config)
    run.trackers.start(record)
    run.trackers.report(record)


def _missing(run: Prepared) -> Analyses:
    place = run.directory / "analysis"
    made = [name for name in run.analyses.folders if (place / name / "result.json").exists()]
    return run.analyses.without(made)


def _measured(run: Prepared, analyses: Analyses) -> dict[str, dict[str, Any]]:
    directory, method, splits = run.directory, run.method, run.splits
    with untouched(method):
        if analyses.measure_weights:
            restore(method, run.context)
            consumed = {phase.name: phase.consumed for phase in method.phases()}
            for moment, path in kept_weights(directory):
                weights.load_under(method, path)
                reported = splits.without(consumed[moment.phase])
                analyses.measure(method, reported, moment, stored=True)
        weights.load_weights(method, directory / "model.safetensors")
        return analyses.finish(directory, run.config, method, splits)


def restore(method: Method, context: RunContext) -> None:
    """Restore what a finished run's phases registered on a method, as a resumed run does.

    Analyses then differentiate the same function as training did: a closed gate, for example,
    passes no gradient to the weights that it masks.
    """
    weights.make_plain(method)
    for phase in method.phases():
        phase.setup(context)
    if method.phases():
        path = context.directory / "checkpoint.pt"
        state = checkpoint.load(path, ("method",))
        with checkpoint.of_this_version(path):
            method.load_state_dict(state["method"])


def kept_weights(directory: Path) -> Iterator[tuple[Moment, Path]]:
    """Yield moment and file of all stored weights, in the order of training, each epoch once.

    These are the epochs of `train.keep_epochs`, the selected and the last epoch. Raises `Damaged`
    if the number of rows in metrics.jsonl differs from the checkpoint's count.
    """
    rows = read_lines(directory / "metrics.jsonl", Row)
    if not rows:
        return
    if len(rows) != checkpoint.count_rows(directory / "checkpoint.pt"):
        raise Damaged(directory / "metrics.jsonl", "lacks rows that its checkpoint counts")
    steps = {(row["phase"], row["epoch"]): row["step"] for row in rows}
    last = (rows[-1]["phase"], rows[-1]["epoch"])
    selected = results.read_result(directory)["selected"]
    files = {
        (path.stem.rpartition("-")[0], int(path.stem.rpartition("-")[2])): path
        for path in (directory / "weights").glob("*-*.safetensors")
    }
    files[selected["phase"], selected["epoch"]] = directory / "model.safetensors"
    files[last] = directory / "last.safetensors"
    phases = list(dict.fromkeys(row["phase"] for row in rows))
    for phase, epoch in sorted(files, key=lambda at: (phases.index(at[0]), at[1])):
        ends = [row for row in rows if row["phase"] == phase]
        before = rows[rows.index(ends[0]) - 1]["step"] if rows.index(ends[0]) else 0
        # For an epoch without a row, interpolate: a phase's epochs have equally many steps.
        between = before + (ends[-1]["step"] - before) * epoch // ends[-1]["epoch"]
        step = steps.get((phase, epoch), between)
        yield Moment(phase, epoch, step), files[phase, epoch]
