"""What bfloat16 costs in quality: the same steps in bfloat16 and float32, several seeds.

HER2ST at 64 px, trained on sections B4, C2 and C3, FID and KID against the held-out section C4. A
run that was stopped continues with the same `--work`. One JSON line per figure.

    python3 -m benchmarks.gan_precision --steps 1000 --seeds 1 2 3 --work /tmp/precision
    python3 -m benchmarks.gan_precision --steps 36 --seeds 1          # what it does, in minutes
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks import her2st
from benchmarks.gan_quality import sample_ours
from data.pixels import image_grid, write_png
from data.tiles import TileDataset
from metrics.networks import find_network
from metrics.quality import QualityMeter

PRECISIONS = ("bfloat16", "float32")


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=1000, help="about, per model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--loss_type", choices=("relativistic", "wgan"), default="relativistic")
    parser.add_argument("--work", help="folder that keeps models and pictures")
    args = parser.parse_args(argv)
    work = Path(args.work or tempfile.mkdtemp()).resolve()
    spots = her2st.prepare(work)
    epoch_steps = int((~spots.held_out).sum()) // her2st.GAN["tiles_per_step"]
    epochs = max(1, round(args.steps / epoch_steps))
    names = spots.wsi_file_name[spots.held_out]
    tiles = TileDataset([work / "tiles" / name for name in names], None, 64)
    real = torch.stack([tiles[number][0] for number in range(len(tiles))])
    meter = QualityMeter(find_network("inception"), torch.device("cpu"), real)

    found: dict[str, list[tuple[float, float]]] = {precision: [] for precision in PRECISIONS}
    for seed in args.seeds:
        for precision in PRECISIONS:
            label = f"{args.loss_type}_{precision}_{seed}"
            keys = her2st.GAN | {"precision": precision, "grid_every": 100_000}
            config = her2st.write_config(work, label, keys)
            her2st.run(
                work,
                f"histopathology_gan.py --config {config} --seed {seed} --num_epochs {epochs}"
                f" --loss_type {args.loss_type} --image_dir images/{label}"
                f" --model_dir models/{label}",
            )
            made = sample_ours(work, work / f"models/{label}.model", seed, torch.device("cpu"))
            write_png(work / f"tiles_{label}.png", image_grid(made[:64].numpy(), 8))
            quality = meter.measure(made)
            found[precision].append((quality.fid, 1e3 * quality.kid))
            line = {"model": label, "steps": epochs * epoch_steps}
            line |= {"fid": quality.fid, "kid_x1000": 1e3 * quality.kid}
            print(json.dumps(line), flush=True)

    for number, name in enumerate(("FID", "KID x 1000")):
        low, full = (np.array(found[precision])[:, number] for precision in PRECISIONS)
        spread = max(np.ptp(full), np.ptp(low))
        line = {"figure": f"{name} in bfloat16 and float32", "ours": low.mean()}
        line |= {"peer": full.mean(), "ratio": low.mean() / full.mean()}
        line |= {"difference": low.mean() - full.mean(), "spread_of_seeds": float(spread)}
        print(json.dumps(line | {"target": "difference below the spread of the seeds"}))


if __name__ == "__main__":
    main()
