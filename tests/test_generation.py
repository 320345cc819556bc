"""generate_tissue_images.py: what tile k depends on, edits, distances, memory, and stopping."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import betaVAE_training
import generate_tissue_images
import histopathology_gan
from data.generated_folder import parse_numbers
from data.labelled_tiles import read_labelled_tiles
from models.dcgan import Generator
from models.edits import GeneEdit, move_program, parse_dose, parse_gene_edit, set_genes
from models.population import population_distance
from models.profiles import ExpressionScaler, ProfileEncoder
from models.r3gan import ResidualGenerator
from models.sampling import encode_alone, prepare_sampling, sample_images, stream_images
from models.wgan_vae import Conditioning
from runtime.checkpoint import load_checkpoint
from runtime.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
PATIENT = "SIM-0001-0625.svs"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a folder with a tiny cohort, its betaVAE, an RNA-GAN and a GAN."""
    from conftest import make_cohort

    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        make_cohort(root)
        betaVAE_training.main(["--config", "betavae.json"])
        for name, loss_type in (("rna", "wganvae"), ("gan", "wgan")):
            histopathology_gan.main(
                ["--config", "gan_lung.json", "--loss_type", loss_type, "--num_epochs", "1"]
                + ["--num_patches", "5", "--image_dir", "images", "--model_dir", f"models/{name}"]
            )
    return root


@pytest.fixture
def out(trained, tmp_path, monkeypatch):
    """Return a fresh output folder; the trained cohort's folder is the current one."""
    monkeypatch.chdir(trained)
    return tmp_path / "out"


def generate(out: Path, *options: str, model: str = "rna") -> None:
    generate_tissue_images.main(
        ["--checkpoint", f"models/{model}.model", "--config", "gan_lung.json", "--vae"]
        + ["--save_path", str(out), *options]
    )


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def external(path: Path, share: float) -> str:
    """Write the lung table with a share of its genes and without versions; return its path."""
    frame = pd.read_csv("lung.csv").drop(columns="tissue")
    frame = frame.iloc[:, : round(share * (frame.shape[1] - 1)) + 1]
    frame.columns = [name.split(".")[0] for name in frame.columns]
    frame.to_csv(path, index=False)
    return str(path)


# Tile k


@pytest.mark.parametrize("network", [Generator, ResidualGenerator])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_tile_k_is_bit_for_bit_the_same_whatever_n_batch_and_threads(network, bfloat16):
    torch.manual_seed(0)
    generator = prepare_sampling(network(16, 64, 16).eval(), bfloat16)
    before = torch.get_num_threads()
    whole = dict(stream_images(generator, 5, range(70), workers=1))
    try:
        for threads, wanted in ((1, [3, 17, 69]), (3, range(20)), (4, [69])):
            torch.set_num_threads(threads)
            part = dict(stream_images(generator, 5, wanted))
            assert torch.get_num_threads() == threads
            assert list(part) == list(wanted)
            assert all(torch.equal(whole[index], image) for index, image in part.items())
    finally:
        torch.set_num_threads(before)


def test_folded_weights_are_the_same_function():
    torch.manual_seed(0)
    generator = Generator(8, 64, 8)
    with torch.no_grad():  # statistics of its own for every normalisation
        for _ in range(3):
            generator(torch.randn(32, 8))
        for part in generator.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.weight.uniform_(0.5, 2)
                part.bias.uniform_(-1, 1)
    generator.eval()
    latents = torch.randn(16, 8)
    with torch.inference_mode():
        expected = generator(latents)
        torch.testing.assert_close(
            prepare_sampling(generator, False)(latents), expected, atol=2e-5, rtol=0
        )
        rounded = prepare_sampling(generator, True)(latents.bfloat16()).float()
    assert (rounded - expected).abs().mean() < 0.01  # a grey level is 0.008
    assert generator.blocks[0].weight.dtype == torch.float32  # the original is left alone


def test_a_stream_holds_a_few_batches_whatever_the_number_of_tiles():
    generator = Generator(4, 32, 4).eval()

    def peak(count: int) -> int:
        tracemalloc.start()
        asked = (index for index in range(count))
        assert sum(1 for _ in stream_images(generator, 1, asked, workers=2)) == count
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(64)
    assert peak(3000) < peak(300) + 50_000


