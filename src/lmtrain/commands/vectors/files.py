"""`vectors export` writes word vectors of a run, or of a file, as a file that other programs read."""

from __future__ import annotations

from lmtrain.commands.options import Parser, parse
from lmtrain.commands.vectors.options import FORMATS, new_file, read_vectors
from lmtrain.quantity import counted
from lmtrain.shell import printable


def export(arguments: list[str]) -> None:
    """`python -m lmtrain vectors export RUN|FILE --output FILE` writes the vectors for other programs.

    Read again, they are the same bit by bit. word2vec and glove are text; npz holds the arrays words and matrix. Without
    --format a FILE that ends in .npz is npz, one that ends in .bin is word2vec-binary, and every other one is word2vec.
    """
    parser = Parser("vectors export", export.__doc__)
    parser.add_argument("vectors", metavar="RUN|FILE", help="a run or checkpoint directory, or a file of vectors")
    parser.add_argument("--checkpoint", choices=("best", "last"), help="of a run directory (default: best)")
    parser.add_argument("--format", choices=FORMATS, help="of what is written (default: what the name says, or word2vec)")
    parser.add_argument("--from-format", choices=FORMATS, help="of a file whose content is taken for another format")
    parser.add_argument("--output", metavar="FILE", required=True, help="the file to write")
    options = parse(parser, arguments)
    from lmtrain.vectors.files import format_of

    output = new_file(options.output)
    vectors = read_vectors(options.vectors, options.checkpoint, options.from_format)
    format = options.format or format_of(output.name)
    vectors.save(output, format=format)
    size = vectors.matrix.shape[1]
    print(printable(f"Saved in {output}: {counted(len(vectors), 'word')}, {counted(size, 'number')} each ({format})."))
