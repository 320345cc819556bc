"""Tiles of the same wall clock: the published recipe through torchgan, our DCGAN, our residual GAN.

HER2ST at 64 px, trained on sections B4, C2 and C3, compared with the held-out section C4. One JSON
line per figure. Nothing else should run meanwhile.

    python3 -m benchmarks.gan_quality --minutes 10 --seeds 1 2 3 --work /tmp/her2st
    python3 -m benchmarks.gan_quality --minutes 0.5 --seeds 1            # what it does, in minutes
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy.stats import ks_2samp

from benchmarks import her2st
from benchmarks.her2st import Effort
from benchmarks.published_gan import sample_published, train_published
from data.pixels import image_grid, images_to_pixels, pixels_to_images, write_png
from data.tiles import TileDataset
from metrics.frechet import frechet_distance
from metrics.networks import find_network
from metrics.quality import QualityMeter
from models.networks import load_generator
from models.profiles import ProfileEncoder
from models.sampling import sample_images
from models.wgan_vae import Conditioning
from runtime.checkpoint import load_checkpoint
from runtime.files import write_json

# The steps are faster with one block. The residual generator has no modulation and weighs one basis
# by its latents: with 8 dimensions of noise it came to FID 188, with 48 to 157; with a regression
# weight of 0.25 to 141, with 0.5 to 129.
RESIDUAL = {
    "residual_blocks": 1, "generator_lr": 6e-4, "noise_dim": 48, "critic_conditioning": "both",
    "regression_weight": 0.5,
}  # fmt: skip
OURS = {
    "dcgan": ("dcgan", "relativistic", {}),
    "dcgan wgan": ("dcgan", "wgan", {"critic_features": "own", "critic_lr": 4e-4}),
    "r3gan": ("r3gan", "relativistic", RESIDUAL),
    "rna dcgan": ("dcgan", "relativisticvae", {}),
    "rna r3gan": ("r3gan", "relativisticvae", RESIDUAL),
}
PEERS = ("published GAN", "published RNA-GAN")
TARGETS = {"dcgan": 0.6, "rna dcgan": 0.6, "r3gan": 0.45, "rna r3gan": 0.45}


def train_ours(work: Path, name: str, effort: Effort, seed: int) -> Path:
    """Train our model; return its checkpoint."""
    gan_type, loss_type, changes = OURS[name]
    label = f"{name.replace(' ', '-')}_{seed}"
    config = her2st.write_config(work, label, her2st.GAN | changes)
    her2st.run(
        work,
        f"histopathology_gan.py --config {config} --seed {seed} --gan_type {gan_type}"
        f" --loss_type {loss_type} {effort.options()}"
        f" --image_dir images/{label} --model_dir models/{label}",
        effort.processes,
    )
    return work / f"models/{label}.model"


def sample_ours(work: Path, checkpoint: Path, seed: int, device: torch.device) -> torch.Tensor:
    """Return pixels (N, 64, 64, 3) of a checkpoint, one tile per held-out spot."""
    gan = load_checkpoint(checkpoint, "gan")
    conditioning = mu = None
    spots = her2st.prepare(work)
    if gan["conditioning"] is not None:
        conditioning = Conditioning.from_checkpoint(gan["conditioning"])
        mu = latents(work)[spots.held_out.to_numpy()]
    generator = load_generator(gan, device)
    count = int(spots.held_out.sum())
    images = [image for _, image in sample_images(generator, seed, range(count), conditioning, mu)]
    return images_to_pixels(torch.stack(images))


def latents(work: Path) -> torch.Tensor:
    """Return mu (N, D) of every spot."""
    content = load_checkpoint(work / "betavae/model_dict_best.pt", "betavae")
    encoder = ProfileEncoder.from_checkpoint(content, torch.device("cpu"))
    return encoder.mu(her2st.expression(work))


def nearest(features: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Return the distance (N,) of each row to its nearest training row, in feature space."""
    return torch.cdist(torch.from_numpy(features), torch.from_numpy(training)).amin(dim=1).numpy()


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    Effort.add_flags(parser, default=10.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", choices=(*PEERS, *OURS), default=[*PEERS, *OURS])
    parser.add_argument("--work", help="folder that keeps models and pictures")
    args = parser.parse_args(argv)
    work = Path(args.work or tempfile.mkdtemp()).resolve()
    effort, device = Effort.from_flags(args), torch.device(args.device)
    spots = her2st.prepare(work)
    her2st.run(
        work, f"betaVAE_training.py --config {her2st.write_config(work, 'vae', her2st.BETAVAE)}"
    )
    tiles = TileDataset([work / "tiles" / name for name in spots.wsi_file_name], None, 64)
    pixels = torch.stack([tiles[number][0] for number in range(len(tiles))])
    held_out = torch.from_numpy(spots.held_out.to_numpy())
    meter = QualityMeter(find_network("inception"), device, pixels[held_out])
    training = meter.features(pixels[~held_out])
    floor = frechet_distance(meter.real_features, training)
    print(json.dumps({"figure": "FID of real training against held-out tiles", "ours": floor}))
    real_distances = nearest(meter.real_features, training)

    scores: dict[str, list[float]] = {}
    for seed in args.seeds:
        for name in args.only:
            if name in PEERS:
                mu = latents(work) if name == "published RNA-GAN" else None
                generator, steps = train_published(
                    pixels_to_images(pixels[~held_out]),
                    None if mu is None else mu[~held_out],
                    args.minutes,
                    seed,
                    device,
                )
                count = int(held_out.sum())
                images = sample_published(generator, count, None if mu is None else mu[held_out])
                made = images_to_pixels(images)
            else:
                checkpoint = train_ours(work, name, effort, seed)
                made = sample_ours(work, checkpoint, seed, device)
                steps = load_checkpoint(checkpoint, "gan")["counters"]["step"]
            label = f"{name.replace(' ', '-')}_{seed}"
            write_png(work / f"tiles_{label}.png", image_grid(made[:64].numpy(), 8))
            features = meter.features(made)
            quality = meter.measure_features(features)
            scores.setdefault(name, []).append(quality.fid)
            distances = nearest(features, training)
            copying = ks_2samp(distances, real_distances, alternative="greater")
            line = {"model": name, "seed": seed, "steps": steps}
            line |= {"fid": quality.fid, "kid_x1000": 1e3 * quality.kid}
            line["nearest_training_tile_smaller_p"] = float(copying.pvalue)
            # A copy is among the closest; tiles without outliers have a small p too.
            for of, values in (("", distances), ("_real", real_distances)):
                line[f"nearest_training_tile_5_percent{of}"] = float(np.quantile(values, 0.05))
            print(json.dumps(line), flush=True)
            write_json(work / f"quality_{label}.json", line)

    best = min((np.mean(scores[name]) for name in PEERS if name in scores), default=None)
    for name, values in scores.items():
        line = {"figure": f"FID {name}", "ours": np.mean(values), "sd": np.std(values)}
        form = PEERS[name.startswith("rna")]  # of the published recipe, with a profile or without
        if name in TARGETS and form in scores:
            peer = np.mean(scores[form])
            line |= {"peer": peer, "ratio": np.mean(values) / peer, "target": TARGETS[name]}
        if name in TARGETS and best:
            line["ratio_to_better_peer"] = np.mean(values) / best
        print(json.dumps(line))


if __name__ == "__main__":
    main()