def test_resident_memory_does_not_grow_with_the_number_of_tiles(out):
    code = (
        "import resource, sys, generate_tissue_images as g;"
        "g.main(sys.argv[1:]); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    command = ["--checkpoint", "models/rna.model", "--config", "gan_lung.json", "--vae"]
    command += ["--patient1", PATIENT, "--precision", "float32"]
    peaks = []
    for count in (64, 1600):
        done = subprocess.run(
            [sys.executable, "-c", code, *command, "--sample_size", str(count)]
            + ["--save_path", str(out.parent / str(count))],
            capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] - peaks[0] < 12_000  # KiB; the 1,536 tiles more are 4,600 KiB of pixels alone


def test_seeds_name_the_tiles_and_give_the_same_ones_as_a_count(out):
    generate(out / "n", "--patient1", PATIENT, "--sample_size", "20")
    generate(out / "s", "--patient1", PATIENT, "--seeds", "3,17-19")
    names = sorted(path.name for path in (out / "s/rna-gan").iterdir())
    assert names == [f"{number:06d}.png" for number in (3, 17, 18, 19)]
    for name in names:
        assert (pixels(out / "s/rna-gan" / name) == pixels(out / "n/rna-gan" / name)).all()
    table = pd.read_csv(out / "s/tiles_rna-gan.csv")
    assert table.tile.tolist() == [3, 17, 18, 19]
    listed = read_labelled_tiles([out / "s/tiles_rna-gan.csv"], out)
    assert set(listed.groups) == {"SIM-0001"}


@pytest.mark.parametrize("text", ["5-3", "a", "1,1", "4,2-3", "", "-3"])
def test_seeds_of_another_form_are_refused(text):
    with pytest.raises(UserError, match="--seeds"):
        parse_numbers(text)


def test_a_killed_run_continues_to_the_same_files(out):
    options = ["--patient1", PATIENT, "--sample_size", "2000", "--save_path", str(out / "a")]
    command = [sys.executable, ROOT / "generate_tissue_images.py", "--checkpoint"]
    command += ["models/rna.model", "--config", "gan_lung.json", "--vae", *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(1200):
        if len(list((out / "a").glob("rna-gan/0*.png"))) > 40 or process.poll() is not None:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    made = {path.name: path.stat().st_mtime_ns for path in (out / "a/rna-gan").glob("0*.png")}
    assert 40 < len(made) < 2000
    with pytest.raises(UserError, match="another command"):
        generate(out / "a", "--patient1", PATIENT, "--sample_size", "8")
    generate(out / "a", *options)
    generate(out / "b", "--patient1", PATIENT, "--sample_size", "60")
    assert len(pd.read_csv(out / "a/tiles_rna-gan.csv")) == 2000
    for name, stamp in made.items():
        assert (out / "a/rna-gan" / name).stat().st_mtime_ns == stamp
    for path in sorted((out / "b/rna-gan").iterdir()):
        assert path.read_bytes() == (out / "a/rna-gan" / path.name).read_bytes()


def test_a_profile_is_encoded_to_the_same_bits_whoever_else_is(trained):
    content = load_checkpoint(trained / "vae/model_dict_best.pt", "betavae")
    encoder = ProfileEncoder.from_checkpoint(content, torch.device("cpu"))
    expression = np.random.default_rng(0).gamma(2, 20, (40, 30)).astype(np.float32)
    whole = encode_alone(encoder, expression)
    torch.testing.assert_close(whole, encoder.mu(expression), atol=1e-5, rtol=0)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(encode_alone(encoder, expression[7:9]), whole[7:9])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


# Profiles from outside


def test_an_external_table_with_90_50_and_10_percent_of_the_genes_runs_warns_and_is_refused(
    out, capsys
):
    texts = {}
    for percent in (90, 50):
        table = external(out.parent / f"{percent}.csv", percent / 100)
        generate(out / str(percent), "--rna_data", table, "--random_patient", "--sample_size", "4")
        texts[percent] = capsys.readouterr().err
        assert len(list((out / f"{percent}/rna-gan").iterdir())) == 4
        missing = (out / f"{percent}/missing_genes.txt").read_text().split()
        assert len(missing) == 30 - 30 * percent // 100
        assert f"{30 - len(missing)} of 30 genes found" in texts[percent]
    assert "warning: " + str(out.parent / "90.csv") not in texts[90]
    assert "warning: " + str(out.parent / "50.csv") in texts[50]
    table = external(out.parent / "10.csv", 0.1)
    with pytest.raises(UserError, match=r"10% of the checkpoint's 30 genes found, at least 50%"):
        generate(out / "10", "--rna_data", table, "--random_patient", "--sample_size", "4")
    assert not (out / "10").exists()


def test_a_profile_far_from_the_training_population_is_warned_of_with_its_number(out, capsys):
    frame = pd.read_csv("lung.csv")
    genes = [name for name in frame if name.startswith("rna_")]
    frame[genes] = (frame[genes] + 1) ** 4  # every log times four
    frame.to_csv(out.parent / "far.csv", index=False)
    for name, path in (("far", str(out.parent / "far.csv")), ("near", "lung.csv")):
        options = ["--rna_data", path, "--patient", PATIENT, "--sample_size", "2"]
        generate(out / name, *options)
    far, near = (pd.read_csv(out / name / "profiles.csv").iloc[0] for name in ("far", "near"))
    lines = capsys.readouterr().err.splitlines()
    warned = [line for line in lines if line.startswith("warning: profiles lie")]
    assert len(warned) == (far.nearer > 0.99) + (near.nearer > 0.99) == 1
    assert f"{far.distance:.2f} times" in warned[0]
    assert far.distance > near.distance


def test_distance_and_share_nearer_are_those_of_a_normal_population():
    draw = torch.Generator().manual_seed(3)
    spread = torch.tensor([2.0, 1.0, 0.5, 1e-4])
    population = torch.randn(20000, 4, generator=draw) * spread + 5
    far = population_distance(Conditioning.fit(population, noise=0.0), population)
    assert np.sqrt((far.distance**2).mean()) == pytest.approx(1, abs=1e-3)
    assert np.quantile(far.nearer, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.02)
    # A dimension that carries nothing but noise counts for nothing.
    conditioning = Conditioning.fit(population, noise=0.3)
    moved = population[:1].clone()
    moved[0, 3] += 0.001  # ten of its deviations
    before, after = (population_distance(conditioning, one) for one in (population[:1], moved))
    assert after.distance[0] == pytest.approx(before.distance[0], abs=1e-3)


# Edits


def test_an_edit_moves_one_gene_by_training_deviations_or_to_a_value():
    draw = np.random.default_rng(0)
    expression = draw.gamma(2, 30, (50, 3)).astype(np.float32)
    scaler, genes = ExpressionScaler.fit(expression), ["ENSG1.4", "ENSG2.1", "ENSG3.9"]
    edits = [parse_gene_edit("ENSG1=+2sd"), parse_gene_edit("rna_ENSG3.2=35")]
    edited = set_genes(expression[:2], edits, genes, scaler)
    moved = np.log1p(edited[:, 0]) - np.log1p(expression[:2, 0])
    assert moved == pytest.approx(2 * scaler.std[0], rel=1e-3)
    assert (edited[:, 1] == expression[:2, 1]).all()
    assert (edited[:, 2] == 35).all()
    assert parse_gene_edit("A=-1sd") == GeneEdit("A", -1.0, True)
    with pytest.raises(UserError, match="did you mean ENSG1"):
        set_genes(expression, [GeneEdit("ENSG10", 1, True)], genes, scaler)


@pytest.mark.parametrize("text", ["A", "A=", "=3", "A=-3", "A=2SD", "A=nan", "A=infsd"])
def test_an_edit_of_another_form_is_refused(text):
    with pytest.raises(UserError, match="--set_gene"):
        parse_gene_edit(text)


def test_a_program_multiplies_its_genes_by_the_exponential_of_dose_times_weight():
    moved = move_program(np.array([10.0, 5.0]), np.array([np.log(2), 0.0]), parse_dose("-1..1", 3))
    assert moved == pytest.approx(np.array([[5, 5], [10, 5], [20, 5]]))
    for text in ("2..-2", "1", "a..b", "0..inf"):
        with pytest.raises(UserError, match="--dose"):
            parse_dose(text, 3)


def test_a_dose_series_keeps_the_noise_and_its_middle_is_the_unchanged_profile(out):
    genes = [
        name.removeprefix("rna_") for name in pd.read_csv("lung.csv", nrows=0) if "rna" in name
    ]
    weights = pd.DataFrame({"gene_id": genes[:9], "program": "density", "weight": 1.0})
    weights.to_csv(out.parent / "programs.csv", index=False)
    options = ["--patient1", PATIENT, "--sample_size", "3"]
    generate(out / "plain", *options)
    program = ["--program", str(out.parent / "programs.csv"), "--dose", "-2..2"]
    generate(out / "dose", *options, *program, "--checkpoint2", "models/gan.model")
    assert pd.read_csv(out / "dose/profiles.csv").step.tolist() == [-2, -1, 0, 1, 2]
    steps = [pixels(out / f"dose/rna-gan/step_{k:02d}/000001.png") for k in range(5)]
    assert (steps[2] == pixels(out / "plain/rna-gan/000001.png")).all()
    assert all((one != steps[2]).any() for number, one in enumerate(steps) if number != 2)
    assert pixels(out / "dose/grid.png").shape[:2] == (5 * 34 - 2, 3 * 34 - 2)
    assert len(pd.read_csv(out / "dose/tiles_rna-gan.csv")) == 15
    assert len(pd.read_csv(out / "dose/tiles_gan.csv")) == 3
    assert not (out / "dose/real").exists()  # the real tiles are not of a changed profile
    genes_only = weights[["gene_id"]]
    genes_only.to_csv(out.parent / "list.csv", index=False)
    program = ["--program", str(out.parent / "list.csv"), "--steps", "3"]
    generate(out / "list", *options, *program)
    assert pd.read_csv(out / "list/profiles.csv").step.tolist() == [-2, 0, 2]


def test_a_walk_between_two_patients_begins_and_ends_at_theirs(out):
    other = "SIM-0004-0625.svs"
    for name in (PATIENT, other):
        generate(out / name, "--patient1", name, "--sample_size", "2")
    options = ["--patient1", PATIENT, "--interpolate_to", other, "--steps", "3"]
    generate(out / "walk", *options, "--sample_size", "2")
    ends = [pixels(out / f"walk/rna-gan/step_{k:02d}/000000.png") for k in (0, 2)]
    for end, name in zip(ends, (PATIENT, other), strict=True):
        assert (end == pixels(out / name / "rna-gan/000000.png")).all()


def test_a_gene_set_by_the_command_line_changes_the_tile(out):
    options = ["--patient1", PATIENT, "--sample_size", "1"]
    generate(out / "plain", *options)
    gene = next(name for name in pd.read_csv("lung.csv", nrows=0) if "rna" in name)
    generate(out / "edit", *options, "--set_gene", f"{gene.removeprefix('rna_')}=+8sd")
    one, other = (pixels(out / name / "rna-gan/000000.png") for name in ("plain", "edit"))
    assert (one != other).any()


# Mistakes, dry runs, features


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--patient1", PATIENT, "--all_patients"], "one of --patient1"),
        (["--patient1", PATIENT, "--set_gene", "ENSGX=1"], "not among the model's 30 genes"),
        (["--all_patients", "--interpolate_to", PATIENT], "start from one profile"),
        (["--patient1", PATIENT, "--program", "p.csv", "--interpolate_to", "x"], "one series"),
        (["--patient1", PATIENT, "--program", "nowhere.csv"], "gene programs not found"),
        (["--patient1", PATIENT, "--steps", "1"], "--steps 1"),
        (["--patient1", PATIENT, "--num_patients", "3"], "with --all_patients"),
        (["--patient1", PATIENT, "--features", "nowhere.pt"], "nowhere.pt"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_written(out, options, message):
    with pytest.raises(UserError, match=message) as caught:
        generate(out, *options)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def test_a_plain_gan_has_no_profile_to_edit(out):
    with pytest.raises(UserError, match="no profile to edit"):
        generate(out, "--patient1", PATIENT, "--set_gene", "A=1", model="gan")


def test_a_dry_run_names_tiles_time_memory_and_disk_and_writes_nothing(out, capsys):
    generate(out, "--patient1", PATIENT, "--sample_size", "1000000", "--dry_run")
    printed = capsys.readouterr().out
    assert "tiles: 1000006" in printed  # and the six real ones
    assert "disk: 3.07 GB" in printed
    assert "nothing written" in printed
    assert not out.exists()


def test_mean_features_are_the_mean_over_each_patients_tiles(out):
    class Mean(torch.nn.Module):
        def forward(self, images):
            return images.mean(dim=(2, 3))

    path = out.parent / "mean.pt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)  # torch announces TorchScript's end
        torch.jit.script(Mean()).save(path)
    options = ["--all_patients", "--num_patients", "8", "--sample_size", "24"]
    generate(out, *options, "--features", str(path))
    with np.load(out / "patient_features.npz") as content:
        kept = dict(content)
    assert kept["tiles"].sum() == 2 * 24
    table = pd.read_csv(out / "tiles_rna-gan.csv")
    assert table.patient.nunique() == 8
    patient = table.patient[5]
    row = int(np.flatnonzero((kept["patients"] == patient) & (kept["sources"] == "rna-gan"))[0])
    files = table[table.patient == patient].wsi_file_names
    expected = np.mean([pixels(out.parent / name).mean(axis=(0, 1)) for name in files], axis=0)
    assert kept["tiles"][row] == len(files) == 3
    scaled = expected / 127.5 - 1
    assert np.corrcoef(kept["features"][row], scaled)[0, 1] > 0.99


def test_sampling_still_takes_numbers_in_any_order():
    generator = Generator(4, 32, 4).eval()
    assert [index for index, _ in sample_images(generator, 1, [9, 2, 30])] == [2, 9, 30]
