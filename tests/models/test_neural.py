"""Both neural families: chunks with carried state equal one long chunk, distributions are exact, gradients reach all."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lmtrain.config as config
from lmtrain.build import build_model
from lmtrain.models.base import NeuralLanguageModel, StatePolicy, detach, keep_mask
from lmtrain.models.recurrent import CELLS, GRULayer

V, EOS = 11, 2
FAMILIES: dict[str, config.NeuralConfig] = {
    "elman": config.RecurrentConfig(cell=config.Cell.elman, embed_size=5, hidden_size=7, num_layers=2),
    "gru": config.RecurrentConfig(cell=config.Cell.gru, embed_size=5, hidden_size=7, num_layers=2, residual=True),
    "lstm": config.RecurrentConfig(embed_size=5, hidden_sizes=[7, 3, 5], tie_weights=True),
    "lstm with everything": config.RecurrentConfig(
        embed_size=5, hidden_size=6, num_layers=2, projection_size=5, residual=True, layer_norm=True, zoneout=0.1,
        tie_weights=True,
    ),
    "window": config.WindowConfig(context=4, embed_size=5, hidden_size=7),
    "window, direct": config.WindowConfig(context=3, embed_size=5, hidden_size=7, direct=True),
    "window, grown up": config.WindowConfig(
        context=3, embed_size=4, hidden_size=8, num_layers=3, layer_norm=True, residual=True, num_averages=2,
        average_span=6, activation=config.Activation.swiglu, tie_weights=True, project=True,
    ),
    "gru, direct n-grams": config.RecurrentConfig(
        cell=config.Cell.gru, embed_size=5, hidden_size=7, maxent_order=3, maxent_table=1024
    ),
    "window of one": config.WindowConfig(context=1, embed_size=4, hidden_size=8, activation=config.Activation.swish),
}  # fmt: skip


def make_model(family: str, policy: str = "carry", **changes: object) -> NeuralLanguageModel:
    settings = FAMILIES[family]
    fields = {**vars(settings), "state_policy": config.StatePolicy[policy], **changes}
    model = build_model(type(settings)(**fields), vocab_size=V, eos_id=EOS, seed=3)
    assert isinstance(model, NeuralLanguageModel)
    return model.double()


def make_tokens(generator: torch.Generator, steps: int = 23, streams: int = 3) -> Tensor:
    """Ids in which line ends are frequent, two in a row too."""
    tokens_TB = torch.randint(0, V, (steps, streams), generator=generator)
    return torch.where(torch.rand(steps, streams, generator=generator) < 0.3, EOS, tokens_TB)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("options", [{}, {"layer_norm": True, "projection_size": 3}, {"zoneout": 0.1}])
def test_a_layer_made_from_python_has_weights(cell: str, options: dict[str, Any]) -> None:
    layer = CELLS[cell](10, 20, **options)  # torch.empty is full of NaN here: see conftest
    assert all(bool(parameter.isfinite().all()) for parameter in layer.parameters())
    assert bool(layer.weight_recurrent_ZH.std() > 0.01)
    state = tuple(torch.zeros(2, 20) for _ in range(layer.num_states))
    outputs_TBD, _ = layer.eval()(torch.ones(4, 2, 10), state, None, None)
    assert bool(outputs_TBD.isfinite().all())
    if cell == "lstm":
        assert layer.bias_Z[20:40].mean().item() == pytest.approx(1, abs=0.15)  # the forget gate's


@pytest.mark.parametrize("cell", CELLS)
def test_a_layer_leaves_the_draws_to_a_builder_who_wants_them(cell: str) -> None:
    before = torch.get_rng_state()
    CELLS[cell](10, 20, draw=False)
    assert torch.equal(torch.get_rng_state(), before)
    CELLS[cell](10, 20)
    assert not torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("policy", ["carry", "line", "document"])
@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_with_carried_state_equal_one_long_chunk(family: str, policy: str, generator: torch.Generator) -> None:
    model = make_model(family, policy).eval()
    tokens_TB = make_tokens(generator)
    whole_TBV, last = model.log_probs(tokens_TB, model.initial_state(3))
    state, pieces = model.initial_state(3), []
    for piece_TB in tokens_TB.split([1, 2, 7, 13]):
        log_probs_TBV, state = model.log_probs(piece_TB, state)
        pieces.append(log_probs_TBV)
    torch.testing.assert_close(torch.cat(pieces), whole_TBV, rtol=1e-5, atol=1e-6)
    for carried, final in zip(state, last, strict=True):
        torch.testing.assert_close(carried, final, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_probabilities_sum_to_one_and_targets_are_picked_from_them(family: str, generator: torch.Generator) -> None:
    model = make_model(family).eval()
    tokens_TB, targets_TB = make_tokens(generator), make_tokens(generator)
    log_probs_TBV, _ = model.log_probs(tokens_TB, model.initial_state(3))
    torch.testing.assert_close(log_probs_TBV.double().exp().sum(-1), torch.ones(23, 3, dtype=torch.float64), rtol=1e-6, atol=0)
    picked_TB, _ = model.target_log_probs(tokens_TB, targets_TB, model.initial_state(3))
    torch.testing.assert_close(picked_TB, log_probs_TBV.gather(-1, targets_TB[..., None]).squeeze(-1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_training_loss_is_what_evaluation_would_score(family: str, generator: torch.Generator) -> None:
    model = make_model(family, zoneout=0.0) if "lstm" in family else make_model(family)
    tokens_TB, targets_TB = make_tokens(generator), make_tokens(generator)
    nats, penalty, _ = model.training_loss(tokens_TB, targets_TB, model.initial_state(3))
    log_probs_TB, _ = model.eval().target_log_probs(tokens_TB, targets_TB, model.initial_state(3))
    torch.testing.assert_close(nats.double(), -log_probs_TB.double().sum(), rtol=1e-6, atol=0)
    assert penalty == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_gets_a_gradient(family: str, generator: torch.Generator) -> None:
    model = make_model(family)
    tokens_TB = torch.arange(V).repeat(3)[:, None]
    nats, _, _ = model.training_loss(tokens_TB[:-1], tokens_TB[1:], model.initial_state(1), generator)
    nats.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_line_is_forgotten_under_the_line_policy(family: str, generator: torch.Generator) -> None:
    model = make_model(family, "line").eval()
    line = torch.tensor([[EOS], [4], [5], [6]])
    alone_TBV, _ = model.log_probs(line, model.initial_state(1))
    after_TBV, _ = model.log_probs(torch.cat([torch.tensor([[EOS], [9], [8], [9]]), line]), model.initial_state(1))
    torch.testing.assert_close(after_TBV[-4:], alone_TBV)


@pytest.mark.parametrize("policy", ["carry", "line"])
@pytest.mark.parametrize("averaged", [0, 2])
def test_a_window_is_the_last_embeddings_and_averages_of_those_before(
    policy: str, averaged: int, generator: torch.Generator
) -> None:
    model = make_model("window, grown up", policy, num_averages=averaged).eval()
    seen: list[Tensor] = []
    model.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tokens_TB = make_tokens(generator)
    with torch.no_grad():
        if averaged:
            model.average_weights_AS.normal_(generator=generator)
        _, state = model.activations(tokens_TB[:9], model.initial_state(3))
        model.activations(tokens_TB[9:], state)
    for t in range(23):
        for b in range(3):
            past = [EOS] * 9 + tokens_TB[: t + 1, b].tolist()
            if policy == "line":  # all before the last line end is as if it had been line ends
                last = max(i for i, token in enumerate(past) if token == EOS)
                past = [EOS] * last + past[last:]
            near, before = model.embedding(torch.tensor(past[-3:])), model.embedding(torch.tensor(past[-9:-3]))
            expected = [near, model.average_weights_AS @ before] if averaged else [near]
            torch.testing.assert_close(torch.cat(seen)[t, b], torch.cat(expected).flatten(), rtol=1e-10, atol=1e-12)


def test_only_an_empty_line_ends_a_document() -> None:
    tokens_TB = torch.tensor([[EOS, 1], [EOS, EOS], [3, EOS], [EOS, EOS]])
    previous_B = torch.tensor([5, EOS])
    keep_TB = keep_mask(StatePolicy.document, EOS, tokens_TB, previous_B)
    assert keep_TB is not None
    assert keep_TB.tolist() == [[1, 1], [0, 1], [1, 0], [1, 0]]


@pytest.mark.parametrize("family", ["lstm", "gru", "elman", "window"])
def test_dropout_draws_from_the_generator_alone(family: str) -> None:
    model = make_model(family, dropout=0.5, embedding_dropout=0.2)
    tokens_TB = make_tokens(torch.Generator().manual_seed(0))

    def loss(seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        return model.training_loss(tokens_TB, tokens_TB, model.initial_state(3), generator)[0].item()

    torch.manual_seed(1)
    first = loss(1)
    torch.manual_seed(2)
    assert loss(1) == first
    assert loss(2) != first


def test_weight_drop_changes_the_recurrent_weight_once_a_chunk_and_never_in_evaluation(generator: torch.Generator) -> None:
    """A silent loss of weight-drop costs 9 perplexity points in the field's best-known repository."""
    plain, dropped = make_model("gru"), make_model("gru", weight_drop=0.5)
    tokens_TB = make_tokens(generator)

    def raw(model: NeuralLanguageModel) -> Tensor:
        return model.activations(tokens_TB, model.initial_state(3), generator)[0]

    first, second = raw(dropped), raw(dropped)
    torch.testing.assert_close(first[0], second[0])  # from a zero state the first step does not see the weight
    assert not torch.equal(first[1:], second[1:])
    torch.testing.assert_close(raw(dropped.eval()), raw(plain.eval()))
    dropped.train()
    dropped.activations(tokens_TB, dropped.initial_state(3), generator)[0].sum().backward()
    gradient = dropped.layers[0].weight_recurrent_ZH.grad
    assert 0.3 < (gradient == 0).double().mean() < 0.7, "the gradient must be masked where the weight was dropped"


