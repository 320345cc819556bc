"""The tiles and profiles of one config: its expression tables and its tile folders."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.expression import ExpressionTable, read_cohort
from data.tile_sets import StoredTiles, TileSet, stored_set
from data.tiles import find_tile_stores, open_tile_store
from runtime.errors import UserError


class Profiles(NamedTuple):
    """Profiles to generate from: expression float32 (P, G), genes (G), tissue of each, origin."""

    expression: np.ndarray
    genes: Sequence[str]
    tissues: Sequence[str]
    origin: str


class Cohort:
    """Expression tables and real tiles of one config; both read when first asked for.

    Args:
        where: the config's file, for errors.
        path_csv, patch_data_path: its tables and tile folders.
    """

    def __init__(self, where: str, path_csv: list[str], patch_data_path: list[str]) -> None:
        self.where, self.path_csv, self.patch_data_path = where, path_csv, patch_data_path

    @functools.cached_property
    def table(self) -> ExpressionTable:
        """All tables as one."""
        return read_cohort(self.path_csv)

    @property
    def tissue(self) -> str:
        """The tissues, joined by +."""
        return "+".join(dict.fromkeys(self.table.annotations["tissue"].astype(str)))

    def rows_of(self, patient: str | None) -> list[int]:
        """Return the table row of a slide, or all rows."""
        if patient is None:
            return list(range(len(self.table)))
        return [self.table.row_of(patient, ", ".join(self.path_csv))]

    def profiles(self, patient: str | None) -> Profiles:
        """Return the profile of one slide, or all."""
        rows = self.rows_of(patient)
        tissues = self.table.annotations["tissue"].astype(str)
        return Profiles(
            self.table.expression[rows],
            self.table.genes,
            [tissues[row] for row in rows],
            patient or f"drawn from all {len(rows)}",
        )

    def store_paths(self, patient: str | None = None) -> dict[str, Path]:
        """Return the tile store of one slide, or of every slide that has one."""
        names = [self.table.names[row] for row in self.rows_of(patient)]
        return find_tile_stores(self.patch_data_path, names)

    def stores(self, image_px: int | None, patient: str | None = None) -> list[StoredTiles]:
        """Return the opened tile stores; a UserError when there is none."""
        found = self.store_paths(patient)
        if not found:
            folders = ", ".join(self.patch_data_path) or "no folder (patch_data_path)"
            whose = patient or "any slide of path_csv"
            raise UserError(f"{self.where}: no tile store of {whose} under {folders}")
        donors = dict(zip(self.table.names, self.table.donors, strict=True))
        tissues = dict(zip(self.table.names, self.table.annotations["tissue"], strict=True))
        return [
            StoredTiles(open_tile_store(path), name, donors[name], image_px, str(tissues[name]))
            for name, path in found.items()
        ]

    def real_set(
        self, patient: str | None, image_px: int | None, size: int, draws: int, seed: int
    ) -> TileSet:
        """Return real tiles of a slide or of the tissue, drawn at random over all slides."""
        sources = self.stores(image_px, patient)
        facts = {
            "kind": "real",
            "tissue": self.tissue,
            "patient": patient,
            "slides": len(sources),
            "donors": len({source.donor for source in sources}),
        }
        label = f"real {self.tissue}" + (f" {patient}" if patient else "")
        return stored_set(label, sources, size, draws, seed, facts)
