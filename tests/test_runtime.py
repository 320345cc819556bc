"""Files, checkpoints, seeds, splits, tables and the scaler."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from data.expression import (
    ExpressionTable,
    donor_of,
    match_genes,
    read_cohort,
    read_expression_table,
    write_expression_table,
)
from data.splits import load_split, split_donors
from models.profiles import ExpressionScaler
from runtime.checkpoint import check_genes, load_checkpoint, save_checkpoint
from runtime.device import choose_device
from runtime.errors import UserError
from runtime.files import atomic_path, write_json
from runtime.run import already_done
from runtime.seeds import derived_seed

ROOT = Path(__file__).resolve().parent.parent


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"value": 1})
    with pytest.raises(ValueError, match="broken"), atomic_path(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise ValueError("broken")
    assert path.read_text() == '{\n  "value": 1\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_checkpoint_round_trip_and_refusals(tmp_path):
    path = tmp_path / "x.pt"
    save_checkpoint(path, "gan", {"weights": torch.arange(5.0), "names": ["a"]})
    assert load_checkpoint(path, "gan")["names"] == ["a"]
    with pytest.raises(UserError, match="a 'gan' checkpoint"):
        load_checkpoint(path, "betavae")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="truncated"):
        load_checkpoint(path, "gan")
    with pytest.raises(UserError, match="not found"):
        load_checkpoint(tmp_path / "none.pt", "gan")


@pytest.mark.parametrize("content", [b"", [1], {"weight": torch.zeros(2)}], ids=str)
def test_a_foreign_file_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "foreign.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=r"foreign\.pt: .*not a checkpoint") as error:
        load_checkpoint(path, "gan")
    assert "\n" not in str(error.value)


class Malicious:
    """Would create a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_that_would_run_code_is_refused_without_running_it(tmp_path):
    path = tmp_path / "bad.pt"
    torch.save({"format": Malicious(tmp_path / "made")}, path)
    with pytest.raises(UserError, match=r"bad\.pt"):
        load_checkpoint(path, "gan")
    assert not (tmp_path / "made").exists()


def test_gene_lists_are_compared_in_order_and_the_first_difference_is_named():
    check_genes(["a", "b"], ["a", "b"], "table")
    with pytest.raises(UserError, match="gene 2 is c, the checkpoint has b"):
        check_genes(["a", "b"], ["a", "c"], "table")
    with pytest.raises(UserError, match="1 genes, the checkpoint has 2"):
        check_genes(["a", "b"], ["a"], "table")


def test_a_finished_request_is_told_from_another(tmp_path):
    record, output = tmp_path / "request.json", tmp_path / "out.csv"
    assert not already_done(record, {"seed": 1}, [output])
    output.write_text("x")
    write_json(record, {"seed": 1})
    assert already_done(record, {"seed": 1}, [output])
    assert not already_done(record, {"seed": 1}, [output, tmp_path / "more.csv"])
    assert not already_done(record, {"seed": 2}, [output], overwrite=True)
    with pytest.raises(UserError, match="overwrite"):
        already_done(record, {"seed": 2}, [output])


def test_seeds_depend_on_every_part_of_the_position_and_never_change():
    assert derived_seed(99, "step", 3) == derived_seed(99, "step", 3)
    assert len({derived_seed(*key) for key in ((1, "a"), (1, "b"), (2, "a"), (1, "a", 0))}) == 4
    assert derived_seed(0) == int.from_bytes(bytes.fromhex("5feceb66ffc86f38"), "big") >> 1


def test_an_unknown_device_is_refused():
    assert choose_device(None).type in ("cpu", "cuda")
    with pytest.raises(UserError, match="--device nowhere"):
        choose_device("nowhere")


def test_exit_codes_of_a_script():
    code = "from runtime.errors import *; import sys\ndef main():\n    {}\nrun_script(main)"
    for body, expected in (
        ("return None", 0),
        ("return 1", 1),
        ("raise UserError('x.json: wrong')", 2),
        ("raise KeyboardInterrupt", 130),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code.format(body)], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == expected
        assert len(done.stderr.strip().splitlines()) == (expected in (2, 130))


def test_split_is_64_16_20_by_donor_and_keeps_old_donors_when_new_ones_come(tmp_path):
    donors = [f"D-{number:03d}" for number in range(100)]
    split = split_donors(donors, 1)
    counts = [list(split.values()).count(name) for name in ("train", "val", "test")]
    assert counts == [64, 16, 20]
    assert split_donors(donors, 2) != split
    path = tmp_path / "split.csv"
    first = load_split(path, donors[:50], 1)
    both = load_split(path, donors, 1)
    assert all(both[donor] == first[donor] for donor in donors[:50])
    path.write_text("who,what\n1,2\n")
    with pytest.raises(UserError, match="not a donor split"):
        load_split(path, donors, 1)


def table(values, names=("S-1-a", "S-2-a"), genes=("g1.1", "g2.3")):
    notes = pd.DataFrame({"tissue": ["lung"] * len(names)})
    return ExpressionTable(list(names), list(genes), np.array(values, np.float32), notes)


def test_expression_table_round_trip(tmp_path):
    path = tmp_path / "lung.csv.gz"
    write_expression_table(path, table([[1.5, 0], [2, 3]]))
    again = read_expression_table(path)
    assert (again.names, again.genes) == (["S-1-a", "S-2-a"], ["g1.1", "g2.3"])
    np.testing.assert_allclose(again.expression, [[1.5, 0], [2, 3]])


