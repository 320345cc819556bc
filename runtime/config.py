"""The JSON configs: one strict model per family, default < JSON < flag, errors in one line."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from runtime.errors import UserError
from runtime.files import read_json

PositiveInt = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
PowerOfTwoPx = Literal[32, 64, 128, 256]


class CohortConfig(BaseModel):
    """Keys that the betaVAE and the GAN configs share.

    `UNUSED` names the keys that are accepted because users' files hold them, yet change nothing,
    with what is used instead.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    UNUSED: ClassVar[dict[str, str]] = {}

    path_csv: list[str] = Field(min_length=1, description="expression tables, one per tissue")
    patch_data_path: list[str] = Field(
        default=[], description="tile folders, one per table of path_csv, in its order"
    )
    img_size: PowerOfTwoPx = Field(default=256, description="tile side, px; published: 256")
    max_patch_per_wsi: PositiveInt = Field(default=100, description="read by the published tiler")
    rna_features: PositiveInt = Field(default=19198, description="genes; published: 19,198")
    weights_decay: NonNegative = Field(default=0.0, description="L2 weight of Adam; published: 0")
    lr: PositiveFloat = Field(
        default=5e-5, description="peak learning rate; published betaVAE: 5e-5"
    )
    num_epochs: PositiveInt = Field(default=500, description="epochs; published betaVAE: 500")
    n_workers: Count = Field(default=4, description="processes that decode tiles; 0: none")
    device: int | str = Field(default=0, description='GPU number, or "cpu", "cuda:1", "mps"')
    flag: str = Field(default="", description="label of the run, kept in run.json")
    save_dir: str = Field(default="checkpoints/", description="folder of the betaVAE's outputs")
    summary_path: str = Field(default="summaries/", description="TensorBoard folder of --log 1")
    log_interval: PositiveInt = Field(default=100, description="steps between log entries")
    bag_size: PositiveInt = Field(default=40, description="left over from another model")
    batch_size: PositiveInt = Field(
        default=128, description="betaVAE: profiles per step; published: 128"
    )
    quick: Literal[0, 1] = Field(default=0, description="published shortcut for debugging")
    optimizer: Literal["Adam", "AdamW"] = Field(default="Adam", description="published: Adam")
    beta: NonNegative = Field(
        default=0.0005, description="weight of the KL term; published: 0.0005"
    )
    split_path: str = Field(
        default="checkpoints/donor_split.csv", description="donor split shared by all stages"
    )
    split_seed: int = Field(default=99, description="seed of the donor split")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="auto: bfloat16 autocast where the hardware multiplies in it"
    )

    @model_validator(mode="after")
    def _one_folder_per_table(self) -> CohortConfig:
        if self.patch_data_path and len(self.patch_data_path) != len(self.path_csv):
            raise ValueError(
                f"patch_data_path has {len(self.patch_data_path)} entries,"
                f" path_csv {len(self.path_csv)}; one folder per table is needed"
            )
        return self


