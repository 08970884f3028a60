"""TensorBoard tracker: event files that hold the metrics on disk, each value once."""

import logging
import os
import shlex
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from spurcor.tracking import Record, Status, Tracker, metrics_of, require
from spurcor.tracking.names import shortened

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

log = logging.getLogger(__name__)
NAME_LENGTH = 128  # of the readable part of an event file's name


class TensorboardTracker(Tracker):
    """One TensorBoard run per record, <outputs>/tensorboard/<sweep>/<record>, DFR below its run.

    A process that sends a record sends all of it: it writes a new file and then removes those of
    earlier processes. So a resume or a sync duplicates nothing, and a rerun replaces the earlier
    run. Parameters are columns of the page HPARAMS, beside the results.
    """

    title = "TensorBoard"

    def __init__(self, outputs: Path) -> None:
        require("tensorboard")
        self.folder = outputs / "tensorboard"
        self._refused = False
        self._records: dict[Path, _Scalars] = {}

    @property
    def alive(self) -> bool:
        """Whether all files could be shown; a row that cannot be written raises at once."""
        return not self._refused

    @property
    def address(self) -> str:
        """The command that opens TensorBoard."""
        return shlex.join(["tensorboard", "--logdir", str(self.folder)])

    def prepare(self) -> None:
        """Import the event writer, which takes a third of a second."""
        import tensorboard.compat.proto.event_pb2
        import tensorboard.plugins.hparams.plugin_data_pb2
        import tensorboard.summary.writer.record_writer  # noqa: F401

    def start(self, record: Record) -> None:
        """Import the event writer; a record without new rows keeps its earlier ones."""
        self.prepare()  # so that the first row need not wait for it

    def log(self, record: Record, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write scalars, except those that this process has already written for a step."""
        if record.directory not in self._records:
            self._records[record.directory] = _Scalars(self._place(record), record)
        self._records[record.directory].add(rows)

    def result(self, record: Record, row: Mapping[str, Any]) -> None:
        """Write the scalars of one step."""
        self.log(record, [row])

    def artifact(self, record: Record, path: Path, folder: str = "") -> None:
        """Show an image or a text; TensorBoard cannot show other files."""
        show = {".png": _image, ".md": _text}.get(path.suffix)
        if show is None:
            return
        name = str(Path(folder, path.name))
        try:
            value = show(name, path.read_bytes())
            events = _EventFile(self._place(record), name)
            events.write(path.stat().st_mtime, 0, value)
            events.replace_others()
            events.close()
        except (OSError, struct.error) as error:  # only this file is lost
            self._refused = True
            log.warning("%s cannot be shown in TensorBoard (%s)", path, error)

    def finish(self, record: Record, status: Status) -> None:
        """Record the final status in HPARAMS."""
        if (scalars := self._records.get(record.directory)) is not None:
            scalars.end(status)

    def close(self) -> None:
        """Close the files."""
        for scalars in self._records.values():
            scalars.close()

    def _place(self, record: Record) -> Path:
        folder = self.folder / record.sweep
        return folder if record.kind == "sweep" else folder / record.label


class _EventFile:
    """An event file, named so that readers read it after existing ones."""

    def __init__(self, place: Path, name: str) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        place.mkdir(parents=True, exist_ok=True)
        writer = f"{time.time_ns() // 1000}.{socket.gethostname()}.{os.getpid()}"
        self._name = f"@{shortened(quote(name, safe=''), NAME_LENGTH)}"
        self._path = place / f"events.out.tfevents.{writer}{self._name}"
        self._writer = RecordWriter(self._path.open("xb"))
        self._event = Event
        version = Event(wall_time=time.time(), file_version="brain.Event:2")
        self._writer.write(version.SerializeToString())

    def write(self, when: float, step: int, *values: "Summary.Value") -> None:
        """Append one event; `when` in seconds since the epoch."""
        event = self._event(wall_time=when, step=step)
        event.summary.value.extend(values)
        self._writer.write(event.SerializeToString())

    def replace_others(self) -> None:
        """Flush, and remove files of the same name by earlier processes."""
        self._writer.flush()
        for other in self._path.parent.glob(f"events.out.tfevents.*{self._name}"):
            if other != self._path:
                other.unlink(missing_ok=True)

    def flush(self) -> None:
        """Make written events visible to readers."""
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class _Scalars:
    """Parameters, metrics and final status of one record."""

    def __init__(self, place: Path, record: Record) -> None:
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

        self._file = _EventFile(place, "rows")
        self._written: set[tuple[str, int]] = set()
        self._status: Status | None = None
        begin = (record.times[0] or time.time() * 1000) / 1000
        data = HParamsPluginData(version=0)
        session = data.session_start_info
        session.group_name, session.start_time_secs = record.label, begin
        for key, text in record.params.items():
            try:
                session.hparams[key].number_value = float(text)  # sorts as a number
            except ValueError:
                session.hparams[key].string_value = text
        self._file.write(begin, 0, _hparams("session_start_info", data))

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the metrics that have not been written yet."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        first = not self._written
        for row in rows:
            step = int(row["step"])
            fresh = {k: v for k, v in metrics_of(row) if (k, step) not in self._written}
            self._written.update((key, step) for key in fresh)
            values = [Summary.Value(tag=key, simple_value=v) for key, v in fresh.items()]
            if values:
                self._file.write(row["time"] / 1000, step, *values)
        if first:  # now contains all rows of earlier processes
            self._file.replace_others()
        self._file.flush()

    def end(self, status: Status) -> None:
        """Write the final status of the record."""
        from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE, STATUS_SUCCESS
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

        if status == self._status:
            return
        self._status = status
        data, now = HParamsPluginData(version=0), time.time()
        data.session_end_info.status = STATUS_SUCCESS if status == "FINISHED" else STATUS_FAILURE
        data.session_end_info.end_time_secs = now
        self._file.write(now, 0, _hparams("session_end_info", data))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


# --- values of the page's plug-ins ----------------------------------------------------------------


def _value(tag: str, plugin: str, content: bytes = b"") -> "Summary.Value":
    from tensorboard.compat.proto.summary_pb2 import Summary

    value = Summary.Value(tag=tag)
    value.metadata.plugin_data.plugin_name = plugin
    value.metadata.plugin_data.content = content
    return value


def _hparams(name: str, data: "HParamsPluginData") -> "Summary.Value":
    from tensorboard.compat.proto.types_pb2 import DT_FLOAT

    value = _value(f"_hparams_/{name}", "hparams", data.SerializeToString())
    value.tensor.dtype = DT_FLOAT  # TensorBoard drops summaries without any value
    value.tensor.tensor_shape.dim.add(size=0)
    return value


def _text(tag: str, content: bytes) -> "Summary.Value":
    from tensorboard.compat.proto.types_pb2 import DT_STRING

    value = _value(tag, "text")
    value.tensor.dtype = DT_STRING
    value.tensor.tensor_shape.dim.add(size=1)
    value.tensor.string_val.append(content)
    return value


def _image(tag: str, content: bytes) -> "Summary.Value":
    from tensorboard.compat.proto.summary_pb2 import Summary

    value = Summary.Value(tag=tag)
    value.image.width, value.image.height = struct.unpack(">II", content[16:24])  # PNG's header
    value.image.colorspace = 4
    value.image.encoded_image_string = content
    return value
