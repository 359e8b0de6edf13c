"""The chaos script, in small."""

import random
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from lmtrain.training.checkpoint import mark, save_checkpoint

CHAOS: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "chaos.py"), run_name="chaos")


@pytest.mark.slow
def test_a_disturbed_training_ends_like_the_undisturbed_one(tmp_path: Path) -> None:
    disturbances = CHAOS["run"](tmp_path, 5, random.Random(3))
    assert [item.kind for item in disturbances] == ["kill", "term", "moment", "disk", "damage"]


@pytest.mark.parametrize("difference", ["weight", "state", "record", "best", None])
def test_the_comparison_sees_a_single_bit(difference: str | None, tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        spoilt = difference if name == "theirs" else None
        weight = torch.ones(3)
        if spoilt == "weight":
            weight[1] = torch.nextafter(weight[1], torch.tensor(2.0))
        state = {"step": 5, "elapsed_seconds": random.random(), "learner": {"x": 1 + (spoilt == "state")}}
        tensors = {"model": {"w": weight}, "training": {"m": torch.zeros(2)}}
        kept = save_checkpoint(tmp_path / name, 5, tensors, {"training": {"state": state}})
        mark(tmp_path / name, "best", kept)
        if spoilt == "best":
            save_checkpoint(tmp_path / name, 6, tensors, {"training": {"state": state}})
            mark(tmp_path / name, "best", tmp_path / name / "checkpoints" / "step-00000006")
        loss = 1.25 if spoilt == "record" else 1.5
        line = f'{{"step": 1, "train/nats_per_token": {loss}, "perf/tokens_per_second": {random.random()}}}\n'
        (tmp_path / name / "metrics.jsonl").write_text(line)
    if difference is None:
        CHAOS["compare"](tmp_path / "ours", tmp_path / "theirs")
    else:
        with pytest.raises(CHAOS["LossError"], match=r"differ|best"):
            CHAOS["compare"](tmp_path / "ours", tmp_path / "theirs")
