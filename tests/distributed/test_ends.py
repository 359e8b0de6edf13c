"""Whatever happens to one process at whatever moment, all end together within half a minute, and one of them says why."""

import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

HERE = runpy.run_path(str(Path(__file__).with_name("starting.py")))
SMALL, start, ended, tensors, said_once = (HERE[name] for name in ("SMALL", "start", "ended", "tensors", "said_once"))
RUN = [*SMALL, "trainer.sample_tokens=5", "hydra.run.dir=run"]
SOON = 30  # seconds

pytestmark = pytest.mark.slow


def reached(processes: list[subprocess.Popen]) -> float:
    """When the moment was, for which the file stands."""
    end = time.monotonic() + 50
    while not (found := [*Path().glob("reached"), *Path().glob("machine*/reached")]):
        assert time.monotonic() < end, [process.communicate()[1] for process in processes if process.poll() is not None]
        time.sleep(0.02)
    return time.monotonic() - (time.time() - found[0].stat().st_mtime)


CODES = {"memory": 6, "SIGKILL": 6, "SIGTERM": 143, "SIGINT": 130, "disk": 6}
WORDS = {
    "memory": "emory",
    "SIGKILL": "is gone",
    "SIGTERM": "SIGTERM ended it",
    "SIGINT": "interrupted",
    "disk": "File too large",
}


BEFORE = [("open", what) for what in ("memory", "SIGKILL")]
BEFORE += [("tokenise", what) for what in ("memory", "SIGKILL", "SIGTERM", "SIGINT")]


@pytest.mark.parametrize(("moment", "what"), BEFORE)
@pytest.mark.parametrize("victim", [0, 1])
def test_what_happens_to_one_before_training_ends_both(moment: str, what: str, victim: int) -> None:
    _ends(f"{victim}:{moment}:{what}", what, victim)


@pytest.mark.parametrize("what", ["memory", "SIGKILL"])
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("units", [8, 520])  # with 520 the sum of a gradient begins within the backward pass
def test_what_happens_to_one_in_a_step_ends_both(units: int, what: str, victim: int) -> None:
    _ends(f"{victim}:step:{what}", what, victim, f"model.hidden_size={units}")


@pytest.mark.parametrize("moment", ["evaluate", "sample", "save"])
@pytest.mark.parametrize("what", ["memory", "SIGKILL"])
def test_what_happens_to_the_first_while_the_other_waits_ends_both(moment: str, what: str) -> None:
    _ends(f"0:{moment}:{what}", what, 0)


def _ends(fault: str, what: str, victim: int, *more: str) -> None:
    processes = start(2, [*RUN, *more], fault=fault)
    since = reached(processes)
    codes, said = ended(processes)
    assert time.monotonic() - since < SOON
    assert codes == [-9 if what == "SIGKILL" and rank == victim else CODES[what] for rank in range(2)], said
    assert WORDS[what] in said_once(said)


LONG = [("evaluate", what, victim) for what, victim in (("SIGTERM", 0), ("SIGINT", 0), ("SIGINT", 1))]
LONG += [(moment, what, 1) for moment in ("evaluate", "sample", "save") for what in ("SIGKILL", "SIGTERM")]


@pytest.mark.parametrize(("moment", "what", "victim"), LONG)
def test_the_end_of_one_is_noticed_while_the_first_is_at_work_for_long(moment: str, what: str, victim: int) -> None:
    """A signal is answered behind the step; the second one ends at once, as in one process."""
    processes = start(2, RUN, fault=f"0:{moment}:nothing")
    reached(processes)
    since = time.monotonic()
    processes[victim].send_signal(number := getattr(signal, what))
    if number != signal.SIGKILL:
        time.sleep(0.5)
        assert [process.poll() for process in processes] == [None, None]
        processes[victim].send_signal(number)
    codes, said = ended(processes)
    assert time.monotonic() - since < SOON
    assert codes == [-9 if what == "SIGKILL" and rank == victim else CODES[what] for rank in range(2)], said
    said_once(said)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_full_disk_of_one_machine_ends_both(victim: int) -> None:
    """Each has a cache of its own."""
    for rank in range(2):
        Path(f"machine{rank}").mkdir()
        shutil.copy("text.txt", f"machine{rank}")
    codes, said = ended(start(2, RUN, fault=f"{victim}:tokenise:disk", apart=True))
    assert codes == [6, 6], said
    assert "File too large" in said_once(said)


def test_a_bug_shows_its_traceback_once_and_ends_both() -> None:
    codes, said = ended(start(2, RUN, fault="1:step:bug"))
    assert codes == [1, 1]
    assert "".join(said).count("ValueError: a bug of ours") == 1
    assert said[0].count("lmtrain: ") == 0


@pytest.mark.parametrize("policy", ["stop", "skip", "rollback"])
def test_a_loss_that_is_not_finite_on_one_is_so_on_all(policy: str) -> None:
    """Whichever it is, all do the same: two runs, with the fault on the one and on the other, end with the same bits."""
    for victim in range(2):
        codes, said = ended(start(2, [*RUN, f"hydra.run.dir=run{victim}", f"trainer.on_nonfinite={policy}"],
                                  fault=f"{victim}:step:nan"))  # fmt: skip
        assert codes == ([5, 5] if policy == "stop" else [0, 0]), said
        assert "Traceback" not in "".join(said)
        assert said[1] == ""
        assert "is not finite at step 4" in Path(f"run{victim}/lmtrain.log").read_text() + said[0]
    if policy != "stop":
        torch.testing.assert_close(tensors("run0"), tensors("run1"), rtol=0, atol=0)


def test_pytorch_keeps_no_connection_of_a_group_that_has_ended() -> None:
    """Its functions for autograd would, if imported within the group: the others would wait until the process is gone."""
    script = (
        "import sys, torch.distributed\n"
        "from lmtrain.distributed import launch\n"
        "from lmtrain.errors import ResourceError\n"
        "def begin(*_, **__):\n"
        "    assert 'torch.distributed.nn.functional' in sys.modules\n"
        "    raise RuntimeError('begun')\n"
        "torch.distributed.init_process_group = begin\n"
        "try:\n"
        "    launch._grouped(torch.distributed.HashStore(), None, None, 0, 2)\n"
        "except ResourceError as error:\n"
        "    assert 'begun' in str(error)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
