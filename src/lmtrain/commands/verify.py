"""`python -m lmtrain verify`: checks every hand-written gradient against central differences, and the recurrences against
torch.nn, on this machine."""

from __future__ import annotations

import sys

from lmtrain.commands.options import Parser, parse


def main(arguments: list[str]) -> None:
    """Prints a table of tensors and errors; exit code 1 where one fails."""
    parse(Parser("verify", __doc__), arguments)

    from lmtrain.verify import format_table, iter_checks

    checks = list(iter_checks())
    print(format_table(checks))
    if not all(check.passed for check in checks):
        sys.exit(1)
