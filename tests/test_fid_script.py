"""fid.py compares every published pair, repeats nothing, and ends mistakes in one line."""

import json
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

import fid
from data.tiles import store_path, write_tile_store
from metrics import features
from models.betavae import BetaVAE
from models.dcgan import Generator
from models.wgan_vae import Conditioning
from runtime.checkpoint import save_checkpoint
from runtime.errors import UserError, run_script
from runtime.files import sha256_of

LUNG, BRAIN = "SIM-0001-0625.svs", "SIM-0011-3025.svs"
GENES, LATENT = [f"ENSG9000000000{number}.1" for number in range(6)], 4

# pair: checkpoint, checkpoint2, config, config2, patient1, patient2
PAIRS = {
    "real lung - GAN lung": ("gan_lung", None, "lung", None, LUNG, None),
    "real lung - RNA-GAN lung": ("rna-gan_lung", None, "lung", None, LUNG, None),
    "GAN lung - RNA-GAN lung": ("rna-gan_lung", "gan_lung", "lung", None, LUNG, None),
    "real brain - GAN lung": ("gan_lung", None, "brain", None, None, None),
    "real brain - RNA-GAN lung": ("rna-gan_lung", None, "brain", None, BRAIN, None),
    "GAN brain - GAN lung": ("gan_lung", "gan_brain", "brain", None, None, None),
    "RNA-GAN brain - GAN lung": ("rna-gan_brain", "gan_lung", "brain", None, BRAIN, None),
    "RNA-GAN lung - GAN brain": ("rna-gan_lung", "gan_brain", "lung", None, LUNG, None),
    "RNA-GAN lung - RNA-GAN brain": (
        "rna-gan_lung", "rna-gan_brain", "lung", "brain", LUNG, BRAIN,
    ),
    "real brain - GAN brain": ("gan_brain", None, "brain", None, BRAIN, None),
    "real brain - RNA-GAN brain": ("rna-gan_brain", None, "brain", None, BRAIN, None),
    "GAN brain - RNA-GAN brain": ("rna-gan_brain", "gan_brain", "brain", None, BRAIN, None),
    "real lung - GAN brain": ("gan_brain", None, "lung", None, None, None),
    "real lung - RNA-GAN brain": ("rna-gan_brain", None, "lung", None, LUNG, None),
    "real lung - real brain": (None, None, "lung", "brain", LUNG, BRAIN),
}  # fmt: skip


class Network(torch.nn.Module):
    """Feature network of the tests: colours of a 4 x 4 picture."""

    def forward(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)


def write_cohort(folder, tissue, first_donor, block, draw):
    """Three slides with 20 tiles, one without, and one profile without a slide."""
    names = [f"SIM-{first_donor + number:04d}-{block}.svs" for number in range(4)]
    for number, name in enumerate(names[:3]):
        base = draw.integers(60, 200, 3)
        tiles = [
            (32 * k, 0, 1.0, draw.integers(base - 40, base + 40, (32, 32, 3)).astype(np.uint8))
            for k in range(1 if number == 2 else 20)
        ]
        write_tile_store(store_path(folder / "tiles" / tissue, name), name, tiles, 32, 1.0, {})
    names.append(f"SIM-{first_donor + 4:04d}-0626-SM-LUN01")
    table = pd.DataFrame({"wsi_file_name": names})
    for gene in GENES:
        table[f"rna_{gene}"] = draw.uniform(0, 50, len(names))
    table.to_csv(folder / f"{tissue}.csv", index=False)
    config = {
        "path_csv": [str(folder / f"{tissue}.csv")],
        "patch_data_path": [str(folder / "tiles" / tissue)],
        "img_size": 32,
        "rna_features": len(GENES),
        "device": "cpu",
    }
    (folder / f"{tissue}.json").write_text(json.dumps(config))


