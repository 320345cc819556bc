"""fid.py compares every published pair, repeats nothing, and ends mistakes in one line."""

import json
import shutil
import sys
import warnings
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import fid
from data.tiles import store_path, write_tile_store
from metrics import features
from models import generated_tiles
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
            "gan_type": "dcgan",
            "generator_args": arguments,
            "generator_ema": Generator(**arguments).state_dict(),
            "image_px": 32,
            "conditioning": conditioning,
            "genes": GENES,
            "config": {"path_csv": [str(folder / f"{tissue}.csv")]},
            "counters": {"epoch": 1},
            "train_slides": pd.read_csv(folder / f"{tissue}.csv").wsi_file_name[:1].tolist(),
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
    printed = float(lines[2].removeprefix("FID: mean ").split(",")[0])
    assert printed == pytest.approx(np.mean(values), abs=1e-4)
    assert "standard deviation" in lines[2]
    assert "5 draws of 4 against 4 tiles" in lines[2]
    starts = ("FID of one draw", "KID x 1000", "real against real, disjoint donors of lung")
    for line, start in zip(lines[3:6], starts, strict=True):
        assert line.startswith(start)
    assert "network.pt" in lines[6]
    assert sum("fewer than 2048" in line for line in lines) == 1


def test_the_same_command_again_repeats_nothing(world, tmp_path, capsys, monkeypatch):
    output = tmp_path / "fid.json"
    run(world, "real lung - RNA-GAN lung", output)
    first, stamp = capsys.readouterr().out, output.stat().st_mtime_ns
    monkeypatch.setattr(fid.Evaluation, "compare", None)
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
    monkeypatch.setattr(generated_tiles, "load_generator", None)
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
    "real with a checkpoint": ({"real": True}, "leave --checkpoint and --images out"),
    "neither real nor checkpoint": ({"checkpoint": None}, "or --real"),
    "images beside a model": ({"images2": "x"}, "stands in place of a model"),
    "resampling once": ({"bootstrap": 1}, "--bootstrap 1"),
    "missing folder": ({"checkpoint": None, "images2": "none"}, "none: tile store not found"),
    "missing function": ({"features": "no_such_module:f"}, "no_such_module:f"),
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


def table_of(world, path, pairs):
    """Write the --table file of published pairs and return the options that go with it."""
    rows = []
    for pair in pairs:
        checkpoint, checkpoint2, config, config2, patient1, patient2 = PAIRS[pair]
        row = {
            "checkpoint": checkpoint and f"{world}/{checkpoint}.model",
            "checkpoint2": checkpoint2 and f"{world}/{checkpoint2}.model",
            "config": f"{world}/{config}.json",
            "config2": config2 and f"{world}/{config2}.json",
            "patient1": patient1,
            "patient2": patient2,
            "real": not checkpoint,
            "vae_checkpoint": f"{world}/betavae.pt",
        }
        rows.append({key: value for key, value in row.items() if value})
    path.write_text(json.dumps({"pairs": rows}))
    return [
        "--table", str(path), "--features", str(world / "network.pt"), "--sample_size", "8",
        "--draws", "2",
    ]  # fmt: skip


def test_the_table_of_fifteen_equals_fifteen_commands_and_repeats_nothing(
    world, tmp_path, capsys, monkeypatch
):
    options = table_of(world, tmp_path / "table.json", PAIRS)
    folder = tmp_path / "fid"
    fid.main([*options, "--output", str(folder)])
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    for pair, result in zip(PAIRS, found, strict=True):
        assert result == run(world, pair, tmp_path / f"{pair}.json")
    frame = pd.read_csv(folder / "table" / "table.csv")
    assert frame.fid.tolist() == pytest.approx([r["fid"]["mean"] for r in found], rel=1e-6)
    assert len(json.loads((folder / "table" / "table.json").read_text())["pairs"]) == 15
    markdown = (folder / "table" / "table.md").read_text()
    assert markdown.count("| real lung") == 5
    assert markdown.count("fewer than 2048") == 1
    assert (folder / "table" / "table.png").stat().st_size > 10_000
    assert capsys.readouterr().out.count("fewer than 2048") == 16  # once here, once per command
    monkeypatch.setattr(fid.Evaluation, "compare", None)
    fid.main([*options, "--output", str(folder)])
    with pytest.raises(UserError, match="belongs to another request"):
        fid.main([*options, "--output", str(folder), "--seed", "1"])


