"""Reading token by token: the native step against the model itself, and which models it leaves alone."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import lmtrain.config as config
from lmtrain.build import build_model
from lmtrain.data.tokenizer import CharTokenizer
from lmtrain.errors import SettingsError
from lmtrain.inference.drawing import SampleSettings
from lmtrain.inference.sample import sample_text
from lmtrain.models.base import LanguageModel, StatePolicy
from lmtrain.models.mixture import Mixture
from lmtrain.models.recurrent import GRULayer, RecurrentLanguageModel, RecurrentLayer
from lmtrain.ops import native
from lmtrain.ops.backends import Call
from lmtrain.ops.draw import _native_draw
from lmtrain.ops.native import build
from lmtrain.ops.native.step import SMALL

EOS = 2
CELLS = {
    "elman tanh": {"cell": config.Cell.elman},
    "elman relu": {"cell": config.Cell.elman, "nonlinearity": config.Nonlinearity.relu},
    "elman sigmoid": {"cell": config.Cell.elman, "nonlinearity": config.Nonlinearity.sigmoid},
    "elman identity": {"cell": config.Cell.elman, "nonlinearity": config.Nonlinearity.identity},
    "gru": {"cell": config.Cell.gru},
    "lstm": {"cell": config.Cell.lstm},
}
SHAPES = {  # vocabulary, settings
    "tiny": (3, {"embed_size": 1, "hidden_size": 1, "num_layers": 1}),
    "odd": (37, {"embed_size": 5, "hidden_size": 19, "num_layers": 2}),
    "uneven layers": (300, {"embed_size": 33, "hidden_sizes": [7, 35, 16]}),
    "tied": (257, {"embed_size": 32, "hidden_size": 32, "num_layers": 2, "tie_weights": True}),
    "tied with projection": (
        1025, {"embed_size": 9, "hidden_size": 130, "num_layers": 1, "tie_weights": True, "project": True},
    ),
    "projection after the cells": (65, {"embed_size": 6, "hidden_size": 20, "num_layers": 2, "projection_size": 11}),
    "sampled softmax": (50, {"embed_size": 17, "hidden_size": 8, "num_layers": 1, "head": config.HeadName.sampled}),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    if reason := native.why_not(Call("step", "cpu", torch.float32, {})):
        pytest.skip(reason)


def make_model(vocab_size: int, **settings: object) -> RecurrentLanguageModel:
    """Weights so large that states and probabilities are far from uniform; biases too."""
    model = build_model(config.RecurrentConfig(**settings), vocab_size=vocab_size, eos_id=EOS, seed=3)
    assert isinstance(model, RecurrentLanguageModel)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            size = parameter.shape[-1] if parameter.dim() == 2 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (2 / size**0.5))
    return model.eval()


def ids_of(vocab_size: int, generator: torch.Generator, length: int = 40) -> list[int]:
    """Line ends are frequent, two in a row too."""
    ids = torch.randint(vocab_size, (length,), generator=generator)
    return torch.where(torch.rand(length, generator=generator) < 0.3, EOS, ids).tolist()


def read(model: LanguageModel, ids: list[int], prompt: int = 0, int8: bool = False) -> Tensor:
    """Log-probabilities behind each token after the first `prompt` ones, which are read as a chunk."""
    state = model.initial_state(1)
    if prompt:
        with torch.no_grad():
            _, state = model.log_probs(torch.tensor(ids[:prompt])[:, None], state)
    reader = model.reader_factory(int8=int8)(state)
    return torch.stack([reader([token], [0])[0].clone() for token in ids[prompt:]])


def expected(model: LanguageModel, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return model.log_probs(torch.tensor(ids)[:, None], model.initial_state(1))[0][:, 0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cell", CELLS)
def test_native_step_equals_the_model_in_float32(cell: str, shape: str, generator: torch.Generator) -> None:
    vocab_size, settings = SHAPES[shape]
    model = make_model(vocab_size, **CELLS[cell], **settings)
    assert model._network() is not None
    ids = ids_of(vocab_size, generator)
    got, want = read(model, ids), expected(model.double(), ids)
    assert (got - want).norm() <= 1e-5 * want.norm()
    torch.testing.assert_close(got.double().exp().sum(-1), torch.ones(len(ids), dtype=torch.float64), rtol=1e-4, atol=0)


@pytest.mark.parametrize("shape", ["odd", "uneven layers", "tied", "tied with projection", "projection after the cells"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("isa", ["native", "avx2", pytest.param("portable", marks=pytest.mark.slow)])
def test_native_step_in_bfloat16_errs_no_more_than_twice_what_the_model_errs(
    isa: str, cell: str, shape: str, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMTRAIN_NATIVE_ISA", isa)  # weights are packed where pairs are multiplied, and only there
    vocab_size, settings = SHAPES[shape]
    model = make_model(vocab_size, **CELLS[cell], **settings)
    ids = ids_of(vocab_size, generator)
    with torch.autocast("cpu", torch.bfloat16):
        got, rounded = read(model, ids), expected(model, ids)
    exact = expected(model.double(), ids)
    assert (got - exact).norm() <= 2 * (rounded - exact).norm()
    assert (got - exact).norm() >= 1e-5 * exact.norm()  # or it was not bfloat16


def rounded_to_8_bits(model: RecurrentLanguageModel) -> RecurrentLanguageModel:
    """Every row of every weight but the embedding's becomes multiples of a 127th of its largest number."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and not name.startswith("embedding"):
                step_Z1 = parameter.abs().amax(1, keepdim=True) / 127
                parameter.copy_((parameter / step_Z1).round() * step_Z1)
    return model


