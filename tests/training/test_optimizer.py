"""Optimisers against their formulas, groups, refusals, exact continuation, clipping with sparse gradients."""

import copy
import json

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from lmtrain.errors import SettingsError, UnfitError
from lmtrain.rules import OPTIONS
from lmtrain.training.optimizer import (
    SparseAdam,
    clip_gradients,
    group_parameters,
    load_optimizer,
    make_optimizer,
    optimizer_tensors,
    set_rate,
)

SETTINGS = {
    "sgd": {"learning_rate": 0.02},
    "sgd momentum": {"learning_rate": 0.02, "momentum": 0.9},
    "sgd nesterov": {"learning_rate": 0.02, "momentum": 0.9, "nesterov": True},
    "adagrad": {"learning_rate": 0.1},
    "rmsprop": {"learning_rate": 0.01},
    "rmsprop momentum": {"learning_rate": 0.01, "momentum": 0.5},
    "adam": {"learning_rate": 0.01, "beta1": 0.7, "beta2": 0.95},
    "adamw": {"learning_rate": 0.01},
    "sparse_adam": {"learning_rate": 0.01, "beta1": 0.7, "beta2": 0.95},
}


class Tiny(nn.Module):
    def __init__(self, sparse=False):
        super().__init__()
        self.embedding = nn.Embedding(7, 3, sparse=sparse)
        self.norm = nn.LayerNorm(3)
        self.linear = nn.Linear(3, 2)

    def forward(self, tokens):
        return self.linear(self.norm(self.embedding(tokens)))


def make(title, sparse=None, weight_decay=0.0, dtype=torch.float32):
    torch.manual_seed(7)
    name = title.split()[0]
    model = Tiny(sparse=name == "sparse_adam" if sparse is None else sparse).to(dtype)
    return model, make_optimizer(name, group_parameters(model.named_parameters(), weight_decay), **SETTINGS[title])


def train(model, optimizer, steps):
    for step in steps:
        set_rate(optimizer, optimizer.param_groups[0]["lr"] * 0.99)
        optimizer.zero_grad()
        tokens = torch.randint(0, 7, (5,), generator=torch.Generator().manual_seed(step))
        model(tokens).square().sum().backward()
        optimizer.step()


def after_one_step(title, gradient, weight, **rest):
    """A weight after two steps with the same gradient."""
    parameter = nn.Parameter(torch.tensor([[weight]], dtype=torch.float64))
    groups = group_parameters([("w", parameter)], rest.pop("weight_decay", 0.0))
    optimizer = make_optimizer(title, groups, **rest)
    for _ in range(2):
        parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
    return parameter.item()


# ---- what a step computes, against the formula, after two steps with gradient g


def test_sgd_subtracts_rate_times_gradient_plus_l2():
    w = 2.0
    for _ in range(2):
        w -= 0.5 * (3.0 + 0.1 * w)
    assert after_one_step("sgd", 3.0, 2.0, learning_rate=0.5, weight_decay=0.1) == pytest.approx(w)


def test_momentum_adds_up_gradients_and_nesterov_looks_ahead():
    assert after_one_step("sgd", 3.0, 2.0, learning_rate=0.5, momentum=0.9) == pytest.approx(2 - 0.5 * (3 + 5.7))
    nesterov = after_one_step("sgd", 3.0, 2.0, learning_rate=0.5, momentum=0.9, nesterov=True)
    assert nesterov == pytest.approx(2 - 0.5 * ((3 + 0.9 * 3) + (3 + 0.9 * 5.7)))


def test_adagrad_divides_by_the_root_of_the_sum_of_squares():
    assert after_one_step("adagrad", 3.0, 2.0, learning_rate=0.1) == pytest.approx(2 - 0.1 * (1 + 1 / 2**0.5))


def test_rmsprop_divides_by_the_root_of_the_decayed_mean_of_squares():
    first, second = (0.1 * 9) ** 0.5, (0.9 * 0.1 * 9 + 0.1 * 9) ** 0.5
    expected = 2 - 0.1 * (3 / first + 3 / second)
    assert after_one_step("rmsprop", 3.0, 2.0, learning_rate=0.1, alpha=0.9) == pytest.approx(expected)


def test_adam_steps_by_its_rate_whatever_the_size_of_a_constant_gradient():
    for gradient in (1e-3, 3.0, 1e4):
        assert after_one_step("adam", gradient, 2.0, learning_rate=0.1, epsilon=0.0) == pytest.approx(1.8)


