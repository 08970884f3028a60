"""A process that imports what every command needs and forks one child per command line.

Reads one JSON order per line, answers with the child's pid; the child's exit code is written to
<folder>/code when it ends (negative: the signal that killed it).

Where an order's environment has WATCHED, a folder, and FATAL, a count and a signal, the child sends
itself that signal right before its so-manyth change of a file in there (0: never), and how many it
has made is written to <folder>/changes.
"""

import importlib
import json
import os
import selectors
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import matplotlib.figure  # noqa: F401
import mlflow  # noqa: F401
import sklearn.linear_model  # noqa: F401
import torch  # noqa: F401
from mlflow import MlflowClient  # noqa: F401

import spurcor.presentation.plots
import spurcor.runs.execute
import spurcor.tracking.mlflow  # noqa: F401
from spurcor import cli

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def watch(folder: str, fatal: str) -> Callable[[], int]:
    """See above; returns what tells how many changes there were."""
    count, (limit, number) = 0, map(int, fatal.split())

    def look(event: str, arguments: tuple) -> None:
        nonlocal count
        writes = event in CHANGES or (event == "open" and arguments[2] & WRITING)
        if writes and str(arguments[0]).startswith(folder):
            count += 1
            if count == limit:
                os.kill(os.getpid(), number)

    sys.addaudithook(look)
    return lambda: count


def child(order: dict) -> int:
    folder = Path(order["folder"])
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
    os.chdir(order["cwd"])
    os.environ.update(order["env"])
    sys.path[:0] = filter(None, order["env"].get("PYTHONPATH", "").split(os.pathsep))
    sys.argv = [f"{order['module']}.py", *order["arguments"]]
    fatal = os.environ.get("FATAL")
    try:
        module = importlib.import_module(f"spurcor.{order['module']}")
        count = watch(os.environ["WATCHED"], fatal) if fatal else None
        code = cli.run(module.main, order["module"])
        if count is not None:
            (folder / "changes").write_text(str(count()))
        return code
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException as error:
        if (
            error.__traceback__ and not error.__traceback__.tb_next
        ):  # a signal came before the command's own line
            return 128 + signal.SIGINT
        traceback.print_exc()
        return 1


def main() -> None:
    folders: dict[int, str] = {}
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    selector = selectors.DefaultSelector()
    selector.register(wake_read, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    reading = True
    while reading or folders:
        for key, _ in selector.select():
            if key.fileobj is sys.stdin:
                line = sys.stdin.readline()
                if not line:
                    reading = False
                    selector.unregister(sys.stdin)
                    continue
                order = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    code = child(order)
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(code)
                folders[pid] = order["folder"]
                print(pid, flush=True)
            else:
                os.read(wake_read, 4096)
                while folders:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                    if pid == 0:
                        break
                    path = Path(folders.pop(pid)) / "code"
                    path.with_name(".code").write_text(str(os.waitstatus_to_exitcode(status)))
                    os.replace(path.with_name(".code"), path)


if __name__ == "__main__":
    main()
