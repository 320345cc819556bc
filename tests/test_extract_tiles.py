import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny_slides import BACKGROUND, tissue_picture, write_slide

from data.tiles import find_tile_store, open_tile_store
from extract_tiles import main
from runtime.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort") / "slides"
    picture = tissue_picture(side_um=256)
    write_slide(folder / "SIM-0001-0625.svs", picture)
    half = np.asarray(Image.fromarray(picture).reduce(2))
    write_slide(folder / "SIM-0002-0625.svs", half, mpp=0.5)
    return folder


def command(slides, patches, *more):
    return [
        *("--slide_path", str(slides), "--patch_path", str(patches)),
        *("--tile_px", "32", "--mpp", "0.5", "--workers", "1", *more),
    ]


def status(patches):
    return pd.read_csv(patches / "slides.csv", keep_default_na=False).set_index("slide")


def stores(patches):
    return {path.name: path.read_bytes() for path in sorted(patches.glob("*/*.zip"))}


def test_every_slide_becomes_a_store_with_a_row_and_a_picture(slides, tmp_path):
    assert main(command(slides, tmp_path)) == 0
    table = status(tmp_path)
    assert list(table.columns) == ["status", "tiles", "seconds", "mpp", "reason"]
    assert (table.status == "done").all()
    assert table.mpp.tolist() == [0.25, 0.5]
    for slide, row in table.iterrows():
        store = open_tile_store(find_tile_store(tmp_path, slide))
        assert len(store) == row.tiles > 20
        assert store.read(0).shape == (32, 32, 3)
        assert (store.index.mpp == 0.5).all()
        with Image.open(tmp_path / "overview" / f"{slide}.jpg") as picture:
            assert min(picture.size) >= 256
    assert (tmp_path / "run.json").is_file()


def test_scans_of_the_same_tissue_give_the_same_tiles(slides, tmp_path):
    main(command(slides, tmp_path))
    fine, coarse = (
        open_tile_store(find_tile_store(tmp_path, f"SIM-000{number}-0625")) for number in (1, 2)
    )
    number_at = {(2 * row.x, 2 * row.y): number for number, row in coarse.index.iterrows()}
    shared = [
        (number, number_at[row.x, row.y])
        for number, row in fine.index.iterrows()
        if (row.x, row.y) in number_at
    ]
    assert len(shared) > 20
    for one, other in shared:
        assert np.abs(fine.read(one).astype(int) - coarse.read(other)).mean() < 3


def test_same_command_again_repeats_nothing(slides, tmp_path):
    main(command(slides, tmp_path))
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.zip")}
    rows = status(tmp_path)
    assert main(command(slides, tmp_path)) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.zip")} == times
    assert status(tmp_path).equals(rows)


def test_stores_depend_on_the_seed_and_not_on_the_workers(slides, tmp_path):
    few = ("--max_tiles", "9")
    main(command(slides, tmp_path / "a", *few))
    main(command(slides, tmp_path / "b", *few, "--workers", "2"))
    main(command(slides, tmp_path / "c", *few, "--seed", "5"))
    one, two, other = (stores(tmp_path / part) for part in "abc")
    assert one == two
    assert one.keys() == other.keys()
    assert all(one[name] != other[name] for name in one)
    assert status(tmp_path / "a").tiles.tolist() == [9, 9]


def test_damaged_store_is_redone_and_others_are_left(slides, tmp_path):
    main(command(slides, tmp_path))
    whole = stores(tmp_path)
    path = find_tile_store(tmp_path, "SIM-0001-0625.svs")
    path.write_bytes(path.read_bytes()[:-100])
    (path.parent / ".SIM-0001-0625.123.part.zip").write_bytes(b"left by a killed run")
    assert main(command(slides, tmp_path)) == 0
    assert stores(tmp_path) == whole
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_failed_and_empty_slides_are_recorded_and_the_rest_goes_on(slides, tmp_path):
    mixed = tmp_path / "slides"
    shutil.copytree(slides, mixed)
    (mixed / "broken.svs").write_bytes(b"no slide")
    (mixed / "gone.svs").symlink_to(mixed / "gone.svs")
    glass = np.random.default_rng(0).integers(240, 246, (512, 512, 3), dtype=np.uint8)
    write_slide(mixed / "glass.svs", glass)
    write_slide(mixed / "no_mpp.svs", tissue_picture(64), mpp=None)
    (mixed / "notes.txt").write_text("no slide either")
    assert main(command(mixed, tmp_path / "tiles")) == 1
    table = status(tmp_path / "tiles")
    assert table.status.to_dict() == {
        "SIM-0001-0625.svs": "done",
        "SIM-0002-0625.svs": "done",
        "broken.svs": "failed",
        "gone.svs": "failed",
        "glass.svs": "empty",
        "no_mpp.svs": "failed",
    }
    assert "not a slide" in table.reason["broken.svs"]
    assert "--mpp_override" in table.reason["no_mpp.svs"]
    assert table.reason["glass.svs"] == "no tissue tile"
    assert find_tile_store(tmp_path / "tiles", "glass.svs") is None
    assert not list((tmp_path / "tiles").rglob("*.part*"))


