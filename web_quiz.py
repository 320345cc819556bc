"""Serve the quiz "real or generated?" and the reader study on this machine.

Reproduces: RNA-GAN (doi 10.1016/j.crmeth.2023.100534): the web page on which visitors tell real
            tiles from generated ones, and the rating by pathologists.
Reads:  real tiles (tile stores, folders of images or of generate_tissue_images.py), generated ones
        (its folders, folders of images, or GAN and RNA-GAN checkpoints) and configs/quiz.json.
Writes: `--store`, one SQLite file that holds the tiles and every answer. Started again with the
        same store, it continues; `--real` and `--generated` are not needed then.
        `--export FOLDER` writes answers.csv and study.json, which figures.py draws, and ends.

A PATH may be given as TISSUE=PATH. Else the tissue is the checkpoint's, the table's, or the name
of the folder above the slide's. In a folder without table, "rna-gan" in its path says RNA-GAN.

    python3 web_quiz.py --real tiles/lung tiles/brain \\
        --generated checkpoints/rna-gan_lung.model checkpoints/gan_lung.model \\
        checkpoints/rna-gan_brain.model checkpoints/gan_brain.model
    python3 web_quiz.py --real demo/tiles --generated demo/generated/patient_lung \\
        demo/generated/patient_brain --store demo/quiz/quiz.sqlite
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import webbrowser
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.expression import match_genes, read_cohort
from data.found_tiles import FoundTile, split_tissue, tiles_below, tiles_of_table
from data.pixels import images_to_pixels, resize_pixels
from models.networks import load_generator
from models.profiles import ProfileEncoder
from models.sampling import sample_images
from models.wgan_vae import Conditioning
from quiz.app import create_app, create_server
from quiz.config import QuizConfig
from quiz.context import Quiz
from quiz.plan import Cell, TooFewTiles
from quiz.results import answer_table, study_numbers
from quiz.store import Store
from quiz.texts import load_texts
from quiz.tiles import QuizTile, square
from runtime.checkpoint import check_betavae, load_checkpoint
from runtime.config import load_config
from runtime.device import choose_device
from runtime.dry_run import add_dry_run, dry_run_lines, scratch_trial
from runtime.errors import UserError, run_script
from runtime.files import write_csv, write_json
from runtime.run import log, start_log
from runtime.seeds import numpy_generator

CONFIG = Path(__file__).with_name("configs") / "quiz.json"
CHECKPOINTS = (".model", ".pt")


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--real", nargs="+", metavar="PATH", help="folders or stores of real tiles")
    parser.add_argument("--generated", nargs="+", metavar="PATH", help="folders or checkpoints")
    parser.add_argument("--config", default=str(CONFIG), help="default: configs/quiz.json")
    parser.add_argument("--store", default="quiz_results/quiz.sqlite", help="tiles and answers")
    parser.add_argument("--seed", type=int, default=99, help="chooses the tiles")
    parser.add_argument("--texts", help="translation of quiz/texts.json")
    parser.add_argument("--export", metavar="FOLDER", help="write the results and end")
    server = parser.add_argument_group("server")
    server.add_argument("--host", default="127.0.0.1", help="0.0.0.0: for other machines too")
    server.add_argument("--port", type=int, default=8000)
    server.add_argument("--no_browser", action="store_true", help="do not open the page")
    models = parser.add_argument_group("checkpoints")
    models.add_argument("--vae_checkpoint", help="betaVAE; default: the one trained with")
    models.add_argument("--device")
    add_dry_run(parser)
    return parser


def tiles_of_checkpoint(
    path: Path, tissue: str | None, args: argparse.Namespace, count: int
) -> Iterator[FoundTile]:
    """Yield `count` tiles of each tissue of a GAN or RNA-GAN, drawn with eval weights.

    An RNA-GAN gets the profiles of the expression tables that it was trained with, in turn.
    """
    gan = load_checkpoint(path, "gan")
    conditional = gan["conditioning"] is not None
    conditioning = mu = None
    tissues = [tissue] if tissue else []
    if conditional or not tissue:
        table = read_cohort(gan["config"]["path_csv"])
        labels = table.annotations["tissue"].astype(str)
        tissues = tissues or sorted(labels.unique())
    if len(tissues) > 1 and not conditional:
        raise UserError(f"{path}: trained on {', '.join(tissues)}; say TISSUE={path}")
    device = choose_device(args.device)
    if conditional:
        conditioning = Conditioning.from_checkpoint(gan["conditioning"])
        betavae = args.vae_checkpoint or gan["conditioning"]["betavae_path"]
        check_betavae(betavae, gan, path)
        encoder = ProfileEncoder.from_checkpoint(load_checkpoint(betavae, "betavae"), device)
        latents = encoder.mu(match_genes(table, gan["genes"])[0])
    generator = load_generator(gan, device)
    source = "rna-gan" if conditional else "gan"
    for name in tissues:
        if conditional:
            rows = np.flatnonzero(labels == name) if tissue is None else np.arange(len(table))
            mu = latents[np.resize(rows, count)]
        tiles = sample_images(generator, args.seed, range(count), conditioning, mu)
        for index, image in tqdm(tiles, total=count, unit="tile", desc=f"{source} {name}"):
            pixels = images_to_pixels(image[None])[0].numpy()
            yield FoundTile(source, name, f"{path}#{args.seed}/{index}", lambda p=pixels: p)


def named_tiles(args: argparse.Namespace, count: int) -> Iterator[FoundTile]:
    """Yield every tile that the command line names; of a checkpoint `count` per tissue."""
    for text in args.real:
        tissue, path = split_tissue(text)
        tables = sorted(path.rglob("tiles_real.csv"))
        for table in tables:
            yield from tiles_of_table(table, tissue, real=True)
        if not tables:
            yield from tiles_below(path, tissue, "real")
    for text in args.generated:
        tissue, path = split_tissue(text)
        tables = sorted(path.rglob("tiles_*.csv"))
        for table in tables:
            yield from tiles_of_table(table, tissue, real=False)
        if path.is_file() and path.suffix in CHECKPOINTS:
            yield from tiles_of_checkpoint(path, tissue, args, count)
        elif not tables:
            source = "rna-gan" if "rna-gan" in str(path).lower().replace("_", "-") else "gan"
            yield from tiles_below(path, tissue, source)


def choose_tiles(args: argparse.Namespace, config: QuizConfig) -> list[QuizTile]:
    """Return at most `tiles_per_group` tiles of each source and tissue, all of one size.

    Raises:
        UserError: no tiles, a tissue without real or without generated ones, or a damaged tile.
    """
    groups: dict[Cell, list[FoundTile]] = defaultdict(list)
    for tile in named_tiles(args, config.tiles_per_group):
        groups[tile.source, tile.tissue].append(tile)
    for source, tissue in groups:
        others = {other for other, name in groups if name == tissue}
        if "real" not in others or len(others) < 2:
            raise UserError(
                f"tissue {tissue!r} has {source} tiles only; real and generated ones are needed"
                " (TISSUE=PATH says the tissue of a path)"
            )
    if len({tuple(sorted(s for s, name in groups if name == t)) for _, t in groups}) > 1:
        raise UserError("every tissue needs tiles of the same sources: " + describe(groups))
    tiles = []
    for (source, tissue), found in sorted(groups.items()):
        order = numpy_generator(args.seed, "quiz", source, tissue).permutation(len(found))
        for number in order[: config.tiles_per_group]:
            tiles.append(QuizTile(*found[number][:3], square(found[number].read())))
    kinds = {tile.source: Path(tile.name).suffix.lower() in (".jpg", ".jpeg") for tile in tiles}
    if len(set(kinds.values())) > 1:
        log.warning("some sources are JPEG files: their traces in the pixels may tell them apart")
    px = config.tile_px or min(len(tile.pixels) for tile in tiles)
    return [tile._replace(pixels=resize_pixels(tile.pixels, px)) for tile in tiles]


def describe(groups: dict[Cell, Any]) -> str:
    """Return the number of tiles of each tissue and source in words."""
    counts = (f"{tissue} {source} {len(tiles)}" for (source, tissue), tiles in groups.items())
    return ", ".join(sorted(counts))


def export(quiz: Quiz, folder: Path) -> int:
    """Write answers.csv and study.json; return the number of answers."""
    study = quiz.config.study
    answers = answer_table(quiz.store, quiz.tiles, [scale.key for scale in study.scales])
    write_csv(folder / "answers.csv", answers)
    write_json(folder / "study.json", study_numbers(answers, study))
    return len(answers)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        UserError: the port is in use, or the address is not this machine's.
    """
    try:
        return socket.create_server((host, port))
    except (OSError, OverflowError) as error:
        raise UserError(f"{host}:{port}: cannot be served ({error}); try another --port") from error


