"""runtime/dry_run.py: what is refused before days of compute, and how amounts are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime import dry_run
from runtime.dry_run import (
    StepTrial,
    dry_run_lines,
    scratch_trial,
    seconds_per_unit,
    size_text,
    time_text,
)
from runtime.errors import UserError


def test_lines_name_facts_time_memory_and_disk_and_nothing_is_made(tmp_path):
    output = tmp_path / "a" / "b"
    lines = dry_run_lines(output, {"tiles": 600}, 7200, 117_600_000, 2_000_000_000)
    assert lines[:2] == ["tiles: 600", "time: 2 h"]
    assert lines[2].startswith("memory: 2 GB of ")
    assert lines[3].startswith("disk: 118 MB of ")
    assert not output.parent.exists()


def test_a_trial_times_the_steps_after_those_that_warm_up(monkeypatch):
    clock = iter([0.0, 100.0, 200.0, 200.0, 203.0, 207.0])
    monkeypatch.setattr(dry_run.time, "perf_counter", lambda: next(clock))
    trial = StepTrial(2, warm_up=2)
    assert [trial.is_over() for _ in range(2)] == [False, False]
    assert trial.seconds_per_step == 0.0
    assert [trial.is_over() for _ in range(2)] == [False, True]
    assert trial.seconds_per_step == 3.5


def test_a_loop_shorter_than_the_trials_warm_up_is_timed_whole(monkeypatch):
    clock = iter([0.0, 4.0, 10.0])
    monkeypatch.setattr(dry_run.time, "perf_counter", lambda: next(clock))
    trial = StepTrial(3, warm_up=9)
    assert not any(trial.is_over() for _ in range(2))
    assert trial.seconds_per_step == 5.0


@pytest.mark.parametrize(
    ("disk", "memory", "message"),
    [
        (10**18, 0, "1e.09 GB needed, .* free on disk"),
        (0, 10**18, "of memory needed, this machine"),
    ],
)
def test_too_little_disk_or_memory_is_refused(tmp_path, disk, memory, message):
    with pytest.raises(UserError, match=message):
        dry_run_lines(tmp_path, {}, 1, disk, memory)


def test_a_unit_is_timed_after_one_warm_up(monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr(dry_run.time, "perf_counter", lambda: clock[0])

    def work() -> int:
        calls.append(len(calls))
        clock[0] += 30 if len(calls) == 1 else 2
        return 4

    assert seconds_per_unit(work) == 0.5
    assert len(calls) == 2


def test_files_of_a_trial_are_counted_per_unit_and_removed():
    folders = []

    def work(folder: Path) -> int:
        folders.append(folder)
        (folder / "a").mkdir()
        (folder / "a" / "b").write_bytes(b"x" * 300)
        return 3

    assert scratch_trial(work)[1] == 100
    assert not folders[0].exists()


def test_an_output_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file"):
        dry_run_lines(tmp_path / "file" / "out.json", {}, 1)


def test_amounts_are_told_as_people_say_them():
    assert [size_text(n) for n in (12, 196_000, 4.2e9)] == ["12 B", "196 kB", "4.2 GB"]
    texts = [time_text(n) for n in (42, 150, 9000, 354_240)]
    assert texts == ["42 s", "2.5 min", "2.5 h", "4.1 days"]
