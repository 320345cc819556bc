import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.expression import read_expression_table
from data.gene_annotation import GeneIds, is_gene, read_gene_list, unversioned
from data.plain_tables import PlainFile
from data.sample_attributes import pair_slides
from data.units import ValueFacts, guess_unit
from prepare_expression import main
from runtime.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
GENES = [f"ENSG9000000000{number}" for number in range(5)]
VERSIONED = [f"{gene}.{number + 1}" for number, gene in enumerate(GENES)]
SAMPLES = [f"SIM-000{number}-0626-SM-LUN01" for number in (1, 2, 3)]
COUNTS = np.array([[10, 0, 30, 40, 20], [5, 5, 5, 5, 80], [1, 2, 3, 4, 0]])


def genes_in_rows(path, counts=COUNTS, genes=VERSIONED, samples=SAMPLES, sep=","):
    frame = pd.DataFrame(counts.T, columns=samples)
    frame.insert(0, "gene_id", genes)
    frame.to_csv(path, index=False, sep=sep)
    return path


def genes_in_columns(path, counts=COUNTS, genes=GENES, samples=SAMPLES):
    pd.DataFrame(counts, index=samples, columns=genes).to_csv(path, index_label="sample")
    return path


def prepare(tmp_path, *arguments, output="out.csv"):
    assert not main([*map(str, arguments), "--output", str(tmp_path / output)])
    return read_expression_table(tmp_path / output)


def cpm(counts):
    return counts / counts.sum(axis=1, keepdims=True) * 1e6


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".tsv"])
def test_genes_in_rows_become_columns_in_counts_per_million(tmp_path, suffix):
    sep = "\t" if suffix == ".tsv" else ","
    path = genes_in_rows(tmp_path / f"counts{suffix}", sep=sep)
    table = prepare(tmp_path, "--input", path)
    assert table.names == SAMPLES
    assert table.genes == VERSIONED
    assert table.expression == pytest.approx(cpm(COUNTS), rel=1e-5)


def test_both_orientations_give_the_same_table(tmp_path):
    one = prepare(tmp_path, "--input", genes_in_rows(tmp_path / "a.csv", genes=GENES))
    other = prepare(tmp_path, "--input", genes_in_columns(tmp_path / "b.csv"), output="2.csv")
    assert (one.names, one.genes) == (other.names, other.genes)
    assert np.array_equal(one.expression, other.expression)


def test_tpm_are_kept_and_counts_can_be(tmp_path):
    tpm = cpm(COUNTS + 0.123)
    table = prepare(tmp_path, "--input", genes_in_columns(tmp_path / "a.csv", tpm))
    assert table.expression == pytest.approx(tpm, rel=1e-5)
    path = genes_in_columns(tmp_path / "b.csv")
    raw = prepare(tmp_path, "--input", path, "--normalize", "none", output="raw.csv")
    assert np.array_equal(raw.expression, COUNTS)


def test_unit_is_told_from_the_values():
    tables = {
        "counts": (COUNTS, COUNTS * 1e5 + 0.5),
        "tpm": (cpm(COUNTS + 0.123),),
        "log": (np.log2(COUNTS + 1),),
        "mixed": (np.concatenate([COUNTS, cpm(COUNTS + 0.123)]),),
    }
    for unit, values in tables.items():
        assert [guess_unit(ValueFacts.of(part)) for part in values] == [unit] * len(values)
    # Counts per million of a shallow sample are whole numbers, and no counts for that.
    shallow = np.array([[300, 700, 0], [333, 1, 0]])
    assert guess_unit(ValueFacts.of(cpm(shallow))) == "tpm"


def test_facts_of_parts_are_the_facts_of_the_whole():
    values = np.concatenate([COUNTS * 6, COUNTS + 0.5, 0 * COUNTS])
    whole = ValueFacts.of(values)
    assert whole.divisor.tolist() == [60, 30, 6, 0, 0, 0, 0, 0, 0]
    by_genes = ValueFacts.of(values[:, :2]).and_genes(ValueFacts.of(values[:, 2:]))
    by_rows = ValueFacts.joined([ValueFacts.of(values[:4]), ValueFacts.of(values[4:])])
    for parts in (by_genes, by_rows):
        for fact, expected in zip(parts, whole, strict=True):
            np.testing.assert_array_equal(fact, expected)


