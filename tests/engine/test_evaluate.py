"""Losses of the test set, early stopping, averaged weights, trackers; an exact resume with them."""

import json
import logging
import os

import pytest
import torch
from support import At, PowerCut, assert_identical, cut, outcome, run_cfg, small_cfg, train

from isonet_det import ISONetError, build_model, load_weights
from isonet_det.engine.evaluate import WeightAverage, validation_losses
from isonet_det.engine.trainer import Trainer

EXTRAS = [
    "MODEL.EMA.ENABLED", "True", "MODEL.EMA.DECAY", "0.5", "TEST.VAL_LOSS", "True",
    "INPUT.AUGMENTATION", "['default', 'color', {'copy_paste': {'probability': 0.7}}]",
]  # fmt: skip


def test_a_resume_stays_exact_with_averaging_losses_and_pasted_objects(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(run_cfg(whole, *EXTRAS))
    with pytest.raises(PowerCut):
        train(run_cfg(parts, *EXTRAS), False, At(5, cut))
    train(run_cfg(parts, *EXTRAS), True)
    assert_identical(outcome(parts), outcome(whole))
    a, b = (torch.load(folder / "ema_final.pth")["model"] for folder in (parts, whole))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    raw = torch.load(whole / "model_final.pth")["model"]
    assert any(not torch.equal(a[name], raw[name]) for name in a)
    last = outcome(whole)[2][-1]
    assert {"bbox/AP", "ema/bbox/AP", "val/total_loss", "val/loss_mask"} <= last.keys()
    assert "val/loss_ortho" not in last


def test_the_average_is_written_out_and_a_detector_by_itself(tmp_path):
    model = torch.nn.Linear(2, 2)
    average = WeightAverage(model, 0.9, str(tmp_path))
    average.before_train()
    expected = model.weight.detach().clone()
    for _ in range(3):
        with torch.no_grad():
            model.weight.add_(1)
        average.after_step()
        expected = 0.9 * expected + 0.1 * model.weight.detach()
    raw = model.weight.detach().clone()
    torch.testing.assert_close(average.model.weight.detach(), expected)
    assert torch.equal(model.weight, raw)
    average.after_train()
    saved = torch.load(tmp_path / "ema_final.pth")["model"]
    torch.testing.assert_close(saved["weight"], expected)


def test_averaged_weights_evaluate_without_a_pass_over_data(tmp_path):
    """There is nothing beside the weights that would have to fit them: no running statistics."""
    cfg = run_cfg(tmp_path, *EXTRAS, "SOLVER.MAX_ITER", "2", "DATASETS.TEST", "()")
    train(cfg)
    model = build_model(cfg)
    load_weights(model, str(tmp_path / "ema_final.pth"), whole=True)
    assert {n for n, _ in model.named_buffers()} <= {"pixel_mean", "pixel_std"} | {
        n for n, _ in model.named_buffers() if "anchor" in n
    }


def test_losses_of_the_test_set_are_the_trainings_own(tmp_path):
    cfg = small_cfg("OUTPUT_DIR", str(tmp_path), "MODEL.ISONET.ORTHO_COEFF", "1.0")
    trainer = Trainer(cfg)
    model = trainer.checkpointer.model
    from isonet_det.data.stream import build_validation_loader

    batches = list(build_validation_loader(cfg, "shapes_tiny"))
    losses = validation_losses(model, batches)
    parts = [value for name, value in losses.items() if name != "total_loss"]
    assert losses["total_loss"] == pytest.approx(sum(parts)) and len(parts) == 5
    assert losses == validation_losses(model, batches) and "loss_ortho" not in losses
    assert model.training
    model.eval()
    validation_losses(model, batches[:1])
    assert not model.training


def stopping(folder, *options):
    return run_cfg(
        folder, "TEST.EVAL_PERIOD", "1", "SOLVER.BASE_LR", "1e-12", "SOLVER.MAX_ITER", "9",
        "SOLVER.EARLY_STOPPING.METRIC", "bbox/AP", "SOLVER.EARLY_STOPPING.PATIENCE", "2", *options,
    )  # fmt: skip


def test_a_run_that_gets_no_better_ends_with_its_best(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        train(stopping(tmp_path))
    assert "for 2 evaluations: the run ends here" in caplog.text
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    rows = [row for row in rows if "bbox/AP" in row]
    # The first evaluation is the best, two more are not better; nothing is evaluated twice.
    assert rows[-1]["iteration"] == 2
    assert caplog.text.count("Evaluation results for bbox") == 3
    assert (tmp_path / "model_best.pth").is_file() and "total_loss" in rows[-1]
    assert torch.load(tmp_path / "model_final.pth")["iteration"] == 2
    caplog.clear()
    train(stopping(tmp_path), True)  # it is done
    assert "Evaluation results" not in caplog.text
    more = stopping(tmp_path, "SOLVER.EARLY_STOPPING.PATIENCE", "4")
    train(more, True)
    assert torch.load(tmp_path / "model_final.pth")["iteration"] == 4


def test_a_metric_that_is_not_logged_is_one_line(tmp_path):
    with pytest.raises(ISONetError, match=r"expected one of .*bbox/AP.*, got 'AP'"):
        train(stopping(tmp_path, "SOLVER.EARLY_STOPPING.METRIC", "AP"))


@pytest.mark.parametrize("name", [pytest.param("wandb", marks=pytest.mark.slow), "mlflow"])
def test_a_tracker_gets_the_run_and_goes_on_with_it(tmp_path, monkeypatch, name):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setattr("isonet_det.engine.loop.LOG_PERIOD", 2)
    options = ["TRACKING", f"['{name}']", "TEST.REPORT", "True"]
    with pytest.raises(PowerCut):
        train(run_cfg(tmp_path / "run", *options), False, At(5, cut))
    first = json.loads((tmp_path / "run" / "tracking.json").read_text())
    train(run_cfg(tmp_path / "run", *options), True, pictures=True)
    assert json.loads((tmp_path / "run" / "tracking.json").read_text()) == first
    assert not list((tmp_path / "run").glob("events.out.tfevents*"))
    if name == "mlflow":
        from mlflow import MlflowClient

        run = MlflowClient().get_run(first["mlflow"])
        assert run.info.status == "FINISHED" and run.data.params["MODEL.RESNETS.DEPTH"] == "18"
        assert "run.commit" in run.data.params and "bbox/AP" in run.data.metrics
        steps = {m.step for m in MlflowClient().get_metric_history(first["mlflow"], "total_loss")}
        assert {1, 5} <= steps
        names = {a.path for a in MlflowClient().list_artifacts(first["mlflow"])}
        assert "curves.png" in names
    else:
        runs = list((tmp_path / "run" / "wandb").glob(f"offline-run-*-{first['wandb']}"))
        assert len(runs) == 2  # the two parts have one id


def test_a_tracker_that_fails_ends_no_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{os.devnull}/nowhere")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    train(run_cfg(tmp_path, "TRACKING", "['tensorboard', 'mlflow']", "SOLVER.MAX_ITER", "2"))
    assert caplog.text.count("TRACKING mlflow fails and is left out") == 1
    assert (tmp_path / "model_final.pth").is_file()
    assert list(tmp_path.glob("events.out.tfevents*"))


def test_an_unknown_tracker_is_one_line():
    from isonet_det.engine.tracking import check_tracking

    with pytest.raises(ISONetError, match="expected names among mlflow, tensorboard, wandb"):
        check_tracking(small_cfg("TRACKING", "['neptune']"))
