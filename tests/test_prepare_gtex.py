"""GTEx and GEO as they are downloaded, through the whole script and through processes."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.expression import read_expression_table
from data.expression_cache import CACHE_FOLDER
from data.sample_attributes import read_tissues, slide_names
from prepare_expression import main
from runtime.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
GENES = [f"ENSG{number:011d}" for number in range(1, 41)]
SYMBOLS = [f"SYM{number}" for number in range(1, 41)]
SAMPLES = [f"GTEX-{number:04d}-{number % 3 * 100 + 226:04d}-SM-5GZXO" for number in range(60)]
TISSUES = ["Lung", "Brain - Cortex", "Brain - Cerebellum"]
DRAW = np.random.default_rng(0)
TPM = DRAW.gamma(0.7, 100, (60, 40)).round(3)
TPM = TPM / TPM.sum(axis=1, keepdims=True) * 1e6


@pytest.fixture
def gtex(tmp_path, monkeypatch):
    """Return a folder, made the current one, as GTEx's portal fills it."""
    monkeypatch.chdir(tmp_path)
    versioned = [f"{gene}.{number % 9 + 1}" for number, gene in enumerate(GENES)]
    frame = pd.DataFrame(TPM.T, columns=SAMPLES)
    frame.insert(0, "Description", SYMBOLS)
    frame.insert(0, "Name", versioned)
    # The Y copy of the first gene, as GENCODE 26 names it.
    frame.loc[len(frame)] = [f"{versioned[0]}_PAR_Y", SYMBOLS[0], *[1.0] * 60]
    text = frame.to_csv(sep="\t", index=False)
    with gzip.open("tpm.gct.gz", "wt") as handle:
        handle.write(f"#1.2\n{len(frame)}\t60\n{text}")
    rows = ["SAMPID\tSMATSSCR\tSMTS\tSMTSD\tSMAFRZE"]
    for number, sample in enumerate(SAMPLES):
        tissue = TISSUES[number % 3]
        rows.append(f"{sample}\t\t{tissue.split(' ')[0]}\t{tissue}\tRNASEQ")
    rows += ["GTEX-9999-0226-SM-XXXXX\t1\tLung\tLung\tRNASEQ", "GTEX-0000-0003\t\tBlood\tLung\tWGS"]
    Path("attributes.txt").write_text("\n".join(rows) + "\n")
    lines = [
        f'chr1\tX\tgene\t1\t2\t.\t+\t.\tgene_id "{gene}"; gene_type "{kind}"; gene_name "{name}";'
        for gene, name, kind in zip(
            versioned, SYMBOLS, ["protein_coding"] * 30 + ["lncRNA"] * 10, strict=True
        )
    ]
    Path("genes.gtf").write_text("\n".join(lines))
    slides = [f"{'-'.join(name.split('-')[:2])}-0225.svs" for name in SAMPLES[:30:3]]
    Path("slides.txt").write_text("\n".join(["Tissue Sample ID", *slides[:5]]))
    return tmp_path


def prepare(*arguments, output="out.csv"):
    assert not main([*map(str, arguments), "--output", output])
    manifest = json.loads(Path(output).with_suffix(".manifest.json").read_text())
    return read_expression_table(output), manifest


GCT = ["--input", "tpm.gct.gz", "--attributes", "attributes.txt"]


def test_lung_of_gtex_with_its_slides_and_protein_coding_genes(gtex):
    table, manifest = prepare(
        *GCT, "--tissue", "Lung", "--gtf", "genes.gtf", "--slides", "slides.txt"
    )
    assert table.annotations["sample"].tolist() == SAMPLES[::3]
    assert table.names[:6] == [f"GTEX-{k:04d}-0225.svs" for k in range(0, 15, 3)] + [SAMPLES[15]]
    assert set(table.annotations.tissue) == {"Lung"}
    assert table.genes == [f"{gene}.{k % 9 + 1}" for k, gene in enumerate(GENES[:30])]
    expected = TPM[::3, :30].copy()
    expected[:, 0] += 1  # the Y copy
    np.testing.assert_allclose(table.expression, expected, rtol=1e-5)
    assert manifest["rows_with_a_slide"] == 5
    assert manifest["rows_per_tissue"] == {"Lung": 20}
    (entry,) = manifest["inputs"]
    assert (entry["unit"], entry["genes_in_table"], entry["matched"]) == ("tpm", 41, 30)
    assert entry["duplicated"] == [f"{GENES[0]}.1_PAR_Y"]
    assert entry["ignored"] == ["Description"]
    assert set(manifest["other_sources"]) == {"genes.gtf", "attributes.txt"}


