"""Which samples are of which tissue, and which slide belongs to a sample."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path

from data.delimited import DelimitedFile, open_text, reading
from data.expression import donor_of
from data.tiles import SLIDE_SUFFIXES, slide_stem
from runtime.errors import UserError

SAMPLE_COLUMN, TISSUE_COLUMN = "SAMPID", "SMTSD"
# GTEx: the wider tissue (Brain), and which analysis a sample was taken into.
GROUP_COLUMN, ANALYSIS_COLUMN, RNA_ANALYSIS = "SMTS", "SMAFRZE", "RNASEQ"


def read_tissues(
    path: str | Path,
    tissue: str | None = None,
    sample_column: str = SAMPLE_COLUMN,
    tissue_column: str = TISSUE_COLUMN,
) -> dict[str, str]:
    """Return the tissue of each sample of an attributes table.

    Of a GTEx table only samples taken into the RNA-seq analysis (SMAFRZE) are returned, where it
    marks any. `tissue` is compared without regard to case, with `tissue_column` first and, where it
    is none of those, with SMTS (so "Brain" is all brain regions).

    Raises:
        UserError: missing file or column, a sample listed twice, or no such tissue.

    Source: GTEx_Analysis_v8_Annotations_SampleAttributesDD (SAMPID, SMTS, SMTSD, SMAFRZE).
    """
    table = DelimitedFile(path, "table of sample attributes")
    wanted = [sample_column, tissue_column]
    for column in wanted:
        if column not in table.header:
            raise UserError(
                f"{path}: no column {column} (its columns: {', '.join(table.header[:8])});"
                " --attributes_columns names those of sample and tissue"
            )
    wanted += [name for name in (GROUP_COLUMN, ANALYSIS_COLUMN) if name in table.header]
    columns = [table.header.index(name) for name in wanted]
    rows = [
        dict(zip(wanted, cells, strict=True))
        for block in table.blocks(columns, [])
        for cells in block.texts
    ]
    seen: set[str] = set()
    for row in rows:
        if row[sample_column] in seen:
            raise UserError(f"{path}: sample {row[sample_column]} appears more than once")
        seen.add(row[sample_column])
    if any(row.get(ANALYSIS_COLUMN) == RNA_ANALYSIS for row in rows):
        rows = [row for row in rows if row[ANALYSIS_COLUMN] == RNA_ANALYSIS]
    if tissue is None:
        return {row[sample_column]: row[tissue_column] for row in rows}
    for column in (tissue_column, GROUP_COLUMN):
        found = [row for row in rows if row.get(column, "").lower() == tissue.lower()]
        if found:
            return {row[sample_column]: row[column] for row in found}
    tissues = sorted({row[tissue_column] for row in rows})
    near = difflib.get_close_matches(tissue, tissues, 1, 0.4)
    raise UserError(
        f"{path}: no sample of tissue {tissue!r}; "
        + (f"did you mean {near[0]!r}?" if near else f"it has {', '.join(tissues[:8])}")
    )


def slide_names(path: str | Path) -> list[str]:
    """Return the names of slides: those in a folder, or the first column of a text list.

    A list's names without suffix are those of `.svs` files, as on the GTEx portal.

    Raises:
        UserError: neither folder nor file.
    """
    path = Path(path)
    if path.is_dir():
        return sorted(entry.name for entry in path.iterdir() if _is_slide(entry.name))
    if not path.is_file():
        raise UserError(f"{path}: slide folder not found, nor a list of slides")
    with reading(path, "list of slides"), open_text(path) as (text, _):
        cells = [line.replace("\t", ",").split(",")[0].strip().strip('"') for line in text]
    names = [Path(cell).name for cell in cells if cell]
    return [name if _is_slide(name) else f"{name}.svs" for name in names]


def _is_slide(name: str) -> bool:
    return Path(name).suffix.lower() in SLIDE_SUFFIXES


def pair_slides(names: Sequence[str], slides: Iterable[str]) -> list[str | None]:
    """Return the slide of each sample, or None: same donor, block number one below the aliquot's.

    `GTEX-1117F-3226-SM-5N9CT` belongs to the slide `GTEX-1117F-3225.svs`. A sample named as a slide
    is that slide's. Of several samples of a slide the first has it.

    Source: GTEx sample naming.
    """
    slide_of = {slide_stem(slide): slide for slide in slides}
    pairs: list[str | None] = []
    taken: set[str] = set()
    for name in names:
        fields = name.split("-")
        wanted = slide_stem(name)
        if wanted not in slide_of and len(fields) > 2 and fields[2].isdigit():
            block = str(int(fields[2]) - 1).zfill(len(fields[2]))
            wanted = f"{donor_of(name)}-{block}"
        slide = slide_of.get(wanted)
        pairs.append(None if slide is None or slide in taken else slide)
        taken.add(slide or "")
    return pairs
