"""Train a run to its end and write its result."""

import logging
from pathlib import Path
from typing import Any

import yaml

from spurcor.config.nodes import plain
from spurcor.models import weights
from spurcor.runs import provenance, results
from spurcor.runs.grouping import about_groups, write_grouping
from spurcor.runs.prepared import Prepared
from spurcor.runs.refusals import warn_of_few
from spurcor.runs.watcher import watch
from spurcor.system import versions
from spurcor.system.files import write_json, write_text
from spurcor.system.passwords import masked
from spurcor.system.signals import Interrupted
from spurcor.system.terminal import Terminal
from spurcor.tracking import Record
from spurcor.training import predictions
from spurcor.training.method import untouched
from spurcor.training.moments import Pruned
from spurcor.training.progress import Progress
from spurcor.training.trainer import Trainer

log = logging.getLogger(__name__)
NOT_SELECTED = {"criterion": None, "phase": None, "epoch": None}  # for a run without evaluation


def train(run: Prepared, terminal: Terminal) -> None:
    """Train a run from scratch or from its checkpoint, and write the result."""
    config, trackers = run.config, run.trackers
    _keep_origin(run)
    _write_down(run)
    write_grouping(run.directory, config, run.splits)
    if run.phases:
        warn_of_few(config.train, run.splits)
    record = Record.of_run(run.directory, config)
    trackers.start(record)
    with watch(terminal, lambda rows: trackers.rows(record, rows)) as observer:
        trainer = Trainer(
            run.directory, config.train, run.context, observer, run.analyses, run.enough
        )
        try:
            trainer.fit(run.method, run.phases)
            _finish(run, trainer.progress)
        except (Interrupted, Pruned):
            trackers.finish(record, "KILLED")
            raise
        except Exception:
            trackers.finish(record, "FAILED")
            raise
    trackers.report(record)


def _write_down(run: Prepared) -> None:
    """Write configuration and code fingerprints; warn if a resumed run's code has changed."""
    directory, config = run.directory, run.config
    if not (directory / "config.yaml").exists():
        tree = {**plain(config), "rerun": False, "trial": None}
        write_json(directory / "code.json", provenance.code_of(config))
        write_text(directory / "config.yaml", masked(yaml.safe_dump(tree, sort_keys=False)))
    elif other := provenance.changed(provenance.begun_by(directory), config):
        log.warning(
            "%s was started with other code for %s and continues with the current code; pass"
            " rerun=true to set it aside and start over",
            directory,
            ", ".join(other),
        )


def _keep_origin(run: Prepared) -> None:
    """Store results of the run that this one starts from, like those of an earlier phase.

    They come from its last weights, as for any phase, since training continues from them. Only
    MaskTune's masks use the `selected` weights, chosen by that run's criterion.
    """
    init, origin = run.config.init, run.origin
    if init is None or origin is None:
        return
    result = results.read_result(init)
    before, selected = result["run"], result["selected"]
    same = before["method"] == run.config.choices["method"]
    name = f"{before['identity']}-seed{before['seed']}" if same else before["method"]
    folder = run.context.kept(name)
    if not (folder / "result.json").exists():
        about = {key: before[key] for key in ("identity", "seed", "method")}
        about["images_seen"] = before["images_seen"] + before.get("origin_images_seen", 0)
        with untouched(origin):
            predict = origin.predict
            predictions.write_phase(folder, predict, run.splits, origin=about, selected=selected)
    run.origin = None  # frees its memory for training


def _finish(run: Prepared, progress: Progress) -> None:
    """Write weights, predictions and result.json; the file `done` comes last."""
    directory, method = run.directory, run.method
    weights.save_weights(directory / "last.safetensors", weights.snapshot(method))
    selected = progress.selected
    weights.load_weights(method, directory / (selected.file if selected else "last.safetensors"))
    weights.save_weights(directory / "model.safetensors", weights.snapshot(method))
    reports: dict[str, Any] = {"val": None, "test": None, "tests": {}}  # if nothing was trained
    with untouched(method):
        if selected is not None:
            reported = run.splits.without(method.consumed)
            reports = predictions.predict_all(
                method.predict, reported, directory / "predictions.npz"
            )
        for folder, part in run.analyses.finish(directory, run.config, method, run.splits).items():
            write_json(directory / "analysis" / folder / "result.json", part)
    about: dict[str, Any] = {"run": _facts(run, progress)}
    if found := about_groups(directory):
        about["groups"] = found["quality"]
    about |= {"selected": selected.facts if selected else NOT_SELECTED}
    results.write_result(directory, {**about, **reports})
    write_text(directory / "done", versions.commit() + "\n")
    for path in directory.glob("selected-*.safetensors"):
        path.unlink()


def _facts(run: Prepared, progress: Progress) -> dict[str, Any]:
    """Return the entry `run` of result.json."""
    config, directory = run.config, run.directory
    facts = {
        "identity": config.identity,
        "seed": config.seed,
        **{key: config.choices.get(key) for key in ("dataset", "method", "backbone")},
        "config": config.settings,
        "commit": versions.commit(),
        "code": provenance.begun_by(directory),
        "versions": {**versions.versions(), **config.plugins},
        "environment": progress.environment,
        "moved": progress.moved,
        "seconds": round(progress.seconds, 1),
        "images_seen": progress.images_seen,
        "splits": run.splits.fingerprints,
    }
    cost: dict[str, Any] = about_groups(directory).get("cost", {})
    return facts | _origin_images(directory) | cost


def _origin_images(directory: Path) -> dict[str, int]:
    """Return the images seen by the run that this one started from, as part of its cost."""
    parts = predictions.kept_phases(directory).values()
    origins = [part["origin"]["images_seen"] for part in parts if "origin" in part]
    return {"origin_images_seen": origins[-1]} if origins else {}
