"""The card of a model: what it is, what it was trained on, how good it is, and how it came to be.

It takes what the checkpoint holds, what the run's record says where the checkpoint lies in one, and the corpus where it still
stands where it was. What cannot be known is said to be unknown.
"""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from lmtrain import __version__
from lmtrain.data.corpus import Corpus
from lmtrain.data.corpus import describe as describe_corpus
from lmtrain.errors import UserError
from lmtrain.inference.evaluate import STATIC, Evaluation, check_numbers, evaluate
from lmtrain.progress import watched
from lmtrain.quantity import counted
from lmtrain.saved import Trained, load_lines
from lmtrain.settings.defaults import differing_settings
from lmtrain.shell import one_line
from lmtrain.training.checkpoint import load_document
from lmtrain.training.run_record import NoRecordError, read_sessions

WAYS_TO_USE = {
    "torch": (
        "    python model.py score FILE                      # natural log-probability of every line\n"
        '    python model.py sample --prompt "..."           # writes text\n\n'
        "The script needs PyTorch{library}, and nothing else. `weights.pt` is read with\n"
        '`torch.load("weights.pt", weights_only=True)`.'
    ),
    "safetensors": (
        '    from safetensors.torch import load_file\n    weights = load_file("model.safetensors")\n\n'
        "The names are those of torch.nn: `layers.0.rnn.*` fits the first layer's `torch.nn.LSTM`, `GRU` or `RNN`, "
        "`embedding.*` an\n`nn.Embedding`, `head.*` an `nn.Linear` (whose weight, where there is none, is the embedding's). "
        "`config.json` says how they\nbelong together. The second bias of an LSTM or RNN is zero."
    ),
    "onnx": (
        "    import onnxruntime\n"
        '    step = onnxruntime.InferenceSession("step.onnx")          # (token, state) -> (log_probs, next state)\n'
        '    sequence = onnxruntime.InferenceSession("sequence.onnx")  # (tokens, lengths) -> nats\n\n'
        "`config.json` lists inputs and outputs under `onnx`, and what each state is before a text."
    ),
}


def judge(trained: Trained, device: str) -> dict[str, Evaluation]:
    """How well the model predicts the texts that were saved with it; each exactly, as one stream."""
    judged = {}
    for name in ("valid", "test"):
        if (text := trained.texts.get(name)) is None:
            continue
        with watched(f"Evaluating {name}", len(text.ids), "tok") as advance:
            judged[name] = evaluate(trained.model, text, trained.tokenizer, progress=advance, device=device)
        check_numbers(judged[name].total_nats, STATIC)
    return judged


def write_card(
    trained: Trained, path: Path, *, judged: Mapping[str, Evaluation], files: Iterable[Path], format: str,
    measured: Iterable[str], name: str, config: Mapping[str, Any], corpus_of: Callable[[Path], Corpus],
) -> None:  # fmt: skip
    """Writes the card as Markdown. `corpus_of` a checkpoint: what it was trained on; it raises UserError where that is gone."""
    training = load_document(trained.path, "training")
    settings = training.get("settings", {}) if isinstance(training, dict) else {}
    sections = {
        "Model": _model(trained, config["model"]),
        "Use": WAYS_TO_USE[format].format(library=" and `tokenizers`" * (config["tokenizer"]["kind"] == "subword")),
        "Files": "\n".join(f"* `{file.name}`, {file.stat().st_size:,} bytes" for file in sorted(files)),
        "Data": _data(trained, corpus_of),
        "Tokens": _tokens(trained),
        "How good it is": _quality(trained, judged, measured),
        "Settings": _settings(settings, trained),
        "How it came to be": _history(trained, name, format),
    }
    text = f"# {_title(trained)}\n\nWritten by `lmtrain export` (lmtrain {__version__}).\n"
    text += "".join(f"\n## {head}\n\n{body}\n" for head, body in sections.items())
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def _title(trained: Trained) -> str:
    return f"A language model of {trained.tokenizer.kind.noun}s"


def _model(trained: Trained, facts: Mapping[str, Any]) -> str:
    parts = facts.get("parts", [facts])
    lines = [f"A mixture of {counted(len(parts), 'model')}.\n"] if "parts" in facts else []
    for number, part in enumerate(parts):
        share = f"Part {number}, weight {facts['weights'][number]:.6g}: " if "parts" in facts else ""
        lines.append(f"* {share}{_in_words(part)}; state {_memory(part['state_policy'])}")
    size = sum(p.numel() for p in trained.model.parameters()) if hasattr(trained.model, "parameters") else 0
    return "\n".join([*lines, *([f"* {size:,} trained numbers in float32"] if size else [])])


def _memory(policy: str) -> str:
    return {"carry": "carried from line to line", "line": "forgotten at each line's end"}.get(
        policy, "forgotten at each empty line"
    )


