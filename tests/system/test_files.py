"""Files that are there whole or not at all."""

import multiprocessing
import os
import signal

from spurcor.system.files import replacing, write_text


def killed_in_writing(path):
    """Runs in a process of its own."""
    with replacing(path) as beside:
        beside.write_text("half of i")
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_left_of_a_file_goes_with_the_next_writing_of_it(tmp_path):
    path, other = tmp_path / "a[b]*.json", tmp_path / "other"
    for killed in (path, other):
        process = multiprocessing.get_context("fork").Process(
            target=killed_in_writing, args=(killed,)
        )
        process.start()
        process.join()
    assert len(list(tmp_path.glob(".*.tmp"))) == 2
    write_text(path, "whole")
    assert path.read_text() == "whole"
    assert [left.name[:7] for left in tmp_path.glob(".*.tmp")] == [".other."]


def test_what_a_live_process_is_writing_stays(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as beside:
        beside.write_text("of the parent")
        process = multiprocessing.get_context("fork").Process(
            target=write_text, args=(path, "of the child")
        )
        process.start()
        process.join()
        assert path.read_text() == "of the child"
    assert path.read_text() == "of the parent"
    assert os.listdir(tmp_path) == ["file"]
