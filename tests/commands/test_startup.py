"""What a command imports: nothing that it does not need, as some of PyTorch's parts take a second to import."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch._dynamo", "torch._inductor", "tensorboard", "hydra", "triton")


@pytest.mark.parametrize(
    ("commands", "left_out"),
    [
        ([["score", "run", "text.txt"], ["sample", "run", "--max-tokens", "2"], ["evaluate", "run"]], HEAVY),
        ([["--cfg", "job"]], ("torch", "tensorboard")),
        ([["--help"], ["settings", "model"], ["vectors", "--help"]], ("torch", "hydra", "numpy")),
        ([["explain", "x * y", "x=1", "y=2", "--svg", "new.svg"]], ("torch", "hydra")),
        ([["vectors", "neighbours", "cat.txt", "cat"]], ("torch", "hydra", "scipy")),
    ],
    ids=str,
)
def test_commands_do_not_import_what_they_do_not_need(
    commands: list[list[str]], left_out: tuple[str, ...], place: Path
) -> None:
    """Those that leave the same out, in one process; what the first of them imports is named beside it."""
    (place / "cat.txt").write_text("cat 1 2\ndog 3 4\n", encoding="utf-8")
    program = f"""
import sys
from lmtrain.__main__ import main
for arguments in {commands!r}:
    sys.argv[1:] = arguments
    main()
    if imported := [name for name in {left_out!r} if name in sys.modules]:
        sys.exit(f"{{arguments}} imports {{imported}}")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr if ended.returncode else "") == (0, "")