def test_a_wrong_table_is_named_before_anything_is_written(world, tmp_path):
    options = table_of(world, tmp_path / "t.json", ["real lung - GAN lung"])
    content = json.loads((tmp_path / "t.json").read_text())
    for change, message in (
        ({"chekpoint": "x"}, "unknown key"),
        ({"checkpoint": "none.model"}, "not found"),
        ({"real": True}, "leave --checkpoint"),
    ):
        row = content["pairs"][0] | change
        (tmp_path / "t.json").write_text(json.dumps({"pairs": [content["pairs"][0], row]}))
        with pytest.raises(UserError, match=message):
            fid.main([*options, "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="leave their options out"):
        fid.main([*options, "--config", "x.json"])


def write_images(folder, names, seed=0, kind="png", px=32):
    """Write random images and return their folder."""
    draw = np.random.default_rng(seed)
    for name in names:
        path = folder / f"{name}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (px, px, 3), dtype=np.uint8)).save(path)
    return folder


def compare_images(world, output, *options):
    """Run fid.py without a cohort and return its result."""
    arguments = ["--features", world / "network.pt", "--sample_size", 6, "--draws", 2]
    arguments += ["--cache", output.parent / "cache", "--output", output, *options]
    fid.main([str(argument) for argument in arguments])
    return json.loads(output.read_text())


def test_folders_and_zips_of_images_take_either_side(world, tmp_path):
    one = write_images(tmp_path / "one", "abcdefgh")
    two = write_images(tmp_path / "two", "abcdefgh", seed=1)
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        for path in two.iterdir():
            archive.write(path, path.name)
    folders = compare_images(world, tmp_path / "1.json", "--images", one, "--images2", two)
    zipped = compare_images(
        world, tmp_path / "2.json", "--images", one, "--images2", tmp_path / "two.zip"
    )
    assert folders["fid"]["mean"] > 0
    assert [side["kind"] for side in folders["sets"]] == ["images", "images"]
    assert zipped["tiles"] == folders["tiles"] == [6, 6]
    against_model = compare_images(
        world, tmp_path / "3.json", "--images", one, "--checkpoint", world / "gan_lung.model"
    )
    assert against_model["sets"][1]["kind"] == "GAN"
    from_real = compare_images(
        world, tmp_path / "4.json", "--images2", two, "--config", world / "lung.json"
    )
    assert from_real["sets"][0]["kind"] == "real"
    assert from_real["real_real_floor"]["tissue"] == "lung"


def test_classes_of_folders_are_compared_one_by_one(world, tmp_path):
    names = [f"{label}/{k}" for label in ("lung", "brain") for k in range(4)]
    sides = [write_images(tmp_path / str(seed), names, seed) for seed in (1, 2)]
    result = compare_images(
        world, tmp_path / "f.json", "--images", sides[0], "--images2", sides[1],
        "--sample_size", 8,
    )  # fmt: skip
    assert {name: part["tiles"] for name, part in result["classes"].items()} == {
        "brain": [4, 4],
        "lung": [4, 4],
    }


def test_jpeg_against_png_is_refused_unless_allowed(world, tmp_path):
    png = write_images(tmp_path / "png", "abcdef")
    jpeg = write_images(tmp_path / "jpeg", "abcdef", seed=1, kind="jpg")
    sides = ["--images", png, "--images2", jpeg]
    with pytest.raises(UserError, match="png.*jpg.*--allow_mixed_encoding"):
        compare_images(world, tmp_path / "f.json", *sides)
    assert compare_images(world, tmp_path / "f.json", *sides, "--allow_mixed_encoding")
    both = ["--images", jpeg, "--images2", write_images(tmp_path / "j2", "abc", 2, "jpg")]
    assert compare_images(world, tmp_path / "g.json", *both)["tiles"] == [6, 3]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "a.png").write_bytes(b"no image"), "a.png is damaged"),
        (lambda folder: write_images(folder, "z", px=16), "cannot be one set"),
        (lambda folder: [(folder / f"{name}.png").unlink() for name in "bcdef"], "1 tile"),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "no image in it"),
    ],
    ids=["corrupt", "mixed sizes", "one tile", "empty"],
)
def test_a_bad_folder_is_one_line_and_leaves_no_result(world, tmp_path, spoil, message):
    good = write_images(tmp_path / "good", "abcdef")
    bad = write_images(tmp_path / "bad", "abcdef", seed=1)
    spoil(bad)
    for sides in ((good, bad), (bad, good)):
        with pytest.raises(UserError, match=message) as caught:
            compare_images(
                world, tmp_path / "f.json", "--images", sides[0], "--images2", sides[1],
                "--sample_size", 9,
            )  # fmt: skip
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "f.json").exists()