class BetaVAEConfig(CohortConfig):
    """configs/betavae_tissues.json."""

    UNUSED: ClassVar[dict[str, str]] = {
        "patch_data_path": "the betaVAE reads no tiles",
        "img_size": "the betaVAE reads no tiles",
        "max_patch_per_wsi": "the betaVAE reads no tiles",
        "n_workers": "one thread reads ahead",
        "bag_size": "the betaVAE has no bags",
        "log_interval": "one entry per epoch",
        "quick": "use a smaller config",
        "flag": "kept in run.json",
    }

    hidden_dims: list[PositiveInt] = Field(
        default=[6000, 4000, 2048],
        description="encoder widths, mirrored in the decoder; as published",
    )
    latent_dim: PositiveInt = Field(default=2048, description="D; published: 2048")
    dropout: Fraction = Field(default=0.5, description="on the encoder's input; published: 0.5")
    expression_transform: Literal["log1p", "log_nonzero"] = Field(
        default="log1p", description="log_nonzero: natural log of non-zeros, as published"
    )
    output_activation: Literal["linear", "tanh"] = Field(
        default="linear", description="published: tanh"
    )
    lr_schedule: Literal["warmup_cosine", "cosine_per_batch", "constant"] = Field(
        default="warmup_cosine", description="cosine_per_batch: as published, it oscillates"
    )
    warmup_epochs: Count = Field(
        default=10, description="linear rise of the learning rate, of warmup_cosine"
    )
    kl_warmup_epochs: Count = Field(
        default=0,
        description="linear rise of the KL term's weight from 0 to beta (Sonderby et al. 2016,"
        " arXiv 1602.02282); no epoch of it counts as the best; published: 0",
    )
    early_stopping_patience: Count = Field(
        default=0,
        description="stop after so many epochs without a better validation reconstruction; 0:"
        " never, as published",
    )
    validate_every: PositiveInt = Field(
        default=1,
        description="epochs between validations, each of which may write the best checkpoint;"
        " published: 1",
    )
    checkpoint_every: Count = Field(
        default=0, description="epochs between last-checkpoints; 0: by time alone"
    )
    checkpoint_minutes: PositiveFloat = Field(
        default=10.0, description="longest time without a last-checkpoint, within epochs too"
    )

    @model_validator(mode="after")
    def _an_epoch_after_the_kl_warmup(self) -> BetaVAEConfig:
        if self.kl_warmup_epochs >= self.num_epochs:
            raise ValueError(
                f"kl_warmup_epochs is {self.kl_warmup_epochs}, num_epochs {self.num_epochs};"
                " an epoch after the warm-up is needed"
            )
        return self

    def model_args(self) -> dict[str, Any]:
        """Return the arguments of the `models.betavae.BetaVAE` that this config describes."""
        return {
            "genes": self.rna_features,
            "hidden_dims": self.hidden_dims,
            "latent_dim": self.latent_dim,
            "dropout": self.dropout,
            "output_activation": self.output_activation,
        }


