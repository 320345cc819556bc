import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runtime.errors import UserError
from runtime.workers import Lost, run_in_workers

ROOT = Path(__file__).resolve().parent.parent


def square(number):
    return number * number


def refuse(number):
    raise UserError(f"{number} cannot be")


def die_on_three(number, folder):
    """End the process on 3, each time; on 5 the first time only."""
    mark = Path(folder, str(number))
    if number == 3 or (number == 5 and not mark.exists()):
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def fail_unforeseen(number):
    return 1 // number


@pytest.mark.parametrize("workers", [1, 3])
def test_every_task_has_its_result(workers):
    found = dict(run_in_workers(square, [(number,) for number in range(12)], workers))
    assert found == {(number,): number * number for number in range(12)}


def test_killed_process_costs_its_own_task_only_and_after_a_second_try(tmp_path):
    tasks = [(number, str(tmp_path)) for number in range(9)]
    found = {task[0]: result for task, result in run_in_workers(die_on_three, tasks, 2)}
    lost = found.pop(3)
    assert isinstance(lost, Lost)
    assert "SIGKILL; out of memory?" in lost.reason
    assert found == {number: number for number in range(9) if number != 3}


def test_error_of_the_user_stops_all():
    with pytest.raises(UserError, match="cannot be"):
        list(run_in_workers(refuse, [(1,), (2,)], 2))


def test_unforeseen_error_is_a_lost_task():
    found = {task[0]: result for task, result in run_in_workers(fail_unforeseen, [(0,), (1,)], 1)}
    assert found[1] == 1
    assert found[0] == Lost("its process ended with code 1")


def test_no_task_starts_no_process():
    assert list(run_in_workers(square, [], 4)) == []


SLEEPERS = """
import time
from runtime.workers import run_in_workers
def sleep(path):
    open(path, "w").close()
    time.sleep(600)
if __name__ == "__main__":
    list(run_in_workers(sleep, [({0!r},), ({1!r},)], 2))
"""


def test_workers_end_when_their_parent_is_killed(tmp_path):
    marks = [tmp_path / "a", tmp_path / "b"]
    script = tmp_path / "sleepers.py"
    script.write_text(SLEEPERS.format(*map(str, marks)))
    process = subprocess.Popen(
        [sys.executable, str(script)], env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    deadline = time.monotonic() + 120
    while not all(mark.exists() for mark in marks) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    while running(str(script)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(str(script))


def running(words):
    """Return the processes whose open command line or main module names `words`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if words in command:
            found.append(command)
    return found
