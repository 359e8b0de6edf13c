"""What a command imports: nothing that it does not need, as some of PyTorch's parts take a second to import."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch._dynamo", "torch._inductor", "tensorboard", "hydra", "triton")


@pytest.mark.parametrize(
    ("arguments", "left_out"),
    [
        (["score", "run", "text.txt"], HEAVY), (["sample", "run", "--max-tokens", "2"], HEAVY), (["evaluate", "run"], HEAVY),
        (["--cfg", "job"], ("torch", "tensorboard")), (["--help"], ("torch", "hydra", "numpy")),
        (["explain", "x * y", "x=1", "y=2", "--svg", "new.svg"], ("torch", "hydra")),
        (["settings", "model"], ("torch", "hydra", "numpy")), (["vectors", "--help"], ("torch", "hydra", "numpy")),
        (["vectors", "neighbours", "cat.txt", "cat"], ("torch", "hydra", "scipy")),
    ],
)  # fmt: skip
def test_a_command_does_not_import_what_it_does_not_need(arguments: list[str], left_out: tuple[str, ...], place: Path) -> None:
    (place / "cat.txt").write_text("cat 1 2\ndog 3 4\n", encoding="utf-8")
    program = f"import sys; sys.argv[1:] = {arguments!r}\nfrom lmtrain.__main__ import main\nmain()\nprint()\n"
    program += f"print(*[name for name in {left_out!r} if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert ended.stdout.splitlines()[-1] == ""