def write_models(folder, tissue):
    """A GAN and an RNA-GAN with random weights."""
    arguments = {"latent_dim": LATENT, "image_px": 32, "step_channels": 4}
    for kind in ("gan", "rna-gan"):
        conditioning = None
        if kind == "rna-gan":
            conditioning = Conditioning(torch.zeros(LATENT), torch.ones(LATENT)).to_checkpoint()
            conditioning |= {
                "betavae_sha256": sha256_of(folder / "betavae.pt"),
                "betavae_path": str(folder / "betavae.pt"),
            }
        content = {
            "generator_args": arguments,
            "generator_ema": Generator(**arguments).state_dict(),
            "image_px": 32,
            "conditioning": conditioning,
            "genes": GENES,
            "config": {"path_csv": [str(folder / f"{tissue}.csv")]},
            "counters": {"epoch": 1},
        }
        save_checkpoint(folder / f"{kind}_{tissue}.model", "gan", content)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two cohorts, four models, a betaVAE and a small feature network."""
    folder = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    model_args = {"genes": len(GENES), "hidden_dims": [8], "latent_dim": LATENT}
    zeros = torch.zeros(len(GENES))
    content = {
        "model_args": model_args,
        "model": BetaVAE(**model_args).state_dict(),
        "genes": GENES,
        "scaler": {"transform": "log1p", "mean": zeros, "std": zeros + 1},
        "split": {},
    }
    save_checkpoint(folder / "betavae.pt", "betavae", content)
    for tissue, donor, block in (("lung", 1, "0625"), ("brain", 11, "3025")):
        write_cohort(folder, tissue, donor, block, draw)
        write_models(folder, tissue)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, see metrics/features.py
        script = torch.jit.trace(Network(), torch.zeros(1, 3, 299, 299))
        torch.jit.save(script, str(folder / "network.pt"))
    return folder


def command(world, pair, output, **changes):
    """Return the arguments of a pair of the published table, at test size."""
    checkpoint, checkpoint2, config, config2, patient1, patient2 = PAIRS[pair]
    options = {
        "checkpoint": checkpoint and world / f"{checkpoint}.model",
        "checkpoint2": checkpoint2 and world / f"{checkpoint2}.model",
        "config": world / f"{config}.json",
        "config2": config2 and world / f"{config2}.json",
        "sample_size": 8,
        "vae_checkpoint": world / "betavae.pt",
        "patient1": patient1,
        "patient2": patient2,
        "features": world / "network.pt",
        "cache": world / "cache",
        "output": output,
        "draws": 2,
    } | changes
    flags = ["--vae"] if checkpoint else ["--real"]
    pairs = [(key, value) for key, value in options.items() if value is not None]
    return flags + [text for key, value in pairs for text in (f"--{key}", str(value))]


def run(world, pair, output, **changes):
    """Run fid.py and return its result."""
    fid.main(command(world, pair, output, **changes))
    return json.loads(output.read_text())


@pytest.mark.parametrize("pair", PAIRS)
def test_every_published_pair_runs_and_says_what_its_sets_were(world, tmp_path, pair):
    result = run(world, pair, tmp_path / "fid.json")
    patients = {PAIRS[pair][2]: PAIRS[pair][4], PAIRS[pair][3]: PAIRS[pair][5]}
    kinds = [f"{side['kind']} {side['tissue']}" for side in result["sets"]]
    assert sorted(kinds) == sorted(pair.split(" - "))
    assert result["tiles"] == [8, 8]
    assert len(result["fid"]["draws"]) == len(result["kid"]["draws"]) == 2
    assert result["fid"]["mean"] > 0
    assert result["real_real_floor"]["tissue"] == PAIRS[pair][2]
    assert result["network"]["resize"] == "tf1_bilinear"
    for side in result["sets"]:
        if side["kind"] == "real":
            assert side["patient"] == patients[side["tissue"]]
        if side["kind"] == "RNA-GAN":
            second = result["sets"].index(side) == 1
            assert side["profiles"] == ((second and PAIRS[pair][5]) or PAIRS[pair][4])


def test_five_draws_are_printed_as_a_list_before_mean_and_deviation(world, tmp_path, capsys):
    run(world, "real lung - GAN lung", tmp_path / "fid.json", draws=None, sample_size=4)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"real lung {LUNG} - GAN lung"
    values = json.loads(lines[1])
    assert len(values) == 5
    assert lines[2].startswith(f"FID: mean {np.mean(values):.3f}")
    assert "standard deviation" in lines[2]
    assert "5 draws of 4 against 4 tiles" in lines[2]
    assert lines[3].startswith("KID x 1000")
    assert lines[4].startswith("real against real, disjoint donors of lung")
    assert "network.pt" in lines[5]
    assert sum("fewer than 2048" in line for line in lines) == 1


def test_the_same_command_again_repeats_nothing(world, tmp_path, capsys, monkeypatch):
    output = tmp_path / "fid.json"
    run(world, "real lung - RNA-GAN lung", output)
    first, stamp = capsys.readouterr().out, output.stat().st_mtime_ns
    monkeypatch.setattr(fid, "compare", None)
    run(world, "real lung - RNA-GAN lung", output)
    again = capsys.readouterr().out
    assert "nothing computed" in again
    assert again.splitlines()[:-1] == first.splitlines()[:-1]
    assert output.stat().st_mtime_ns == stamp


def test_another_pair_of_known_sets_needs_neither_network_nor_generator(
    world, tmp_path, monkeypatch
):
    for pair in ("real lung - GAN lung", "real lung - GAN brain"):
        run(world, pair, tmp_path / f"{pair}.json")
    monkeypatch.setattr(features, "load_network", None)
    monkeypatch.setattr(Generator, "from_checkpoint", None)
    pair = "GAN brain - GAN lung"
    result = run(world, pair, tmp_path / "pair.json", config=world / "lung.json")
    assert result["fid"]["mean"] > 0


def test_the_same_seed_gives_the_same_numbers_from_an_empty_cache(world, tmp_path):
    pair = "real lung - RNA-GAN lung"
    results = [
        run(world, pair, tmp_path / f"{cache}.json", cache=tmp_path / cache) for cache in "ab"
    ]
    assert results[0] == results[1]
    other = run(world, pair, tmp_path / "c.json", seed=100)
    assert other["fid"]["draws"] != results[0]["fid"]["draws"]


def test_the_profile_changes_the_rna_gan_and_leaves_the_gan_alone(world, tmp_path):
    found = {
        (kind, patient): run(
            world, "real lung - GAN lung", tmp_path / f"{kind}{patient}.json",
            checkpoint=world / f"{kind}_lung.model", patient1=None, patient2=patient,
        )["fid"]["draws"]
        for kind in ("gan", "rna-gan")
        for patient in (LUNG, "SIM-0002-0625.svs")
    }  # fmt: skip
    assert found["gan", LUNG] == found["gan", "SIM-0002-0625.svs"]
    assert found["rna-gan", LUNG] != found["rna-gan", "SIM-0002-0625.svs"]


def test_without_a_patient_tiles_and_profiles_come_from_the_whole_tissue(world, tmp_path):
    pair = "real lung - RNA-GAN lung"
    real, generated = run(world, pair, tmp_path / "fid.json", patient1=None)["sets"]
    assert (real["slides"], real["donors"], real["tiles_available"]) == (3, 3, 41)
    assert generated["profiles"] == "drawn from all 5"


def test_a_model_against_itself_meets_other_noise(world, tmp_path):
    pair = "GAN brain - GAN lung"
    model = world / "gan_lung.model"
    result = run(world, pair, tmp_path / "fid.json", checkpoint=model, checkpoint2=model)
    assert result["fid"]["mean"] > 1e-4


def test_a_short_pool_is_used_whole_and_said(world, tmp_path, capsys):
    result = run(world, "real lung - GAN lung", tmp_path / "fid.json", sample_size=30)
    assert result["tiles"] == [20, 30]
    assert f"real lung {LUNG}: 20 tiles in all, 30 asked for" in capsys.readouterr().out


def test_default_output_names_the_pair_and_never_collides(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for size in (6, 8):
        fid.main(command(world, "real lung - GAN lung", None, sample_size=size, cache=None))
    names = [path.name for path in (tmp_path / "fid_results").glob("*.json")]
    assert len(names) == 2
    assert all(name.startswith("real-lung-SIM-0001-0625.svs_GAN-lung_") for name in names)
    assert (tmp_path / "fid_results" / "features").is_dir()


def test_an_existing_result_is_replaced_only_when_asked(world, tmp_path):
    pair, output = "real lung - GAN lung", tmp_path / "fid.json"
    run(world, pair, output)
    with pytest.raises(UserError, match="exists and belongs to another request"):
        run(world, pair, output, sample_size=6)
    fid.main([*command(world, pair, output, sample_size=6), "--overwrite"])
    assert json.loads(output.read_text())["tiles"] == [6, 6]


def damaged(world, name):
    """A copy of a checkpoint with its end missing."""
    path = world / f"truncated_{name}"
    path.write_bytes((world / name).read_bytes()[:2000])
    return path


def other_betavae(world):
    """A file that is not the betaVAE the models were trained with."""
    path = world / "other.pt"
    path.write_bytes(b"another betaVAE")
    return path


def lonely_betavae(world):
    """An RNA-GAN whose betaVAE is no longer where it was."""
    content = torch.load(world / "rna-gan_lung.model", weights_only=True)
    content["conditioning"]["betavae_path"] = "nowhere.pt"
    torch.save(content, world / "lonely.model")
    return world / "lonely.model"


def nan_network(world):
    """A feature network that returns NaN."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = torch.jit.trace(NaN(), torch.zeros(1, 3, 299, 299))
        torch.jit.save(script, str(world / "nan.pt"))
    return world / "nan.pt"


