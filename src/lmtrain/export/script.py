"""A language model that needs nothing of the place where it was trained: PyTorch is enough.

    python model.py score FILE               natural log-probability of every line; "-" is standard input
    python model.py sample --prompt "Once"   writes text; with --temperature 0 always the likeliest token

`weights.pt` holds the weights, named as torch.nn names them; `config.json` says how they belong together.
"""

import argparse
import json
import math
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

HERE = Path(__file__).parent


class Tokenizer:
    """Text to ids and back."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.eos, self.unk, self.form = facts["eos_id"], facts["unk_id"], facts["normalize"]
        self.tokens, self.separators = facts["tokens"], facts["separators"]
        self.ids = {token: number for number, token in enumerate(self.tokens)}
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

        form: Any = self.form.removesuffix("lower").strip("_").upper()
        for lowers in (False, True)[: 1 + self.form.endswith("lower")]:
            text = text.lower() if lowers else text
            text = unicodedata.normalize(form, text) if form else text
        # -- end
        # -- only byte
        return [*text.encode()]
        # -- only char
        return [self.ids.get(character, self.unk) for character in text]
        # -- only subword
        lines = [self.library.encode(line, add_special_tokens=False).ids for line in text.split("\n")]
        return [number for line in lines for number in (self.eos, *line)][1:]
        # -- only word
        text = text.translate({ord(separator): " " for separator in self.separators})
        return [self.ids.get(word.decode(), self.unk) for word in text.encode().replace(b"\n", b" <eos> ").split()]
        # -- end

    def decode(self, ids: list[int], before: str) -> str:
        """What `ids` write behind the text `before`."""
        # -- only byte
        return bytes(ids).decode(errors="replace")
        # -- only char
        return "".join(self.tokens[number] for number in ids)
        # -- only subword
        return str(self.library.decode(ids, skip_special_tokens=False))
        # -- only word
        text, behind_word = "", before[-1:] not in " \t\n\v\f\r" + self.separators
        for number in ids:
            text += "\n" if number == self.eos else " " * behind_word + self.tokens[number]
            behind_word = number != self.eos
        return text
        # -- end

    # -- only reversed
    def turned(self, ids: list[int]) -> list[int]:
        """The same with each line from its last token to its first, its end behind it."""
        turned, line = list[int](), list[int]()
        for number in ids:
            line.append(number)
            if number == self.eos:
                turned += [*line[-2::-1], number]
                line = []
        return turned + line[::-1]

    def joined(self, text: str, line: str) -> str:
        """`text` before the `line` that it leads to."""
        # -- only word
        if text and line.strip() and line[0] not in " \t\v\f\r":
            return f"{text} {line}"
        # -- end
        return text + line

    # -- end


class Model:
    """Reads tokens and says what may follow each. Its state: the last tokens, and what else it remembers."""

    def __init__(self, facts: dict[str, Any], weights: dict[str, Tensor]) -> None:
        self.facts, self.weights, self.policy = facts, weights, facts["state_policy"]
        self.eos, self.size = facts["eos_id"], facts["vocab_size"]

    def start(self) -> tuple[list[int], Any]:
        """The state before a text."""
        return self.facts["start"], [torch.zeros(size) for size in self.facts["state_sizes"]]

    def read(self, tokens: list[int], state: Any) -> tuple[Tensor, Any]:
        """Log-probabilities [T, V] of what follows each token, and the next state."""
        history, memory = state
        rows = []
        for token in tokens:
            if token == self.eos and (self.policy == "line" or (self.policy == "document" and history[-1:] == [token])):
                history, memory = self.start()  # the model forgets
            history = [*history, token][-self.facts["history"] :]
            row, memory = self.step(history, memory)
            rows.append(row)
        return torch.stack(rows), (history, memory)

    def step(self, history: list[int], memory: Any) -> tuple[Tensor, Any]:
        """Log-probabilities [V] behind `history`, and what is remembered."""
        raise NotImplementedError


# -- only network
class Network(Model):
    """Features of the tokens read, then a softmax over all words."""

    def head(self, x: Tensor, history: list[int]) -> Tensor:
        w = self.weights
        x = w["projection.weight"] @ x if "projection.weight" in w else x
        logits = w.get("head.weight", w["embedding.weight"]) @ x + w["head.bias"]
        # -- only hashed
        bucket = 0
        for token in history[: -self.facts["hashed_order"] : -1]:
            bucket = (bucket + token + 1) * 6364136223846793005 % 2**64
            start = (bucket >> 32) % 2**31 % (len(w["hashed.weight"]) - self.size + 1)
            logits = logits + w["hashed.weight"][start : start + self.size]
        # -- only adaptive
        first, *clusters = logits.log_softmax(-1).tensor_split([*range(self.facts["cutoffs"][0], len(logits))])
        for k, cluster in enumerate(clusters):
            narrow = w[f"tail.{k}.0.weight"] @ x if f"tail.{k}.0.weight" in w else x
            tail = w[f"tail.{k}.1.weight"] @ narrow + w[f"tail.{k}.1.bias"]
            first = torch.cat([first, cluster + tail.log_softmax(-1)])
        return first
        # -- end
        return logits.log_softmax(-1)


# -- only window
ACTIVATIONS: dict[str, Any] = {
    "sigmoid": torch.sigmoid, "tanh": torch.tanh, "hard_tanh": F.hardtanh, "relu": F.relu, "leaky_relu": F.leaky_relu,
    "parametric_relu": lambda x, a: torch.where(x > 0, x, a * x), "swish": lambda x, b: x * (b * x).sigmoid(),
    "silu": F.silu, "gelu": F.gelu, "gelu_logistic": lambda x: x * (1.702 * x).sigmoid(), "identity": lambda x: x,
    "glu": F.glu, "swiglu": lambda x: F.silu(x[: len(x) // 2]) * x[len(x) // 2 :],
}  # fmt: skip


class Window(Network):
    """The embeddings of the last tokens through hidden layers."""

    def step(self, history: list[int], memory: Any) -> tuple[Tensor, Any]:
        span = self.facts["average_span"]
        embedded = self.weights["embedding.weight"][history[-span - self.facts["context"] :]]
        inputs = x = embedded[span:].flatten()
        if span:
            x = torch.cat([x, (self.weights["averages.weight"] @ embedded[:span]).flatten()])
        for number, layer in enumerate(self.facts["layers"]):
            w = {name: self.weights[f"layers.{number}.{name}"] for name in layer["weights"]}
            y = w["linear.weight"] @ x + w["linear.bias"]
            y = ACTIVATIONS[self.facts["activation"]](y, *(w[name] for name in w if name == "slope"))
            y = F.layer_norm(y, y.shape, w["norm.weight"], w["norm.bias"]) if "norm.weight" in w else y
            x = y + x if layer["residual"] else y
        return self.head(torch.cat([x, inputs]) if self.facts["direct"] else x, history), memory


# -- only recurrent
class Recurrent(Network):
    """Layers whose states are carried from token to token."""

    def step(self, history: list[int], memory: Any) -> tuple[Tensor, Any]:
        x, old, new = self.weights["embedding.weight"][history[-1]], list(memory), list[Tensor]()
        for number, layer in enumerate(self.facts["layers"]):
            w = {name: self.weights[f"layers.{number}.{name}"] for name in layer["weights"]}
            h = old.pop(0)
            p, q = w["rnn.weight_ih_l0"] @ x, w["rnn.weight_hh_l0"] @ h
            if "norm_ih.weight" in w:
                p = F.layer_norm(p, p.shape, w["norm_ih.weight"])
                q = F.layer_norm(q.view(-1, len(h)), h.shape).flatten() * w["norm_hh.weight"]
            p, q = p + w["rnn.bias_ih_l0"], q + w["rnn.bias_hh_l0"]
            # -- only lstm
            c = old.pop(0)
            i, f, g, o = (p + q).chunk(4)
            next_c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            next_h = o.sigmoid() * next_c.tanh()
            states = [torch.lerp(next_h, h, layer["zoneout"]), torch.lerp(next_c, c, layer["zoneout"])]
            # -- only gru
            (p_r, p_z, p_n), (q_r, q_z, q_n) = p.chunk(3), q.chunk(3)
            z = (p_z + q_z).sigmoid()
            next_h = (1 - z) * (p_n + (p_r + q_r).sigmoid() * q_n).tanh() + z * h
            states = [torch.lerp(next_h, h, layer["zoneout"])]
            # -- only elman
            functions = {"tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid, "identity": torch.clone}
            states = [torch.lerp(functions[self.facts["nonlinearity"]](p + q), h, layer["zoneout"])]
            # -- end
            y = w["projection.weight"] @ states[0] if "projection.weight" in w else states[0]
            x = y + x if layer["residual"] else y
            new += states
        return self.head(x, history), new


# -- only ngram
class Ngram(Model):
    """log p(w | h) = log p(hw) where that is listed, else rest(h) + log p(w | h without its first word)."""

    def step(self, history: list[int], memory: Any) -> tuple[Tensor, Any]:
        row, longest = self.weights["order_1.log_probs"].clone(), min(len(history), self.facts["order"] - 1)
        for length in range(1 if self.facts["interpolates"] else max(1, longest), longest + 1):
            if (place := self.place(history[-length:])) >= 0:
                keys, first = self.weights[f"order_{length + 1}.keys"], place * self.size
                begin, end = torch.searchsorted(keys, torch.tensor([first, first + self.size])).tolist()
                row += self.weights[f"order_{length}.log_rests"][place]
                row[keys[begin:end] - first] = self.weights[f"order_{length + 1}.log_probs"][begin:end]
        return row, memory

    def place(self, words: list[int]) -> int:
        """Where an n-gram is listed: its key is the place of the words before the last, times V, plus the last."""
        place = words[0]
        for order, word in enumerate(words[1:], 2):
            keys, wanted = self.weights[f"order_{order}.keys"], place * self.size + word
            place = int(torch.searchsorted(keys, wanted))
            if place == len(keys) or keys[place] != wanted:
                return -1
        return place


# -- only mixture
class Mixture(Model):
    """The weighted mean of what several models say; each forgets by itself."""

    def __init__(self, facts: dict[str, Any], weights: dict[str, Tensor]) -> None:
        super().__init__(facts, weights)
        self.parts = [
            make(part, {name.partition(".")[2]: w for name, w in weights.items() if name.startswith(f"{number}.")})
            for number, part in enumerate(facts["parts"])
        ]

    def start(self) -> Any:
        return [part.start() for part in self.parts]

    def read(self, tokens: list[int], state: Any) -> tuple[Tensor, Any]:
        each = [part.read(tokens, own) for part, own in zip(self.parts, state, strict=True)]
        logs = torch.tensor(self.facts["weights"], dtype=torch.float64).log()
        rows = [log + row.double() for log, (row, _) in zip(logs, each, strict=True)]
        return torch.stack(rows).logsumexp(0), [after for _, after in each]


# -- end
def make(facts: dict[str, Any], weights: dict[str, Tensor]) -> Model:
    kind: type[Model] = globals()[facts["kind"].title()]
    return kind(facts, weights)


def score(model: Model, tokenizer: Tokenizer, text: str, facts: dict[str, Any], independent: bool, per_token: bool) -> None:
    """Prints a row per line, below it its tokens if asked for, and the perplexity."""
    ids = tokenizer.encode(text + "\n" * (facts["ends_last_line"] and not text.endswith("\n")))
    # -- only reversed
    ids = tokenizer.turned(ids)
    # -- end
    state, before, number, nats, total = model.start(), tokenizer.eos, 1, 0.0, 0.0
    line: list[int] = []
    print("line\tlog_prob\ttokens\tunknown")
    for token, is_last in zip(ids, [False] * (len(ids) - 1) + [True], strict=True):
        log_probs, state = model.read([before], state)
        log_prob = float(log_probs[0, token])
        line, nats, before = [*line, token], nats - log_prob, token
        if per_token:
            print(f"\t{token}\t{log_prob:.8f}")
        if token == tokenizer.eos or is_last:
            print(f"{number}\t{-nats:.6f}\t{len(line)}\t{line.count(tokenizer.unk)}")
            number, total, nats, line = number + 1, total + nats, 0.0, []
            state = model.start() if independent else state
    perplexity = torch.tensor(total / len(ids), dtype=torch.float64).exp()
    print(f"\nperplexity {float(perplexity):.4f} · {len(ids)} tokens")


def sample(model: Model, tokenizer: Tokenizer, prompt: str, max_tokens: int, temperature: float, seed: int) -> None:
    """Prints the prompt and how it goes on; `<unk>` is never drawn."""
    generator, drawn = torch.Generator().manual_seed(seed), list[int]()
    ids = tokenizer.encode(prompt)
    # -- only reversed
    ids = tokenizer.turned(ids)
    # -- end
    log_probs, state = model.read([tokenizer.eos, *ids], model.start())
    for _ in range(max_tokens):
        row = log_probs[-1].clone()
        if tokenizer.unk is not None:
            row[tokenizer.unk] = -math.inf
        weights = ((row - row.max()) / max(temperature, 1e-30)).exp()
        drawn.append(int(row.argmax() if temperature == 0 else torch.multinomial(weights, 1, generator=generator)))
        # -- only reversed
        if drawn[-1] == tokenizer.eos:
            drawn.pop()
            break
        # -- end
        log_probs, state = model.read(drawn[-1:], state)
    # -- only reversed
    above, end, line = prompt.rpartition("\n")
    return print(above + end + tokenizer.joined(tokenizer.decode(drawn[::-1], ""), line))
    # -- end
    print(prompt + tokenizer.decode(drawn, prompt))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    scoring = commands.add_parser("score", help="natural log-probability of every line")
    scoring.add_argument("file", metavar="FILE", help='text in UTF-8; "-": standard input')
    scoring.add_argument("--independent", action="store_true", help="no line sees the lines before it")
    scoring.add_argument("--per-token", action="store_true", help="also the id and log-probability of every token")
    sampling = commands.add_parser("sample", help="writes text")
    sampling.add_argument("--prompt", default="", help="text to go on from (default: the start of a line)")
    sampling.add_argument("--max-tokens", type=int, default=200)
    sampling.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest token (default: 0.8)")
    sampling.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.command == "sample" and options.temperature < 0:
        parser.error("--temperature must be at least 0")
    facts = json.loads((HERE / "config.json").read_text(encoding="utf-8"))
    model = make(facts["model"], torch.load(HERE / "weights.pt", weights_only=True))
    tokenizer = Tokenizer(facts["tokenizer"])
    if options.command == "sample":
        return sample(model, tokenizer, options.prompt, options.max_tokens, options.temperature, options.seed)
    try:
        data = sys.stdin.buffer.read() if options.file == "-" else Path(options.file).read_bytes()
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"{options.file} cannot be read as text: {error}")
    if not text:
        parser.error(f"{options.file} is empty")
    score(model, tokenizer, text, facts["tokenizer"], options.independent, options.per_token)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    with torch.no_grad():
        main()
