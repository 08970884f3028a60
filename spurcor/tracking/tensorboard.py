"""TensorBoard as a mirror: event files that hold what is on disk, once."""

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
NAME_LENGTH = 128  # of the part of an event file's name that says what it holds


class TensorboardTracker(Tracker):
    """One TensorBoard run per record, <outputs>/tensorboard/<sweep>/<record>, DFR below its run.

    A process that sends a record writes it anew, since it sends all of it, and then removes the
    file of the process before. So a resumed run or a sync doubles nothing, and a rerun takes the
    place of what it reruns. Parameters are columns of the page HPARAMS, beside the results.
    """

    title = "TensorBoard"

    def __init__(self, outputs: Path) -> None:
        require("tensorboard")
        self.folder = outputs / "tensorboard"
        self._refused = False
        self._records: dict[Path, _Scalars] = {}

    @property
    def alive(self) -> bool:
        """A row that cannot be written raises where it is written."""
        return not self._refused

    @property
    def address(self) -> str:
        """The command that opens the page."""
        return shlex.join(["tensorboard", "--logdir", str(self.folder)])

    def prepare(self) -> None:
        """Import what writes events, a third of a second."""
        import tensorboard.compat.proto.event_pb2
        import tensorboard.plugins.hparams.plugin_data_pb2
        import tensorboard.summary.writer.record_writer  # noqa: F401

    def start(self, record: Record) -> None:
        """Nothing is shown before the first row: a record that gets none keeps what it had."""
        self.prepare()  # so that no row waits for it

    def log(self, record: Record, rows: Sequence[Mapping[str, Any]]) -> None:
        """Scalars; what this process has written of a step is not written again."""
        if record.directory not in self._records:
            self._records[record.directory] = _Scalars(self._place(record), record)
        self._records[record.directory].add(rows)

    def result(self, record: Record, row: Mapping[str, Any]) -> None:
        """Scalars of one step."""
        self.log(record, [row])

    def artifact(self, record: Record, path: Path, folder: str = "") -> None:
        """Show an image or a text; the page has no place for other files."""
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
        except (OSError, struct.error) as error:  # costs only itself
            self._refused = True
            log.warning("%s cannot be shown in TensorBoard (%s)", path, error)

    def finish(self, record: Record, status: Status) -> None:
        """Say in HPARAMS how the record ended."""
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
    """An event file, named so that readers take it up after those that are there."""

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
        """Append one event; `when` in seconds."""
        event = self._event(wall_time=when, step=step)
        event.summary.value.extend(values)
        self._writer.write(event.SerializeToString())

    def replace_others(self) -> None:
        """Let readers see it, and remove what processes before this one wrote of the same name."""
        self._writer.flush()
        for other in self._path.parent.glob(f"events.out.tfevents.*{self._name}"):
            if other != self._path:
                other.unlink(missing_ok=True)

    def flush(self) -> None:
        """Let readers see what was written."""
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class _Scalars:
    """Parameters, metrics and end of one record."""

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
                session.hparams[key].number_value = float(text)  # sorted as a number
            except ValueError:
                session.hparams[key].string_value = text
        self._file.write(begin, 0, _hparams("session_start_info", data))

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """The metrics that are not there yet."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        first = not self._written
        for row in rows:
            step = int(row["step"])
            fresh = {k: v for k, v in metrics_of(row) if (k, step) not in self._written}
            self._written.update((key, step) for key in fresh)
            values = [Summary.Value(tag=key, simple_value=v) for key, v in fresh.items()]
            if values:
                self._file.write(row["time"] / 1000, step, *values)
        if first:  # all that an earlier process wrote is in it by now
            self._file.replace_others()
        self._file.flush()

    def end(self, status: Status) -> None:
        """How the record ended."""
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
    value.tensor.dtype = DT_FLOAT  # the page leaves out what has no value at all
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
