"""`torch.func` over every Function of the package: what autograd gives, or an error that says what to do instead."""

import ast
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

import lmtrain
from lmtrain.models.direct import DirectCrossEntropyFunction
from lmtrain.ops.activations import ACTIVATIONS
from lmtrain.ops.backends import record_choices
from lmtrain.ops.bags import average
from lmtrain.ops.elman import elman
from lmtrain.ops.glove import glove_loss
from lmtrain.ops.gru import gru
from lmtrain.ops.linear import LinearFunction
from lmtrain.ops.linear_cross_entropy import linear_cross_entropy
from lmtrain.ops.lookup import lookup
from lmtrain.ops.lstm import lstm
from lmtrain.ops.negative_sampling import negative_sampling
from lmtrain.ops.objectives import affine, logistic_loss, max_margin_loss, softmax_loss, window_vectors
from lmtrain.ops.sampled_cross_entropy import sampled_cross_entropy
from lmtrain.ops.transforms import MatmulFunction

N, T, B, H, V, D = 4, 3, 2, 5, 7, 6


def of(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def ids(*shape: int) -> Tensor:
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(sum(shape)))


BIAS, LOG_EXPECTED = of(V), of(2)
BACKENDS = ("auto", "eager", "reference")
FUNCTIONS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    **{f"lstm {b}": (lambda *x, b=b: lstm(*x, backend=b)[0], (of(N, T, B, 4 * H), of(N, B, H), of(N, B, H), of(N, 4 * H, H)))
       for b in BACKENDS},
    **{f"gru {b}": (lambda *x, b=b: gru(*x, backend=b)[0], (of(N, T, B, 3 * H), of(N, B, H), of(N, 3 * H, H), of(N, H)))
       for b in BACKENDS},
    **{f"elman {b}": (lambda *x, b=b: elman(*x, backend=b)[0], (of(N, T, B, H), of(N, B, H), of(N, H, H))) for b in BACKENDS},
    **{f"linear_cross_entropy {b}": (lambda f, w, y, b=b: linear_cross_entropy(f, w, BIAS, y, backend=b),
                                     (of(N, 3, D), of(N, V, D), ids(N, 3))) for b in BACKENDS[:2]},
    "linear": (lambda *x: LinearFunction.apply(*x), (of(N, 3, D), of(N, V, D), of(N, V))),
    "matmul": (lambda *x: MatmulFunction.apply(*x), (of(N, 3, D), of(N, D, V), of(N, V))),
    "sampled_cross_entropy": (lambda f, w, y: sampled_cross_entropy(f, w, BIAS, y, torch.tensor([0, 2]), LOG_EXPECTED),
                              (of(N, 3, D), of(N, V, D), ids(N, 3))),
    "softmax_loss": (softmax_loss, (of(N, 3, V), ids(N, 3))),
    "logistic_loss": (logistic_loss, (of(N, 3, D), of(N, 3, D) > 0)),
    "max_margin_loss": (max_margin_loss, (of(N, D), of(N, D) + 0.3)),
    "affine": (affine, (of(N, 3, D), of(N, V, D), of(N, V))),
    "window_vectors": (window_vectors, (of(N, V, D), ids(N, T, B))),
    "negative_sampling": (negative_sampling, (of(N, V, D), of(N, V, D), ids(N, 3, 2), ids(N, 3), ids(N, 3, 2))),
    "glove": (lambda w, c, i, j: glove_loss(w, c, BIAS, BIAS, i, j, torch.tensor([1.0, 30.0, 200.0])),
                   (of(N, V, D), of(N, V, D), ids(N, 3), ids(N, 3))),
    "lookup": (lookup, (of(N, V, D), ids(N, T, B))),
    "bags": (lambda table, i: average(table, i, torch.tensor([0, 2, 2])), (of(N, V, D), ids(N, 7))),
}  # fmt: skip
FORWARD_MODE = {name for name in FUNCTIONS if "reference" in name or name in ("lookup", "matmul")}


def one_by_one(function: Callable[..., Tensor], batch: tuple[Tensor, ...], fixed: int | None) -> Tensor:
    return torch.stack([function(*(x[0 if i == fixed else n] for i, x in enumerate(batch))) for n in range(N)])