def test_mended_slide_is_tiled_by_the_next_run(slides, tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    (folder / "SIM-0001-0625.svs").write_bytes(b"half a download")
    assert main(command(folder, tmp_path / "tiles")) == 1
    shutil.copy(slides / "SIM-0001-0625.svs", folder)
    assert main(command(folder, tmp_path / "tiles")) == 0
    assert status(tmp_path / "tiles").status.tolist() == ["done"]


def test_replaced_slide_is_tiled_anew(slides, tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    shutil.copy(slides / "SIM-0001-0625.svs", folder / "a.svs")
    main(command(folder, tmp_path / "tiles"))
    before = stores(tmp_path / "tiles")
    shutil.copy(slides / "SIM-0002-0625.svs", folder / "a.svs")
    main(command(folder, tmp_path / "tiles"))
    assert stores(tmp_path / "tiles") != before


def test_other_settings_need_another_folder_or_overwrite(slides, tmp_path):
    main(command(slides, tmp_path))
    before = stores(tmp_path)
    other = command(slides, tmp_path, "--max_tiles", "5")
    with pytest.raises(UserError, match=r"max_tiles 2000, now 5.*--overwrite"):
        main(other)
    assert stores(tmp_path) == before
    assert main([*other, "--overwrite"]) == 0
    assert status(tmp_path).tiles.tolist() == [5, 5]


def test_interrupted_change_of_settings_is_finished_by_the_same_command(slides, tmp_path):
    main(command(slides, tmp_path))
    main(command(slides, tmp_path, "--max_tiles", "5", "--overwrite"))
    # As if the second run had been killed before its second slide.
    old = tmp_path / "old"
    main(command(slides, old))
    path = find_tile_store(tmp_path, "SIM-0002-0625.svs")
    shutil.copy(find_tile_store(old, "SIM-0002-0625.svs"), path)
    assert main(command(slides, tmp_path, "--max_tiles", "5")) == 0
    assert status(tmp_path).tiles.tolist() == [5, 5]


def test_published_rules_are_reachable(slides, tmp_path):
    assert main(command(slides, tmp_path, "--tile_rule", "own", "--keep_ink")) == 0
    assert (status(tmp_path).tiles > 0).all()


def test_background_of_tiles_is_as_scanned(slides, tmp_path):
    main(command(slides, tmp_path))
    store = open_tile_store(find_tile_store(tmp_path, "SIM-0001-0625"))
    edge = int(store.index.tissue_fraction.argmin())
    bright = store.read(edge).reshape(-1, 3).max(axis=0)
    assert np.abs(bright.astype(int) - BACKGROUND).max() < 14


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--slide_path", "nowhere"), "nowhere: slide folder not found"),
        (("--slide_path", "empty"), "empty: no slides in it"),
        (("--tile_px", "0"), "--tile_px 0"),
        (("--mpp", "-1"), "--mpp -1"),
        (("--mpp", "nan"), "--mpp nan"),
        (("--min_tissue", "1"), "--min_tissue 1"),
        (("--workers", "0"), "--workers 0"),
    ],
)
def test_mistake_ends_in_one_line_and_leaves_nothing(
    slides, tmp_path, monkeypatch, change, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        main(command(slides, "tiles", *change))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "tiles").exists()


def test_process_ends_with_code_2_and_one_line(tmp_path):
    answer = subprocess.run(
        [sys.executable, "extract_tiles.py", *command("nowhere", tmp_path / "tiles")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert answer.returncode == 2
    assert answer.stderr == "extract_tiles.py: error: nowhere: slide folder not found\n"
    assert not (tmp_path / "tiles").exists()
