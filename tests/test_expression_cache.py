"""Tables are parsed once, then mapped: the first read and later ones are the same."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import data.delimited
import data.expression
from data.expression import (
    ExpressionTable,
    match_genes,
    read_cohort,
    read_expression_table,
    write_expression_table,
)
from data.expression_cache import CACHE_FOLDER, StackedRows
from runtime.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


def make_table(rows=5, genes=7, seed=0, **notes):
    values = np.random.default_rng(seed).gamma(1, 50, (rows, genes)).astype(np.float32)
    names = [f"SIM-{seed}{row:03d}-0625.svs" for row in range(rows)]
    notes = pd.DataFrame({"tissue": ["lung"] * rows} | notes)
    return ExpressionTable(names, [f"ENSG{g:011d}.1" for g in range(genes)], values, notes)


def cache_of(path):
    return sorted(entry.name for entry in (path.parent / CACHE_FOLDER).iterdir())


@pytest.fixture
def path(tmp_path):
    write_expression_table(tmp_path / "lung.csv", make_table())
    return tmp_path / "lung.csv"


def test_second_read_is_mapped_and_the_same_as_the_first(path, monkeypatch):
    notes = {"age": [1.5, None, 3, 4, 5], "text": ['a "b", c', None, "é", "x", "y"]}
    write_expression_table(path, make_table(**notes))
    first = read_expression_table(path)
    monkeypatch.setattr(data.expression, "_TableText", None)  # not parsed again
    second = read_expression_table(path)
    for table in (first, second):
        assert isinstance(table.expression, np.memmap)
        assert table.expression.dtype == np.float32
    assert (first.names, first.genes) == (second.names, second.genes)
    np.testing.assert_array_equal(first.expression, second.expression)
    pd.testing.assert_frame_equal(first.annotations, second.annotations)
    assert second.annotations.age.isna().tolist() == [False, True, False, False, False]
    assert second.annotations.text[0] == 'a "b", c'


def test_changed_table_is_parsed_again_and_the_older_form_removed(path):
    read_expression_table(path)
    before = cache_of(path)
    write_expression_table(path, make_table(seed=1))
    np.testing.assert_allclose(
        read_expression_table(path).expression, make_table(seed=1).expression, rtol=1e-5
    )
    assert len(cache_of(path)) == len(before) == 2
    assert not set(cache_of(path)) & set(before)


def test_caches_of_tables_with_similar_names_live_side_by_side(path):
    other = path.with_name("lung.csv.gz")
    write_expression_table(other, make_table(seed=1))
    read_expression_table(path)
    read_expression_table(other)
    write_expression_table(path, make_table(seed=2))
    read_expression_table(path)
    assert len(cache_of(path)) == 4


@pytest.mark.parametrize("suffix", [".npy", ".json"])
@pytest.mark.parametrize("content", [b"", b"{}", None])
def test_spoilt_cache_is_written_anew(path, suffix, content):
    expected = np.array(read_expression_table(path).expression)
    file = next((path.parent / CACHE_FOLDER).glob(f"*{suffix}"))
    if content is None:
        content = file.read_bytes()[:-20]
    file.write_bytes(content)
    np.testing.assert_array_equal(read_expression_table(path).expression, expected)
    np.testing.assert_array_equal(read_expression_table(path).expression, expected)


def test_folder_that_cannot_be_written_to_is_no_obstacle(path):
    (path.parent / CACHE_FOLDER).write_text("a file where the folder would be")
    table = read_expression_table(path)
    np.testing.assert_allclose(table.expression, make_table().expression, rtol=1e-5)
    assert isinstance(table.expression, np.memmap)
    assert sorted(entry.name for entry in path.parent.iterdir()) == [CACHE_FOLDER, "lung.csv"]


def test_bad_table_leaves_nothing_behind(path):
    path.write_text("wsi_file_name,rna_a\nx,1\nx,2\n")
    with pytest.raises(UserError, match="row x appears more than once"):
        read_expression_table(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["lung.csv"]


def test_table_that_changes_while_it_is_read_is_refused(path, monkeypatch):
    read_facts = data.expression._TableText.facts

    def facts(parser):
        with open(path, "a") as handle:
            handle.write("late,1,2,3,4,5,6,7\n")
        return read_facts(parser)

    monkeypatch.setattr(data.expression._TableText, "facts", facts)
    with pytest.raises(UserError, match="changed while it was read"):
        read_expression_table(path)


def test_change_to_the_mapped_values_never_reaches_the_file(path):
    expected = np.array(read_expression_table(path).expression)
    read_expression_table(path).expression[:] = -1
    np.testing.assert_array_equal(read_expression_table(path).expression, expected)


def test_processes_that_read_at_once_agree_and_leave_one_cache(tmp_path):
    path = tmp_path / "lung.csv"
    write_expression_table(path, make_table(rows=300, genes=400))
    code = (
        "import sys, hashlib\nfrom data.expression import read_expression_table\n"
        "print(hashlib.sha256(read_expression_table(sys.argv[1]).expression.tobytes()).hexdigest())"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, path], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    answers = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0] * 4
    assert len(answers) == 1
    assert [name.rsplit(".", 1)[1] for name in cache_of(path)] == ["json", "npy"]


def test_reader_killed_in_the_middle_harms_no_later_one(path):
    code = (
        "import os, signal, sys, data.expression as e\n"
        "e._TableText.facts = lambda parser: os.kill(os.getpid(), signal.SIGKILL)\n"
        "e.read_expression_table(sys.argv[1])"
    )
    killed = subprocess.run([sys.executable, "-c", code, path], cwd=ROOT)
    assert killed.returncode == -9
    np.testing.assert_allclose(
        read_expression_table(path).expression, make_table().expression, rtol=1e-5
    )


def test_cohort_of_two_large_tables_is_never_a_copy_in_memory(tmp_path):
    rows, genes = 5000, 2000
    header = ",".join(["wsi_file_name", *(f"rna_ENSG{gene:011d}" for gene in range(genes))])
    tail = "," + ",".join(str(gene % 7 * 100 + 0.5) for gene in range(genes)) + "00\n"
    for name in ("a", "b"):
        lines = (f"{name}{row}{tail}" for row in range(rows))
        (tmp_path / f"{name}.csv").write_text(f"{header}\n{''.join(lines)}")
    code = """