def test_gene_list_fixes_set_and_order(tmp_path):
    wanted = [f"{GENES[3]}.77", "ENSG90000000099.1", GENES[0]]
    genes = tmp_path / "genes.txt"
    genes.write_text("\n".join(wanted) + "\n")
    path = genes_in_rows(tmp_path / "a.csv")
    table = prepare(tmp_path, "--input", path, "--genes", genes)
    assert table.genes == wanted
    # Counts per million are over all genes of the input.
    expected = np.stack([cpm(COUNTS)[:, 3], np.zeros(3), cpm(COUNTS)[:, 0]], axis=1)
    assert table.expression == pytest.approx(expected, rel=1e-5)
    entry = json.loads((tmp_path / "out.manifest.json").read_text())["inputs"][0]
    assert (entry["matched"], entry["missing"]) == (2, ["ENSG90000000099.1"])


def test_too_few_matched_genes_fail(tmp_path):
    genes = tmp_path / "genes.txt"
    genes.write_text("\n".join([GENES[0], *(f"ENSG9100000000{n}" for n in range(4))]))
    arguments = ["--input", str(genes_in_rows(tmp_path / "a.csv")), "--genes", str(genes)]
    with pytest.raises(UserError, match="holds 1 of the 5 genes.*--min_matched 0.5"):
        main([*arguments, "--output", str(tmp_path / "out.csv")])
    assert not (tmp_path / "out.csv").exists()
    assert len(prepare(tmp_path, *arguments, "--min_matched", "0.2").genes) == 5


def test_columns_of_the_same_gene_are_summed(tmp_path):
    genes = [GENES[0] + ".1", GENES[0] + ".1_PAR_Y", GENES[0] + ".2", *GENES[1:3]]
    path = genes_in_rows(tmp_path / "a.csv", genes=genes)
    table = prepare(tmp_path, "--input", path)
    assert table.genes == [GENES[0] + ".1", *GENES[1:3]]
    assert table.expression[:, 0] == pytest.approx(cpm(COUNTS)[:, :3].sum(axis=1), rel=1e-5)
    entry = json.loads((tmp_path / "out.manifest.json").read_text())["inputs"][0]
    assert entry["duplicated"] == genes[1:3]


def test_samples_are_paired_with_slides_by_donor_and_block(tmp_path):
    slides = tmp_path / "slides"
    slides.mkdir()
    for name in ("SIM-0001-0625.svs", "SIM-0003-0625.svs", "SIM-0002-0627.svs", "note.txt"):
        (slides / name).touch()
    path = genes_in_rows(tmp_path / "a.csv")
    table = prepare(tmp_path, "--input", path, "--slides", slides, "--tissue", "lung")
    assert table.names == ["SIM-0001-0625.svs", SAMPLES[1], "SIM-0003-0625.svs"]
    assert table.annotations["sample"].tolist() == SAMPLES
    assert table.annotations["tissue"].tolist() == ["lung"] * 3


def test_pairing_rule_case_by_case():
    slides = ["GTEX-1117F-3225.svs", "GTEX-1117F-0225.svs", "HER2ST_B4.svs"]
    names = ["GTEX-1117F-3226-SM-5N9CT", "GTEX-1117F-3226-SM-OTHER", "GTEX-1117F-0226-SM-5GZZ7"]
    assert pair_slides(names, slides) == [slides[0], None, slides[1]]
    assert pair_slides(["GTEX-1117F-3225.svs", "HER2ST_B4", "x"], slides) == [
        slides[0],
        slides[2],
        None,
    ]


def test_no_pair_at_all_is_a_mistake(tmp_path):
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "OTHER-1-0001.svs").touch()
    path = genes_in_rows(tmp_path / "a.csv")
    with pytest.raises(UserError, match="none of its 1 slides belongs to a sample"):
        prepare(tmp_path, "--input", path, "--slides", tmp_path / "slides")


def test_several_tables_are_joined_over_their_common_genes(tmp_path):
    one = genes_in_rows(tmp_path / "a.csv")
    other = genes_in_columns(tmp_path / "b.csv", COUNTS[:, 1:], GENES[1:], ["x", "y", "z"])
    table = prepare(tmp_path, "--input", one, other)
    assert table.names == [*SAMPLES, "x", "y", "z"]
    assert table.genes == VERSIONED[1:]