def test_overlap_reaches_back_without_scoring_twice(generator: torch.Generator) -> None:
    model = make_model("lstm")
    tokens_TB, targets_TB = make_tokens(generator, 9), make_tokens(generator, 9)
    tail, _, carried = model.training_loss(tokens_TB, targets_TB[-4:], model.initial_state(3), carry_after=6)
    log_probs_TB, _ = model.eval().target_log_probs(tokens_TB, targets_TB, model.initial_state(3))
    torch.testing.assert_close(tail.double(), -log_probs_TB[-4:].double().sum(), rtol=1e-6, atol=0)
    _, expected = model.activations(tokens_TB[:6], model.initial_state(3))
    for got, want in zip(detach(carried), detach(expected), strict=True):
        torch.testing.assert_close(got, want)


MASKED = {"input_dropout": 0.3, "hidden_dropout": 0.2, "output_dropout": 0.3, "embedding_dropout": 0.3, "locked_dropout": True}
RECURRENT_MASKS = {"weight_drop": 0.4, "zoneout": 0.2}


@pytest.mark.parametrize("family", FAMILIES)
def test_where_the_state_is_carried_from_changes_neither_loss_nor_gradients(family: str) -> None:
    """Masks that are drawn once per step are the same for the tokens before that place and behind it."""
    recurrent = "window" not in family
    model = make_model(family, **MASKED, **(RECURRENT_MASKS if recurrent else {}))
    tokens_TB, targets_TB = (make_tokens(torch.Generator().manual_seed(seed), 7) for seed in (5, 6))
    wanted: list[Tensor] = []
    for carry_after in (None, *range(8)):
        generator = torch.Generator().manual_seed(9)
        nats, _, carried = model.training_loss(
            tokens_TB, targets_TB[-4:], model.initial_state(3), generator, carry_after=carry_after
        )
        found = [nats, *torch.autograd.grad(nats, [*model.parameters()])]
        wanted = wanted or found
        for got, want in zip(found, wanted, strict=True):
            torch.testing.assert_close(got.to_dense(), want.to_dense(), rtol=1e-8, atol=1e-9)
        if carry_after == 0:
            assert all(got.equal(given) for got, given in zip(carried, model.initial_state(3), strict=True))


