"""The sampler as a script: `python scripts/sample.py RUN --prompt "..."` is `python -m lmtrain sample RUN --prompt "..."`."""

import sys

from lmtrain.__main__ import main

main(["sample", *sys.argv[1:]])
