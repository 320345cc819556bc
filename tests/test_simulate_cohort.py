"""The simulated cohort: Aperio slides, overdispersed counts, truth that can be found again."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pytest
from scipy import stats
from sklearn.linear_model import Ridge

import simulate_cohort
from data.aperio import write_aperio
from data.synthetic_canvas import draw_pen, random_staining
from data.synthetic_expression import make_activity, make_programs, simulate_counts
from data.synthetic_tissue import FACTOR_RANGES, TISSUES, TissueFactors, draw_section
from data.synthetic_truth import FACTORS, make_truth, spread_factors, standardise
from metrics.morphology import morphology_of_tiles
from runtime.errors import UserError
from runtime.seeds import numpy_generator

SCRIPT = Path(simulate_cohort.__file__)
SMALL = ["--donors", "2", "--profiles", "6", "--genes", "150", "--slide_px", "512"]


def simulate(output: Path, *more: str) -> int | None:
    return simulate_cohort.main(["--output", str(output), "--workers", "1", *SMALL, *more])


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("simulated") / "cohort"
    assert simulate(folder) == 0
    return folder


def test_slides_open_as_aperio_with_magnification_and_resolution(cohort):
    truth = pd.read_csv(cohort / "truth.csv", keep_default_na=False)
    with_slide = truth[truth.slide != ""]
    assert len(with_slide) == 4
    for row in with_slide.itertuples():
        with openslide.OpenSlide(cohort / "slides" / row.tissue / row.slide) as slide:
            mpp = 10 / row.scan_magnification
            assert slide.properties["openslide.vendor"] == "aperio"
            assert float(slide.properties["aperio.AppMag"]) == row.scan_magnification
            assert float(slide.properties["openslide.objective-power"]) == row.scan_magnification
            assert float(slide.properties["aperio.MPP"]) == mpp
            assert float(slide.properties["openslide.mpp-x"]) == mpp
            assert slide.level_count == 2
            assert slide.level_downsamples == (1.0, 4.0)
            assert slide.dimensions == (512 * 0.5 / mpp,) * 2
            assert "thumbnail" in slide.associated_images
    assert set(with_slide.scan_magnification) == {20, 40}


def test_colours_and_odd_sizes_survive_the_slide_format(tmp_path):
    picture = np.full((700, 901, 3), (243, 241, 244), np.uint8)
    picture[100:400, 100:500] = (200, 60, 140)
    picture[400:700, 300:901] = (60, 40, 140)
    write_aperio(tmp_path / "colours.svs", picture, mpp=0.25, magnification=40, levels=3)
    with openslide.OpenSlide(tmp_path / "colours.svs") as slide:
        assert slide.level_dimensions == ((901, 700), (226, 175), (57, 44))
        found = np.asarray(slide.read_region((0, 0), 0, (901, 700)).convert("RGB"))
        smaller = np.asarray(slide.read_region((0, 0), 1, (225, 175)).convert("RGB"))
    assert np.abs(found.astype(int) - picture).mean() < 1
    for row, column in ((250, 250), (550, 600), (50, 50), (699, 900)):
        assert np.abs(found[row, column].astype(int) - picture[row, column]).max() <= 3
    assert np.abs(smaller[60, 60].astype(int) - (200, 60, 140)).max() <= 3


def test_slides_hold_glass_and_tissue(cohort):
    for path in (cohort / "slides").rglob("*.svs"):
        with openslide.OpenSlide(path) as slide:
            overview = np.asarray(slide.get_thumbnail((128, 128)))
        glass = (overview.min(axis=2) > 225).mean()
        assert 0.1 < glass < 0.9


def test_the_same_seed_gives_the_same_bytes_and_workers_do_not_matter(cohort, tmp_path):
    again = tmp_path / "again"
    subprocess.run(
        [sys.executable, SCRIPT, "--output", again, "--workers", "2", *SMALL],
        check=True,
        capture_output=True,
    )
    assert files_of(again) == files_of(cohort)


def test_another_seed_gives_another_cohort(cohort, tmp_path):
    simulate(tmp_path / "other", "--seed", "100")
    same, other = files_of(cohort), files_of(tmp_path / "other")
    assert same.keys() == other.keys()
    assert not any(same[name] == other[name] for name in same)


def test_a_second_run_repeats_nothing_and_a_lost_slide_comes_back(cohort):
    before = {path: path.stat().st_mtime_ns for path in cohort.rglob("*") if path.is_file()}
    simulate(cohort)
    assert before == {path: path.stat().st_mtime_ns for path in cohort.rglob("*") if path.is_file()}
    lost = next((cohort / "slides").rglob("*.svs"))
    content = lost.read_bytes()
    lost.unlink()
    simulate(cohort)
    assert lost.read_bytes() == content
    assert all(path.stat().st_mtime_ns == when for path, when in before.items() if path != lost)


def test_a_killed_run_leaves_no_broken_slide_and_goes_on(cohort, tmp_path):
    folder = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, SCRIPT, "--output", folder, "--workers", "1", *SMALL],
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not list(folder.rglob("*.svs")):
        time.sleep(0.005)
    process.kill()
    process.wait()
    for path in folder.rglob("SIM-*.svs"):
        openslide.OpenSlide(path).close()
    simulate(folder)
    assert files_of(folder) == files_of(cohort)


def test_what_a_killed_run_left_of_a_slide_is_cleared_away(cohort):
    stale = cohort / "slides" / "lung" / ".SIM-0001-0625.123.part.svs"
    stale.write_bytes(b"half")
    simulate(cohort)
    assert not stale.exists()


def test_other_parameters_ask_for_another_folder(cohort):
    before = files_of(cohort)
    with pytest.raises(UserError, match=r"seed 99, now 7; choose another --output"):
        simulate(cohort, "--seed", "7")
    assert files_of(cohort) == before


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not a simulated cohort"):
        simulate(tmp_path)
    assert list(files_of(tmp_path)) == ["mine.txt"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--donors", "0"),
        ("--genes", "5"),
        ("--genes", "30000"),
        ("--profiles", "1"),
        ("--slide_px", "700"),
        ("--workers", "0"),
    ],
)
def test_an_option_out_of_range_is_named_before_anything_is_written(tmp_path, option, value):
    with pytest.raises(UserError, match=f"^{option} {value}: must be"):
        simulate(tmp_path / "cohort", option, value)
    assert not (tmp_path / "cohort").exists()


def test_a_bad_option_ends_as_one_line_and_code_2(tmp_path):
    answer = subprocess.run(
        [sys.executable, SCRIPT, "--output", tmp_path / "cohort", "--donors", "0"],
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 2
    assert answer.stderr == "simulate_cohort.py: error: --donors 0: must be 1 or more\n"


def test_slides_samples_and_counts_belong_together(cohort):
    truth = pd.read_csv(cohort / "truth.csv", keep_default_na=False)
    annotations = pd.read_csv(cohort / "annotations.tsv", sep="\t")
    assert set(annotations.SEX) == {1, 2}
    for tissue in TISSUES:
        rows = truth[truth.tissue == tissue]
        counts = pd.read_csv(cohort / "expression" / f"{tissue}_counts.csv.gz", index_col=0)
        assert counts.shape == (150, 6)
        assert list(counts.columns) == list(rows["sample"])
        assert list(rows.donor) == list(annotations.SUBJID)
        assert (counts.dtypes == np.int64).all()
        assert counts.to_numpy().min() >= 0
        for row in rows[rows.slide != ""].itertuples():
            donor, block = row.slide.removesuffix(".svs").rsplit("-", 1)
            assert donor == row.donor
            assert row.sample.startswith(f"{donor}-{int(block) + 1:04d}-")


def test_outsiders_come_in_another_layout_with_genes_absent(cohort):
    inside = pd.read_csv(cohort / "expression" / "lung_counts.csv.gz", index_col=0).index
    outside = pd.read_csv(cohort / "external_lung_counts.csv.gz", index_col=0)
    truth = pd.read_csv(cohort / "truth_external.csv")
    stripped = {gene.split(".")[0] for gene in inside}
    assert set(outside.columns) < stripped
    assert 0.85 < len(outside.columns) / len(inside) < 1
    assert list(outside.index) == list(truth[truth.tissue == "lung"]["sample"])


def test_factors_cover_their_range_and_hardly_correlate():
    truth = make_truth(donors=24, profiles=100, seed=3)
    for tissue in TISSUES:
        for rows in (
            truth[(truth.tissue == tissue) & (truth.slide != "")],
            truth[truth.slide == ""],
        ):
            low, high = np.array(FACTOR_RANGES[tissue]).T
            unit = (rows[FACTORS].to_numpy() - low) / (high - low)
            if rows.tissue.nunique() == 1:
                assert unit.min() < 0.05
                assert unit.max() > 0.95
                assert np.abs(np.corrcoef(unit.T) - np.eye(4)).max() < 0.35


def test_counts_are_overdispersed():
    rng = np.random.default_rng(0)
    programs = make_programs(300, rng)
    still = pd.DataFrame(0.0, index=range(400), columns=programs.names)
    counts = simulate_counts(programs, still, rng)
    scaled = counts / counts.sum(axis=1, keepdims=True) * counts.sum(axis=1).mean()
    mean, variance = scaled.mean(axis=0), scaled.var(axis=0)
    seen = mean > 5
    assert (variance > mean)[seen].mean() > 0.98
    dispersion = ((variance - mean) / mean**2)[mean > 100]
    r, _ = stats.spearmanr(dispersion, programs.dispersion[mean > 100])
    assert r > 0.8


@pytest.mark.parametrize("tissue", TISSUES)
def test_a_ridge_regression_finds_the_factors_in_held_out_profiles(tissue):
    rng = np.random.default_rng(5)
    programs = make_programs(2000, rng)
    factors = spread_factors(160, FACTOR_RANGES[tissue], rng)
    scores = pd.DataFrame(standardise(factors, FACTOR_RANGES[tissue]), columns=FACTORS)
    activity = make_activity(scores, tissue, rng.integers(1, 3, 160), rng)
    counts = simulate_counts(programs, activity, rng)
    logged = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e6)
    train, test = slice(0, 110), slice(110, None)
    scaled = (logged - logged[train].mean(axis=0)) / (logged[train].std(axis=0) + 1e-6)
    model = Ridge(alpha=300.0).fit(scaled[train], scores[train])
    predicted = model.predict(scaled[test])
    for number, name in enumerate(FACTORS):
        r = np.corrcoef(predicted[:, number], scores[name][test])[0, 1]
        assert r >= 0.9, f"{name}: r = {r:.3f}"


def test_program_genes_are_listed_and_shared_by_no_two_programs(cohort):
    table = pd.read_csv(cohort / "programs.csv")
    assert table.gene_id.is_unique
    assert {*FACTORS, "sex", "tissue_lung", "tissue_brain"} <= set(table.program)
    assert (table.groupby("program").size()[FACTORS] >= 10).all()


@pytest.mark.parametrize("tissue", TISSUES)
def test_the_truth_is_measured_on_a_written_slide(tmp_path, tissue):
    middle = TissueFactors(*(sum(pair) / 2 for pair in FACTOR_RANGES[tissue]))
    rng = numpy_generator(11, tissue)
    picture = draw_section(tissue, middle, random_staining(rng), 1024, rng)
    write_aperio(tmp_path / "slide.svs", picture, mpp=0.5, magnification=20)
    with openslide.OpenSlide(tmp_path / "slide.svs") as slide:
        region = np.asarray(slide.read_region((256, 256), 0, (512, 512)).convert("RGB"))
    tiles = region.reshape(4, 128, 4, 128, 3).swapaxes(1, 2).reshape(16, 128, 128, 3)
    found = morphology_of_tiles(tiles, mpp=0.5)
    assert found.nuclear_density == pytest.approx(middle.nuclear_density, rel=0.25)
    assert found.nuclear_diameter_um == pytest.approx(middle.nuclear_diameter_um, rel=0.1)
    assert found.stain_ratio == pytest.approx(middle.stain_ratio, rel=0.3)
    expected = {"lung": (0.4, 0.7), "brain": (0.01, 0.12)}[tissue]
    assert expected[0] < found.airspace_fraction < expected[1]


def test_a_fold_darkens_a_band_and_a_pen_leaves_ink():
    rng = numpy_generator(1)
    factors = TissueFactors(2000, 7.0, 1.0, 0.05)
    staining = random_staining(rng)
    plain = draw_section("brain", factors, staining, 512, numpy_generator(2))
    folded = draw_section("brain", factors, staining, 512, numpy_generator(2), fold=True)
    darker = plain.mean(axis=2) - folded.mean(axis=2) > 25
    assert 0.02 < darker.mean() < 0.5
    inked = draw_pen(plain.copy(), numpy_generator(3))
    assert 0.005 < (np.abs(inked.astype(int) - plain).max(axis=2) > 60).mean() < 0.2