@pytest.mark.parametrize(("cell", "gates"), [("elman", 1), ("gru", 3), ("lstm", 4)])
def test_weights_interchange_with_torch(cell: str, gates: int, generator: torch.Generator) -> None:
    model = make_model(cell, num_layers=1, hidden_sizes=[], hidden_size=7, tie_weights=False, residual=False).eval()
    layer = model.layers[0]
    theirs = {"elman": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}[cell](5, 7).double()
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(layer.weight_input_ZE)
        theirs.weight_hh_l0.copy_(layer.weight_recurrent_ZH)
        theirs.bias_ih_l0.copy_(layer.bias_Z)
        theirs.bias_hh_l0.zero_()
        if cell == "gru":
            theirs.bias_hh_l0[-7:] = layer.candidate_bias_H
    tokens_TB = make_tokens(generator)
    expected_TBH, _ = theirs(model.embedding(tokens_TB))
    raw_TBH, _ = model.activations(tokens_TB, model.initial_state(3))
    torch.testing.assert_close(raw_TBH, expected_TBH, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("init", "bound"), [("fan", 1 / 40**0.5), ("uniform", 0.1)])
def test_every_tensor_that_torch_draws_is_drawn_from_the_same_distribution(init: str, bound: float) -> None:
    settings = config.RecurrentConfig(
        cell=config.Cell.gru, embed_size=30, hidden_size=40, num_layers=2, init=config.Initialisation[init], init_range=0.1
    )
    model = build_model(settings, vocab_size=V, eos_id=EOS, seed=3)
    assert isinstance(model, NeuralLanguageModel)
    layers = {name: x for name, x in model.named_parameters() if name.startswith("layers.")}
    theirs = nn.GRU(30, 40, num_layers=2)
    assert all(x.abs().max() > 0 for x in theirs.parameters())
    assert (
        sum(x.numel() for x in layers.values()) == sum(x.numel() for x in theirs.parameters()) - 2 * 2 * 40
    )  # r and z: one bias
    for name, x in layers.items():
        assert 0.85 * bound < x.abs().max() <= bound, name
        assert x.std().item() == pytest.approx(bound / 3**0.5, rel=0.25), name