def test_l2_enters_adams_gradient_but_shrinks_adamws_weight():
    adam = after_one_step("adam", 0.0, 2.0, learning_rate=0.1, weight_decay=0.01)
    adamw = after_one_step("adamw", 0.0, 2.0, learning_rate=0.1, weight_decay=0.01)
    assert adam == pytest.approx(1.8, rel=1e-3)  # normalised like any gradient
    assert adamw == pytest.approx(2 * (1 - 0.1 * 0.01) ** 2)


@pytest.mark.parametrize("steps", [1, 6])
def test_sparse_adam_equals_pytorchs_on_the_embedding_where_epsilon_is_small_and_adam_on_the_rest(steps):
    ours, optimizer = make("sparse_adam")
    theirs, _ = make("adam", sparse=True)
    sparse = torch.optim.SparseAdam([theirs.embedding.weight], lr=0.01, betas=(0.7, 0.95))
    dense = torch.optim.Adam([*theirs.norm.parameters(), *theirs.linear.parameters()], lr=0.01, betas=(0.7, 0.95))
    for step in range(steps):
        tokens = torch.randint(0, 7, (4,), generator=torch.Generator().manual_seed(step))
        for model, optimizers in ((ours, [optimizer]), (theirs, [sparse, dense])):
            model.zero_grad()
            model(tokens).square().sum().backward()
            for each in optimizers:
                each.step()
    for mine, yours in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, yours, rtol=1e-4, atol=1e-6)


def test_epsilon_stands_behind_the_bias_correction_where_pytorchs_sparse_adam_has_it_before():
    grad, epsilon, beta2 = 0.01, 0.1, 0.999
    steps = {}
    for name, make_one in (("adam", torch.optim.Adam), ("sparse", torch.optim.SparseAdam), ("ours", SparseAdam)):
        weight = torch.nn.Parameter(torch.zeros(2, 1, dtype=torch.float64))
        row = torch.sparse_coo_tensor([[1]], torch.tensor([[grad]], dtype=torch.float64), (2, 1), check_invariants=True)
        weight.grad = row.to_dense() if name == "adam" else row
        make_one([weight], lr=1.0, betas=(0.9, beta2), eps=epsilon).step()
        steps[name] = -weight[1].item()
    assert steps["ours"] == pytest.approx(steps["adam"], rel=1e-12)
    assert steps["ours"] == pytest.approx(grad / (grad + epsilon))
    assert steps["sparse"] == pytest.approx(grad / (grad + epsilon / (1 - beta2) ** 0.5))


def test_sparse_adam_leaves_rows_that_were_not_in_the_chunk_untouched():
    model, optimizer = make("sparse_adam")
    before = model.embedding.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.tensor([1, 4, 4])).square().sum().backward()
        optimizer.step()
    changed = (model.embedding.weight != before).any(1)
    assert changed.tolist() == [False, True, False, False, True, False, False]


def test_sparse_adam_on_every_row_is_adam():
    models = []
    for title in ("sparse_adam", "adam"):
        model, optimizer = make(title, dtype=torch.float64)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.arange(7)).square().sum().backward()
            optimizer.step()
        models.append(model)
    for mine, yours in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(mine, yours, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("title", [title for title in SETTINGS if title != "sparse_adam"])
def test_sparse_gradients_move_every_row_as_dense_ones_do(title):
    models = []
    for sparse in (False, True):
        model, optimizer = make(title, sparse=sparse, weight_decay=0.1, dtype=torch.float64)
        train(model, optimizer, range(4))
        assert model.embedding.weight.grad.is_sparse == sparse
        models.append([*model.parameters(), *optimizer_tensors(optimizer)[0].values()])
    for mine, yours in zip(*models, strict=True):
        torch.testing.assert_close(mine, yours, rtol=1e-12, atol=1e-14)


# ---- groups and the rate


def test_matrices_decay_and_biases_and_norms_do_not():
    decayed, rest = group_parameters(Tiny().named_parameters(), 0.1)
    assert [name for name, _ in decayed["params"]] == ["embedding.weight", "linear.weight"]
    assert [name for name, _ in rest["params"]] == ["norm.weight", "norm.bias", "linear.bias"]
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0)


def test_frozen_parameters_are_left_out():
    model = Tiny()
    model.linear.bias.requires_grad_(False)
    decayed, rest = group_parameters(model.named_parameters(), 0.1)
    assert [name for name, _ in decayed["params"]] == ["embedding.weight", "linear.weight"]
    assert [name for name, _ in rest["params"]] == ["norm.weight", "norm.bias"]