def test_prepared_form_is_accepted_with_its_annotations(tmp_path):
    frame = pd.DataFrame(COUNTS, columns=[f"rna_{gene}" for gene in GENES])
    frame.insert(0, "n_tiles", [3, 7, 9])
    frame.insert(0, "wsi_file_name", ["a", "b", "c"])
    frame.to_csv(tmp_path / "a.csv", index=False)
    table = prepare(tmp_path, "--input", tmp_path / "a.csv")
    assert table.names == ["a", "b", "c"]
    assert table.annotations.n_tiles.tolist() == [3, 7, 9]
    again = prepare(tmp_path, "--input", tmp_path / "out.csv", output="again.csv")
    assert again.expression == pytest.approx(table.expression, rel=1e-5)


def test_columns_and_rows_that_are_no_samples_and_no_genes_are_left_out(tmp_path):
    frame = pd.read_csv(genes_in_rows(tmp_path / "a.csv"))
    frame.insert(1, "Description", list("abcde"))
    frame.insert(2, "Length", 1000)
    frame.loc[5] = ["__no_feature", "", 0, 9, 9, 9]
    frame.to_csv(tmp_path / "a.csv", index=False)
    file = PlainFile(tmp_path / "a.csv", GeneIds())
    assert file.gene_ids() == VERSIONED
    table = file.read(VERSIONED)
    assert table.names == SAMPLES
    assert table.genes_in_table == len(GENES)
    assert table.ignored == ["Description", "Length", "__no_feature"]


def test_row_names_as_r_writes_them_are_read(tmp_path):
    lines = ["\t".join(SAMPLES)]
    lines += [
        f"{gene}\t" + "\t".join(map(str, row)) for gene, row in zip(GENES, COUNTS.T, strict=True)
    ]
    (tmp_path / "a.tsv").write_text("\n".join(lines))
    file = PlainFile(tmp_path / "a.tsv", GeneIds())
    table = file.read(GENES)
    assert (table.names, file.gene_ids()) == (SAMPLES, GENES)
    assert np.array_equal(table.values, COUNTS)


def test_gct_header_lines_are_skipped(tmp_path):
    body = genes_in_rows(tmp_path / "a.csv", sep="\t").read_text()
    (tmp_path / "a.gct").write_text("#1.2\n5\t3\n" + body)
    assert PlainFile(tmp_path / "a.gct", GeneIds()).read(GENES).names == SAMPLES


def test_gene_ids_are_recognised_and_stripped():
    assert all(map(is_gene, ["ENSG00000182378", "ENSMUSG00000000001.4", "rna_entrez9496"]))
    assert not any(map(is_gene, ["TP53", "ENST00000182378", "GTEX-1117F", 3, None]))
    assert unversioned("rna_ENSG00000182378.13_PAR_Y") == "ENSG00000182378"
    assert unversioned("ENSG00000182378") == "ENSG00000182378"


@pytest.mark.parametrize(
    "text",
    [
        "{0}\n{1}\n",
        "gene_id,name\n{0},a\n{1},b\n",
        '"{0}"\n"{1}"\n',
        "wsi_file_name,rna_{0},rna_{1}\nx,1,2",
    ],
)
def test_gene_list_comes_in_several_forms(tmp_path, text):
    (tmp_path / "genes.csv").write_text(text.format(*VERSIONED))
    assert read_gene_list(tmp_path / "genes.csv") == VERSIONED[:2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no gene ids"),
        ("TP53\nEGFR\n", "no gene ids"),
        (f"{GENES[0]}.1\n{GENES[0]}.2", "more than once"),
    ],
)
def test_bad_gene_list_is_named(tmp_path, text, message):
    (tmp_path / "genes.txt").write_text(text)
    with pytest.raises(UserError, match=f"genes.txt: .*{message}"):
        read_gene_list(tmp_path / "genes.txt")


def test_same_command_again_repeats_nothing_and_another_needs_overwrite(tmp_path):
    path = genes_in_rows(tmp_path / "a.csv")
    prepare(tmp_path, "--input", path)
    written = (tmp_path / "out.csv").stat().st_mtime_ns
    prepare(tmp_path, "--input", path)
    assert (tmp_path / "out.csv").stat().st_mtime_ns == written
    with pytest.raises(UserError, match="--overwrite"):
        prepare(tmp_path, "--input", path, "--normalize", "none")
    genes_in_rows(path, COUNTS + 1)
    with pytest.raises(UserError, match="--overwrite"):
        prepare(tmp_path, "--input", path)
    assert prepare(tmp_path, "--input", path, "--overwrite").expression.min() > 0


