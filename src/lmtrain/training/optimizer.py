"""Optimisers by name, with parameter groups, exact saving by parameter name, and gradient clipping.

    sgd          w -= rate * g, momentum, Nesterov           adam     Kingma and Ba 2015; L2 in the gradient
    adagrad      Duchi et al. 2011                           adamw    Loshchilov and Hutter 2019; L2 on the weight
    rmsprop      Tieleman and Hinton 2012                    sparse_adam   Adam on the embedding rows of a chunk alone

The arithmetic is PyTorch's, fused where PyTorch has it (on a CPU 4 to 7 times as fast as its loop); Adam of float32 weights on
a CPU is one native call (`ops/native/adam.h`). L2 acts after clipping: it adds `weight_decay * w` to the gradient (adamw:
shrinks w by rate * weight_decay instead). Hyper-parameters belong to the settings and the rate to the schedule, so only moments
are saved.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Optimizer, RMSprop

from lmtrain.distributed.group import ALONE, Group
from lmtrain.errors import SettingsError, refuse
from lmtrain.expected import MAX_COUNT, Like, compare
from lmtrain.ops.native import gradients
from lmtrain.rules import OptimizerOptions, of_optimizer


def group_parameters(named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Returns two groups: matrices, which decay, and biases and gains, which do not. Without decay all are in one, which a step
    goes through in less time. Frozen ones are left out."""
    decayed: list[tuple[str, nn.Parameter]] = []
    rest: list[tuple[str, nn.Parameter]] = []
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            (decayed if weight_decay and parameter.ndim >= 2 else rest).append((name, parameter))
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(
    name: str,
    parameter_groups: list[dict[str, Any]],
    *,
    learning_rate: float,
    momentum: float = OptimizerOptions.momentum,
    nesterov: bool = OptimizerOptions.nesterov,
    beta1: float = OptimizerOptions.beta1,
    beta2: float = OptimizerOptions.beta2,
    alpha: float = OptimizerOptions.alpha,
    epsilon: float = OptimizerOptions.epsilon,
) -> Optimizer:
    """Returns the optimiser `name` over groups from `group_parameters`.

    Raises SettingsError if the rate is too large for the optimiser, if it does not read an option that is not at its
    default, or if options exclude each other (`rules.of_optimizer`).
    """
    options = OptimizerOptions(momentum=momentum, nesterov=nesterov, beta1=beta1, beta2=beta2, alpha=alpha, epsilon=epsilon)
    weight_decay = max((group.get("weight_decay", 0.0) for group in parameter_groups), default=0.0)
    refuse(of_optimizer(name, learning_rate, options, weight_decay=weight_decay))
    fused = _fused(name, parameter_groups)
    if name == "sparse_adam":
        return SparseAdam(parameter_groups, learning_rate, betas=(beta1, beta2), eps=epsilon, fused=fused)
    optimizer: Optimizer
    if name == "sgd":
        optimizer = SGD(parameter_groups, learning_rate, momentum=momentum, nesterov=nesterov, fused=fused)
    elif name == "adagrad":
        optimizer = Adagrad(parameter_groups, learning_rate, eps=epsilon, fused=fused)
    elif name == "rmsprop":
        optimizer = RMSprop(parameter_groups, learning_rate, alpha=alpha, eps=epsilon, momentum=momentum)
    else:
        kind = {"adam": OneCallAdam, "adamw": OneCallAdamW}[name]
        return kind(parameter_groups, learning_rate, betas=(beta1, beta2), eps=epsilon, fused=fused)
    SpreadGradients().attach(optimizer)
    optimizer.register_step_pre_hook(_begin_momentum)
    return optimizer


