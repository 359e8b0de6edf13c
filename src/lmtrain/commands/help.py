"""`python -m lmtrain --help` lists what one can type, and what the groups of settings offer. It imports nothing heavy."""

from __future__ import annotations

from lmtrain.config import conf_directory

TEXT = """lmtrain trains language models (n-gram, fixed-window, recurrent), taggers, classifiers and word vectors.

Train (settings are key=value, groups are chosen by name):

  python -m lmtrain                                            embedded text, character LSTM, under 3 minutes
  python -m lmtrain data=text data.path=my.txt tokenizer=word  your own text
  python -m lmtrain model=gru model.hidden_size=300 trainer.max_seconds=60
  python -m lmtrain -m model=window,elman,gru,lstm             a sweep, one directory each
  python -m lmtrain resume=outputs/RUN                         goes on exactly where a run stopped

Use a trained model (each has its own --help; RUN is a run, a checkpoint or a mixture directory):

  python -m lmtrain sample RUN --prompt "Once upon"            writes text
  python -m lmtrain score RUN FILE                             log-probability of every line ("-": standard input)
  python -m lmtrain rescore FILE --weights 0.7 0               best of n-best lists that  score --nbest  has scored
  python -m lmtrain evaluate RUN [FILE]                        exact perplexity with its counts (any task: its score)
  python -m lmtrain compare RUN RUN [FILE]                     where one model beats another, and how sure that is
  python -m lmtrain predict RUN FILE                           a tagger's tags, a classifier's labels
  python -m lmtrain mix RUN RUN ... --output DIR               interpolates models, weights fitted on validation
  python -m lmtrain arpa RUN --output FILE.arpa                an n-gram model as KenLM and SRILM read it
  python -m lmtrain arpa FILE.arpa --output DIR                ... and from them
  python -m lmtrain export RUN --output DIR                    a script that needs PyTorch alone; --format safetensors, onnx
  python -m lmtrain runs [DIR ...]                             the table of runs, best first, with means over seeds
  python -m lmtrain report RUN ... --output FILE               runs side by side on one HTML page, with curves and figures
  python -m lmtrain search SPACE.yaml --trials 50              looks for the best settings, with Optuna
  python -m lmtrain inspect data=text data.path=my.txt         what data look like: sizes, Zipf, overlap, unseen n-grams
  python -m lmtrain explain "(x + y) * max(y, z)" x=1 y=2 z=0  every gradient of an expression, gate by gate; --svg draws it
  python -m lmtrain vectors analogies RUN FILE                 measures word vectors; "vectors --help" has the rest
  python -m lmtrain verify                                     checks every hand-written gradient on this machine

  python -m lmtrain completion                                 a script for bash: the TAB key then offers all this

Groups and what they offer:

{groups}

Every setting with its value:    python -m lmtrain --cfg job
Every setting with its meaning:  python -m lmtrain settings
Options of Hydra itself:         python -m lmtrain --hydra-help
"""


def main(arguments: list[str]) -> None:
    """Prints the help."""
    print(TEXT.format(groups="\n".join(f"  {name + '=':12}{', '.join(options)}" for name, options in iter_groups())))


def iter_groups() -> list[tuple[str, list[str]]]:
    """Yields every group of settings with its options, as they are in `conf/`."""
    directories = sorted(path for path in conf_directory().iterdir() if path.is_dir())
    return [(path.name, sorted(option.stem for option in path.glob("*.yaml"))) for path in directories]