@pytest.mark.parametrize("isa", ["native", "avx2", pytest.param("portable", marks=pytest.mark.slow)])
@pytest.mark.parametrize("shape", ["tiny", "odd", "uneven layers", "projection after the cells", "sampled softmax"])
@pytest.mark.parametrize("cell", ["elman tanh", "gru", "lstm"])
def test_int8_weights_are_those_rounded_row_by_row(
    cell: str, shape: str, isa: str, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMTRAIN_NATIVE_ISA", isa)
    vocab_size, settings = SHAPES[shape]
    model = make_model(vocab_size, **CELLS[cell], **settings)
    ids = ids_of(vocab_size, generator)
    got, plain = read(model, ids, int8=True), read(model, ids)
    want = expected(rounded_to_8_bits(model).double(), ids)
    assert (got - want).norm() <= 1e-5 * want.norm()
    if shape != "tiny":  # whose rows of one weight are exact
        assert (got - plain).norm() >= 1e-4 * plain.norm()


def test_a_row_of_zeros_stays_zero_in_int8_and_one_that_is_not_a_number_says_so(generator: torch.Generator) -> None:
    model = make_model(37, embed_size=5, hidden_size=9, num_layers=1)
    with torch.no_grad():
        model.head.weight_VE[4] = 0
    log_probs_NV = read(model, ids_of(37, generator), int8=True)
    assert not log_probs_NV.isnan().any()
    with torch.no_grad():
        model.head.weight_VE[4, 2] = torch.nan
    assert read(model, [1], int8=True).isnan().all()


def test_models_without_a_native_step_refuse_int8() -> None:
    for settings in ({"layer_norm": True}, {"zoneout": 0.1}):
        model = make_model(37, embed_size=5, hidden_size=9, num_layers=1, **settings)
        with pytest.raises(SettingsError, match="precision=int8 was given for a model"):
            model.reader_factory(int8=True)
        with pytest.raises(SettingsError, match="precision=int8"):
            Mixture([make_model(37, embed_size=5, hidden_size=9), model], [0.5, 0.5]).reader_factory(int8=True)


@pytest.mark.parametrize("isa", ["avx2", *(pytest.param(isa, marks=pytest.mark.slow) for isa in ("avx512", "portable"))])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_builds_for_lesser_processors_give_the_same(
    cell: str, isa: str, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isa == "avx512" and "avx512bw" not in build._instruction_sets():
        pytest.skip("this processor has no AVX-512")
    vocab_size, settings = SHAPES["uneven layers"]
    model = make_model(vocab_size, **CELLS[cell], **settings)
    ids = ids_of(vocab_size, generator)
    with torch.autocast("cpu", torch.bfloat16):
        best = read(model, ids)
    monkeypatch.setenv("LMTRAIN_NATIVE_ISA", isa)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = read(model, ids)
    got, want = read(model, ids), expected(model.double(), ids)
    assert (got - want).norm() <= 1e-5 * want.norm()
    assert (rounded - want).norm() <= 2 * (best - want).norm()


@pytest.mark.parametrize("policy", ["carry", "line", "document"])
@pytest.mark.parametrize("prompt", [1, 2, 13])
def test_the_state_is_taken_over_behind_a_prompt_and_forgotten_as_the_policy_says(
    prompt: int, policy: str, generator: torch.Generator
) -> None:
    model = make_model(37, embed_size=5, hidden_size=9, num_layers=2, state_policy=config.StatePolicy[policy])
    ids = ids_of(37, generator)
    torch.testing.assert_close(read(model, ids, prompt), expected(model, ids)[prompt:], rtol=1e-5, atol=1e-4)


def test_two_threads_give_the_same_bits_as_one(generator: torch.Generator) -> None:
    model = make_model(2 * SMALL // 16, embed_size=16, hidden_sizes=[301, 211, 16])
    ids = ids_of(model.vocab_size, generator, length=3)
    alone = read(model, ids)
    torch.set_num_threads(2)
    try:
        assert torch.equal(read(model, ids), alone)
    finally:
        torch.set_num_threads(1)


def test_texts_read_side_by_side_do_not_disturb_each_other(generator: torch.Generator) -> None:
    model = make_model(37, embed_size=5, hidden_size=9, num_layers=1)
    make_reader, (a, b) = model.reader_factory(), (ids_of(37, generator), ids_of(37, generator))
    first, second = make_reader(model.initial_state(1)), make_reader(model.initial_state(1))
    pairs = [(first([x], [0])[0].clone(), second([y], [0])[0].clone()) for x, y in zip(a, b, strict=True)]
    assert torch.equal(torch.stack([x for x, _ in pairs]), read(model, a))
    assert torch.equal(torch.stack([y for _, y in pairs]), read(model, b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", ["odd", "uneven layers", "tied with projection"])
@pytest.mark.parametrize("cell", CELLS)
def test_a_text_reads_the_same_to_the_last_bit_whoever_is_read_with_it(
    cell: str, shape: str, dtype: torch.dtype, generator: torch.Generator
) -> None:
    vocab_size, settings = SHAPES[shape]
    model = make_model(vocab_size, **CELLS[cell], **settings)
    model.forget_at(StatePolicy.line)
    texts = [ids_of(vocab_size, generator, length=1 + 3 * (number % 5)) for number in range(15)]
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        alone = [read(model, ids) for ids in texts]
        reader, together = model.reader_factory()(model.initial_state(len(texts))), [[] for _ in texts]  # type: ignore[var-annotated]
        for step in range(13):
            going = [number for number, ids in enumerate(texts) if step < len(ids)]
            for number, row in zip(going, reader([texts[n][step] for n in going], going), strict=True):
                together[number].append(row.clone())
    for mine, its in zip(alone, together, strict=True):
        assert torch.equal(mine, torch.stack(its))


@pytest.mark.parametrize(
    "settings",
    [
        {"head": config.HeadName.adaptive, "cutoffs": [10, 20]}, {"layer_norm": True}, {"zoneout": 0.1}, {"residual": True},
        {"backend": config.Backend.eager}, {"maxent_order": 3, "maxent_table": 1024},
    ],
)  # fmt: skip
def test_models_that_the_step_does_not_know_read_in_the_general_way(
    settings: dict[str, object], generator: torch.Generator
) -> None:
    model = build_model(
        config.RecurrentConfig(embed_size=8, hidden_size=8, num_layers=2, **settings), vocab_size=37, eos_id=EOS, seed=3
    )
    ids = ids_of(37, generator)
    assert not isinstance(model, RecurrentLanguageModel) or model._network() is None
    model.eval()
    torch.testing.assert_close(read(model, ids, prompt=3), expected(model, ids)[3:], rtol=1e-5, atol=1e-5)
    reader, lengths = model.reader_factory()(model.initial_state(5)), [40, 3, 7, 3, 20]  # until two of five are left, and one
    for step in range(40):
        going = [text for text, length in enumerate(lengths) if step < length]
        rows = reader([ids[(step + text) % 40] for text in going], going)
        for text, row in zip(going, rows, strict=True):
            own = [ids[(n + text) % 40] for n in range(step + 1)]
            if step % 7 == 2:
                torch.testing.assert_close(row, expected(model, own)[-1], rtol=1e-5, atol=1e-5)


def test_a_cell_that_the_step_does_not_know_reads_in_the_general_way(generator: torch.Generator) -> None:
    class OwnLayer(GRULayer):
        """As one writes it who follows the README."""

        cell_stage = RecurrentLayer.cell_stage

    model = make_model(37, cell=config.Cell.gru, embed_size=8, hidden_size=8, num_layers=2)
    for layer in model.layers:
        layer.__class__ = OwnLayer
    ids = ids_of(37, generator)
    torch.testing.assert_close(read(model, ids, prompt=3), expected(model, ids)[3:], rtol=1e-5, atol=1e-5)
    reader, lengths = model.reader_factory()(model.initial_state(5)), [40, 3, 7, 3, 20]  # until two of five are left, and one
    for step in range(40):
        going = [text for text, length in enumerate(lengths) if step < length]
        rows = reader([ids[(step + text) % 40] for text in going], going)
        for text, row in zip(going, rows, strict=True):
            own = [ids[(n + text) % 40] for n in range(step + 1)]
            if step % 7 == 2:
                torch.testing.assert_close(row, expected(model, own)[-1], rtol=1e-5, atol=1e-5)


def test_a_model_in_float64_reads_in_float64(generator: torch.Generator) -> None:
    model = make_model(37, embed_size=5, hidden_size=9, num_layers=1).double()
    assert read(model, ids_of(37, generator)).dtype == torch.float64


def test_a_mixture_reads_as_its_models_do(generator: torch.Generator) -> None:
    models = [make_model(37, embed_size=size, hidden_size=9, num_layers=1) for size in (5, 6)]
    mixture, ids = Mixture(models, [0.3, 0.7]), ids_of(37, generator)
    torch.testing.assert_close(read(mixture, ids, prompt=4), expected(mixture, ids)[4:], rtol=1e-5, atol=1e-4)


def test_a_state_without_predictions_is_the_state_with_them(generator: torch.Generator) -> None:
    model = make_model(37, embed_size=5, hidden_size=9, num_layers=2, state_policy=config.StatePolicy.line)
    tokens_TB = torch.tensor([ids_of(37, generator), ids_of(37, generator)]).T
    for given in (model, Mixture([model, make_model(37, embed_size=3, hidden_size=4, num_layers=1)], [0.5, 0.5])):
        _, state = given.log_probs(tokens_TB, given.initial_state(2))
        alone = given.advance(tokens_TB, given.initial_state(2))
        assert len(alone) == len(state)
        assert all(torch.equal(a, b) for a, b in zip(alone, state, strict=True))


def test_reading_never_drops_out(generator: torch.Generator) -> None:
    model, ids = make_model(37, embed_size=5, hidden_size=9, num_layers=2, dropout=0.5), ids_of(37, generator)
    want = read(model, ids)
    model.train()
    assert torch.equal(read(model, ids), want)
    assert model.training


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_the_same_seed_writes_the_same_text_with_and_without_a_compiler(
    temperature: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = CharTokenizer(["a", "b", "\n", *"cdefgh", "<unk>"])
    model = make_model(10, embed_size=5, hidden_size=9, num_layers=2)
    settings = SampleSettings(temperature=temperature, max_tokens=100)
    texts = [sample_text(model, tokenizer, "abc", settings, seed=4) for _ in range(2)]
    assert len(set(texts)) == 1
    monkeypatch.setattr(build, "_libraries", {})
    monkeypatch.setattr(build, "_reasons", {})
    monkeypatch.setenv("LMTRAIN_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    _native_draw.cache_clear()
    assert model._network() is None
    assert sample_text(model, tokenizer, "abc", settings, seed=4) == texts[0]
    assert sample_text(model, tokenizer, "abc", settings, seed=5) != texts[0]
    _native_draw.cache_clear()