def test_donor_is_read_from_gtex_names_and_other_names_stand_for_themselves():
    for name in ("GTEX-1117F-3225.svs", "GTEX-1117F-3226-SM-5N9CT"):
        assert donor_of(name) == "GTEX-1117F"
    assert donor_of("E-MTAB-2836_Lung") == "E-MTAB-2836_Lung"
    given = table([[1, 2], [3, 4]])
    given.annotations["donor"] = ["one", "one"]
    assert given.donors == ["one", "one"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,rna_a\nx,1\n", "no column wsi_file_name"),
        ("wsi_file_name,a\nx,1\n", "no gene column"),
        ("wsi_file_name,rna_a\nx,\n", "x, gene a: nan"),
        ("wsi_file_name,rna_a\nx,-2\n", "x, gene a: -2"),
        ("wsi_file_name,rna_a\nx,inf\n", "x, gene a: inf"),
        ("wsi_file_name,rna_a\nx,one\n", "x, rna_a: 'one' is not a number"),
        ("wsi_file_name,rna_a\nx,1\nx,2\n", "row x appears more than once"),
        ("wsi_file_name,rna_a\n", "no rows"),
        ("", "no rows"),
    ],
)
def test_a_bad_table_is_one_line(tmp_path, text, message):
    path = tmp_path / "lung.csv"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_expression_table(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_truncated_gzip_is_named(tmp_path):
    path = tmp_path / "lung.csv.gz"
    rows = "".join(f"s{number},{number}\n" for number in range(3000))
    content = gzip.compress(b"wsi_file_name,rna_a\n" + rows.encode())
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"lung\.csv\.gz"):
        read_expression_table(path)


def test_tables_with_other_genes_are_not_joined(tmp_path):
    write_expression_table(tmp_path / "a.csv", table([[1, 2], [3, 4]]))
    other = table([[1, 2], [3, 4]], names=("T-1-a", "T-2-a"), genes=("g1.1", "g9.1"))
    write_expression_table(tmp_path / "b.csv", other)
    with pytest.raises(UserError, match=r"g9\.1 instead of g2\.3"):
        read_cohort([tmp_path / "a.csv", tmp_path / "b.csv"])


def test_genes_are_matched_without_version_and_lacking_ones_count_as_zero():
    matched, missing = match_genes(table([[1, 2], [3, 4]]), ["g2.9", "g7.1", "g1"])
    np.testing.assert_array_equal(matched, [[2, 0, 1], [4, 0, 3]])
    assert missing == ["g7.1"]


def test_scaler_is_the_z_score_of_the_logarithm():
    values = np.array([[0.0], [np.e - 1], [np.e**2 - 1]], np.float32)
    scaler = ExpressionScaler.fit(values, "log1p")  # logarithms 0, 1, 2
    np.testing.assert_allclose([scaler.mean[0], scaler.std[0] ** 2], [1, 2 / 3], rtol=1e-5)
    values = np.array([[0.0], [1.0], [np.e**3]], np.float32)
    scaler = ExpressionScaler.fit(values, "log_nonzero")  # logarithms 0, 0, 3
    np.testing.assert_allclose([scaler.mean[0], scaler.std[0] ** 2], [1, 2], rtol=1e-5)


@pytest.mark.parametrize("transform", ["log1p", "log_nonzero"])
def test_scaler_standardises_and_its_inverse_gives_the_expression_back(transform):
    expression = np.random.default_rng(0).gamma(2, 30, (50, 4)).astype(np.float32)
    expression[:, 3] = 7  # a gene that does not vary
    scaler = ExpressionScaler.fit(expression, transform)
    scaled = scaler.transform(expression)
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(scaled[:, :3].std(axis=0), 1, rtol=1e-4)
    np.testing.assert_allclose(scaled[:, 3], 0, atol=1e-5)
    np.testing.assert_allclose(scaler.inverse(scaled), expression, rtol=1e-3)
    again = ExpressionScaler.from_checkpoint(scaler.to_checkpoint())
    np.testing.assert_array_equal(again.transform(expression), scaled)


def test_published_transform_ranks_zero_with_one_and_log1p_does_not():
    values = np.array([[0.0], [1.0], [5.0]], np.float32)
    published = ExpressionScaler.fit(values, "log_nonzero").transform(values)
    ours = ExpressionScaler.fit(values, "log1p").transform(values)
    assert published[0] == published[1]
    assert ours[0] < ours[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wsi_file_name,rna_a,rna_a\nx,1,2\n", "rna_a appears more than once"),
        ("wsi_file_name,rna_a\nx,1\n,2\n", "row 2 has no wsi_file_name"),
    ],
)
def test_a_repeated_gene_and_a_row_without_name_are_named(tmp_path, text, message):
    path = tmp_path / "lung.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_expression_table(path)


@pytest.mark.parametrize("text", ["", "donor,partition\nD-1,train\nD-1,test\n", "a,b\n1,2,3,4\n"])
def test_a_spoilt_split_is_refused(tmp_path, text):
    path = tmp_path / "split.csv"
    path.write_text(text)
    with pytest.raises(UserError, match="not a donor split"):
        load_split(path, ["D-1"], 1)


def test_a_text_file_is_no_checkpoint(tmp_path):
    path = tmp_path / "notes.pt"
    path.write_text("hello, this is not a checkpoint\n")
    with pytest.raises(UserError, match="not a checkpoint"):
        load_checkpoint(path, "gan")
