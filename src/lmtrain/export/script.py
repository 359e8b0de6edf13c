"""A language model that needs nothing of the place where it was trained: PyTorch is enough.

python model.py score FILE               natural log-probability of every line; "-" is standard input
python model.py sample --prompt "Once"   writes text; with --temperature 0 always the likeliest token
"""

import argparse
import io
import json
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

HERE = Path(__file__).parent  # with weights.pt, named as torch.nn names them, and config.json: how they belong together
# -- only window
ACTIVATIONS: dict[str, Any] = {  # the others have their names in torch.nn.functional
    "hard_tanh": F.hardtanh, "parametric_relu": F.prelu, "identity": torch.clone, "swish": lambda x, b: x * (b * x).sigmoid(),
    "gelu_logistic": lambda x: x * (1.702 * x).sigmoid(), "swiglu": lambda x: F.silu(x.chunk(2)[0]) * x.chunk(2)[1],
}  # fmt: skip
# -- end


class Tokenizer:
    """Text to ids and back."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.facts, self.eos, self.unk, self.tokens = facts, facts["eos_id"], facts["unk_id"], facts["tokens"]
        self.ids = {token: number for number, token in enumerate(self.tokens)}
        # -- only spelled
        self.letters_nats, self.seen = 0.0, dict[bytes, dict[int, int]]()  # nats; how often letters (256: end) came behind 4
        for word, count in facts["spelling"]["words"].items():
            padded = b"    " + word.encode()
            for place, context in ((at, padded[at - n : at]) for at in range(4, len(padded) + 1) for n in range(5)):
                symbol, seen = padded[place] if place < len(padded) else 256, self.seen.setdefault(context, {})
                seen[symbol] = seen.get(symbol, 0) + count
        # -- only subword
        try:
            from tokenizers import Tokenizer as Library
        except ImportError:
            sys.exit("The tokens of this model are subwords. Type  pip install tokenizers  and try again.")
        self.library: Any = Library.from_file(str(HERE / "subword.json"))
        self.library.no_truncation()
        # -- end

    def encode(self, text: str) -> list[int]:
        # -- only normalized
        import unicodedata

        for step in self.facts["normalize_steps"]:
            text = text.lower() if step == "lower" else unicodedata.normalize(step, text)
        # -- only byte
        ids = [*text.encode()]
        # -- only char
        ids = [self.ids.get(character, self.unk) for character in text]
        # -- only subword
        lines = [self.library.encode(line, add_special_tokens=False).ids for line in text.split("\n")]
        ids = [number for line in lines for number in (self.eos, *line)][1:]
        # -- only word
        text = text.translate({ord(separator): " " for separator in self.facts["separators"]})
        words = text.encode().replace(b"\n", b" <eos> ").split()
        ids = [self.ids.get(word.decode(), self.unk) for word in words]
        # -- only spelled
        self.letters_nats += sum(self.spell(word) for word, number in zip(words, ids, strict=True) if number == self.unk)
        # -- only reversed
        ends = [-1, *(place for place, number in enumerate(ids) if number == self.eos), len(ids)]
        lines = [(ids[start + 1 : end], ids[end : end + 1]) for start, end in zip(ends[:-1], ends[1:], strict=True)]  # noqa: RUF007
        ids = [number for line, end in lines for number in (*line[::-1], *end)]  # lines from their last token to their first
        # -- end
        return ids

    def decode(self, ids: list[int], before: str) -> str:
        """What `ids` write behind the text `before`."""
        # -- only byte
        return bytes(ids).decode(errors="replace")
        # -- only char
        return "".join(self.tokens[number] for number in ids)
        # -- only subword
        return str(self.library.decode(ids, skip_special_tokens=False))
        # -- only word
        text, behind_word = "", before[-1:] not in " \t\n\v\f\r" + self.facts["separators"]
        for number in ids:
            text += "\n" if number == self.eos else " " * behind_word + self.tokens[number]
            behind_word = number != self.eos
        return text
        # -- end

    # -- only spelled
    def spell(self, word: bytes) -> float:
        """What the letters of an unknown word cost, in nats."""
        padded, nats = b"    " + word, self.facts["spelling"]["nats_per_word"]
        for place, symbol in enumerate([*word, 256], 4):
            probability = 1 / 251
            for seen in (self.seen.get(padded[place - length : place], {}) for length in range(5)):
                total = sum(seen.values()) + len(seen)
                probability = (seen.get(symbol, 0) + len(seen) * probability) / total if seen else probability
            nats -= float(torch.tensor(probability, dtype=torch.float64).log())
        return float(nats)

    # -- end


class Model:
    """Reads tokens and says what may follow each. Its state: the last tokens, and what else it remembers."""

    def __init__(self, facts: dict[str, Any], weights: dict[str, torch.Tensor]) -> None:
        self.facts, self.weights, self.eos, self.size = facts, weights, facts["eos_id"], facts["vocab_size"]
        # -- only mixture
        own = [{n[len(str(k)) + 1 :]: w for n, w in weights.items() if n.startswith(f"{k}.")} for k in range(len(weights))]
        self.parts = [Model(part, own[number]) for number, part in enumerate(facts.get("parts", []))]
        self.start: Any = [part.start for part in self.parts] or (facts["start"], [*map(torch.zeros, facts["state_sizes"])])
        # -- only single
        self.start = facts["start"], [*map(torch.zeros, facts["state_sizes"])]
        # -- end

    def read(self, token: int, state: Any) -> tuple[torch.Tensor, Any]:
        """Log-probabilities [V] of what follows a token, and the next state."""
        # -- only mixture
        if self.parts:  # the weighted mean of what they say; each forgets by itself
            each = [part.read(token, own) for part, own in zip(self.parts, state, strict=True)]
            logs = torch.tensor(self.facts["weights"], dtype=torch.float64).log()
            return (torch.stack([row for row, _ in each]) + logs[:, None]).logsumexp(0), [after for _, after in each]
        # -- end
        (history, memory), policy = state, self.facts["state_policy"]
        if token == self.eos and (policy == "line" or (policy == "document" and history[-1:] == [token])):
            history, memory = self.start  # the model forgets
        history = [*history, token][-self.facts["history"] :]
        row, memory = getattr(self, self.facts["kind"])(history, memory)
        return row, (history, memory)

    # -- only network
    def softmax(self, x: torch.Tensor, history: list[int]) -> torch.Tensor:
        w, cutoffs = self.weights, self.facts["cutoffs"]
        x = w["projection.weight"] @ x if "projection.weight" in w else x
        logits = w.get("head.weight", w["embedding.weight"]) @ x + w["head.bias"]
        # -- only hashed
        bucket = 0
        for token in reversed(history[len(history) + 1 - max(1, self.facts["hashed_order"]) :]):
            bucket = (bucket + token + 1) * 6364136223846793005 % 2**64
            start = (bucket >> 32) % 2**31 % (len(w["hashed.weight"]) - self.size + 1)
            logits = logits + w["hashed.weight"][start : start + self.size]
        # -- only adaptive
        logits, *clusters = logits.log_softmax(-1).split([cutoffs[0], *[1] * len(cutoffs)]) if cutoffs else [logits]
        for k, cluster in enumerate(clusters):
            narrow = w[f"tail.{k}.0.weight"] @ x if f"tail.{k}.0.weight" in w else x
            tail = w[f"tail.{k}.1.weight"] @ narrow + w[f"tail.{k}.1.bias"]
            logits = torch.cat([logits, cluster + tail.log_softmax(-1)])
        # -- end
        return logits.log_softmax(-1)  # which changes nothing where they are log-probabilities already

    # -- only window
    def window(self, history: list[int], memory: Any) -> tuple[torch.Tensor, Any]:
        """The embeddings of the last tokens through hidden layers."""
        name, span = self.facts["activation"], self.facts["average_span"]
        embedded = self.weights["embedding.weight"][history[-span - self.facts["context"] :]]
        inputs = x = embedded[span:].flatten()
        x = torch.cat([x, (self.weights["averages.weight"] @ embedded[:span]).flatten()]) if span else x
        for number, layer in enumerate(self.facts["layers"]):
            w = {name: self.weights[f"layers.{number}.{name}"] for name in layer["weights"]}
            y = w["linear.weight"] @ x + w["linear.bias"]
            y = (ACTIVATIONS.get(name) or getattr(F, name))(y, *(w[slope] for slope in w if slope == "slope"))
            y = F.layer_norm(y, y.shape, w["norm.weight"], w["norm.bias"]) if "norm.weight" in w else y
            x = y + x if layer["residual"] else y
        return self.softmax(torch.cat([x, inputs]) if self.facts["direct"] else x, history), memory

    # -- only recurrent
    def recurrent(self, history: list[int], memory: Any) -> tuple[torch.Tensor, Any]:
        """Layers whose states are carried from token to token."""
        x, left, after = self.weights["embedding.weight"][history[-1]], [*memory], list[torch.Tensor]()
        for number, layer in enumerate(self.facts["layers"]):
            w = {name: self.weights[f"layers.{number}.{name}"] for name in layer["weights"]}
            h = left.pop(0)
            p, q = w["rnn.weight_ih_l0"] @ x, w["rnn.weight_hh_l0"] @ h
            if "norm_ih.weight" in w:
                p = F.layer_norm(p, p.shape, w["norm_ih.weight"])
                q = F.layer_norm(q.view(-1, len(h)), h.shape).flatten() * w["norm_hh.weight"]
            p, q, old, new = p + w["rnn.bias_ih_l0"], q + w["rnn.bias_hh_l0"], [h], list[torch.Tensor]()
            # -- only lstm
            if self.facts["cell"] == "lstm":
                (i, f, g, o), old = (p + q).chunk(4), [h, left.pop(0)]
                c = f.sigmoid() * old[1] + i.sigmoid() * g.tanh()
                new = [o.sigmoid() * c.tanh(), c]
            # -- only gru
            if self.facts["cell"] == "gru":
                (p_r, p_z, p_n), (q_r, q_z, q_n) = p.chunk(3), q.chunk(3)
                new = [torch.lerp((p_n + (p_r + q_r).sigmoid() * q_n).tanh(), h, (p_z + q_z).sigmoid())]
            # -- only elman
            if self.facts["cell"] == "elman":
                new = [getattr(torch, self.facts["nonlinearity"].replace("identity", "clone"))(p + q)]
            # -- end
            after += [torch.lerp(now, before, layer["zoneout"]) for now, before in zip(new, old, strict=True)]
            y = w["projection.weight"] @ after[-len(new)] if "projection.weight" in w else after[-len(new)]
            x = y + x if layer["residual"] else y
        return self.softmax(x, history), after

    # -- only ngram
    def ngram(self, history: list[int], memory: Any) -> tuple[torch.Tensor, Any]:
        """log p(w | h) = log p(hw) where that is listed, else rest(h) + log p(w | h without its first word)."""
        row, longest = self.weights["order_1.log_probs"].clone(), min(len(history), self.facts["order"] - 1)
        for length in range(1 if self.facts["interpolates"] else max(1, longest), longest + 1):
            place = history[-length]  # of an n-gram in the list of its order: its key is the place before, times V, plus a word
            for order, word in enumerate(history[len(history) - length + 1 :], 2):
                keys, wanted = self.weights[f"order_{order}.keys"], place * self.size + word
                found = int(torch.searchsorted(keys, wanted))
                place = found if found < len(keys) and keys[found] == wanted else -1
            if place >= 0:
                keys, first = self.weights[f"order_{length + 1}.keys"], place * self.size
                begin, end = torch.searchsorted(keys, torch.tensor([first, first + self.size])).tolist()
                row += self.weights[f"order_{length}.log_rests"][place]
                row[keys[begin:end] - first] = self.weights[f"order_{length + 1}.log_probs"][begin:end]
        return row, memory

    # -- end


def score(model: Model, tokenizer: Tokenizer, text: str, independent: bool, per_token: bool) -> None:
    text += "\n" * (tokenizer.facts["ends_last_line"] and not text.endswith("\n"))
    state, before, total, size = model.start, tokenizer.eos, 0.0, 0
    print("line\tlog_prob\ttokens\tunknown")
    for number, line in enumerate(map(tokenizer.encode, io.StringIO(text, newline="\n")), 1):
        log_prob = 0.0
        for token in line:
            log_probs, state = model.read(before, model.start if independent and before == tokenizer.eos else state)
            log_prob, before = log_prob + float(log_probs[token]), token
            print(f"\t{token}\t{float(log_probs[token]):.8f}\n" * per_token, end="")
        print(f"{number}\t{log_prob:.6f}\t{len(line)}\t{line.count(tokenizer.unk)}")
        total, size = total - log_prob, size + len(line)
    print(f"\nperplexity {torch.tensor(total / size, dtype=torch.float64).exp():.4f} · {size} tokens")
    # -- only spelled
    print(f"{tokenizer.letters_nats:.4f} nats for the letters of unknown words")
    # -- end


def sample(model: Model, tokenizer: Tokenizer, prompt: str, max_tokens: int, temperature: float, seed: int) -> None:
    """Prints the prompt and how it goes on; `<unk>` is never drawn, and a text ends where nothing else is expected."""
    generator, drawn, state = torch.Generator().manual_seed(seed), list[int](), model.start
    for token in [tokenizer.eos, *tokenizer.encode(prompt)]:
        row, state = model.read(token, state)
    # -- only unknown
    row[tokenizer.unk] = -torch.inf
    # -- end
    while len(drawn) < max_tokens and row.max() > -torch.inf and not (tokenizer.facts["reverse"] and tokenizer.eos in drawn):
        weights = ((row - row.max()) / max(temperature, 1e-30)).exp()
        drawn.append(int(row.argmax() if temperature == 0 else torch.multinomial(weights, 1, generator=generator)))
        row, state = model.read(drawn[-1], state)
        # -- only unknown
        row[tokenizer.unk] = -torch.inf
    # -- only forward
    print(prompt + tokenizer.decode(drawn, prompt))
    # -- only reversed
    above, end, line = prompt.rpartition("\n")
    text = tokenizer.decode([number for number in drawn[::-1] if number != tokenizer.eos], "")
    # -- only reversed word
    text += " " * (text != "" and line.strip() != "" and line[0] not in " \t\v\f\r")
    # -- only reversed
    print(above + end + text + line)
    # -- end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    scoring = commands.add_parser("score", help="natural log-probability of every line")
    scoring.add_argument("file", metavar="FILE", help='text in UTF-8; "-": standard input')
    scoring.add_argument("--independent", action="store_true", help="no line sees the lines before it")
    scoring.add_argument("--per-token", action="store_true", help="also the id and log-probability of every token")
    sampling = commands.add_parser("sample", help="writes text")
    for name, usual in {"--prompt": "", "--max-tokens": 200, "--temperature": 0.8, "--seed": 1}.items():
        sampling.add_argument(name, type=type(usual), default=usual, help="(default: %(default)r)")
    options = parser.parse_args()
    if options.command == "sample" and not options.temperature >= 0:
        parser.error("--temperature must be at least 0")
    facts = json.loads((HERE / "config.json").read_text(encoding="utf-8"))
    model, tokenizer = Model(facts["model"], torch.load(HERE / "weights.pt", weights_only=True)), Tokenizer(facts["tokenizer"])
    if options.command == "sample":
        return sample(model, tokenizer, options.prompt, options.max_tokens, options.temperature, options.seed)
    try:
        data = sys.stdin.buffer.read() if options.file == "-" else Path(options.file).read_bytes()
        text = data.decode("utf-8-sig").replace("\r\n", "\n") or parser.error(f"{options.file} is empty")
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"{options.file} cannot be read as text: {error}")
    score(model, tokenizer, text, options.independent, options.per_token)


if __name__ == "__main__":
    for name in {"SIGINT", "SIGPIPE"} & {*dir(signal)}:
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    with torch.no_grad():
        main()