@pytest.mark.parametrize("fixed", [None, 0, 1])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_vmap_gives_what_a_loop_gives_and_so_do_its_gradients(name: str, fixed: int | None) -> None:
    function, batch = FUNCTIONS[name]
    given = tuple(x[0] if i == fixed else x for i, x in enumerate(batch))
    dims = tuple(None if i == fixed else 0 for i in range(len(batch)))
    assert_close(vmap(function, dims)(*given), one_by_one(function, batch, fixed))

    def loss(*arguments: Tensor) -> Tensor:
        return function(*arguments).sin().sum()

    for argument, x in enumerate(batch):
        if x.is_floating_point():
            made = vmap(grad(loss, argument), dims)(*given)
            leaves = [tuple((x[0 if i == fixed else n]).clone() for i, x in enumerate(batch)) for n in range(N)]
            expected = [
                torch.autograd.grad(loss(*(leaf, leaf[argument].requires_grad_())[0]), leaf[argument])[0] for leaf in leaves
            ]
            assert_close(made, torch.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_vmap_leaves_gradients_to_the_leaves_around_it(name: str) -> None:
    function, batch = FUNCTIONS[name]
    for argument, x in enumerate(batch):
        if x.is_floating_point():
            leaves = [tuple(y.clone().requires_grad_(i == argument) for i, y in enumerate(batch)) for _ in range(2)]
            made = torch.autograd.grad(vmap(function)(*leaves[0]).sin().sum(), leaves[0][argument])
            expected = torch.autograd.grad(one_by_one(function, leaves[1], None).sin().sum(), leaves[1][argument])
            assert_close(made, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_batch_of_upstream_gradients_goes_through_at_once(name: str) -> None:
    function, batch = FUNCTIONS[name]
    inputs = [x[0].clone().requires_grad_(x.is_floating_point()) for x in batch]
    wanted = [x for x in inputs if x.requires_grad]
    y = function(*inputs)
    upstream = of(3, *y.shape)
    made = torch.autograd.grad(y, wanted, upstream, is_grads_batched=True, retain_graph=True)
    expected = [torch.autograd.grad(function(*inputs), wanted, d_y) for d_y in upstream]
    for n, each in enumerate(expected):
        assert_close(tuple(d[n] for d in made), each, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # what PyTorch's tracers think of branches, and of themselves
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_trace_computes_what_was_traced(name: str) -> None:
    function, batch = FUNCTIONS[name]
    (first, *rest), other = (x[0] for x in batch), batch[0][1]

    def of_first(x: Tensor) -> Tensor:
        return function(x, *rest).sin()

    assert_close(make_fx(of_first)(first)(other), of_first(other), rtol=1e-4, atol=1e-5)
    assert_close(torch.jit.trace(of_first, (first,))(other), of_first(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted({name.split()[0] for name in FUNCTIONS} - {"bags"}))
def test_tensors_that_have_shapes_alone_go_through(name: str) -> None:
    function, batch = FUNCTIONS.get(name) or FUNCTIONS[f"{name} auto"]
    inputs = [x[0] for x in batch]
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(x).requires_grad_(x.is_floating_point()) for x in inputs]
        y = function(*fakes)
        y.sum().backward()
    assert y.shape == function(*inputs).shape
    assert all(x.grad is None or x.grad.shape == x.shape for x in fakes)


class Named(Tensor):
    """A tensor of somebody else's class, which leaves operations to PyTorch."""


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # PyTorch looks at it to make fakes
def test_a_class_of_tensors_is_computed_by_kernels_unless_it_follows_operations() -> None:
    layer, x, chosen = lmtrain.nn.LSTM(3, 5), torch.randn(4, 2, 3), record_choices({})
    assert_close(layer(x.as_subclass(Named))[0].as_subclass(Tensor), layer(x)[0])
    assert chosen == {"lstm in float32 on cpu": "native"}
    fake = FakeTensorMode(allow_non_fake_inputs=True).from_tensor(x)  # and the mode is not open
    assert layer(fake)[0].shape == layer(x)[0].shape
    assert linear_cross_entropy(fake.flatten(0, 1), layer.weight_ih_l0, None, torch.zeros(8, dtype=torch.int64)).shape == ()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_jvp_is_right_or_says_what_to_use_instead(name: str) -> None:
    function, batch = FUNCTIONS[name]
    (first, *rest) = (x[0] for x in batch)

    def of_first(x: Tensor) -> Tensor:
        return function(x, *rest).sin().sum()

    if name in FORWARD_MODE:
        _, made = jvp(of_first, (first,), (of(*first.shape),))
        assert_close(made, (grad(of_first)(first) * of(*first.shape)).sum(), rtol=1e-4, atol=1e-4)
    else:
        with pytest.raises(NotImplementedError, match="has no forward-mode derivative"):
            jvp(of_first, (first,), (first,))


def test_the_direct_connections_refuse_torch_func_by_name() -> None:
    """They are trained whole, at most one slice at a time: PyTorch itself says what is missing."""
    arguments = (of(N, 2, D), of(N, V, D), of(N, V), of(N, 20), ids(N, 2, 1), ids(N, 2))
    with pytest.raises(RuntimeError, match="setup_context"):
        vmap(DirectCrossEntropyFunction.apply)(*arguments)


@pytest.mark.filterwarnings("ignore")  # PyTorch looks at .grad while it compiles, and warns of that
@pytest.mark.parametrize("name", ["tanh", "relu", "lookup"])
def test_functions_may_be_called_in_what_is_compiled(name: str) -> None:
    run = ACTIVATIONS.get(name) or (lambda x: lookup(x, torch.tensor([[0, 2], [1, 2]])))
    eager, compiled = (torch.linspace(-2, 2, 12).view(3, 4).requires_grad_() for _ in range(2))
    torch.compiler.reset()
    y, y_compiled = run(eager), torch.compile(run, backend="eager")(compiled)
    assert_close(y_compiled, y)
    gradients = (torch.autograd.grad(out.sum(), x) for out, x in ((y, eager), (y_compiled, compiled)))
    assert_close(*gradients)


def test_every_function_of_the_package_is_tried_here_or_with_the_activations() -> None:
    """A class of `torch.autograd.Function` is pointwise, looped, or one of the three named."""
    found = {}
    source = Path(lmtrain.__file__).parent
    for path in (path for path in source.rglob("*.py") if path.parent.name != "explain"):  # whose gates have no tensors
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                found[node.name] = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
    direct = {name for name, bases in found.items() if "Function" in bases}
    assert direct == {"Pointwise", "Looped", "Lookup", "DirectCrossEntropyFunction", "MatmulFunction"}
    looped = {name for name, bases in found.items() if "Looped" in bases}
    assert {name.removesuffix("Function").lower() for name in looped} == {
        name.split()[0].replace("_", "") for name in FUNCTIONS if name not in ("lookup", "matmul")
    }