def prepare(store: Store, args: argparse.Namespace, config: QuizConfig) -> None:
    """Fill a new store with tiles; refuse a store that was made with other tiles or study.

    Raises:
        UserError: as said, or no tiles to fill it with.
    """
    request = {"real": args.real, "generated": args.generated, "seed": args.seed}
    if store.meta("tiles") is None:
        if not args.real:
            raise UserError(f"{args.store}: without tiles; --real and --generated are needed")
        store.add_tiles(choose_tiles(args, config), request)
    elif args.real and not store.keep("tiles", request):
        raise UserError(f"{args.store}: made with other tiles or seed; name another --store")
    if not store.keep("study", config.study.model_dump()):
        raise UserError(f"{args.config}: the study differs from that of {args.store}")


def check_games(quiz: Quiz, args: argparse.Namespace) -> None:
    """Say what the quiz holds; raise a UserError where its tiles do not suffice for a game."""
    log.info("%s: %s", args.store, describe(quiz.cells))
    if not quiz.lengths:
        counts = ", ".join(map(str, quiz.config.question_counts))
        raise UserError(f"{args.store}: too few tiles for games of {counts} questions")
    try:
        quiz.plan_study()
    except TooFewTiles as error:
        log.warning("no readers can be invited: %s", error)


def dry_run(args: argparse.Namespace, config: QuizConfig, texts: dict[str, Any]) -> list[str]:
    """Return what the quiz would need, prepared whole in a store elsewhere."""
    facts: dict[str, object] = {}
    there = Path(args.store).stat().st_size if Path(args.store).is_file() else 0

    def work(folder: Path) -> int:
        path = folder / "quiz.sqlite"
        if there:
            with contextlib.closing(Store(args.store)) as store:
                store.copy_to(path)
        with contextlib.closing(Store(path)) as store:
            prepare(store, args, config)
            quiz = Quiz(store, config, texts)
            facts["tiles"] = describe(quiz.cells)
            if args.export:
                facts["answers"] = export(quiz, folder)
            else:
                check_games(quiz, args)
                facts["games"] = f"of {', '.join(map(str, quiz.lengths))} questions"
        return 1

    seconds, size = scratch_trial(work)
    return dry_run_lines(args.export or args.store, facts, seconds, max(0, int(size) - there))


