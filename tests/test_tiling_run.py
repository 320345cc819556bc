"""extract_tiles.py as a run: options, shards, looking first, damage, death and a full disk."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny_slides import tissue_picture, write_dicom, write_slide

import betaVAE_training
from data.stain import fit_reference, read_reference
from data.tiles import find_tile_store, open_tile_store
from extract_tiles import main
from runtime.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
SLIDES = [f"SIM-000{number}-0625.svs" for number in range(5)]


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort") / "slides"
    for number, name in enumerate(SLIDES):
        write_slide(folder / name, tissue_picture(side_um=192, seed=number))
    return folder


def command(slides, patches, *more):
    return [
        *("--slide_path", str(slides), "--patch_path", str(patches)),
        *("--tile_px", "32", "--mpp", "0.5", "--workers", "1", *more),
    ]


def one(slides, tmp_path, *names):
    """Return a folder with copies of the first slide."""
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in names or ("a.svs",):
        shutil.copy(slides / SLIDES[0], folder / name)
    return folder


def table(patches):
    return pd.read_csv(patches / "slides.csv", keep_default_na=False).set_index("slide")


def stores(patches):
    return {path.name: path.read_bytes() for path in sorted(patches.glob("*/*.zip"))}


def store_of(patches, slide="a.svs"):
    return open_tile_store(find_tile_store(patches, slide))


def test_magnification_is_another_name_of_the_resolution(slides, tmp_path):
    folder = one(slides, tmp_path)
    shared = ["--slide_path", str(folder), "--tile_px", "32", "--workers", "1"]
    assert main([*shared, "--patch_path", str(tmp_path / "x"), "--magnification", "10"]) == 0
    assert main([*shared, "--patch_path", str(tmp_path / "y"), "--mpp", "1.0"]) == 0
    assert stores(tmp_path / "x") == stores(tmp_path / "y")
    assert (store_of(tmp_path / "x").index.mpp == 1.0).all()


def test_slide_table_gives_each_slide_its_resolution_and_redoes_what_changes(slides, tmp_path):
    folder = tmp_path / "slides"
    for name in ("a.svs", "b.svs"):
        write_slide(folder / name, tissue_picture(side_um=192), mpp=None)
    given = tmp_path / "mpp.csv"
    given.write_text("slide,mpp,scanner\na.svs,0.25,x\nb,0.5,y\n")
    patches = tmp_path / "tiles"
    assert main(command(folder, patches, "--slide_table", str(given))) == 0
    assert table(patches).mpp.to_dict() == {"a.svs": 0.25, "b.svs": 0.5}
    stamp = find_tile_store(patches, "a.svs").stat().st_mtime_ns
    before = stores(patches)
    given.write_text("slide,mpp\na.svs,0.25\nb,0.4\nc,0.1\n")
    assert main(command(folder, patches, "--slide_table", str(given))) == 0
    assert find_tile_store(patches, "a.svs").stat().st_mtime_ns == stamp
    assert stores(patches)["b.zip"] != before["b.zip"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,mpp\na,1\n", "no column slide"),
        ("slide,mpp\na,1\na,2\n", "slide a appears more than once"),
        ("slide,mpp\na,fast\n", "slide a: mpp 'fast' is not a number above 0"),
        ("slide,mpp\na,-1\n", "not a number above 0"),
    ],
)
def test_slide_table_at_fault_is_one_line(slides, tmp_path, text, words):
    (tmp_path / "mpp.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        main(command(slides, tmp_path / "t", "--slide_table", str(tmp_path / "mpp.csv")))
    assert not (tmp_path / "t").exists()


def test_nothing_is_enlarged_unless_allowed(slides, tmp_path):
    folder = one(slides, tmp_path)
    finer = [*command(folder, tmp_path / "t"), "--mpp", "0.125"]
    assert main(finer) == 1
    assert "--allow_upsampling" in table(tmp_path / "t").reason["a.svs"]
    assert main([*finer, "--allow_upsampling", "--overwrite"]) == 0
    store = store_of(tmp_path / "t")
    assert store.read(0).shape == (32, 32, 3)
    assert (store.index.mpp == 0.125).all()


def test_jpeg_tiles_are_close_to_the_png_ones_and_smaller(slides, tmp_path):
    folder = one(slides, tmp_path)
    main(command(folder, tmp_path / "png"))
    main(command(folder, tmp_path / "jpeg", "--format", "jpeg", "--quality", "90"))
    png, jpeg = (store_of(tmp_path / form) for form in ("png", "jpeg"))
    assert {Path(name).suffix for name in jpeg.names} == {".jpg"}
    assert [Path(name).stem for name in jpeg.names] == [Path(name).stem for name in png.names]
    assert np.abs(png.read(3).astype(int) - jpeg.read(3)).mean() < 4
    assert jpeg.path.stat().st_size < 0.7 * png.path.stat().st_size


def test_masks_of_a_first_run_are_the_mask_files_of_a_second(slides, tmp_path):
    folder = one(slides, tmp_path)
    main(command(folder, tmp_path / "first", "--mask", "otsu"))
    masks = tmp_path / "first" / "masks"
    assert main(command(folder, tmp_path / "second", "--mask", str(masks))) == 0
    first, second = (
        store_of(tmp_path / part).index.set_index("name").tissue_fraction
        for part in ("first", "second")
    )
    assert set(first.index) == set(second.index)
    assert (first - second).abs().max() < 0.1
    again = tmp_path / "moved"
    shutil.move(masks, again)
    stamp = find_tile_store(tmp_path / "second", "a.svs").stat().st_mtime_ns
    assert main(command(folder, tmp_path / "second", "--mask", str(again))) == 0
    assert find_tile_store(tmp_path / "second", "a.svs").stat().st_mtime_ns == stamp
    Image.new("L", (10, 10), 255).save(again / "a.png")
    (again / "a.svs.geojson").unlink()
    main(command(folder, tmp_path / "second", "--mask", str(again)))
    assert len(store_of(tmp_path / "second")) > len(first)


def test_slide_without_a_mask_file_is_a_row(slides, tmp_path):
    folder = one(slides, tmp_path, "a.svs", "b.svs")
    (tmp_path / "masks").mkdir()
    Image.new("L", (10, 10), 255).save(tmp_path / "masks" / "a.png")
    assert main(command(folder, tmp_path / "t", "--mask", str(tmp_path / "masks"))) == 1
    assert table(tmp_path / "t").status.to_dict() == {"a.svs": "done", "b.svs": "failed"}
    assert "no mask in" in table(tmp_path / "t").reason["b.svs"]


def test_blurred_tiles_are_left_out_and_blur_is_in_the_index(tmp_path):
    picture = tissue_picture(side_um=192)
    half = picture.shape[1] // 2
    soft = Image.fromarray(picture).reduce(12).resize(picture.shape[:2], Image.Resampling.BICUBIC)
    picture[:, half:] = np.asarray(soft)[:, half:]
    write_slide(tmp_path / "slides/a.svs", picture)
    main(command(tmp_path / "slides", tmp_path / "all"))
    main(command(tmp_path / "slides", tmp_path / "sharp", "--max_blur", "0.55"))
    every, sharp = (store_of(tmp_path / part).index for part in ("all", "sharp"))
    assert (every.x >= half).sum() > 5
    assert not (sharp.x >= half + 64).any()
    assert set(sharp.name) < set(every.name)
    assert sharp.blur.max() <= 0.55
    assert "blur" not in every


def test_stain_is_moved_to_the_reference_and_recorded(slides, tmp_path):
    folder = one(slides, tmp_path)
    given = tmp_path / "given.png"
    Image.fromarray(np.roll(tissue_picture(side_um=64, seed=9), 1, axis=2)[40:220, 40:220]).save(
        given
    )
    target = read_reference(given)
    main(command(folder, tmp_path / "plain"))
    for method in ("macenko", "reinhard"):
        moved = ["--stain", method, "--stain_reference", str(given)]
        assert main(command(folder, tmp_path / method, *moved)) == 0
        before, after = (
            colour_difference(store_of(tmp_path / part), target) for part in ("plain", method)
        )
        assert after < 0.5 * before
        recorded = store_of(tmp_path / method).info["settings"]
        assert recorded["stain"] == method
        assert recorded["stain_reference"] == target.model_dump()


def colour_difference(store, reference):
    """Return how far the mean colour of a store's tissue lies from the reference's."""
    pixels = np.stack([store.read(number) for number in range(20)])
    return np.abs(
        np.subtract(fit_reference(pixels, "").reinhard_mean, reference.reinhard_mean)
    ).sum()


def test_shards_make_what_one_run_makes_and_no_row_is_lost(slides, tmp_path):
    main(command(slides, tmp_path / "whole"))
    shared = tmp_path / "shards"
    processes = [
        subprocess.Popen(
            [sys.executable, "extract_tiles.py", *command(slides, shared, "--shard", f"{part}/3")],
            cwd=ROOT, stderr=subprocess.DEVNULL,
        )
        for part in (1, 2, 3)
    ]  # fmt: skip
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert stores(shared) == stores(tmp_path / "whole")
    assert list(table(shared).index) == SLIDES
    assert (table(shared).status == "done").all()
    assert len(list(shared.glob("run.shard-*-of-3.json"))) == 3
    assert (shared / "contact_sheet.jpg").is_file()


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1", "a/b", "1/0"])
def test_shard_of_another_form_is_refused(slides, tmp_path, shard):
    with pytest.raises(UserError, match=f"--shard {shard}: I/N"):
        main(command(slides, tmp_path / "t", "--shard", shard))


def test_shard_without_a_slide_is_no_mistake(slides, tmp_path, capsys):
    assert main(command(slides, tmp_path / "t", "--shard", "7/7")) == 0
    assert main(command(slides, tmp_path / "t", "--shard", "7/7", "--dry_run")) == 0
    assert "no slide in this shard" in capsys.readouterr().out


def test_dry_run_says_what_would_be_done_and_writes_nothing(slides, tmp_path, capsys):
    folder = one(slides, tmp_path, "a.svs", "b.svs")
    main(command(folder, tmp_path / "t"))
    (folder / "c.svs").write_bytes(b"no slide")
    shutil.copy(slides / SLIDES[1], folder / "d.svs")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "t").rglob("*")}
    assert main(command(folder, tmp_path / "t", "--dry_run")) == 1
    answer = capsys.readouterr().out
    lines = {line.split()[0]: line for line in answer.splitlines() if ".svs " in line}
    assert "keep" in lines["a.svs"]
    assert "fail" in lines["c.svs"]
    assert "not a slide" in lines["c.svs"]
    assert "tile" in lines["d.svs"]
    assert "aperio" in lines["d.svs"]
    assert "1 slides to tile" in answer
    assert "2 finished" in answer
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "t").rglob("*")} == before
    assert main(command(folder, tmp_path / "new", "--dry_run")) == 1
    assert not (tmp_path / "new").exists()


def test_check_needs_no_output_folder_and_says_time_and_disk(slides, tmp_path, capsys):
    folder = one(slides, tmp_path)
    assert main(["--check", "--slide_path", str(folder), "--tile_px", "32", "--workers", "1"]) == 0
    answer = capsys.readouterr().out
    for words in ("OpenSlide 4", "mpp-x", "0.25", "minutes with 1 workers", "GB are free"):
        assert words in answer
    assert sorted(tmp_path.iterdir()) == [folder]


def test_verify_counts_and_names_damaged_tiles_and_redoes_the_slide(slides, tmp_path, capfd):
    main(command(slides, tmp_path))
    whole = stores(tmp_path)
    path = find_tile_store(tmp_path, SLIDES[2])
    store = open_tile_store(path)
    places = [int(store._members[number]["offset"]) + 200 for number in (4, 7)]
    content = bytearray(path.read_bytes())
    for place in places:
        content[place] ^= 255
    path.write_bytes(content)
    assert main(command(slides, tmp_path)) == 0
    assert stores(tmp_path) != whole  # an ordinary run reads no tile
    assert main(command(slides, tmp_path, "--verify")) == 0
    said = capfd.readouterr().err
    assert f"{SLIDES[2]}: 2 damaged tiles: {store.names[4]} {store.names[7]}" in said
    assert stores(tmp_path) == whole


def test_store_of_an_older_version_is_kept(slides, tmp_path):
    folder = one(slides, tmp_path)
    patches = tmp_path / "t"
    main(command(folder, patches))
    newer = {
        *("allow_upsampling", "mask", "mask_sha256", "reject_folds", "max_blur", "jpeg_quality"),
        *("stain", "stain_reference"),
    }
    path = find_tile_store(patches, "a.svs")
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    info = json.loads(members["store.json"])
    info["settings"] = {key: v for key, v in info["settings"].items() if key not in newer}
    members["store.json"] = json.dumps(info).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    shutil.rmtree(patches / "status")
    (patches / "tiling.json").write_text(json.dumps(info["settings"]))
    stamp = path.stat().st_mtime_ns
    assert main(command(folder, patches)) == 0
    assert path.stat().st_mtime_ns == stamp
    assert table(patches).status["a.svs"] == "done"


def start(slides, patches, *more, **options):
    return subprocess.Popen(
        [sys.executable, "extract_tiles.py", *command(slides, patches, *more)],
        cwd=ROOT, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def test_full_disk_ends_in_one_line_leaves_no_broken_store_and_is_continued(slides, tmp_path):
    main(command(slides, tmp_path / "whole"))
    whole = stores(tmp_path / "whole")
    largest = max(map(len, whole.values()))

    def limit():
        # What a full disk does, at a size that the store passes and everything else does not.
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 2, largest // 2))

    process = start(slides, tmp_path / "t", preexec_fn=limit)
    _, said = process.communicate()
    assert process.returncode == 2
    line = said.strip().splitlines()[-1]
    assert line.startswith("extract_tiles.py: error:")
    assert "cannot be written (File too large)" in line
    assert not list((tmp_path / "t").rglob("*.part*"))
    for path in (tmp_path / "t").glob("*/*.zip"):
        open_tile_store(path)
    assert main(command(slides, tmp_path / "t")) == 0
    assert stores(tmp_path / "t") == whole


def children(pid):
    """Return the processes below a process."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    found, open_ = [], [pid]
    while open_:
        found += parents.get(open_[-1], [])
        open_ = open_[:-1] + parents.get(open_[-1], [])
    return found