def test_set_rate_reaches_every_group_and_beta1_is_adams_or_the_momentum():
    _, adam = make("adam", weight_decay=0.1)
    set_rate(adam, 0.25, beta1=0.6)
    assert [(group["lr"], group["betas"]) for group in adam.param_groups] == [(0.25, (0.6, 0.95))] * 2
    _, momentum = make("sgd momentum")
    set_rate(momentum, 0.25, beta1=0.6)
    assert {group["momentum"] for group in momentum.param_groups} == {0.6}
    _, plain = make("sgd")
    set_rate(plain, 0.25, beta1=0.6)
    assert {group["momentum"] for group in plain.param_groups} == {0}


# ---- refusals


@pytest.mark.parametrize(("name", "rate"), [("adam", 30), ("adamw", 1.5), ("sparse_adam", 2), ("rmsprop", 20), ("adagrad", 20)])
def test_a_rate_that_is_too_large_for_its_optimiser_is_refused_with_the_reason(name, rate):
    with pytest.raises(SettingsError) as error:
        make_optimizer(name, group_parameters(Tiny().named_parameters()), learning_rate=rate)
    assert f"learning_rate={rate} is too large for {name}" in error.value.given
    assert "divides each gradient by its own size" in error.value.allowed
    assert error.value.remedy.startswith("Type learning_rate=0.")


def test_sgd_takes_a_rate_of_thirty():
    assert make_optimizer("sgd", group_parameters(Tiny().named_parameters()), learning_rate=30)


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_that_an_optimiser_would_ignore_is_refused(name):
    other = {"momentum": 0.5, "beta1": 0.5, "beta2": 0.5, "alpha": 0.5, "epsilon": 0.5}
    for option in set(other) - set(OPTIONS[name]):
        with pytest.raises(SettingsError, match=f"^{option}=0.5 would be ignored by {name}"):
            make_optimizer(name, group_parameters(Tiny().named_parameters()), learning_rate=0.1, **{option: 0.5})


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("adamm", {}, "Allowed are sgd, adagrad, rmsprop, adam, adamw, sparse_adam"),
        ("sgd", {"nesterov": True}, "Type momentum=0.9"),
    ],
)
def test_unknown_names_and_nesterov_without_momentum_are_refused(name, options, words):
    with pytest.raises(SettingsError, match=words):
        make_optimizer(name, group_parameters(Tiny().named_parameters()), learning_rate=0.1, **options)


def test_sparse_adam_refuses_weight_decay_which_would_touch_every_row():
    with pytest.raises(SettingsError, match="touches only the rows of the chunk"):
        make_optimizer("sparse_adam", group_parameters(Tiny(True).named_parameters(), 0.1), learning_rate=0.1)


def test_sparse_adam_refuses_a_model_whose_gradients_are_all_dense():
    model, optimizer = make("sparse_adam", sparse=False)
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(SettingsError, match="not tied to the output layer"):
        optimizer.step()


# ---- saving


@pytest.mark.parametrize("sparse", [None, True])
@pytest.mark.parametrize("title", SETTINGS)
def test_a_run_goes_on_from_its_saved_optimiser_bit_by_bit(title, sparse):
    whole, optimizer = make(title, sparse)
    train(whole, optimizer, range(5))
    saved = copy.deepcopy(whole.state_dict())
    tensors, document = optimizer_tensors(optimizer)
    blob, text = save({name: tensor.contiguous() for name, tensor in tensors.items()}), json.dumps(document)
    rate = optimizer.param_groups[0]["lr"]
    train(whole, optimizer, range(5, 10))

    resumed, again = make(title, sparse)
    resumed.load_state_dict(saved)
    load_optimizer(again, load(blob), json.loads(text))
    set_rate(again, rate)
    train(resumed, again, range(5, 10))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_saved_moments_are_named_after_their_parameters():
    model, optimizer = make("adam")
    train(model, optimizer, range(1))
    tensors, _ = optimizer_tensors(optimizer)
    assert {"embedding.weight.exp_avg", "linear.bias.exp_avg_sq", "norm.weight.step"} <= set(tensors)


