"""Memory that is kept, in a process of its own: the setting holds for all of one."""

import subprocess
import sys

import pytest

TOUCH_TWICE = """
import ctypes, resource, sys
from lmtrain.machine import freed_memory_kept, keep_freed_memory
if sys.argv[1] not in ("default", "kept for a while"):
    keep_freed_memory()
if "for a while" in sys.argv[1]:
    with freed_memory_kept():
        pass
if sys.argv[1] == "given back":
    keep_freed_memory(False)
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    memory = libc.malloc(64 << 20)
    ctypes.memset(memory, 1, 64 << 20)
    libc.free(memory)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
@pytest.mark.parametrize(
    ("how", "is_touched_anew"),
    [
        ("kept", False),
        ("given back", True),
        ("default", True),
        ("kept for a while", True),
        ("kept, and for a while", False),
    ],
)
def test_freed_memory_is_touched_anew_unless_it_is_kept(how: str, is_touched_anew: bool) -> None:
    done = subprocess.run([sys.executable, "-c", TOUCH_TWICE, how], capture_output=True, text=True, check=True)
    assert (int(done.stdout) > 100) is is_touched_anew