def test_several_seeds_and_trainings_give_a_mean_with_its_interval(world, tmp_path, capsys):
    pair, output = "real lung - GAN lung", tmp_path / "fid.json"
    options = ["--seeds", "1", "2", "--replicates", str(world / "gan_brain.model")]
    fid.main([*command(world, pair, output), *options])
    result = json.loads(output.read_text())
    assert len(result["runs"]) == 4
    means = [part["fid"]["mean"] for part in result["runs"]]
    assert result["over_runs"]["fid"]["draws"] == means
    low, high = result["over_runs"]["fid"]["interval"]
    assert low < np.mean(means) < high
    assert result["runs"][0]["fid"] == run(world, pair, tmp_path / "one.json", seed=1)["fid"]
    assert "fid over 4 seeds and trainings: mean" in capsys.readouterr().out


def test_two_models_are_compared_in_pairs_with_the_same_real_tiles(world, tmp_path, capsys):
    pair, output = "real lung - GAN lung", tmp_path / "fid.json"
    fid.main([*command(world, pair, output), "--against", str(world / "gan_brain.model")])
    against = json.loads(output.read_text())["against"]
    own, other = (
        run(world, pair, tmp_path / f"{name}.json", checkpoint=world / f"{name}.model")
        for name in ("gan_lung", "gan_brain")
    )
    expected = own["fid"]["mean"] - other["fid"]["mean"]
    assert against["fid"]["difference"] == pytest.approx(expected)
    assert against["fid"]["paired"]
    low, high = against["fid"]["interval"]
    assert against["fid"]["larger_than_noise"] == (low > 0 or high < 0)
    assert "fid minus that of" in capsys.readouterr().out


def test_copying_reports_the_nearest_training_tiles_and_shows_the_closest(world, tmp_path):
    output = tmp_path / "fid.json"
    fid.main([*command(world, "real lung - RNA-GAN lung", output), "--copying", "15"])
    copying = json.loads(output.read_text())["copying"]
    assert 0 <= copying["closer_to_training"] <= 1
    assert copying["tiles"] == 15
    distances = [pair["distance"] for pair in copying["closest"]]
    assert distances == sorted(distances)
    assert all(pair["training"].startswith(LUNG) for pair in copying["closest"])
    with Image.open(tmp_path / copying["sheet"]) as sheet:
        assert sheet.width > 1000


def test_expression_is_read_from_real_and_generated_tiles_with_controls(world, tmp_path, capsys):
    content = torch.load(world / "rna-gan_lung.model", weights_only=True)
    names = pd.read_csv(world / "lung.csv").wsi_file_name
    copy = world / "copy"
    shutil.copytree(world / "tiles" / "lung", copy / "lung")
    for number in (3, 4, 5, 6):
        shutil.copytree(
            world / "tiles" / "lung" / names[0], copy / "lung" / f"SIM-9{number:03d}-0625.svs"
        )
    for path in copy.glob("lung/SIM-9*/*.zip"):
        path.rename(path.with_name(f"{path.parent.name.removesuffix('.svs')}.zip"))
    table = pd.read_csv(world / "lung.csv")
    extra = table.iloc[[0, 1, 2, 0]].copy()
    extra.wsi_file_name = [f"SIM-9{number:03d}-0625.svs" for number in (3, 4, 5, 6)]
    pd.concat([table, extra]).to_csv(copy / "lung.csv", index=False)
    config = json.loads((world / "lung.json").read_text())
    config |= {"path_csv": [str(copy / "lung.csv")], "patch_data_path": [str(copy / "lung")]}
    (copy / "lung.json").write_text(json.dumps(config))
    content["train_slides"] = names[:3].tolist()
    torch.save(content, copy / "model.model")
    output = tmp_path / "fid.json"
    arguments = command(
        world, "real lung - RNA-GAN lung", output, checkpoint=copy / "model.model",
        config=copy / "lung.json",
    )  # fmt: skip
    fid.main([*arguments, "--expression_recovery", "5"])
    recovery = json.loads(output.read_text())["expression_recovery"]
    assert set(recovery["conditions"]) == {"real", "generated", "shuffled", "zero"}
    assert (recovery["training_slides"], recovery["held_out_slides"]) == (3, 4)
    assert "expression read from generated tiles" in capsys.readouterr().out
    with pytest.raises(UserError, match="plain GAN"):
        fid.main([
            *command(world, "real lung - GAN lung", tmp_path / "g.json"),
            "--expression_recovery", "5",
        ])  # fmt: skip
