"""Sixty and more damaged or odd slides in one folder: each has its row, none stops the run."""

import gzip
import io
import os
import zipfile

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image
from tiny_slides import tissue_picture, write_slide

from extract_tiles import main

GOOD = {"done"}
BAD = {"failed"}
NOTHING = {"empty"}
ANY = {"done", "empty", "failed"}  # depends on where the damage hits; a row is what counts


def png(mode, size=(256, 256), colour=0, form="PNG"):
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, form)
    return buffer.getvalue()


def encoded(pixels, form="PNG", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def damaged_bytes(good):
    """Yield name, content and the statuses allowed, of files that are parts of a slide or none."""
    for kept in (0, 1, 3, 8, 16, 100, 1000):
        yield f"first_{kept}.svs", good[:kept], BAD
    for share in (10, 25, 50, 75, 90, 99):
        yield f"first_{share}_percent.svs", good[: len(good) * share // 100], ANY
    yield "last_byte_missing.svs", good[:-1], ANY
    yield "tail_only.svs", good[len(good) // 2 :], BAD
    for seed in range(6):
        content = np.frombuffer(good, np.uint8).copy()
        draw = np.random.default_rng(seed)
        content[draw.integers(8, len(content), 40)] = draw.integers(0, 256, 40)
        yield f"flipped_{seed}.svs", content.tobytes(), ANY
    yield "zeros.svs", bytes(len(good)), BAD
    yield "offsets_gone.svs", good[:4] + bytes(4) + good[8:], BAD
    for suffix in (".tif", ".ndpi", ".mrxs", ".dcm", ".png", ".jpg", ".czi", ".vms"):
        yield f"no_bytes{suffix}", b"", BAD
    for suffix in (".ndpi", ".tif", ".scn", ".bif", ".svslide", ".png"):
        yield f"svs_named{suffix}", good, GOOD
    yield "svs_without_suffix", good, GOOD
    for suffix in (".mrxs", ".vms"):
        yield f"svs_named{suffix}", good, ANY
    yield "text.svs", b"see the other folder", BAD
    yield "page.svs", b"<!DOCTYPE html><title>404</title>", BAD
    yield "packed.svs", gzip.compress(good), BAD
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.svs", good)
    yield "zipped.svs", buffer.getvalue(), BAD
    yield "magic.dcm", bytes(128) + b"DICM" + bytes(100), BAD
    yield "Slidedat.mrxs", b"[GENERAL]\nSLIDE_ID = 1\n", BAD
    yield "parts.vms", b"[Virtual Microscope Specimen]\nNoLayers=1\nImageFile=none.jpg\n", BAD
    # Plain images, which state no resolution; an override is given to the second run only.
    yield "half_a.png", encoded(np.zeros((256, 256, 3), np.uint8))[:60], BAD


def odd_slides(folder, tissue):
    """Write slides that are whole and odd; yield name and the statuses allowed."""
    plain = np.full((512, 512, 3), 243, np.uint8)
    colours = {"white": 255, "black": 0, "grey": 128, "pen_blue": (40, 60, 165)}
    colours |= {"pen_green": (35, 140, 75), "red": (220, 20, 30), "pink": (214, 140, 190)}
    for name, colour in colours.items():
        write_slide(folder / f"all_{name}.svs", np.full_like(plain, colour))
        yield f"all_{name}.svs", NOTHING
    glass = np.random.default_rng(0).integers(240, 246, plain.shape, dtype=np.uint8)
    write_slide(folder / "glass.svs", glass)
    yield "glass.svs", NOTHING
    inked = tissue.copy()
    inked[:] = (45, 70, 170)
    inked[200:300, 200:300] = (60, 90, 190)
    write_slide(folder / "pen_over_all.svs", inked)
    yield "pen_over_all.svs", NOTHING
    for name, mpp in (("absent", None), ("zero", 0), ("negative", -1), ("huge", 1e9)):
        write_slide(folder / f"mpp_{name}.svs", tissue, mpp=mpp)
        yield f"mpp_{name}.svs", BAD
    write_slide(folder / "mpp_text.svs", tissue, mpp="unknown")
    yield "mpp_text.svs", BAD
    write_slide(folder / "coarse.svs", tissue, mpp=4.0)
    yield "coarse.svs", BAD
    write_slide(folder / "one_level.svs", tissue, levels=1)
    yield "one_level.svs", GOOD
    for name, (height, width) in {"high": (1, 512), "wide": (512, 1), "both": (1, 1)}.items():
        tifffile.imwrite(
            folder / f"one_pixel_{name}.tif", plain[:height, :width], tile=(64, 64),
            photometric="rgb", resolution=(40000, 40000), resolutionunit="CENTIMETER",
        )  # fmt: skip
        yield f"one_pixel_{name}.tif", BAD
    tiled = {"tile": (64, 64), "resolution": (40000, 40000), "resolutionunit": "CENTIMETER"}
    rgba = np.dstack([tissue, np.full(tissue.shape[:2], 255, np.uint8)])
    tifffile.imwrite(folder / "rgba.tif", rgba, photometric="rgb", extrasamples=[2], **tiled)
    yield "rgba.tif", ANY
    deep = tissue.astype(np.uint16) * 257
    tifffile.imwrite(folder / "deep_rgb.tif", deep, photometric="rgb", **tiled)
    yield "deep_rgb.tif", ANY
    tifffile.imwrite(folder / "deep_grey.tif", deep[..., 0], photometric="minisblack", **tiled)
    yield "deep_grey.tif", ANY
    tifffile.imwrite(folder / "float.tif", deep[..., 0] / np.float32(65535))
    yield "float.tif", BAD  # without a resolution
    tifffile.imwrite(folder / "pages.tif", np.stack([tissue] * 3), photometric="rgb")
    yield "pages.tif", BAD
    tifffile.imwrite(folder / "claims_all.tif", plain, photometric="rgb", **tiled)
    with tifffile.TiffFile(folder / "claims_all.tif", mode="r+b") as tiff:
        for tag in ("ImageWidth", "ImageLength"):
            tiff.pages[0].tags[tag].overwrite(2**31 - 1, dtype="I")
    yield "claims_all.tif", BAD
    pictures = {
        "palette.png": png("P"), "bits.png": png("1"), "cmyk.jpg": png("CMYK", form="JPEG"),
        "deep.png": encoded(deep[..., 0]), "moving.png": png("L", form="GIF"),
        "bitmap.tif": png("RGB", form="BMP"), "plain.jpg": encoded(tissue, "JPEG"),
    }  # fmt: skip
    for name, content in pictures.items():
        (folder / name).write_bytes(content)
        yield name, BAD


def odd_names(folder, good):
    """Write links, special files and strange names; yield name and the statuses allowed."""
    (folder / "link.svs").symlink_to(folder / "good.svs")
    (folder / "link_to_nothing.svs").symlink_to(folder / "nothing.svs")
    (folder / "loop.svs").symlink_to(folder / "loop.svs")
    os.mkfifo(folder / "pipe.svs")
    (folder / "locked.svs").write_bytes(good)
    (folder / "locked.svs").chmod(0)
    statuses = {"link.svs": GOOD, "link_to_nothing.svs": BAD, "loop.svs": BAD, "pipe.svs": BAD}
    statuses["locked.svs"] = BAD if os.geteuid() else GOOD  # root may read all
    for name in ("a b, c.svs", "é漢.svs", "-x.svs", 'q"q.svs', "a.b.c.SVS", f"{'n' * 200}.svs"):
        (folder / name).write_bytes(good)
        statuses[name] = GOOD
    for name in ("folder_of_dicom", "folder_of_dicom_without_suffix"):
        (folder / name).mkdir()
        file = "1.dcm" if name.endswith("dicom") else "IM0001"
        (folder / name / file).write_bytes(bytes(128) + b"DICM" + bytes(50))
        statuses[name] = BAD
    yield from statuses.items()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    tissue = tissue_picture(side_um=128)
    good = write_slide(folder / "good.svs", tissue).read_bytes()
    expected = {"good.svs": GOOD}
    for name, content, allowed in damaged_bytes(good):
        (folder / name).write_bytes(content)
        expected[name] = allowed
    expected |= dict(odd_slides(folder, tissue))
    expected |= dict(odd_names(folder, good))
    return folder, expected


def run(folder, patches, *more):
    command = ["--slide_path", str(folder), "--patch_path", str(patches), "--workers", "2"]
    code = main([*command, "--tile_px", "32", "--mpp", "0.5", "--min_tissue", "0.5", *more])
    table = pd.read_csv(patches / "slides.csv", keep_default_na=False)
    assert not table.slide.duplicated().any()
    return code, table.set_index("slide")


def test_every_damaged_or_odd_slide_is_a_row_and_none_stops_the_run(corpus, tmp_path):
    folder, expected = corpus
    assert len(expected) >= 60
    code, table = run(folder, tmp_path)
    assert code == 1
    assert set(table.index) == set(expected)
    wrong = {
        name: (table.status[name], table.reason[name])
        for name, allowed in expected.items()
        if table.status[name] not in allowed
    }
    assert not wrong
    failed = table[table.status == "failed"]
    assert (failed.reason.str.len() > 10).all()
    assert not failed.reason.str.contains("its process").any(), "a worker died on a slide"
    assert not failed.reason.str.contains("\n").any()
    stores = {path.parent.name for path in tmp_path.glob("*/*.zip")}
    assert stores == set(table.index[table.status == "done"])
    assert not list(tmp_path.rglob("*.part*"))
    again, second = run(folder, tmp_path)
    assert (again, second.status.to_dict()) == (1, table.status.to_dict())


def test_plain_images_are_tiled_when_their_resolution_is_given(corpus, tmp_path):
    folder, _ = corpus
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("plain.jpg", "palette.png", "deep.png", "cmyk.jpg", "pages.tif", "float.tif"):
        (plain / name).write_bytes((folder / name).read_bytes())
    code, table = run(plain, tmp_path / "tiles", "--mpp_override", "0.25")
    assert code == 0
    assert table.status.to_dict() == {
        "plain.jpg": "done", "pages.tif": "done", "palette.png": "empty", "cmyk.jpg": "empty",
        "deep.png": "empty", "float.tif": "empty",
    }  # fmt: skip
    assert (tmp_path / "tiles/plain.jpg/plain.zip").is_file()
