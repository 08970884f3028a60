"""MLflow runs of records: created once, then continued, described and terminated."""

import logging
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spurcor.system.files import read_json, write_json
from spurcor.system.lock import holder, lock_of
from spurcor.system.passwords import masked
from spurcor.tracking import Record, Status, store
from spurcor.tracking.mlflow_connection import Connection
from spurcor.tracking.names import mlflow_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, Run, RunTag

    Entity = Metric | Param | RunTag

log = logging.getLogger(__name__)
PARAM_LENGTH, TAG_LENGTH = 6000, 8000  # maximum length of values
# Makes the page open on tables and charts of runs instead of traces of language models.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}


class Runs:
    """The requests to MLflow about records; each method may be repeated."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.refused: set[str] = set()  # entries that the store refused
        self._experiments: dict[str, str] = {}
        self._statuses: dict[Path, str] = {}
        self._unsure: set[Path] = set()  # records that a failed request may have created

    @property
    def _client(self) -> "MlflowClient":
        return self.connection.client

    def start(self, record: Record) -> None:
        """Create the MLflow run, or continue it."""
        path = record.directory / "mlflow.json"
        fresh = not path.exists()
        if fresh:  # written first, so that a run created just before a kill is found again
            write_json(path, {"id": uuid.uuid4().hex})
        tags = {
            **record.tags,
            "spurcor.directory": str(record.directory),
            "spurcor.id": read_json(path)["id"],
            "spurcor.kind": record.kind,
        }
        run = None if fresh else self._known(record)
        if run is None:
            first = {key: tags[key] for key in ("spurcor.directory", "spurcor.id", "spurcor.kind")}
            if record.parent is not None and (parent := self._stored_id(record.parent)):
                first["mlflow.parentRunId"] = parent
            experiment = self._experiment(record.sweep)
            try:
                run = self._client.create_run(experiment, record.times[0], first, record.name)
            except Exception:
                self._unsure.add(record.directory)
                raise
        status = run.info.status
        if record.kind == "run" and status in ("KILLED", "FAILED"):
            self._client.update_run(run.info.run_id, status := "RUNNING")
        self._statuses[record.directory] = status
        if self._stored_id(record.directory) != run.info.run_id:
            known = {masked(uri): value for uri, value in read_json(path).items()}
            write_json(path, {**known, self.connection.uri: run.info.run_id})
        self._describe(run, record.params, tags)

    def finish(self, record: Record, status: Status) -> None:
        """Terminate the MLflow run."""
        run_id = self._run_id(record)
        if record.directory in self._unsure:  # a request that timed out may have succeeded
            for run in self._search(record):
                if run.info.run_id != run_id:
                    self._client.delete_run(run.info.run_id)
        if self._statuses.get(record.directory) != status:  # otherwise keep its end time
            self._client.set_terminated(run_id, status, end_time=record.times[1])
            self._statuses[record.directory] = status

    def metrics(self, record: Record, rows: Sequence[tuple[str, float, int, int]]) -> None:
        """Log metrics as tuples of name, value, time in epoch ms, and step."""
        from mlflow.entities import Metric

        named: dict[str, list[Entity]] = {}
        for row in rows:
            named.setdefault(f"metric {row[0]}", []).append(Metric(*row))
        self._log(self._run_id(record), named)

    def artifact(self, record: Record, path: Path, folder: str) -> None:
        """Copy a file to the artifact store."""
        run_id = self._run_id(record)
        try:
            self._client.log_artifact(run_id, str(path), folder or None)
        except Exception as error:
            if self.connection.may_pass(error):
                raise
            self._lose(f"file {Path(folder, path.name)}", error)

    def _describe(self, run: "Run", params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Log parameters that a run lacks, and tags that it lacks or that have changed."""
        from mlflow.entities import Param, RunTag

        fresh: dict[str, list[Entity]] = {}
        for key, text in _taken(params, PARAM_LENGTH).items():
            if key not in run.data.params:
                fresh[f"parameter {key}"] = [Param(key, text)]
        for key, text in _taken(tags, TAG_LENGTH).items():
            if run.data.tags.get(key) != text:
                fresh[f"tag {key}"] = [RunTag(key, text)]
        self._log(run.info.run_id, fresh)

    def _experiment(self, name: str) -> str:
        if name not in self._experiments:
            found = self._client.get_experiment_by_name(name)
            if found is None:
                local = self.connection.uri.startswith("sqlite")
                place = (self.connection.outputs / store.ARTIFACTS).as_uri() if local else None
                try:
                    created = self._client.create_experiment(name, place, EXPERIMENT_TAGS)
                except Exception:
                    found = self._client.get_experiment_by_name(name)
                    if found is None:  # nor created by another process meanwhile
                        raise
            if found is not None and found.lifecycle_stage == "deleted":
                self._client.restore_experiment(found.experiment_id)
            self._experiments[name] = created if found is None else found.experiment_id
            self._close_stale(self._experiments[name])
        return self._experiments[name]

    def _close_stale(self, experiment: str) -> None:
        """Mark runs as killed that are shown as running but whose process is gone."""
        for run in self._client.search_runs([experiment], "attributes.status = 'RUNNING'"):
            directory = Path(run.data.tags.get("spurcor.directory", "/nowhere"))
            kind = run.data.tags.get("spurcor.kind")
            owner = directory.parents[1] if kind == "dfr" else directory
            # A run that is not on this disk belongs to another machine.
            if kind not in ("run", "dfr") or not directory.exists():
                continue
            if holder(lock_of(owner)) is not None:
                continue
            # It may have finished since the search: its status is set before its lock is released.
            if self._client.get_run(run.info.run_id).info.status == "RUNNING":
                self._client.set_terminated(run.info.run_id, "KILLED")

    def _known(self, record: Record) -> "Run | None":
        """Return the MLflow run of a record by its stored id, or else by its tag, or None."""
        from mlflow.exceptions import MlflowException

        if stored := self._stored_id(record.directory):
            try:
                run = self._client.get_run(stored)
                if run.info.lifecycle_stage == "active":
                    return run
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        found = self._search(record)
        return found[0] if found else None

    def _search(self, record: Record) -> "list[Run]":
        """Return the MLflow runs that carry the record's own id."""
        key = read_json(record.directory / "mlflow.json")["id"]
        experiments = [self._experiment(record.sweep)]
        return list(self._client.search_runs(experiments, f"tags.`spurcor.id` = '{key}'"))

    def _stored_id(self, directory: Path) -> str | None:
        path = directory / "mlflow.json"
        return read_json(path).get(self.connection.uri) if path.exists() else None

    def _run_id(self, record: Record) -> str:
        run_id = self._stored_id(record.directory)
        if run_id is None:
            raise RuntimeError(f"{record.directory} was never started in MLflow")
        return run_id

    def _log(self, run_id: str, named: "Mapping[str, Sequence[Entity]]") -> None:
        """Log metrics, parameters or tags together, or name by name if that is refused.

        A name that is refused on its own is skipped; if all are refused, the error is raised.
        """
        try:
            self._log_together(run_id, [entity for group in named.values() for entity in group])
        except Exception as error:
            if self.connection.may_pass(error):
                raise
            refused: dict[str, Exception] = {}
            for name, group in named.items():
                try:
                    self._log_together(run_id, group)
                except Exception as of_one:
                    if self.connection.may_pass(of_one):
                        raise
                    refused[name] = of_one
            if len(refused) == len(named) > 1:
                raise
            for name, reason in refused.items():
                self._lose(name, reason)

    def _log_together(self, run_id: str, entities: "Sequence[Entity]") -> None:
        from mlflow.entities import Metric, Param, RunTag

        if entities:
            self._client.log_batch(
                run_id,
                metrics=[entity for entity in entities if isinstance(entity, Metric)],
                params=[entity for entity in entities if isinstance(entity, Param)],
                tags=[entity for entity in entities if isinstance(entity, RunTag)],
            )

    def _lose(self, what: str, error: Exception) -> None:
        """Skip an entry that the store refuses, with one warning for each."""
        if what not in self.refused:
            self.refused.add(what)
            log.warning(
                "MLflow at %s refuses %s (%s)",
                self.connection.uri,
                what,
                self.connection.reason(error),
            )


def _taken(values: Mapping[str, str], length: int) -> dict[str, str]:
    """Return parameters or tags valid for MLflow; longer values are cut and end in "..."."""
    return {
        mlflow_name(key, also=":"): text if len(text) <= length else f"{text[: length - 3]}..."
        for key, text in values.items()
    }