import sys
import numpy as np, pandas as pd
from data.expression import read_cohort
np.loadtxt(["1,2"], delimiter=",")
def held():
    fields = dict(line.split(":") for line in open("/proc/self/status"))
    return int(fields["RssAnon"].split()[0]) * 1024
before = held()
table = read_cohort(sys.argv[1:])
total = sum(float(table.expression[row : row + 500].sum()) for row in range(0, 10000, 500))
print(held() - before, table.expression.shape, total)
"""
    size = 2 * rows * genes * 4
    for share in (0.75, 0.25):  # the first read parses blocks of some megabytes
        command = [sys.executable, "-c", code, tmp_path / "a.csv", tmp_path / "b.csv"]
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        held, rest = answer.stdout.split(maxsplit=1)
        assert int(held) < share * size
        assert rest.startswith("(10000, 2000)")


@pytest.mark.parametrize(
    "key",
    [
        0,
        -1,
        slice(None),
        slice(2, 9, 3),
        slice(None, None, -1),
        [],
        [8, 0, 0, -1],
        np.array([5, 4]),
        np.arange(10) % 3 == 0,
        (slice(None), [1, 2]),
        (3, 1),
    ],
    ids=str,
)
def test_stacked_rows_are_taken_as_from_one_array(key):
    whole = np.random.default_rng(0).random((10, 4)).astype(np.float32)
    stacked = StackedRows([whole[:4], whole[4:5], whole[5:]])
    assert (len(stacked), stacked.shape, stacked.dtype, stacked.ndim) == (10, (10, 4), "f4", 2)
    index = np.array(key, dtype=int) if isinstance(key, list) else key
    np.testing.assert_array_equal(stacked[index], whole[index])
    np.testing.assert_array_equal(np.log1p(stacked), np.log1p(whole))
    np.testing.assert_array_equal(np.mean(stacked, axis=0), whole.mean(axis=0))


def test_rows_beyond_the_last_are_refused():
    with pytest.raises(IndexError):
        StackedRows([np.zeros((2, 3)), np.zeros((1, 3))])[[3]]


def test_cohort_reads_as_its_tables_one_after_the_other(path, monkeypatch):
    other = path.with_name("brain.csv")
    write_expression_table(other, make_table(rows=3, seed=1))
    cohort = read_cohort([path, other])
    parts = [make_table().expression, make_table(rows=3, seed=1).expression]
    np.testing.assert_allclose(np.asarray(cohort.expression), np.concatenate(parts), rtol=1e-5)
    np.testing.assert_array_equal(cohort.rows([6, 1]).expression, cohort.expression[[6, 1]])
    monkeypatch.setattr(data.expression, "ROWS_AT_A_TIME", 3)
    matched, missing = match_genes(cohort, [cohort.genes[4], "other", cohort.genes[0]])
    np.testing.assert_array_equal(matched[:, [0, 2]], cohort.expression[:, [4, 0]])
    assert (missing, matched[:, 1].tolist()) == (["other"], [0] * 8)
    assert isinstance(read_cohort([path]).expression, np.memmap)


def test_value_at_fault_is_named_wherever_its_block_is(path, monkeypatch):
    monkeypatch.setattr(data.delimited, "BLOCK_CELLS", 20)
    table = make_table(rows=50)
    table.expression[41, 3] = -2
    write_expression_table(path, table)
    with pytest.raises(UserError, match=r"SIM-0041-0625.svs, gene ENSG00000000003.1: -2 is not"):
        read_expression_table(path)
