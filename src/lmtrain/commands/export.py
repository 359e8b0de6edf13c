"""`python -m lmtrain export RUN --output DIR` writes a language model as files that do not need lmtrain.

`--format torch` writes plain weights and `model.py`, a script that scores and samples with PyTorch alone; `safetensors` writes
the weights under the names of torch.nn; `onnx` writes graphs for onnxruntime. Each comes with `card.md`, which says what the
model is, what it was trained on, how good it is and how it came to be.
"""

from __future__ import annotations

from pathlib import Path

from lmtrain.commands.options import Parser, add_model_options, new_directory, new_path, open_model, parse
from lmtrain.errors import as_typed
from lmtrain.shell import printable, quoted_for_shell, shown

NEXT = {"torch": "python {} score FILE", "safetensors": "cat {}", "onnx": "cat {}"}


@as_typed(format="--format ", quantize="--quantize ")
def main(arguments: list[str]) -> None:
    """Writes the directory and says what is in it."""
    parser = Parser("export", __doc__, behind="--output")
    add_model_options(parser)
    parser.add_argument(
        "--format", choices=("torch", "safetensors", "onnx"), default="torch", help="what to write (default: torch)"
    )
    parser.add_argument("--output", metavar="DIR", required=True, help="a new directory")
    parser.add_argument(
        "--quantize", choices=("int8",), help="of onnx: products in 8-bit integers; prints the perplexity that it costs"
    )
    options = parse(parser, arguments)

    from lmtrain.export.files import export_model
    from lmtrain.tasks.opening import training_corpus

    new_path(options.output)
    trained = open_model(options)
    with new_directory(options.output) as directory:
        written = export_model(
            trained, directory, corpus_of=training_corpus, format=options.format, quantize=options.quantize,
            name=quoted_for_shell(shown(options.run)), device=options.device,
        )  # fmt: skip
        sizes = {name: (directory / name).stat().st_size for name in written.files}
    for name, size in sizes.items():
        print(printable(f"{name:<20}{size:>16,} bytes"))
    for name, result in written.judged.items():
        print(f"\n{name}:\n{result.format()}")
    for line in written.measured:
        print(printable(line))
    file = Path(options.output) / ("model.py" if options.format == "torch" else "card.md")
    print(printable(f"\nSaved in {options.output}. Next:\n  {NEXT[options.format].format(quoted_for_shell(shown(file)))}"))
