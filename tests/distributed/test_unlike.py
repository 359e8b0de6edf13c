"""Machines that are not alike: processes agree on weights that each has computed otherwise, and say where they cannot agree."""

import runpy
import shutil
from pathlib import Path

import pytest
import torch

HERE = runpy.run_path(str(Path(__file__).with_name("starting.py")))
SMALL, start, ended, train, tensors = (HERE[name] for name in ("SMALL", "start", "ended", "train", "tensors"))
losses, said_once = HERE["losses"], HERE["said_once"]

pytestmark = pytest.mark.slow


def train_unlike(*more: str) -> None:
    codes, said = ended(start(2, more, script="unlike.py"))
    assert codes == [0, 0], said


def test_processes_that_draw_and_round_otherwise_have_the_same_bits_where_they_begin_and_save() -> None:
    """So a resumed run equals the uninterrupted one."""
    more = [*SMALL, "schedule=constant", "optimizer.averaging=ema"]
    train_unlike(*more, "hydra.run.dir=whole")
    first, other = (torch.load(f"learnt-{rank}.pt") for rank in range(2))
    carried = {name for name in first if name.startswith(("training.state", "training.earlier"))}
    assert len(first) > len(carried) > 0
    for name in first.keys() - carried:
        torch.testing.assert_close(other[name], first[name], rtol=0, atol=0, msg=name)
    train(1, "alike", *more, "trainer.num_steps=2")
    torch.testing.assert_close(losses("whole")[0], losses("alike")[0], rtol=1e-5, atol=0)
    train_unlike(*more, "hydra.run.dir=half", "trainer.num_steps=6")
    train_unlike("resume=half", "trainer.num_steps=12")
    torch.testing.assert_close(tensors("half"), tensors("whole"), rtol=0, atol=0)


def machines(*more: str) -> None:
    """Two of them, each with the text, and with `more` behind it."""
    for rank, behind in enumerate(more):
        Path(f"machine{rank}").mkdir()
        Path(f"machine{rank}/text.txt").write_text(Path("text.txt").read_text() + behind)


def test_another_text_on_one_machine_is_said_before_training() -> None:
    machines("", "one line more\n")
    codes, said = ended(start(2, [*SMALL, "hydra.run.dir=run"], apart=True))
    assert codes == [2, 2]
    assert "Process 1 of 2" in (words := said_once(said))
    assert "reads another text" in words


def test_a_start_from_a_run_goes_on_where_only_the_first_machine_has_the_directories() -> None:
    machines("", "")
    codes, said = ended(start(1, [*SMALL, "hydra.run.dir=machine0/base"]))
    assert codes == [0], said
    codes, said = ended(start(2, [*SMALL, "hydra.run.dir=run", "start_from=base", "trainer.num_steps=6"], apart=True))
    assert codes == [0, 0], said
    shutil.rmtree("machine0/base")
    codes, said = ended(start(2, ["resume=run", "trainer.num_steps=12"], apart=True))
    assert codes == [0, 0], said
    assert not Path("machine1/run").exists()