def wait_for_part(patches):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if list(patches.glob("*/.*.part.zip")):
            return
        time.sleep(0.001)
    raise AssertionError("no store was begun")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Slides that take a while each."""
    folder = tmp_path_factory.mktemp("large")
    picture = np.tile(tissue_picture(side_um=256), (2, 2, 1))
    for number in range(4):
        write_slide(folder / f"{number}.svs", np.roll(picture, 100 * number, axis=0))
    return folder


@pytest.mark.parametrize("whom", ["all", "parent", "worker"])
def test_killed_run_is_finished_by_the_same_command_with_the_same_bytes(large, tmp_path, whom):
    main(command(large, tmp_path / "whole"))
    process = start(large, tmp_path / "t", "--workers", "2", start_new_session=True)
    wait_for_part(tmp_path / "t")
    below = children(process.pid)
    if whom == "all":
        os.killpg(process.pid, signal.SIGKILL)
    elif whom == "parent":
        process.kill()
    else:
        # The server of the processes has children itself; a worker has none.
        os.kill(next(pid for pid in below if not children(pid) and pid_is_worker(pid)), 9)
    process.communicate()
    if whom == "worker":
        assert process.returncode == 0
    assert main(command(large, tmp_path / "t")) == 0
    assert stores(tmp_path / "t") == stores(tmp_path / "whole")
    assert (table(tmp_path / "t").status == "done").all()
    assert not list((tmp_path / "t").glob("*/.*.part.zip"))


def pid_is_worker(pid):
    return b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_folder_of_dicom_files_is_a_slide_like_any_other(tmp_path):
    picture = tissue_picture(side_um=192)
    write_dicom(tmp_path / "slides" / "case1", picture)
    write_slide(tmp_path / "slides" / "case2.svs", picture)
    (tmp_path / "slides" / "notes").mkdir()
    assert main(command(tmp_path / "slides", tmp_path / "t")) == 0
    assert table(tmp_path / "t").mpp.to_dict() == {"case1": 0.25, "case2.svs": 0.25}
    one, other = (store_of(tmp_path / "t", name) for name in ("case1", "case2"))
    assert set(one.names) == set(other.names)
    name = one.names[3]
    assert (one.read(3) == other.read(other.names.index(name))).all()
    alone = tmp_path / "slides" / "case1"
    assert main(command(alone, tmp_path / "alone")) == 0
    assert list(table(tmp_path / "alone").index) == ["case1"]


def test_dicom_files_of_two_series_in_one_folder_are_two_slides(tmp_path):
    for series, prefix in (("1.2.3.5", "a"), ("1.2.3.6", "b")):
        write_dicom(tmp_path / "slides", tissue_picture(side_um=64), 0.25, series, prefix)
    assert main(command(tmp_path / "slides", tmp_path / "t")) == 0
    assert list(table(tmp_path / "t").index) == ["a0.dcm", "b0.dcm"]


def test_nested_folders_are_looked_into_when_asked_and_two_of_one_name_refused(slides, tmp_path):
    folder = tmp_path / "downloads"
    for part in ("x1", "x2"):
        (folder / part).mkdir(parents=True)
    shutil.copy(slides / SLIDES[0], folder / "x1")
    with pytest.raises(UserError, match="no slides in it"):
        main(command(folder, tmp_path / "t"))
    assert main(command(folder, tmp_path / "t", "--recursive")) == 0
    shutil.copy(slides / SLIDES[0], folder / "x2")
    with pytest.raises(UserError, match="two slides of one name"):
        main(command(folder, tmp_path / "t", "--recursive"))


def test_stores_are_exported_with_latents_as_labels(cohort, capsys):
    betaVAE_training.main(["--config", "betavae.json", "--device", "cpu"])
    export = ["--patch_path", "tiles/lung", "--export", "stylegan"]
    labelled = ["--path_csv", "lung.csv", "--vae_checkpoint", "vae/model_dict_best.pt"]
    assert main([*export, *labelled, "--device", "cpu"]) == 0
    with zipfile.ZipFile("tiles/lung-stylegan.zip") as archive:
        labels = json.loads(archive.read("dataset.json"))["labels"]
    assert len(labels) == 60
    vectors = {tuple(vector) for _, vector in labels}
    assert {len(vector) for vector in vectors} == {6}
    assert len(vectors) == 10
    stamp = Path("tiles/lung-stylegan.zip").stat().st_mtime_ns
    assert main([*export, *labelled, "--device", "cpu"]) == 0
    assert Path("tiles/lung-stylegan.zip").stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match="made by another command"):
        main(export)
    assert main([*export[:2], "--export", "images", "--export_path", "images"]) == 0
    assert len(pd.read_csv("images/tiles.csv")) == 60


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--mask", "nowhere"), "--mask nowhere: published, otsu, or a file"),
        (("--max_blur", "2"), "--max_blur 2.0"),
        (("--quality", "0"), "--quality 0"),
        (("--magnification", "-5"), "--magnification -5"),
        (("--vae_checkpoint", "x.pt"), "labels need both"),
        (("--stain", "macenko", "--stain_reference", "none.json"), "none.json"),
    ],
)
def test_mistake_in_an_option_leaves_nothing(slides, tmp_path, change, message):
    options = [part for part in command(slides, tmp_path / "t") if part not in ("--mpp", "0.5")]
    with pytest.raises(UserError, match=message):
        main([*options, *change])
    assert not (tmp_path / "t").exists()