def _in_words(facts: Mapping[str, Any]) -> str:
    match facts:
        case {"kind": "mixture", "parts": parts}:
            return f"a mixture of {len(parts)}"
        case {"kind": "ngram", "order": order, "num_ngrams": numbers}:
            return f"n-grams up to order {order} ({', '.join(f'{number:,}' for number in numbers)} of them)"
        case {"layers": layers}:
            sizes = "-".join(str(layer["hidden_size"]) for layer in layers)
            kind = facts.get("cell", "window")
            context = f" over the last {counted(facts['context'], 'token')}" if kind == "window" else ""
            extras = [f"hashed n-grams up to order {facts['hashed_order']}"] if facts["hashed_order"] else []
            extras += [f"adaptive softmax with cutoffs {facts['cutoffs']}"] if facts["cutoffs"] else []
            return f"{kind}{context}, hidden layers {sizes}" + "".join(f", {extra}" for extra in extras)
    return str(facts["kind"])


def _data(trained: Trained, corpus_of: Callable[[Path], Corpus]) -> str:
    try:
        return _code(describe_corpus(corpus_of(trained.path)))
    except UserError as error:
        lines = load_lines(trained).train
        known = sum(len(hashes) for hashes in lines if hashes is not None)
        rows = [f"The training text cannot be described: {one_line(error.given)}"]
        rows += [f"Hashes of {known:,} of its lines were kept with the model."] if known else []
        rows += [
            f"* {name}: {len(text.ids):,} tokens, {text.num_chars:,} characters, {text.num_bytes:,} bytes"
            for name, text in trained.texts.items() if name != "train_start"
        ]  # fmt: skip
        return "\n".join(rows)


def _tokens(trained: Trained) -> str:
    tokenizer = trained.tokenizer
    unknown = "nothing is unknown" if tokenizer.unk_id is None else "what it lacks is `<unk>`"
    rows = [f"* kind `{tokenizer.name}`, vocabulary of {tokenizer.vocab_size:,}; {unknown}"]
    rows += [f"* SHA-256 of the vocabulary: `{tokenizer.fingerprint()}`"]
    if tokenizer.normalize != "none":
        rows.append(f"* text is read in the form `{tokenizer.normalize}`")
    if tokenizer.reverse:
        rows.append("* each line is read from its last token to its first, its end behind them")
    if tokenizer.separators:
        rows.append(f"* words are separated by whitespace and by {json.dumps(tokenizer.separators)}")
    if tokenizer.rare is not None:
        rows.append("* unknown words are spelt by letters in the numbers below; exported files give the cost of `<unk>` alone")
    return "\n".join(rows)


def _quality(trained: Trained, judged: Mapping[str, Evaluation], measured: Iterable[str]) -> str:
    parts = [f"The {name} text that was saved with the model:\n\n{_code(found.format())}" for name, found in judged.items()]
    parts = parts or ["No text was saved with the model."]
    told = [f"* {one_line(line)}" for line in measured]
    return "\n\n".join([*parts, *(["\n".join(told)] if told else [])])


def _settings(settings: Mapping[str, Any], trained: Trained) -> str:
    if not settings:
        return f"Of the model itself:\n\n{_code(json.dumps(trained.document, indent=1))}"
    differing = differing_settings(settings)
    rows = "\n".join(f"{name}={_shown(value)}" for name, value in differing.items()) or "none"
    seed = settings.get("trainer", {}).get("seed") if isinstance(settings.get("trainer"), dict) else None
    return f"Those that differ from the defaults (the seed was {seed}):\n\n{_code(rows)}"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _history(trained: Trained, name: str, format: str) -> str:
    try:
        sessions = read_sessions(trained.path.parent.parent)
    except NoRecordError:
        sessions = []
    rows = [f"These are the weights after {counted(trained.step, 'step')}."] if trained.step else []
    for session in sessions:
        command = [str(word) for word in session.get("command_line", [])[1:]]
        took = session.get("elapsed_seconds")
        time = f", {took:,.0f} s" if isinstance(took, int | float) else ""
        rows.append(
            f"Trained from {session.get('started_at', 'an unknown time')}{time}, on {session.get('device', 'unknown')}:"
        )
        rows.append(_code(shlex.join(["python", "-m", "lmtrain", *command])))
        packages = session.get("packages")
        used = {"lmtrain": session.get("lmtrain"), "python": session.get("python")}
        used |= packages if isinstance(packages, dict) else {}
        rows.append("with " + ", ".join(f"{package} {version}" for package, version in used.items() if version) + ".")
    versions = f"lmtrain {__version__}, python {platform.python_version()}, torch {metadata.version('torch')}"
    rows += ["Exported by", _code(f"python -m lmtrain export {name} --format {format}"), f"with {versions}."]
    return "\n\n".join(rows)


def _code(text: str) -> str:
    """Text as a block of code, indented, so that nothing in it can end the block."""
    return "\n".join(f"    {one_line(line)}" for line in text.split("\n"))