class GANConfig(CohortConfig):
    """configs/gan_run.json, gan_run_lung.json, gan_run_brain.json."""

    UNUSED: ClassVar[dict[str, str]] = {
        "lr": "generator_lr and critic_lr",
        "batch_size": "tiles_per_step",
        "num_epochs": "--num_epochs",
        "max_patch_per_wsi": "--num_patches",
        "weights_decay": "Adam without decay, as published",
        "optimizer": "Adam, as published",
        "beta": "the betaVAE is trained beforehand",
        "bag_size": "the GAN has no bags",
        "save_dir": "--model_dir",
        "quick": "use a smaller config",
        "flag": "kept in the run record",
    }

    generator_lr: PositiveFloat = Field(default=1e-4, description="published: 1e-4")
    critic_lr: PositiveFloat = Field(default=4e-4, description="published: 4e-4")
    adam_betas: list[Fraction] = Field(
        default=[0.5, 0.999], min_length=2, max_length=2, description="published: 0.5, 0.999"
    )
    tiles_per_step: PositiveInt = Field(default=8, description="batch size; published: 8")
    critic_parts: PositiveInt | None = Field(
        default=None,
        description="the critic learns from the batch in so many parts: the same gradient in less"
        " memory; null: 2 on a CPU in float32, else 1; published: 1",
    )
    critic_steps: PositiveInt = Field(default=1, description="per generator step; published: 1")
    latent_dim: PositiveInt = Field(
        default=2048,
        description="GAN noise dimension; an RNA-GAN takes the betaVAE's; published: 2048",
    )
    step_channels: PositiveInt = Field(
        default=64, description="channels beside the image; they double per halving; published: 64"
    )
    generator_modulation: bool = Field(
        default=False,
        description="the DCGAN's latents also scale and shift every feature map; published: false",
    )
    local_noise: bool = Field(
        default=False, description="noise for every pixel of the feature maps; published: false"
    )
    even_upsampling: bool = Field(
        default=True,
        description="the DCGAN's last three upsamplings turn level features into level ones, after"
        " every step: no raster; published: false",
    )
    residual_blocks: PositiveInt = Field(
        default=2, description="per resolution, of --gan_type r3gan; its paper: 2"
    )
    gradient_penalty: NonNegative = Field(default=10.0, description="lambda; published: 10")
    penalty_interval: PositiveInt = Field(
        default=1, description="steps between penalties, each weighted by it; published: 1"
    )
    penalty_form: Literal["per_sample", "per_batch"] = Field(
        default="per_sample", description="per_batch: one norm, one epsilon, own step, as published"
    )
    zero_centred_penalty: NonNegative = Field(
        default=1.0, description="gamma of R1 and R2, with the relativistic losses"
    )
    critic_clip: NonNegative = Field(
        default=0.0, description="bound on critic weights; 0: none; published GAN: 0.01"
    )
    critic_features: Literal["own", "pretrained"] = Field(
        default="own",
        description="pretrained: the critic sees tiles through an EfficientNet-Lite0 trained on"
        " photographs too, for few tiles or little time; it is bounded by spectral normalisation,"
        " so that the penalties' weights may be 0; published: own",
    )
    critic_norm: Literal["group", "batch", "none"] = Field(
        default="group", description="published: batch"
    )
    critic_output: Literal["linear", "leaky_relu"] = Field(
        default="linear", description="published: leaky_relu"
    )
    critic_conditioning: Literal["none", "projection", "regression", "both"] = Field(
        default="projection",
        description="how the RNA-GAN's critic sees the profile; both: projection and regression;"
        " published: none",
    )
    regression_weight: NonNegative = Field(
        default=0.2, description="weight of the latent regression, where the critic has one"
    )
    latent_norm: Literal["population", "batch"] = Field(
        default="population", description="batch: as published, where one patient's profile cancels"
    )
    latent_noise: NonNegative = Field(default=0.3, description="uniform half-width; published: 0.3")
    noise_dim: Count = Field(
        default=0, description="normal noise dimensions beside the profile's; published: 0"
    )
    tile_order: Literal["shuffled", "sequential"] = Field(
        default="shuffled", description="sequential: patient by patient, as published"
    )
    train_partitions: list[Literal["train", "val", "test"]] = Field(
        default=["train"], min_length=1, description="donors whose tiles are trained on"
    )
    augment: Literal["none", "dihedral", "full"] = Field(
        default="dihedral",
        description="dihedral: flips and quarter turns of real tiles; full: also stain, place and"
        " a hidden square, of real and generated tiles, for few tiles; published: none",
    )
    ema_decay: Fraction = Field(
        default=0.999, description="generator average; 0: none, as published"
    )
    vae_checkpoint: str = Field(
        default="checkpoints/betavae_training_tissues/model_dict_best.pt",
        description="betaVAE of the RNA-GAN",
    )
    cuda_graphs: bool = Field(
        default=True, description="on one GPU: record the step and replay it; published: false"
    )
    checkpoint_minutes: PositiveFloat = Field(
        default=30.0, description="longest time without a checkpoint; one is written per epoch too"
    )
    keep_checkpoints: PositiveInt = Field(
        default=2, description="newest checkpoints kept: X.model, X.previous1.model, ..."
    )
    tile_cache_mb: Count = Field(
        default=2048, description="decoded tiles are kept in memory when they need no more, MiB"
    )
    metrics_every: Count = Field(
        default=0, description="epochs between FID and KID against held-out tiles; 0: never"
    )
    metrics_tiles: PositiveInt = Field(default=512, description="tiles of each side for these")
    grid_every: PositiveInt = Field(default=1, description="epochs between grids of tiles")
    grid_columns: PositiveInt = Field(default=8, description="tiles per row of the epoch grids")


Config = TypeVar("Config", bound=BaseModel)


def load_config(family: type[Config], path: str | Path, **flags: Any) -> Config:
    """Return the config of a JSON file, overridden by the flags that are not None.

    Raises:
        UserError: one line naming file, key, what was found and what is allowed.
    """
    values = read_json(path)
    if not isinstance(values, dict):
        raise UserError(f"{path}: a JSON object is needed, found {type(values).__name__}")
    values |= {key: value for key, value in flags.items() if value is not None}
    try:
        return family(**values)
    except ValidationError as error:
        raise UserError(f"{path}: {_explain(family, error)}") from error


def unused_keys(config: CohortConfig) -> str:
    """Return one sentence on the keys the file sets that change nothing, or an empty string."""
    found = [
        f"{key} ({why})" for key, why in config.UNUSED.items() if key in config.model_fields_set
    ]
    return f"keys without effect, as in the published code: {', '.join(found)}" if found else ""


def _explain(family: type[BaseModel], error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(key, family.model_fields, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else "see README, 'Configuration'"
        return f"unknown key {key!r}; {hint}"
    if first["type"] == "missing":
        return f"key {key!r} is missing"
    message = first["msg"].removeprefix("Value error, ")
    return f"{key}: {message[0].lower()}{message[1:]}, found {first['input']!r}" if key else message
