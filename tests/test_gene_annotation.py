"""Which gene an id stands for: versions, the Y copies, symbols, Entrez ids, and double names."""

import gzip

import pytest

from data.gene_annotation import GeneIds, GeneTargets, read_gene_map, read_gtf, unversioned
from runtime.errors import UserError

A, B, C, D = (f"ENSG0000000000{number}" for number in range(1, 5))


def gtf_line(gene, name, kind="protein_coding", feature="gene", key="gene_type"):
    facts = f'gene_id "{gene}"; {key} "{kind}"; gene_name "{name}"; level 2;'
    return f"chr1\tHAVANA\t{feature}\t1\t9\t.\t+\t.\t{facts}\n"


GTF = "##format: gtf\n" + "".join(
    [
        gtf_line(f"{A}.4", "ONE"),
        gtf_line(f"{A}.4", "ONE", feature="transcript"),
        gtf_line(f"{B}.1", "TWICE", "lncRNA"),
        gtf_line(f"{C}.2", "TWICE"),
        gtf_line(f"{D}.7", "TWICE"),
        gtf_line(f"{A}.4_PAR_Y", "ONE"),
    ]
)


@pytest.mark.parametrize("pack", [lambda text: text, gzip.compress], ids=["plain", "gz"])
def test_gtf_gives_protein_coding_genes_once_and_what_symbols_stand_for(tmp_path, pack):
    (tmp_path / "genes.gtf").write_bytes(pack(GTF.encode()))
    gtf = read_gtf(tmp_path / "genes.gtf")
    assert gtf.protein_coding == [f"{A}.4", f"{C}.2", f"{D}.7"]
    # Protein-coding ones come first, then the order of the file.
    assert gtf.ensembl_of == {"ONE": [f"{A}.4"], "TWICE": [f"{C}.2", f"{D}.7", f"{B}.1"]}


def test_gtf_of_ensembl_is_read_too(tmp_path):
    (tmp_path / "genes.gtf").write_text(gtf_line(A, "ONE", key="gene_biotype"))
    assert read_gtf(tmp_path / "genes.gtf").protein_coding == [A]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no line of a gene"),
        (b"a,b\n1,2\n", "no line of a gene"),
        (gtf_line("", "x").replace("gene_id", "id").encode(), "a gene without gene_id"),
        (gzip.compress(GTF.encode() * 99)[:-30], "cannot be read as a GTF"),
    ],
)
def test_bad_gtf_is_named(tmp_path, content, message):
    (tmp_path / "genes.gtf").write_bytes(content)
    with pytest.raises(UserError, match=f"genes.gtf: .*{message}"):
        read_gtf(tmp_path / "genes.gtf")


def test_copies_on_the_y_chromosome_are_the_same_gene():
    same = ["ENSG00000182378", "ENSG00000182378.13_PAR_Y", "rna_ENSG00000182378.9"]
    assert {unversioned(gene) for gene in [*same, "ENSGR0000182378.8"]} == {"ENSG00000182378"}


@pytest.mark.parametrize(
    ("text", "genes"),
    [
        (f"{A}.5", [f"{A}.5"]),
        (f"rna_{A}", [A]),
        ("TP53", [B]),
        ("rna_TP53", [B]),
        ("7157", [B]),
        ("rna_entrez7157", [B]),
        ("entrez:7157", [B]),
        ("rna_other", ["other"]),
        ("other", []),
        ("tp53", []),
    ],
)
def test_ids_stand_for_genes(text, genes):
    assert list(GeneIds({"TP53": [B], "7157": [B]}).genes_of(text)) == genes


def test_symbol_of_several_genes_stands_for_the_first_wanted_one():
    ids = GeneIds({"TWICE": [C, D], "THRICE": [B, C, D]})
    targets = GeneTargets(ids, [D, f"{C}.3", A])
    assert [targets.take(text) for text in ("TWICE", "THRICE", f"{D}.1", "none", B)] == [
        1, 1, 0, None, None,
    ]  # fmt: skip
    match = targets.match()
    assert (match.matched, match.missing) == ([D, f"{C}.3"], [A])
    assert match.ambiguous == ["TWICE", "THRICE"]
    assert (match.duplicated, match.unknown) == (["THRICE"], ["none"])


def test_gene_map_of_two_columns_is_read_in_any_order(tmp_path):
    (tmp_path / "a.csv").write_text(f"symbol,ensembl_id\nONE,{A}\nTWICE,{C}\nTWICE,{D}\nNONE,\n")
    (tmp_path / "b.tsv").write_text(f"gene\tname\n{A}\tONE\n{C}\tTWICE\n{D}\tTWICE\n")
    expected = {"ONE": [A], "TWICE": [C, D]}
    assert read_gene_map(tmp_path / "a.csv") == read_gene_map(tmp_path / "b.tsv") == expected


def test_gene_map_of_more_columns_needs_their_names(tmp_path):
    path = tmp_path / "map.tsv"
    path.write_text(f"entrez\tsymbol\tensembl\n7157\tTP53\t{A}\n")
    with pytest.raises(UserError, match="map.tsv: 3 columns; name the one"):
        read_gene_map(path)
    assert read_gene_map(path, ["entrez", "ensembl"]) == {"7157": [A]}
    with pytest.raises(UserError, match="map.tsv: no column geneid"):
        read_gene_map(path, ["geneid", "ensembl"])
    with pytest.raises(UserError, match="no Ensembl gene ids in column symbol"):
        read_gene_map(path, ["entrez", "symbol"])