@pytest.mark.parametrize(
    ("tissue", "count"),
    [("brain - cortex", 20), ("Brain", 40), (None, 60)],
    ids=["tissue", "group", "all"],
)
def test_tissue_is_taken_by_its_own_name_or_by_its_group(gtex, tissue, count):
    table, _ = prepare(*GCT, *(["--tissue", tissue] if tissue else []))
    assert len(table) == count
    if tissue is None:
        assert table.annotations.tissue.tolist() == TISSUES * 20


def test_path_may_be_written_in_any_way(gtex):
    _, manifest = prepare("--input", "./tpm.gct.gz", "--attributes", ".//attributes.txt")
    assert len(manifest["inputs"][0]["sha256"]) == 64


def test_later_stages_find_the_values_parsed(gtex):
    table, _ = prepare(*GCT, "--tissue", "Lung")
    assert len(list(Path(CACHE_FOLDER).glob("out.csv.*.npy"))) == 1
    assert isinstance(table.expression, np.memmap)


def test_counts_per_million_are_over_all_genes_of_the_gct(gtex):
    frame = pd.DataFrame(DRAW.poisson(50, (40, 3)), columns=["a", "b", "c"])
    frame.insert(0, "Description", SYMBOLS)
    frame.insert(0, "Name", GENES)
    Path("counts.gct").write_text("#1.2\n40\t3\n" + frame.to_csv(sep="\t", index=False))
    table, _ = prepare("--input", "counts.gct", "--gtf", "genes.gtf")
    counts = frame[["a", "b", "c"]].to_numpy().T
    expected = counts[:, :30] / counts.sum(axis=1, keepdims=True) * 1e6
    np.testing.assert_allclose(table.expression, expected, rtol=1e-5)


@pytest.mark.parametrize("orientation", ["genes_in_rows", "genes_in_columns"])
@pytest.mark.parametrize("kind", ["symbols", "entrez", "rna_entrez"])
def test_symbols_and_entrez_ids_become_ensembl_ids(gtex, orientation, kind):
    entrez = [str(9000 + number) for number in range(40)]
    pd.DataFrame({"entrez": entrez, "gene": GENES}).to_csv("map.csv", index=False)
    names = {"symbols": SYMBOLS, "entrez": entrez, "rna_entrez": [f"rna_entrez{e}" for e in entrez]}
    frame = pd.DataFrame(TPM[:5], index=list("abcde"), columns=names[kind])
    frame["notagene"] = 7.0
    frame = frame.T if orientation == "genes_in_rows" else frame
    frame.to_csv("series.tsv", sep="\t")
    mapping = ["--gtf", "genes.gtf"] if kind == "symbols" else ["--gene_map", "map.csv"]
    table, manifest = prepare("--input", "series.tsv", *mapping)
    wanted = 30 if kind == "symbols" else 40
    assert [gene.split(".")[0] for gene in table.genes] == GENES[:wanted]
    np.testing.assert_allclose(table.expression, TPM[:5, :wanted], rtol=1e-5)
    assert manifest["inputs"][0]["orientation"] == orientation
    assert manifest["inputs"][0]["unknown"] == ["notagene"]


@pytest.mark.parametrize("orientation", ["genes_in_rows", "genes_in_columns"])
def test_values_of_a_symbol_that_appears_twice_are_added(gtex, orientation):
    frame = pd.DataFrame(TPM[:3], index=list("abc"), columns=[*SYMBOLS[:39], SYMBOLS[0]])
    frame = frame.T if orientation == "genes_in_rows" else frame
    frame.to_csv("series.csv")
    table, manifest = prepare("--input", "series.csv", "--gtf", "genes.gtf")
    np.testing.assert_allclose(table.expression[:, 0], TPM[:3, [0, 39]].sum(axis=1), rtol=1e-5)
    assert manifest["inputs"][0]["duplicated"] == [SYMBOLS[0]]