def _begin_momentum(optimizer: Optimizer, *_: object) -> None:
    """Begins momentum at zero if a parameter's first gradient comes later than that of others (a cluster of rare words), or
    if a resumed run turns it on. PyTorch's kernels take momentum from all parameters or from none."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("momentum") else ():
            state = optimizer.state[parameter]
            is_set_up = bool(state) or isinstance(optimizer, SGD)  # RMSprop makes all its memory at once
            if parameter.grad is not None and is_set_up and "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)


class SpreadGradients:
    """Lets a dense optimiser step on sparse gradients: they are written into a reused dense table, and restored afterwards.

    If a table has 17,000 words and a chunk reads 2,700 of them, making, summing and scaling a dense gradient costs more than
    the rest of the output layer. So gradients are sparse up to here. During a step they are in a table of zeros that is kept
    from step to step; afterwards only the rows that were written are zeroed.
    """

    def __init__(self) -> None:
        self._tables: dict[nn.Parameter, Tensor] = {}
        self._sparse: list[tuple[nn.Parameter, Tensor]] = []

    def attach(self, optimizer: Optimizer) -> None:
        """Does so from now on at every step of this optimiser."""
        optimizer.register_step_pre_hook(self.spread)
        optimizer.register_step_post_hook(self.gather)

    def spread(self, optimizer: Optimizer, *_: object) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    grad = parameter.grad.coalesce()
                    if parameter not in self._tables:
                        self._tables[parameter] = torch.zeros_like(parameter)
                    self._sparse.append((parameter, grad))
                    parameter.grad = self._tables[parameter].index_copy_(0, grad.indices()[0], grad.values())

    def gather(self, *_: object) -> None:
        for parameter, grad in self._sparse:
            self._tables[parameter].index_fill_(0, grad.indices()[0], 0)
            parameter.grad = grad
        self._sparse.clear()


class OneCallAdam(torch.optim.Adam):
    """`torch.optim.Adam` with a step in one native call where there is one. Sparse gradients mean what dense ones do."""

    is_decoupled = False  # weight decay, from the gradient

    @cached_property
    def _spread(self) -> SpreadGradients:
        return SpreadGradients()

    @cached_property
    def _known(self) -> dict[nn.Parameter, gradients.AdamWeight]:
        return {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = _loss_of(closure)
        groups = [(self._rule(group), self._weights(group)) for group in self.param_groups]
        is_recorded = isinstance(groups[0][0].rate, Tensor)  # as a CUDA graph, or the way there
        if is_recorded or not gradients.adam(groups):
            self._spread.spread(self)
            super().step()
            self._spread.gather()
        return loss

    def _rule(self, group: dict[str, Any]) -> gradients.AdamRule:
        beta1, beta2 = group["betas"]
        return gradients.AdamRule(group["lr"], beta1, beta2, group["eps"], group["weight_decay"], self.is_decoupled)

    def _weights(self, group: dict[str, Any]) -> list[tuple[gradients.AdamWeight, Tensor]]:
        return [
            (self._weight(parameter), parameter.grad.coalesce() if parameter.grad.is_sparse else parameter.grad)
            for parameter in group["params"]
            if parameter.grad is not None
        ]

    def _weight(self, parameter: nn.Parameter) -> gradients.AdamWeight:
        """A parameter with its memory, which begins as PyTorch's does."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        tensors = parameter, state["exp_avg"], state["exp_avg_sq"], state["step"]
        known = self._known.get(parameter)
        if known is None or not known.holds(*tensors):
            known = self._known[parameter] = gradients.AdamWeight(*tensors)
        return known


class OneCallAdamW(OneCallAdam, torch.optim.AdamW):
    """The same of `torch.optim.AdamW`."""

    is_decoupled = True


def _loss_of(closure: Callable[[], Any] | None) -> Any:
    """What a closure that computes the gradients returns; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class SparseAdam(torch.optim.Adam):
    """Adam that updates only the rows of a sparse gradient. Dense gradients are updated as by Adam.

    The moments of other rows stay until the row is seen again, as in PyTorch's SparseAdam, which takes no dense gradients.
    PyTorch adds epsilon to the root of the second moment before its bias is corrected; here it is added afterwards, as Adam
    does. So PyTorch's epsilon acts as one larger by 1 / sqrt(1 - beta2^t), 32 times at the first step. At least one gradient
    must be sparse: `nn.Embedding(sparse=True)`, not tied to the output layer.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = _loss_of(closure)
        sparse = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    sparse.append((group, parameter, parameter.grad.coalesce()))
                    parameter.grad = None  # hidden from the dense step
        if not sparse:
            raise SettingsError(
                "sparse_adam was given a model without sparse gradients.",
                "It needs an embedding of its own: not tied to the output layer, and no L1.",
                "Take adam, or leave out what ties or shrinks the embedding.",
            )
        super().step()
        for group, parameter, grad in sparse:
            self._step_rows(group, parameter, grad.indices()[0], grad.values())
            parameter.grad = grad
        return loss

    def _step_rows(self, group: dict[str, Any], parameter: Tensor, rows_R: Tensor, grad_RE: Tensor) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        num_steps, (beta1, beta2) = state["step"].item(), group["betas"]
        mean_RE = state["exp_avg"][rows_R].lerp_(grad_RE, 1 - beta1)
        square_RE = state["exp_avg_sq"][rows_R].mul_(beta2).addcmul_(grad_RE, grad_RE, value=1 - beta2)
        state["exp_avg"].index_copy_(0, rows_R, mean_RE)
        state["exp_avg_sq"].index_copy_(0, rows_R, square_RE)
        size_RE = (square_RE / (1 - beta2**num_steps)).sqrt_().add_(group["eps"])
        parameter.index_add_(0, rows_R, mean_RE / size_RE, alpha=-group["lr"] / (1 - beta1**num_steps))