def serve(quiz: Quiz, args: argparse.Namespace) -> None:
    """Serve a quiz until interrupted."""
    check_games(quiz, args)
    listener = listen(args.host, args.port)
    address = f"http://{args.host}:{listener.getsockname()[1]}/"
    server = create_server(create_app(quiz), listener)
    print(f"Quiz: {address}\nAdmin page: {address}admin with the token {quiz.admin_token}")
    sys.stdout.flush()
    if not args.no_browser and (sys.platform != "linux" or os.environ.get("DISPLAY")):
        webbrowser.open(address)
    server.run()


def main(argv: list[str] | None = None) -> None:
    # Arguments and config
    args = build_parser().parse_args(argv)
    config, texts = load_config(QuizConfig, args.config), load_texts(args.texts)
    if bool(args.real) != bool(args.generated):
        raise UserError("--real and --generated are needed together")
    if not args.real and not Path(args.store).is_file():
        raise UserError(f"{args.store}: not there yet; --real and --generated make it")
    if not args.export:
        listen(args.host, args.port).close()  # better to know before tiles are drawn

    # Log
    start_log()

    if args.dry_run:
        print("\n".join(dry_run(args, config, texts)))
        return

    # Data
    with contextlib.closing(Store(args.store)) as store:
        prepare(store, args, config)
        quiz = Quiz(store, config, texts)

        # Results, or server
        if args.export:
            print(f"{args.export}: {export(quiz, Path(args.export))} answers")
        else:
            serve(quiz, args)


if __name__ == "__main__":
    run_script(main)