def test_moments_find_their_parameters_in_other_groups_and_another_order():
    model, optimizer = make("adam")
    train(model, optimizer, range(3))
    tensors, document = optimizer_tensors(optimizer)
    backwards = [*reversed([*model.named_parameters()])]
    reordered = [{"params": part, "weight_decay": 0.0} for part in (backwards[:1], backwards[1:])]
    other = make_optimizer("adam", reordered, learning_rate=0.01)
    load_optimizer(other, tensors, document)
    loaded, _ = optimizer_tensors(other)
    assert set(loaded) == set(tensors)
    for name in tensors:
        assert torch.equal(loaded[name], tensors[name]), name


def test_loading_copies_so_that_two_runs_never_share_moments():
    model, optimizer = make("adam")
    train(model, optimizer, range(2))
    tensors, document = optimizer_tensors(optimizer)
    before = tensors["linear.weight.exp_avg"].clone()
    other_model, other = make("adam")
    load_optimizer(other, tensors, document)
    train(other_model, other, range(2))
    assert torch.equal(tensors["linear.weight.exp_avg"], before)


def test_settings_stay_as_they_are_when_moments_are_loaded():
    model, optimizer = make("adam")
    train(model, optimizer, range(2))
    _, other = make("adam")
    set_rate(other, 0.125, beta1=0.5)
    load_optimizer(other, *optimizer_tensors(optimizer))
    assert all(group["lr"] == 0.125 and group["betas"] == (0.5, 0.95) for group in other.param_groups)


def test_memory_of_another_optimiser_model_or_shape_is_refused():
    model, optimizer = make("adam")
    train(model, optimizer, range(1))
    tensors, document = optimizer_tensors(optimizer)
    with pytest.raises(UnfitError, match=r"optimizer is 'Adam'\. Allowed is 'SGD'"):
        load_optimizer(make("sgd")[1], tensors, document)
    narrow = group_parameters(nn.Linear(3, 2).named_parameters(prefix="linear"))
    with pytest.raises(UnfitError, match=r"state\.embedding\.weight is not known here"):
        load_optimizer(make_optimizer("adam", narrow, learning_rate=0.1), tensors, document)
    tensors["linear.weight.exp_avg"] = torch.zeros(5, 5)
    with pytest.raises(UnfitError, match=r"linear\.weight\.exp_avg has shape \(5, 5\) instead of"):
        load_optimizer(make("adam")[1], tensors, document)


@pytest.mark.parametrize(
    ("moment", "value", "words"),
    [
        ("exp_avg", torch.tensor(5.0), r"has shape \(\) instead of"),
        ("exp_avg_sq", torch.tensor(5.0), r"has shape \(\) instead of"),
        ("step", torch.zeros(2), r"has shape \(2,\) instead of \(\)"),
        ("step", torch.tensor(-1.0), r"holds -1\.0\. Allowed is .* whole numbers at least 1"),
        ("step", torch.tensor(1.5), r"holds 1\.5"),
        ("step", torch.tensor(torch.inf), "holds inf"),
        ("step", torch.tensor(3), "is of type torch.int64"),
    ],
)
def test_moments_that_a_kernel_would_read_or_write_past_are_refused(moment, value, words):
    """PyTorch's fused kernels take every moment to be as large as its parameter."""
    model, optimizer = make("adam")
    train(model, optimizer, range(1))
    tensors, document = optimizer_tensors(optimizer)
    other = make("adam")[1]
    with pytest.raises(UnfitError, match=rf"^linear\.weight\.{moment} {words}"):
        load_optimizer(other, tensors | {f"linear.weight.{moment}": value}, document)
    assert not other.state


@pytest.mark.parametrize("title", ["adam", "adagrad", "rmsprop"])
def test_mean_squares_below_zero_are_refused(title):
    model, optimizer = make(title)
    train(model, optimizer, range(1))
    tensors, document = optimizer_tensors(optimizer)
    name = next(name for name in tensors if name.startswith("linear.weight") and name.endswith(("_sq", "square_avg", "sum")))
    tensors[name] = tensors[name] - 1e9
    with pytest.raises(UnfitError, match=rf"^{name} holds -.* Allowed is .* at least 0"):
        load_optimizer(make(title)[1], tensors, document)