def test_series_of_other_genes_are_brought_to_one_list(gtex):
    pd.DataFrame(TPM[:4, :35], index=list("abcd"), columns=GENES[:35]).to_csv("one.csv")
    pd.DataFrame(TPM[4:6, 5:].T, index=SYMBOLS[5:], columns=list("xy")).to_csv("two.csv")
    both = ["--input", "one.csv", "two.csv"]
    table, manifest = prepare(*both, "--gtf", "genes.gtf")
    assert table.annotations.series.tolist() == ["one"] * 4 + ["two"] * 2
    assert [entry["matched"] for entry in manifest["inputs"]] == [30, 25]
    np.testing.assert_allclose(table.expression[4:, 5:], TPM[4:6, 5:30], rtol=1e-5)
    assert not table.expression[4:, :5].any()
    assert manifest["zero_in_all_samples"] == []
    # Without a list: the genes of all.
    Path("map.csv").write_text(
        "symbol,gene\n" + "\n".join(f"{s},{g}" for s, g in zip(SYMBOLS, GENES, strict=True))
    )
    table, _ = prepare(*both, "--gene_map", "map.csv", output="common.csv")
    assert table.genes == GENES[5:35]


@pytest.mark.parametrize(
    ("unit", "logarithm"),
    [
        ("log2", lambda values: np.log2(values + 1e-3)),
        ("log2p1", lambda values: np.log2(values + 1)),
        ("log1p", np.log1p),
        ("log10p1", lambda values: np.log10(values + 1)),
    ],
)
def test_logarithms_are_undone_when_named_and_refused_when_not(gtex, unit, logarithm):
    pd.DataFrame(logarithm(TPM[:3]), index=list("abc"), columns=GENES).to_csv("log.csv")
    with pytest.raises(UserError, match="looks like logarithms.*--unit log2|not logged"):
        main(["--input", "log.csv", "--output", "out.csv"])
    table, _ = prepare("--input", "log.csv", "--unit", unit)
    np.testing.assert_allclose(table.expression, TPM[:3], rtol=1e-4, atol=2e-3)


def test_gene_that_is_zero_everywhere_is_named_and_too_many_are_a_mistake(gtex):
    silent = TPM[:5].copy()
    silent[:, [3, 7]] = 0
    pd.DataFrame(silent, index=list("abcde"), columns=GENES).to_csv("a.csv")
    _, manifest = prepare("--input", "a.csv")
    assert manifest["zero_in_all_samples"] == [GENES[3], GENES[7]]
    silent[:, :25] = 0
    pd.DataFrame(silent, index=list("abcde"), columns=GENES).to_csv("b.csv")
    with pytest.raises(UserError, match="b.csv: expresses 15 of the 40 genes"):
        main(["--input", "b.csv", "--output", "b_out.csv"])