class NaN(torch.nn.Module):
    def forward(self, x):
        return (x * float("nan")).mean(3).flatten(1)


MISTAKES = {
    "missing checkpoint": ({"checkpoint": "none.model"}, "none.model: gan checkpoint not found"),
    "truncated checkpoint": (
        lambda world: {"checkpoint": damaged(world, "gan_lung.model")}, "truncated",
    ),
    "checkpoint of another stage": (
        lambda world: {"checkpoint": world / "betavae.pt"}, "'gan' checkpoint is needed",
    ),
    "unknown patient": ({"patient1": "SIM-9999-0625.svs"}, "no row SIM-9999-0625.svs"),
    "patient without tiles": (
        {"patient1": "SIM-0004-0625.svs"}, "no tile store of SIM-0004-0625.svs",
    ),
    "patient with one tile": ({"patient1": "SIM-0003-0625.svs"}, "1 tile"),
    "wrong weights file": (
        lambda world: {"features": "inception", "weights": world / "betavae.pt"},
        "not the FID Inception",
    ),
    "missing network": ({"features": "none.pt"}, "none.pt: feature network"),
    "NaN features": (lambda world: {"features": nan_network(world)}, "not a finite number"),
    "another betaVAE": (
        lambda world: {"vae_checkpoint": other_betavae(world)}, "not the betaVAE",
    ),
    "no betaVAE": (
        lambda world: {"checkpoint": lonely_betavae(world), "vae_checkpoint": None},
        "an RNA-GAN needs its betaVAE",
    ),
    "real with a checkpoint": ({"real": True}, "leave --checkpoint out"),
    "neither real nor checkpoint": ({"checkpoint": None}, "or --real"),
    "one tile asked for": ({"sample_size": 1}, "--sample_size 1"),
    "missing config": ({"config": "none.json"}, "none.json: JSON file not found"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_exit_code_2_and_no_output(
    world, tmp_path, monkeypatch, capsys, mistake
):
    changes, message = MISTAKES[mistake]
    changes = dict(changes(world) if callable(changes) else changes)
    flags = ["--real"] if changes.pop("real", False) else []
    arguments = command(world, "real lung - RNA-GAN lung", tmp_path / "fid.json", **changes)
    monkeypatch.setattr(sys, "argv", ["fid.py", *arguments, *flags])
    with pytest.raises(SystemExit) as caught:
        run_script(fid.main)
    printed = capsys.readouterr().err.splitlines()
    lines = [line for line in printed if line and "tile/s" not in line]
    assert caught.value.code == 2
    assert [message in line for line in lines] == [True], lines
    assert not list(tmp_path.iterdir())


def test_real_tiles_against_themselves_are_refused(world, tmp_path):
    with pytest.raises(UserError, match="both sets hold the same tiles"):
        run(world, "real lung - real brain", tmp_path / "f.json", config2=None, patient2=LUNG)