@pytest.mark.parametrize(("init", "bound"), [("fan", 1 / 40**0.5), ("uniform", 0.1), ("xavier", 0.0)])
def test_a_layer_made_from_python_draws_the_bias_of_its_candidate_too(init: str, bound: float) -> None:
    layer = GRULayer(3, 40)
    assert bool((layer.candidate_bias_H == 0).all())  # xavier's
    layer.initialise(init, 0.1)
    layer.initialise_last(init, 0.1)
    largest = layer.candidate_bias_H.abs().max()
    assert 0.8 * bound <= largest <= bound


@pytest.mark.parametrize("init", ["fan", "uniform", "xavier", "identity"])
def test_the_bias_of_a_candidate_is_drawn_last_and_moves_no_other_weight(init: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = config.RecurrentConfig(
        cell=config.Cell.gru, embed_size=5, hidden_size=7, num_layers=3, maxent_order=3, maxent_table=1024,
        init=config.Initialisation[init],
    )  # fmt: skip
    if init == "identity":
        settings.cell = config.Cell.elman
    model = build_model(settings, vocab_size=V, eos_id=EOS, seed=3)
    monkeypatch.setattr(GRULayer, "initialise_last", lambda *_: None)
    before = build_model(settings, vocab_size=V, eos_id=EOS, seed=3)
    assert isinstance(model, NeuralLanguageModel)
    assert isinstance(before, NeuralLanguageModel)
    changed = {name for name, x in model.state_dict().items() if not torch.equal(x, before.state_dict()[name])}
    biases = {name for name in model.state_dict() if name.endswith("candidate_bias_H")}
    assert changed == (biases if init in ("fan", "uniform") else set())
    assert len(biases) == (0 if init == "identity" else 3)


def test_the_forget_gate_starts_open() -> None:
    layer = make_model("lstm", forget_bias=1.5).layers[0]
    assert layer.bias_Z[7:14].tolist() == [1.5] * 7
    assert layer.bias_Z[:7].tolist() == [0.0] * 7


def test_a_seed_gives_the_same_weights_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    first = make_model("gru")
    after = torch.rand(())
    torch.manual_seed(5)
    assert torch.rand(()) == after
    second = make_model("gru")
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)


# ---- the first input product over words


@pytest.mark.parametrize("changes", [{}, {"layer_norm": True}, {"num_layers": 1, "projection_size": 8}, {"tie_weights": True}])
@pytest.mark.parametrize("cell", config.Cell)
def test_projecting_words_and_projecting_tokens_are_the_same(
    cell: config.Cell, changes: dict[str, object], generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields: dict[str, object] = {"cell": cell, "embed_size": 8, "hidden_size": 8, "num_layers": 2, **changes}
    model = build_model(config.RecurrentConfig(**fields), vocab_size=V, eos_id=EOS, seed=3).double()  # type: ignore[attr-defined, arg-type]
    tokens_TB, targets_TB = make_tokens(generator), make_tokens(generator)
    results = []
    for over_words in (True, False):
        if not over_words:
            monkeypatch.setattr(model, "_projects_words", lambda tokens_TB: False)
        assert model._projects_words(tokens_TB) is over_words
        nats, _, _ = model.training_loss(tokens_TB, targets_TB, model.initial_state(3))
        results.append([nats, *torch.autograd.grad(nats, list(model.parameters()))])
    for made, expected in zip(*results, strict=True):
        torch.testing.assert_close(made, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("changes", "training", "expected"),
    [({}, True, True), ({"input_dropout": 0.5}, True, False), ({"input_dropout": 0.5}, False, True),
     ({"embedding_dropout": 0.5}, True, False), ({"residual": True}, True, False), ({"embed_size": 5}, True, False)],
)  # fmt: skip
def test_words_are_projected_where_that_is_less_work_and_nothing_is_drawn_per_token(
    changes: dict[str, object], training: bool, expected: bool, generator: torch.Generator
) -> None:
    settings = config.RecurrentConfig(**{"embed_size": 8, "hidden_size": 8, **changes})  # type: ignore[arg-type]
    model = build_model(settings, vocab_size=V, eos_id=EOS).train(training)  # type: ignore[attr-defined]
    assert model._projects_words(make_tokens(generator)) is expected
    assert not model._projects_words(make_tokens(generator, steps=2))