def bad_tables(folder):
    """Return what is wrong, the table's file and what the message must hold."""
    frame = pd.read_csv(genes_in_rows(folder / "good.csv"))
    content = gzip.compress(frame.to_csv(index=False).encode() * 50)
    (folder / "short.csv.gz").write_bytes(content[: len(content) // 2])
    (folder / "none.csv").write_text("")
    (folder / "header.csv").write_text("gene_id," + ",".join(SAMPLES) + "\n")
    (folder / "symbols.csv").write_text("gene,a,b\nTP53,1,2\nEGFR,3,4\n")
    (folder / "ids_only.csv").write_text("\n".join(["gene_id", *GENES]))
    (folder / "twice.csv").write_text(f"gene_id,a,a\n{GENES[0]},1,2\n")
    (folder / "twice_row.csv").write_text(f"sample,{GENES[0]}\na,1\na,2\n")
    (folder / "unnamed.csv").write_text(f"sample,{GENES[0]}\na,1\n,2\n")
    (folder / "text.csv").write_text(f"sample,{GENES[0]}\na,1\nb,many\n")
    rows = f"{GENES[0]},1,2\n{GENES[1]},3,many\n{GENES[2]},4,4\n"
    (folder / "text_rows.csv").write_text(f"gene_id,a,b\n{rows}")
    (folder / "empty_cell.csv").write_text(f"sample,{GENES[0]},{GENES[1]}\na,1,2\nb,,3\n")
    (folder / "negative.csv").write_text(f"sample,{GENES[0]}\na,1\nb,-2\n")
    (folder / "infinite.csv").write_text(f"sample,{GENES[0]}\na,1\nb,inf\n")
    (folder / "zeros.csv").write_text(f"sample,{GENES[0]}\na,1\nb,0\n")
    (folder / "log.csv").write_text(f"sample,{GENES[0]},{GENES[1]}\na,1.5,12.25\nb,3.125,0\n")
    (folder / "binary.csv").write_bytes(bytes(range(256)))
    return {
        "missing.csv": "expression table not found",
        "short.csv.gz": "cannot be read as a table",
        "none.csv": "cannot be read as a table|no rows",
        "header.csv": "no rows",
        "symbols.csv": "no gene ids",
        "ids_only.csv": "no column of numbers",
        "twice.csv": "column a appears more than once",
        "twice_row.csv": "sample a appears more than once",
        "unnamed.csv": "sample 2 has no name",
        "text.csv": "b, ENSG90000000000: 'many' is not a number",
        "text_rows.csv": "ENSG90000000001, b: 'many' is not a number",
        "empty_cell.csv": "b, gene ENSG90000000000: nan is not an expression value",
        "negative.csv": "b, gene ENSG90000000000: -2 is not an expression value",
        "infinite.csv": "inf is not an expression value",
        "zeros.csv": "sample b is 0 in all genes",
        "log.csv": "looks like logarithms",
        "binary.csv": "cannot be read as a table",
    }


def test_every_bad_table_ends_in_one_line_that_names_it(tmp_path):
    for name, message in bad_tables(tmp_path).items():
        arguments = ["--input", str(tmp_path / name), "--output", str(tmp_path / "o" / "out.csv")]
        with pytest.raises(UserError, match=message) as caught:
            main(arguments)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "out.txt"], "a name that ends in .csv"),
        (["--output", "out.csv", "--genes", "no.txt"], "no.txt: gene list not found"),
        (["--output", "out.csv", "--slides", "no"], "no: slide folder not found"),
        (["--output", "out.csv", "--min_matched", "2"], "--min_matched 2"),
        (["--output", "out.csv", "--orientation", "genes_in_columns"], "no gene ids in the header"),
    ],
)
def test_mistake_in_an_option_is_named(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    genes_in_rows(tmp_path / "a.csv")
    with pytest.raises(UserError, match=message):
        main(["--input", "a.csv", *arguments])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv"]


def test_process_ends_with_code_2_and_one_line(tmp_path):
    options = ["--input", "no.csv", "--output", str(tmp_path / "o.csv")]
    answer = subprocess.run(
        [sys.executable, "prepare_expression.py", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 2
    assert answer.stderr == "prepare_expression.py: error: no.csv: expression table not found\n"
    assert not list(tmp_path.iterdir())
