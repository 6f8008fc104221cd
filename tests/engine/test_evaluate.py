import json
import logging
import os

import pytest
import torch
from runs import At, PowerCut, assert_identical, cut, cut_and_resume, outcome, run_cfg, train
from support import metrics, small_cfg

from isonet_det import build_model, load_weights

EXTRAS = [
    "MODEL.EMA.ENABLED", "True", "MODEL.EMA.DECAY", "0.5", "TEST.VAL_LOSS", "True",
    "INPUT.AUGMENTATION", "['default', 'color', {'copy_paste': {'probability': 0.7}}]",
]  # fmt: skip


def test_a_resume_stays_exact_with_averaging_losses_and_pasted_objects(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(run_cfg(whole, *EXTRAS))
    cut_and_resume(train, 5, run_cfg(parts, *EXTRAS))
    expected = outcome(whole)
    assert_identical(outcome(parts), expected)
    a, b = (torch.load(folder / "ema_final.pth")["model"] for folder in (parts, whole))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], expected[0][name]) for name in a)
    load_weights(build_model(small_cfg()), str(whole / "ema_final.pth"), whole=True)
    last = expected[2][-1]
    assert {"bbox/AP", "ema/bbox/AP", "val/total_loss", "val/loss_mask"} <= last.keys()
    assert "val/loss_ortho" not in last


def stopping(folder, *options):
    return run_cfg(
        folder, "TEST.EVAL_PERIOD", "1", "SOLVER.BASE_LR", "1e-12", "SOLVER.MAX_ITER", "9",
        "SOLVER.EARLY_STOPPING.METRIC", "bbox/AP", "SOLVER.EARLY_STOPPING.PATIENCE", "2", *options,
    )  # fmt: skip


def test_a_run_that_gets_no_better_ends_with_its_best(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        train(stopping(tmp_path))
    assert "for 2 evaluations: the run ends here" in caplog.text
    last = [row for row in metrics(tmp_path) if "bbox/AP" in row][-1]
    # The first evaluation is the best, two more are not better; nothing is evaluated twice.
    assert last["iteration"] == 2 and "total_loss" in last
    assert caplog.text.count("Evaluation results for bbox") == 3
    assert (tmp_path / "model_best.pth").is_file()
    assert torch.load(tmp_path / "model_final.pth")["iteration"] == 2
    caplog.clear()
    train(stopping(tmp_path), True)  # it is done
    assert "Evaluation results" not in caplog.text
    train(stopping(tmp_path, "SOLVER.EARLY_STOPPING.PATIENCE", "4"), True)
    assert torch.load(tmp_path / "model_final.pth")["iteration"] == 4


@pytest.mark.parametrize("name", [pytest.param("wandb", marks=pytest.mark.slow), "mlflow"])
def test_a_tracker_gets_the_run_and_goes_on_with_it(tmp_path, monkeypatch, name):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setattr("isonet_det.engine.loop.LOG_PERIOD", 2)
    run = tmp_path / "run"
    options = ["TRACKING", f"['{name}']", "TEST.REPORT", "True"]
    with pytest.raises(PowerCut):
        train(run_cfg(run, *options), False, At(5, cut))
    first = (run / "tracking.json").read_text()
    train(run_cfg(run, *options), True, pictures=True)
    assert (run / "tracking.json").read_text() == first
    assert not list(run.glob("events.out.tfevents*"))
    identity = json.loads(first)[name]
    if name == "mlflow":
        from mlflow import MlflowClient

        client = MlflowClient()
        logged = client.get_run(identity)
        assert logged.info.status == "FINISHED" and "bbox/AP" in logged.data.metrics
        assert logged.data.params["MODEL.RESNETS.DEPTH"] == "18"
        assert "run.commit" in logged.data.params
        assert {1, 5} <= {m.step for m in client.get_metric_history(identity, "total_loss")}
        assert "curves.png" in {a.path for a in client.list_artifacts(identity)}
    else:  # the two parts have one id
        assert len(list((run / "wandb").glob(f"offline-run-*-{identity}"))) == 2


def test_a_tracker_that_fails_ends_no_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{os.devnull}/nowhere")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    train(run_cfg(tmp_path, "TRACKING", "['tensorboard', 'mlflow']", "SOLVER.MAX_ITER", "2"))
    assert caplog.text.count("TRACKING mlflow fails and is left out") == 1
    assert (tmp_path / "model_final.pth").is_file()
    assert list(tmp_path.glob("events.out.tfevents*"))
