"""betaVAE_training.py: exact after kill -9, the same over several processes, sparing of memory."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import betaVAE_training
from data.expression import ExpressionTable, read_cohort, write_expression_table
from data.profile_batches import epoch_batches, read_batches
from models.profiles import ProfileEncoder
from runtime.checkpoint import load_checkpoint
from runtime.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = str(ROOT / "betaVAE_training.py")
ARGUMENTS = ["--config", "betavae.json", "--seed", "7"]
LAST, BEST = "model_dict_last.pt", "model_dict_best.pt"
# Under torchrun: what every process ends with, and a stop after an epoch, as if switched off.
PROCESS = """
import os, sys, torch
sys.path.insert(0, {root!r})
import betaVAE_training as script
models, build = [], script.BetaVAE
script.BetaVAE = lambda **arguments: models.append(build(**arguments)) or models[-1]
leave = script.leave_processes
def keep_and_leave():
    torch.save(models[0].state_dict(), "rank" + os.environ["RANK"] + ".pt")
    leave()
script.leave_processes = keep_and_leave
script.main({arguments!r})
"""


def train(*extra):
    betaVAE_training.main([*ARGUMENTS, *extra])


def train_on_two_processes(folder, *extra):
    code = PROCESS.format(root=str(ROOT), arguments=[*ARGUMENTS, *extra])
    (folder / "process.py").write_text(code)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*launcher, "--nproc_per_node=2", "process.py"], capture_output=True, text=True, cwd=folder
    )


def change_config(path, **keys):
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def assert_same_history(one, other):
    """Assert equality up to rounding.

    Biases before a batch normalisation have no gradient but rounding, which Adam makes steps of lr:
    no effect on a batch's own statistics, a little on the running ones, used in validation.
    """
    one, other = (pd.read_csv(f"{run}/history.csv") for run in (one, other))
    trained = [name for name in one if not name.startswith("val")]
    pd.testing.assert_frame_equal(one[trained], other[trained], rtol=1e-4)
    pd.testing.assert_frame_equal(one, other, rtol=5e-3)


def stop_at_save(monkeypatch, number):
    """Make training stop right after its `number`-th last-checkpoint."""
    save, left = betaVAE_training.save_checkpoint, [number]

    def save_and_stop(path, stage, content):
        save(path, stage, content)
        left[0] -= path.name == LAST
        if not left[0]:
            raise KeyboardInterrupt

    monkeypatch.setattr(betaVAE_training, "save_checkpoint", save_and_stop)


def test_training_killed_at_any_moment_ends_with_the_very_weights_of_one_in_one_go(cohort):
    change_config(cohort / "betavae.json", num_epochs=40, checkpoint_minutes=0.002)
    train()
    whole = {name: load_checkpoint(f"vae/{name}", "betavae") for name in (LAST, BEST)}
    change_config(cohort / "betavae.json", save_dir="killed")
    last, within = cohort / "killed" / LAST, []
    for wait in (0.05, 0.21):
        before = last.stat().st_mtime_ns if last.exists() else 0
        with open(cohort / "messages", "w") as messages:
            process = subprocess.Popen(
                [sys.executable, SCRIPT, *ARGUMENTS], cwd=cohort, stdout=messages, stderr=messages
            )
        while process.poll() is None and (not last.exists() or last.stat().st_mtime_ns == before):
            time.sleep(0.002)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL, (cohort / "messages").read_text()
        counters = load_checkpoint(last, "betavae")["counters"]
        within.append((counters["epoch"], counters["step"]))
    assert (0, 0) < within[0] < within[1] < (40, 0)
    train()
    for name, expected in whole.items():
        found = load_checkpoint(f"killed/{name}", "betavae")
        assert equal(found["model"], expected["model"])
        assert found["best"] == expected["best"]
        assert found["history"] == expected["history"]
    pd.testing.assert_frame_equal(pd.read_csv("killed/history.csv"), pd.read_csv("vae/history.csv"))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_stopped_within_an_epoch_continues_with_the_next_batch(
    cohort, monkeypatch, precision
):
    change_config(cohort / "betavae.json", checkpoint_minutes=1e-9, precision=precision)
    train()
    change_config(cohort / "betavae.json", save_dir="stopped")
    with monkeypatch.context() as patch:
        stop_at_save(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            train()
    counters = load_checkpoint(f"stopped/{LAST}", "betavae")["counters"]
    assert (counters["epoch"], counters["step"]) == (1, 2)
    train()
    whole, continued = (load_checkpoint(f"{run}/{LAST}", "betavae") for run in ("vae", "stopped"))
    assert equal(whole["model"], continued["model"])
    assert whole["history"] == continued["history"]


def test_results_are_written_when_training_was_killed_before_them(cohort):
    train()
    (cohort / "vae/summary.json").unlink()
    (cohort / "vae/latents.csv").unlink()
    train()
    assert (cohort / "vae/summary.json").is_file()
    assert (cohort / "vae/latents.csv").is_file()


def test_two_processes_follow_one_and_all_hold_the_same_weights(cohort):
    # 12 training profiles in batches of 5, 5 and 2: shares of 2 and 3, and of 1.
    change_config(cohort / "betavae.json", batch_size=5, dropout=0.25)
    train()
    change_config(cohort / "betavae.json", save_dir="two")
    done = train_on_two_processes(cohort)
    assert done.returncode == 0, done.stderr
    assert_same_history("vae", "two")
    assert equal(*(torch.load(f"rank{rank}.pt", weights_only=True) for rank in (0, 1)))
    single, joint = (load_checkpoint(f"{run}/{LAST}", "betavae")["model"] for run in ("vae", "two"))
    for name in ("encoder.0.0.weight", "mu.weight", "decoder.1.weight", "decoder.1.bias"):
        torch.testing.assert_close(joint[name], single[name], rtol=1e-3, atol=1e-4)
    # One process talks and writes.
    assert done.stdout.count("validation reconstruction") == 1
    assert done.stderr.count("2 process(es)") == 1


def test_a_run_of_one_process_continues_on_two(cohort, monkeypatch):
    train()
    change_config(cohort / "betavae.json", save_dir="moved", checkpoint_minutes=1e-9)
    with monkeypatch.context() as patch:
        stop_at_save(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            train()
    done = train_on_two_processes(cohort)
    assert done.returncode == 0, done.stderr
    assert "continues in epoch 2" in done.stderr
    assert_same_history("vae", "moved")


def test_a_mistake_is_told_before_processes_are_started(cohort, monkeypatch):
    change_config(cohort / "betavae.json", rna_features=29)
    started = []
    monkeypatch.setattr(
        betaVAE_training, "start_on_all_devices", lambda *arguments: started.append(arguments)
    )
    monkeypatch.setattr(betaVAE_training, "choose_device", lambda wanted: torch.device("cuda"))
    with pytest.raises(UserError, match="30 genes"):
        train("--parallel", "1")
    assert not started


def test_a_mistake_that_all_processes_meet_is_told_once(cohort):
    change_config(cohort / "betavae.json", rna_features=29)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc_per_node=2", SCRIPT, *ARGUMENTS],
        capture_output=True, text=True, cwd=cohort,
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.count("the tables hold 30 genes") == 1
    assert not (cohort / "vae").exists()


def test_parallel_on_a_machine_without_several_gpus_trains_in_this_process(cohort):
    train("--parallel", "1", "--device", "cpu")
    assert (cohort / "vae" / BEST).is_file()


def scripted_validation(monkeypatch, values):
    """Let the validation reconstruction of each epoch be the next of `values`."""
    left = iter(values)
    monkeypatch.setattr(
        betaVAE_training, "validate", lambda *arguments: {"val_reconstruction": next(left)}
    )


def test_training_stops_after_the_patience_and_is_then_finished(cohort, monkeypatch):
    change_config(cohort / "betavae.json", num_epochs=20, early_stopping_patience=3)
    scripted_validation(monkeypatch, [3.0, 1.0, 2.0, 2.0, 2.0])
    train()
    assert len(pd.read_csv("vae/history.csv")) == 5
    assert load_checkpoint(f"vae/{BEST}", "betavae")["best"]["epoch"] == 2
    train()  # would ask for a sixth value


def test_kl_weight_rises_over_its_warmup_and_no_epoch_of_it_is_the_best(cohort, monkeypatch):
    change_config(cohort / "betavae.json", kl_warmup_epochs=2, beta=0.5, batch_size=4)
    weights, loss = [], betaVAE_training.betavae_loss

    def noted(output, target, beta, rows):
        weights.append(beta)
        return loss(output, target, beta, rows)

    monkeypatch.setattr(betaVAE_training, "betavae_loss", noted)
    scripted_validation(monkeypatch, [0.1, 0.1, 0.9, 0.8])
    train()
    expected = np.minimum(0.5, 0.5 * np.arange(1, 13) / 6)  # three steps an epoch
    np.testing.assert_allclose(weights, expected)
    assert load_checkpoint(f"vae/{BEST}", "betavae")["best"]["epoch"] == 4


def test_validation_every_other_epoch_leaves_the_rest_of_the_history_empty(cohort):
    change_config(cohort / "betavae.json", num_epochs=5, validate_every=2)
    train()
    history = pd.read_csv("vae/history.csv")
    assert history.val_reconstruction.notna().tolist() == [False, True, False, True, True]


def test_a_loss_that_is_not_finite_stops_training_and_keeps_the_last_good_checkpoint(
    cohort, monkeypatch
):
    change_config(cohort / "betavae.json", num_epochs=6, checkpoint_minutes=1e-9)
    with monkeypatch.context() as patch:
        stop_at_save(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            train()
    good = load_checkpoint(f"vae/{LAST}", "betavae")["model"]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); import math\n"
         "import betaVAE_training as script; from runtime.errors import run_script\n"
         "script.kl_weight = lambda *a: math.inf\n"
         f"run_script(lambda: script.main({ARGUMENTS!r}))"],
        capture_output=True, text=True, cwd=cohort,
    )  # fmt: skip
    assert done.returncode == 2
    assert "loss not finite in epoch 2" in done.stderr
    assert "Traceback" not in done.stderr
    kept = load_checkpoint(f"vae/{LAST}", "betavae")["model"]
    assert equal(good, kept)


class Rows:
    """A table too large for memory: rows by number, never all of them."""

    def __init__(self, values, most):
        self.values, self.most, self.shape = values, most, values.shape

    def __len__(self):
        return len(self.values)

    def __getitem__(self, key):
        taken = self.values[key]
        assert len(taken) <= self.most
        return taken

    def __array__(self, *arguments, **keywords):
        raise AssertionError("the whole table was asked for")


def test_a_mapped_table_trains_to_the_same_weights_a_few_rows_at_a_time(cohort, monkeypatch):
    draw = np.random.default_rng(3)
    values = draw.gamma(2, 20, (1500, 30)).astype(np.float32)
    names = [f"D-{number}" for number in range(1500)]
    genes = read_cohort(["lung.csv"]).genes
    table = ExpressionTable(names, genes, values, pd.DataFrame({"tissue": ["lung"] * 1500}))
    np.save(cohort / "values.npy", values)
    change_config(cohort / "betavae.json", batch_size=100, num_epochs=2)
    monkeypatch.setattr(betaVAE_training, "read_cohort", lambda paths: table)
    monkeypatch.setattr(betaVAE_training, "EVIDENCE_PROFILES", 300)
    train()
    mapped = np.load(cohort / "values.npy", mmap_mode="r")
    table = ExpressionTable(names, genes, Rows(mapped, 512), table.annotations)
    change_config(cohort / "betavae.json", save_dir="mapped")
    train()
    plain, rows = (load_checkpoint(f"{run}/{BEST}", "betavae") for run in ("vae", "mapped"))
    assert equal(plain["model"], rows["model"])
    pd.testing.assert_frame_equal(pd.read_csv("vae/latents.csv"), pd.read_csv("mapped/latents.csv"))


def test_batches_hold_every_row_once_and_no_batch_is_of_one_row():
    rows = np.arange(100, 121)
    batches = epoch_batches(rows, 5, 1, 0)
    assert [len(batch) for batch in batches] == [5, 5, 5, 6]
    assert sorted(np.concatenate(batches)) == rows.tolist()
    assert np.concatenate(epoch_batches(rows, 5, 1, 1)).tolist() != np.concatenate(batches).tolist()


def test_read_batches_gives_the_rows_asked_for_and_an_error_of_reading_is_raised():
    values = np.arange(12.0).reshape(6, 2)
    parts = [np.array([4, 1]), np.array([], int), np.array([0])]
    found = list(read_batches(values, parts, torch.device("cpu")))
    for part, profiles in zip(parts, found, strict=True):
        np.testing.assert_array_equal(profiles.numpy(), values[part].astype(np.float32))
    assert list(read_batches(values, [], torch.device("cpu"))) == []
    with pytest.raises(IndexError):
        list(read_batches(values, [np.array([9])], torch.device("cpu")))


def test_a_gene_without_variation_and_a_tissue_of_one_sample_do_no_harm_and_are_told(
    cohort, capsys
):
    for name in ("lung", "brain"):
        frame = pd.read_csv(f"{name}.csv")
        frame.iloc[:, 4] = 0.0
        frame.to_csv(f"{name}.csv", index=False)
    table = read_cohort(["lung.csv"])
    alone = ExpressionTable(
        ["X-1"], table.genes, table.expression[:1], pd.DataFrame({"tissue": ["heart"]})
    )
    write_expression_table("heart.csv", alone)
    (cohort / "split.csv").write_text("donor,partition\nX-1,test\n")
    change_config(cohort / "betavae.json", path_csv=["lung.csv", "brain.csv", "heart.csv"])
    train()
    assert "no training profile, so not learnt: heart" in capsys.readouterr().err
    summary = json.loads((cohort / "vae/summary.json").read_text())
    assert summary["tissues_without_training_profile"] == ["heart"]
    checkpoint = load_checkpoint(f"vae/{BEST}", "betavae")
    gene = checkpoint["scaler"]["std"] == 1
    assert gene.sum() == 1
    assert checkpoint["scaler"]["mean"][gene] == 0
    assert all(math.isfinite(row["train_loss"]) for row in checkpoint["history"])
    encoder = ProfileEncoder.from_checkpoint(checkpoint, torch.device("cpu"))
    scaled = encoder.scaler.transform(np.full((1, 30), 3.0, np.float32))
    assert np.isfinite(scaled).all()


def test_weights_of_another_network_or_cohort_are_refused(cohort):
    train()
    change_config(cohort / "betavae.json", save_dir="other", latent_dim=5)
    with pytest.raises(UserError, match="latent_dim is 6, the config's is 5"):
        train("--checkpoint", f"vae/{BEST}")
    assert not (cohort / "other").exists()
    change_config(cohort / "betavae.json", save_dir="vae", latent_dim=6, num_epochs=4)
    (cohort / "vae/summary.json").unlink()
    split = (cohort / "split.csv").read_text()
    swapped = split.replace(",val", ",x").replace(",test", ",val").replace(",x", ",test")
    (cohort / "split.csv").write_text(swapped)
    with pytest.raises(UserError, match="another donor split"):
        train()


def test_training_starts_from_the_weights_it_is_given(cohort):
    train()
    change_config(cohort / "betavae.json", save_dir="more", num_epochs=1, lr=1e-12)
    change_config(cohort / "betavae.json", warmup_epochs=0)
    train("--checkpoint", f"vae/{LAST}")
    before, after = (
        load_checkpoint(f"{run}/{LAST}", "betavae")["model"] for run in ("vae", "more")
    )
    torch.testing.assert_close(after["mu.weight"], before["mu.weight"])


def test_events_are_written_for_tensorboard(cohort):
    change_config(cohort / "betavae.json", summary_path="events")
    train("--log", "1")
    assert [path for path in os.listdir("events") if "tfevents" in path]
