"""The pairs that `fid.py --table` compares, as a JSON file of that script's options."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from runtime.errors import UserError


class Pair(BaseModel):
    """Two tile sets, named by the options of fid.py of the same names."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    config: str | None = Field(default=None, description="JSON config of set 1")
    config2: str | None = Field(default=None, description="of patient 2 or of real set 2")
    checkpoint: str | None = Field(default=None, description=".model of a GAN or RNA-GAN")
    checkpoint2: str | None = Field(default=None, description="second .model")
    real: bool = Field(default=False, description="compare real with real tiles")
    images: str | None = Field(default=None, description="folder or zip of images as set 1")
    images2: str | None = Field(default=None, description="folder or zip of images as set 2")
    patient1: str | None = Field(default=None, description="slide of set 1")
    patient2: str | None = Field(default=None, description="slide of set 2")
    vae_checkpoint: str | None = Field(default=None, description="betaVAE of an RNA-GAN")


class PairTable(BaseModel):
    """configs/fid_table.json."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    pairs: list[Pair] = Field(min_length=1, description="in the order of the table")


def check_pair(pair: Pair) -> None:
    """Raise a UserError unless the options name one pair."""
    if pair.real and (pair.checkpoint or pair.checkpoint2 or pair.images or pair.images2):
        raise UserError("--real compares real with real tiles; leave --checkpoint and --images out")
    if not (pair.real or pair.checkpoint or pair.images2):
        raise UserError("name --checkpoint (one or two models), --images2, or --real for two sets")
    if pair.images2 and pair.checkpoint:
        raise UserError("--images2 stands in place of a model; leave --checkpoint out")
    if pair.images and pair.checkpoint2:
        raise UserError("--images is set 1, and so is a --checkpoint beside --checkpoint2")
    if not pair.config and (pair.real or not (pair.images or pair.checkpoint2)):
        raise UserError("name the --config of the real tiles")