@pytest.mark.parametrize("name", ["sgd", "rmsprop"])
def test_momentum_begins_at_zero_where_a_resumed_run_turns_it_on(name):
    """PyTorch's RMSprop would look for a buffer that is not there."""
    first_model, second_model = nn.Linear(3, 2), nn.Linear(3, 2)
    first, second = (
        make_optimizer(name, group_parameters(model.named_parameters()), learning_rate=0.1, momentum=momentum)
        for model, momentum in ((first_model, 0.0), (second_model, 0.5))
    )
    first_model(torch.ones(3)).sum().backward()
    first.step()
    load_optimizer(second, *optimizer_tensors(first))
    for _ in range(2):
        second_model.zero_grad()
        second_model(torch.ones(3)).sum().backward()
        second.step()
    tensors, _ = optimizer_tensors(second)
    assert (tensors["weight.momentum_buffer"] > 0).all()


def test_momentum_begins_at_zero_for_a_parameter_whose_first_gradient_comes_later():
    """A cluster of rare words that no chunk has visited yet; PyTorch's fused SGD takes momentum for all or for none."""
    model = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)])
    optimizer = make_optimizer("sgd", group_parameters(model.named_parameters()), learning_rate=0.1, momentum=0.9)
    model[0](torch.ones(3)).sum().backward()
    optimizer.step()
    model[1](torch.ones(3)).sum().backward()
    before = model[1].weight.detach().clone()
    optimizer.step()
    torch.testing.assert_close(model[1].weight, before - 0.1)


# ---- clipping


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("max_norm", [0.0, 1e-3, 1e3])
def test_clipping_scales_the_norm_of_all_gradients_together(sparse, max_norm):
    model, _ = make("adam", sparse=sparse)
    model(torch.tensor([1, 4, 4, 2])).square().sum().backward()
    dense = [parameter.grad.to_dense().clone() for parameter in model.parameters()]
    norm = torch.cat([grad.flatten() for grad in dense]).norm()
    torch.testing.assert_close(clip_gradients(model.parameters(), max_norm), norm)
    scale = min(1.0, max_norm / norm.item()) if max_norm else 1.0
    for parameter, grad in zip(model.parameters(), dense, strict=True):
        torch.testing.assert_close(parameter.grad.to_dense(), grad * scale, rtol=1e-5, atol=0)


def test_adam_notices_that_its_memory_has_been_set_back():
    model, optimizer = make("adam")
    train(model, optimizer, range(3))
    tensors, document = optimizer_tensors(optimizer)
    before = copy.deepcopy((model.state_dict(), tensors, document, optimizer.param_groups[0]["lr"]))
    ends = []
    for _ in range(2):
        train(model, optimizer, range(3, 6))
        ends.append(copy.deepcopy([*model.state_dict().values(), *optimizer_tensors(optimizer)[0].values()]))
        weights, tensors, document, rate = copy.deepcopy(before)
        model.load_state_dict(weights)
        load_optimizer(optimizer, tensors, document)
        set_rate(optimizer, rate)
    assert all(torch.equal(x, y) for x, y in zip(*ends, strict=True))


def test_adam_notices_that_a_weight_has_become_another_tensor():
    torch.manual_seed(7)
    weights = [nn.Parameter(torch.randn(4, 4))]
    weights.append(nn.Parameter(weights[0].detach().clone()))
    ours = make_optimizer("adam", group_parameters([("weight", weights[0])], 0.0), **SETTINGS["adam"])
    theirs = torch.optim.Adam([weights[1]], lr=0.01, betas=(0.7, 0.95))
    for step in range(6):
        gradient = torch.randn(4, 4)
        for weight in weights:
            if step == 2:
                weight.data = weight.data.clone()
            if step == 4:
                weight.data = weight.data.t().contiguous()
            weight.grad = gradient.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_a_graph_knows_that_a_weight_has_changed_since(name):
    layer = nn.Linear(3, 3)
    optimizer = make_optimizer(name, group_parameters(layer.named_parameters()), learning_rate=0.1)
    y = layer(layer(torch.randn(2, 3))).sum()
    y.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@pytest.mark.parametrize("name", ["adam", "adamw", "sparse_adam"])
def test_a_closure_computes_the_gradients_of_its_step(name):
    torch.manual_seed(3)
    embedding = nn.Embedding(5, 3, sparse=name == "sparse_adam")
    before = embedding.weight.detach().clone()
    optimizer = make_optimizer(name, group_parameters(embedding.named_parameters()), learning_rate=0.1)

    def closure():
        optimizer.zero_grad()
        loss = embedding(torch.tensor([1, 3])).square().sum()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    assert loss.item() == pytest.approx(before[[1, 3]].square().sum().item())
    assert (embedding.weight != before).any(1).tolist() == [False, True, False, True, False]
