"""What an expression table may look like on the disk, and what is refused."""

import bz2
import gzip
import lzma
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.expression import (
    ExpressionTable,
    read_cohort,
    read_expression_table,
    write_expression_table,
)
from runtime.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
TEXT = "tissue,rna_ENSG1.1,wsi_file_name,note,rna_ENSG2\nlung,1.5,S-1-a,7,0\nlung,2,S-2-a,,3e2\n"


def write_table(path, values, seed=0):
    rows, genes = np.shape(values)
    notes = pd.DataFrame({"tissue": ["lung"] * rows})
    names = [f"S-{seed}{row}-a" for row in range(rows)]
    table = ExpressionTable(names, [f"g{gene}" for gene in range(genes)], np.array(values), notes)
    write_expression_table(path, table)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.csv", TEXT.encode()),
        ("windows.csv", TEXT.replace("\n", "\r\n").encode("utf-8-sig")),
        ("tabs.tsv", TEXT.replace(",", "\t").encode()),
        ("quoted.csv", TEXT.replace("S-1-a", '"S-1-a"').replace("1.5", '"1.5"').encode()),
        ("table.csv.gz", gzip.compress(TEXT.encode())),
        ("table.csv.bz2", bz2.compress(TEXT.encode())),
        ("table.csv.xz", lzma.compress(TEXT.encode())),
        ("unpacked_by_the_browser.csv.gz", TEXT.encode()),
        ("blank_lines.csv", TEXT.replace("\n", "\n\n").encode()),
        ("no_last_line_end.csv", TEXT.strip().encode()),
    ],
)
def test_columns_are_found_by_name_in_every_form_of_file(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    table = read_expression_table(tmp_path / name)
    assert (table.names, table.genes) == (["S-1-a", "S-2-a"], ["ENSG1.1", "ENSG2"])
    np.testing.assert_array_equal(table.expression, np.float32([[1.5, 0], [2, 300]]))
    assert table.annotations.columns.tolist() == ["tissue", "note"]
    assert table.annotations.note.isna().tolist() == [False, True]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wsi_file_name,rna_a,rna_b\nx,1,2\ny,1\n", "row y: 2 cells where the header has 3"),
        ("wsi_file_name,rna_a\nw,1\nx,1,2\n", "row x: 3 cells where the header has 2"),
        ('wsi_file_name,rna_a\nx,1\n"y",1,2\n', "row y: 3 cells"),
        ("wsi_file_name,rna_a\nx,1\n\x00y,z\n", "'z' is not a number"),
        ("wsi_file_name,rna_a,tissue,tissue\nx,1,2,3\n", "column tissue appears more than once"),
    ],
)
def test_row_at_fault_is_named(tmp_path, text, message):
    (tmp_path / "lung.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_expression_table(tmp_path / "lung.csv")


def test_logarithms_are_refused_with_the_way_out(tmp_path):
    values = np.random.default_rng(0).gamma(1, 300, (4, 120))
    path = write_table(tmp_path / "log.csv", np.log2(values + 1))
    with pytest.raises(UserError, match=r"log.csv: the largest value is .* --unit log2"):
        read_expression_table(path)
    # Few genes say nothing about the unit; a prepared table has been asked for it.
    assert len(read_expression_table(write_table(tmp_path / "few.csv", values[:, :9] / 1e3))) == 4
    (tmp_path / "log.manifest.json").write_text("{}")
    assert len(read_expression_table(path)) == 4


def test_counts_and_tpm_are_not_joined(tmp_path):
    counts = np.random.default_rng(0).poisson(200, (4, 120)).astype(float)
    tpm = counts / counts.sum(axis=1, keepdims=True) * 1e6
    one = write_table(tmp_path / "counts.csv", counts)
    other = write_table(tmp_path / "tpm.csv", tpm, seed=1)
    with pytest.raises(UserError, match=r"tpm.csv: .*look like tpm, those of .*counts.csv like co"):
        read_cohort([one, other])
    both = write_table(tmp_path / "both.csv", np.concatenate([counts, tpm]))
    with pytest.raises(UserError, match="both.csv: mixed units: S-00-a looks like counts, S-04-a"):
        read_expression_table(both)


def test_written_values_and_annotations_are_read_back(tmp_path):
    values = np.float32([[0, 1e-5, 123456.7], [16777215, 3.25, 1e30]])
    notes = pd.DataFrame({"tissue": ["a,b", 'c"d'], "n": [1, 2], "x": [0.5, np.nan]})
    table = ExpressionTable(["r1", "r2"], ["g1", "g2", "g3"], values, notes)
    for name in ("a.csv", "a.csv.gz"):
        write_expression_table(tmp_path / name, table)
        again = read_expression_table(tmp_path / name)
        np.testing.assert_allclose(again.expression, values, rtol=5e-6)
        pd.testing.assert_frame_equal(again.annotations, notes, check_dtype=False)


def bad_cohort(folder):
    """Return what is wrong, as file names and what the message must hold."""
    good = write_table(folder / "good.csv", np.random.default_rng(0).poisson(200, (3, 120)))
    content = gzip.compress(good.read_bytes())
    (folder / "short.csv.gz").write_bytes(content[: len(content) // 2])
    log = np.log2(np.random.default_rng(1).gamma(1, 300, (4, 120)) + 1)
    write_table(folder / "log.csv", log)
    return {
        "short.csv.gz": "cannot be read as a table",
        "good.csv": "row S-00-a appears more than once",
        "log.csv": "looks like logarithms",
        "absent.csv": "expression table not found",
    }


def test_training_ends_with_code_2_and_one_line_on_a_bad_table(tmp_path):
    for name, message in bad_cohort(tmp_path).items():
        config = tmp_path / "config.json"
        config.write_text(
            f'{{"path_csv": ["{tmp_path}/good.csv", "{tmp_path}/{name}"], "rna_features": 120,'
            f' "save_dir": "{tmp_path}/vae", "split_path": "{tmp_path}/split.csv"}}'
        )
        command = [sys.executable, "betaVAE_training.py", "--config", str(config)]
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert answer.returncode == 2, answer.stderr
        assert answer.stderr.count("\n") == 1
        assert message in answer.stderr
        assert not (tmp_path / "vae").exists()