def set_rate(optimizer: Optimizer, learning_rate: float, beta1: float | None = None) -> None:
    """Sets the rate of the next step in every group, and beta1 where given: for SGD and RMSprop the momentum, if they
    use one. A rate that is a tensor stays that tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(learning_rate)
        else:
            group["lr"] = learning_rate
        if beta1 is not None and "betas" in group:
            group["betas"] = (beta1, group["betas"][1])
        elif beta1 is not None and group.get("momentum"):
            group["momentum"] = beta1


def drop_gradients(optimizer: Optimizer) -> None:
    """Forgets all gradients, as `zero_grad` does, which tells PyTorch's profiler of it and looks for hooks first."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float, group: Group = ALONE) -> Tensor:
    """Returns the L2 norm of all gradients together, which are then scaled down to `max_norm` if it is larger (0: never).

    Sparse gradients are treated like dense ones. The norm is a scalar on the parameters' device, without synchronising. On a
    CPU float32 gradients are read once, their squares are added up in float64, and scaled only if they must be. All
    processes of `group`, which have the same gradients, go by the norm of the first one: processors differ in how they add.
    """
    grads = []
    for parameter in parameters:
        if parameter.grad is not None:
            if parameter.grad.is_sparse:
                parameter.grad = parameter.grad.coalesce()  # the values of a row that occurs twice add up
                grads.append(parameter.grad._values())
            else:
                grads.append(parameter.grad)
    norm = gradients.clip(grads, max_norm if group.size == 1 else 0)
    total_norm = nn.utils.get_total_norm(grads) if norm is None else torch.tensor(norm, dtype=torch.float32)
    if norm is not None and group.size == 1:
        return total_norm
    group.take(total_norm)
    if max_norm:
        scale = (max_norm / (total_norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(grads, scale)
    return total_norm


# ---- saving


def optimizer_tensors(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the optimiser's memory: tensors named "<parameter>.<moment>", and a JSON-able document with the rest.

    The tensors are the optimiser's own, not copies.
    """
    tensors: dict[str, Tensor] = {}
    state: dict[str, dict[str, Any]] = {}
    for name, parameter in _iter_named(optimizer):
        state[name] = {}
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{name}.{key}"] = value
            state[name][key] = "tensor" if isinstance(value, Tensor) else value
    return tensors, {"optimizer": _kind(optimizer), "state": state}


def expected_optimizer(optimizer: Optimizer, names: Collection[str], num_steps: int) -> tuple[dict[str, Like], dict[str, Any]]:
    """Returns what `optimizer_tensors` returns for such an optimiser after at most `num_steps` steps: tensors and document.

    `names` are those of the tensors that exist. A parameter without a gradient so far (a cluster of rare words that was
    never visited) has no moments; one that has some has all of them. A momentum may have been set, or not, when the run began.
    """
    tensors: dict[str, Like] = {}
    state: dict[str, dict[str, str]] = {}
    for name, parameter in _iter_named(optimizer):
        moments = _moments(_kind(optimizer), parameter, num_steps)
        known = [key for key in moments if f"{name}.{key}" in names]
        needed = [key for key in moments if known and (key in known or key != "momentum_buffer")]
        tensors |= {f"{name}.{key}": moments[key] for key in needed}
        state[name] = dict.fromkeys(needed, "tensor")
    return tensors, {"optimizer": _kind(optimizer), "state": state}


def _kind(optimizer: Optimizer) -> str:
    """Returns the name under which its memory is saved: that of PyTorch's class."""
    return type(optimizer).__name__.removeprefix("OneCall")


def _moments(optimizer: str, parameter: Tensor, num_steps: int) -> dict[str, Like]:
    """Returns the moments of one parameter by name. All but the number of steps have one shape, on which kernels rely."""
    mean, square = Like.of(parameter), Like.of(parameter, least=0)
    first = 0 if optimizer == "Adagrad" else 1  # it makes its memory before the first step
    count = {"step": Like((), least=first, most=num_steps, whole=True)}
    match optimizer:
        case "SGD":
            return {"momentum_buffer": mean}
        case "Adagrad":
            return count | {"sum": square}
        case "RMSprop":
            return count | {"square_avg": square, "momentum_buffer": mean}
    return count | {"exp_avg": mean, "exp_avg_sq": square}


def load_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor], document: dict[str, Any]) -> None:
    """Puts back what `optimizer_tensors` returned, exactly; settings such as momentum stay as they are.

    Raises UnfitError if the memory belongs to another optimiser or another model, or to none.
    """
    expected_tensors, expected_document = expected_optimizer(optimizer, tensors.keys(), MAX_COUNT)
    compare(expected_document, document)
    compare(expected_tensors, tensors)
    state = {}
    for index, (name, _) in enumerate(_iter_named(optimizer)):
        if document["state"][name]:
            state[index] = {key: tensors[f"{name}.{key}"].clone() for key in document["state"][name]}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _iter_named(optimizer: Optimizer) -> Iterable[tuple[str, nn.Parameter]]:
    """Yields parameters with their names, in the order in which PyTorch numbers them."""
    for group in optimizer.param_groups:
        yield from zip(group["param_names"], group["params"], strict=True)


# ---- checking


def _fused(name: str, groups: list[dict[str, Any]]) -> bool:
    """Tells whether PyTorch has one kernel for the whole step: Adagrad's exists for the CPU only, RMSprop's not at all."""
    devices = {parameter.device.type for group in groups for _, parameter in group["params"]}
    return devices <= ({"cpu"} if name == "adagrad" else {"cpu", "cuda"})