def bad_inputs():
    """Write bad inputs; return the arguments and what the message must hold."""
    pd.DataFrame(TPM[:2], index=["a", "b"], columns=GENES).to_csv("tpm.csv")
    counts = DRAW.poisson(500, (2, 40))
    pd.DataFrame(counts, index=["c", "d"], columns=GENES).to_csv("counts.csv")
    pd.concat([pd.read_csv("tpm.csv"), pd.read_csv("counts.csv")]).to_csv("rows.csv", index=False)
    Path("short.gct.gz").write_bytes(Path("tpm.gct.gz").read_bytes()[:-300])
    text = gzip.decompress(Path("tpm.gct.gz").read_bytes()).decode()
    Path("twice.gct").write_text(text.replace(SAMPLES[1], SAMPLES[0]))
    Path("cut.gct").write_text(text[: len(text) // 2])
    Path("others.txt").write_text("SAMPID\tSMTSD\nelsewhere\tLung\n")
    Path("double.txt").write_text("SAMPID\tSMTSD\na\tLung\na\tLung\n")
    Path("empty.txt").write_text("")
    lung = ["--attributes", "attributes.txt", "--tissue", "Lung"]
    return {
        ("--input", "short.gct.gz", *lung): "short.gct.gz: cannot be read as a table",
        ("--input", "cut.gct", *lung): "cut.gct: row .* cells where the header has 62",
        ("--input", "twice.gct", *lung): f"twice.gct: column {SAMPLES[0]} appears more than once",
        ("--input", "tpm.csv", "counts.csv"): "counts.csv: unit counts, but tpm.csv has tpm",
        ("--input", "rows.csv"): "rows.csv: mixed units: c looks like counts, a like TPM",
        ("--input", "tpm.csv", "--unit", "log2"): "tpm.csv: a, gene .*: inf is not an expression",
        ("--input", "tpm.csv", "tpm.csv"): "row a appears more than once",
        (*GCT, "--tissue", "Lungs"): "attributes.txt: no sample of tissue 'Lungs'; did you mean",
        ("--input", "tpm.gct.gz", "--attributes", "no.txt"): "no.txt: table of sample attributes",
        ("--input", "tpm.gct.gz", "--attributes", "empty.txt"): "empty.txt: no rows",
        ("--input", "tpm.gct.gz", "--attributes", "others.txt"): "none of the wanted samples",
        ("--input", "tpm.gct.gz", "--attributes", "double.txt"): "double.txt: sample a appears",
        (*GCT, "--attributes_columns", "ID", "SMTSD"): "attributes.txt: no column ID",
        (*GCT, "--gtf", "attributes.txt"): "attributes.txt: no line of a gene",
        (*GCT, "--gene_map", "no.csv"): "no.csv: gene map not found",
        (*GCT, "--slides", "no"): "no: slide folder not found",
    }


def test_every_bad_input_is_one_line_and_leaves_nothing(gtex):
    for arguments, message in bad_inputs().items():
        with pytest.raises(UserError, match=message) as caught:
            main([*arguments, "--output", "made/out.csv"])
        assert "\n" not in str(caught.value)
        assert not Path("made").exists()


@pytest.mark.parametrize("number", [0, 4, 6])
def test_process_ends_with_code_2_on_bad_input(gtex, number):
    arguments, message = list(bad_inputs().items())[number]
    command = [sys.executable, ROOT / "prepare_expression.py", *arguments, "--output", "made/o.csv"]
    answer = subprocess.run(command, capture_output=True, text=True)
    lines = answer.stderr.splitlines()
    assert answer.returncode == 2
    assert "Traceback" not in answer.stderr
    assert lines[-1].startswith("prepare_expression.py: error: ")
    assert message.split(":")[0] in lines[-1]
    assert not Path("made").exists()


@pytest.mark.parametrize("step", ["write_expression_table", "read_expression_table"])
def test_same_command_continues_where_a_killed_one_was(gtex, step):
    code = (
        f"import os, sys, signal\nsys.path.insert(0, {str(ROOT)!r})\n"
        "import prepare_expression as script\n"
        f"script.{step} = lambda *given: os.kill(os.getpid(), signal.SIGKILL)\n"
        "script.main(sys.argv[1:])"
    )
    command = [*GCT, "--tissue", "Lung"]
    killed = subprocess.run([sys.executable, "-c", code, *command, "--output", "out.csv"])
    assert killed.returncode == -9
    table, _ = prepare(*command)
    np.testing.assert_allclose(table.expression, TPM[::3], rtol=1e-5, atol=1.01)


def test_tissue_of_one_sample_is_kept_and_named(gtex):
    Path("one.txt").write_text(f"SAMPID\tSMTSD\n{SAMPLES[7]}\tLung\n")
    table, manifest = prepare("--input", "tpm.gct.gz", "--attributes", "one.txt")
    assert (table.names, manifest["rows_per_tissue"]) == ([SAMPLES[7]], {"Lung": 1})


def test_samples_outside_the_rna_analysis_are_left_out(gtex):
    tissues = read_tissues("attributes.txt", "Lung")
    assert "GTEX-0000-0003" not in tissues
    assert len(tissues) == 21


def test_slides_are_named_by_a_folder_or_by_a_list(gtex):
    Path("slides").mkdir()
    for name in ("GTEX-1117F-3225.svs", "notes.txt", "B.ndpi"):
        (Path("slides") / name).touch()
    Path("list.csv").write_text("GTEX-1117F-3225,x\nslides/B.ndpi\n\n")
    assert slide_names("slides") == ["B.ndpi", "GTEX-1117F-3225.svs"]
    assert slide_names("list.csv") == ["GTEX-1117F-3225.svs", "B.ndpi"]
