"""What each output layer computes: against plain formulas, PyTorch's adaptive softmax, exact expectations."""

import math

import pytest
import torch
from torch import nn

from lmtrain.models import heads
from lmtrain.models.heads import AdaptiveSoftmax, FullSoftmax, SampledSoftmax

V, D, T, B = 23, 8, 5, 3


def full(**rest):
    return FullSoftmax(D, V, init_range=1.0, **rest)


def projected():
    return full(projection_size=6)


def tied():
    return full(tied_weight=nn.Parameter(torch.randn(V, D)))


def sampled(num_samples=9, **rest):
    return SampledSoftmax(D, V, num_samples=num_samples, init_range=1.0, **rest)


def adaptive(cutoffs=(4, 11), **rest):
    return AdaptiveSoftmax(D, V, cutoffs=cutoffs, div_value=2.0, init_range=1.0, **rest)


def adaptive_tied():
    return adaptive(tied_weight=nn.Parameter(torch.randn(V, D)))


def adaptive_tied_and_projected():
    return adaptive(tied_weight=nn.Parameter(torch.randn(V, 6)))


def adaptive_without_clusters():
    return adaptive(cutoffs=())


EVERY_HEAD = [
    full, projected, tied, sampled, adaptive, adaptive_tied, adaptive_tied_and_projected, adaptive_without_clusters,
]  # fmt: skip


def make(factory, dtype=torch.float64):
    """A head with random biases, features and targets that visit every part of the vocabulary."""
    torch.manual_seed(11)
    head = factory().to(dtype)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if "bias" in name:
                parameter.normal_()
    return head, torch.randn(T, B, D, dtype=dtype), torch.randperm(V)[: T * B].view(T, B)


# ---- every head


@pytest.mark.parametrize("factory", EVERY_HEAD)
@pytest.mark.parametrize("training", [False, True])
def test_probabilities_of_all_words_sum_to_one(factory, training):
    head, features, _ = make(factory)
    log_probs = head.train(training).log_probs(features)
    assert log_probs.shape == (T, B, V)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(T, B, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("factory", EVERY_HEAD)
def test_loss_and_target_log_probs_agree_with_the_log_probs_of_all_words(factory, monkeypatch):
    head, features, targets = make(factory)
    expected = head.eval().log_probs(features).gather(-1, targets[..., None]).squeeze(-1)
    torch.testing.assert_close(head.target_log_probs(features, targets), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(head.loss(features, targets), -expected.sum(), rtol=1e-12, atol=1e-12)
    monkeypatch.setattr(heads, "MAX_LOGITS_BYTES", 4 * V * 2)  # rows two by two
    torch.testing.assert_close(head.target_log_probs(features, targets), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("factory", EVERY_HEAD)
def test_leading_axes_are_free(factory):
    head, features, targets = make(factory)
    head.eval()
    for shape in [(T * B,), (1, T, B)]:
        flat = head.target_log_probs(features.view(*shape, D), targets.view(shape))
        torch.testing.assert_close(flat, head.target_log_probs(features, targets).view(shape))
    torch.testing.assert_close(head.log_probs(features[0, 0]), head.log_probs(features)[0, 0])


@pytest.mark.parametrize("factory", EVERY_HEAD)
def test_loss_has_the_gradient_of_central_differences(factory):
    head, features, targets = make(factory)
    names = [name for name, _ in head.named_parameters()]
    features = features[:2].requires_grad_()

    def loss(features, *parameters):
        generator = torch.Generator().manual_seed(5)
        arguments = (features, targets[:2], generator)
        return torch.func.functional_call(head, dict(zip(names, parameters, strict=True)), arguments)

    head.forward = head.loss
    parameters = [parameter.detach().clone().requires_grad_() for parameter in head.parameters()]
    assert torch.autograd.gradcheck(loss, (features, *parameters))


@pytest.mark.parametrize("factory", EVERY_HEAD)
def test_the_unigram_bias_gives_the_add_one_frequencies_where_features_are_zero(factory):
    head, features, _ = make(factory)
    counts = torch.arange(V).flip(0) ** 2
    head.set_unigram_bias(counts)
    expected = ((counts + 1) / (counts + 1).sum().double()).log()
    torch.testing.assert_close(head.log_probs(torch.zeros_like(features[0, 0])), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("factory", EVERY_HEAD)
def test_under_bfloat16_autocast_probabilities_are_normalised_in_float32(factory, generator):
    head, features, targets = make(factory, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        log_probs = head.log_probs(features)
        results = [log_probs, head.target_log_probs(features, targets), head.loss(features.bfloat16(), targets, generator)]
    assert [result.dtype for result in results] == [torch.float32] * 3
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(T, B), rtol=1e-5, atol=0)
    assert (log_probs - head.log_probs(features)).abs().max() < 0.1


# ---- full


def test_full_softmax_is_the_softmax_of_weight_times_features_plus_bias():
    head, features, _ = make(full)
    scores = torch.einsum("tbd,vd->tbv", features, head.weight_VE) + head.bias_V
    probs = scores.exp() / scores.exp().sum(-1, keepdim=True)
    torch.testing.assert_close(head.log_probs(features).exp(), probs)


def test_a_tied_head_shares_the_embedding_itself_and_its_gradient():
    embedding = nn.Embedding(V, D)
    head = FullSoftmax(D, V, tied_weight=embedding.weight)
    assert head.weight_VE is embedding.weight
    head.loss(torch.randn(2, 2, D), torch.zeros(2, 2, dtype=torch.long)).backward()
    assert embedding.weight.grad.abs().sum() > 0


def test_a_sparse_gradient_of_the_look_up_is_added_to_that_of_a_tied_head_in_place():
    gradients = []
    for sparse in (False, True):
        head, _, targets = make(tied)
        ids = torch.arange(T * B).view(T, B)
        with torch.profiler.profile(record_shapes=True, acc_events=True) as watched:
            head.loss(nn.functional.embedding(ids, head.weight_VE, sparse=sparse), targets).backward()
        calls = [event.name for event in watched.events() if [V, D] in list(event.input_shapes)[:1]]
        assert "aten::add_" in calls
        assert "aten::copy_" not in calls
        gradients.append(head.weight_VE.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("kind", [FullSoftmax, SampledSoftmax])
def test_a_tied_matrix_of_another_size_needs_a_projection(kind):
    rest = {"num_samples": 3} if kind is SampledSoftmax else {}
    weight = nn.Parameter(torch.randn(V, 6))
    with pytest.raises(ValueError, match=r"shape \(23, 6\); the output layer needs \(23, 8\)"):
        kind(D, V, tied_weight=weight, **rest)
    assert kind(D, V, tied_weight=weight, projection_size=6, **rest).projection.weight.shape == (6, D)


# ---- adaptive


@pytest.mark.parametrize("cutoffs", [[4], [4, 11], [1, 2, 22]])
def test_adaptive_softmax_agrees_with_pytorchs_on_copied_weights(cutoffs):
    torch.manual_seed(2)
    ours = AdaptiveSoftmax(D, V, cutoffs=cutoffs, div_value=2.0).double()
    theirs = nn.AdaptiveLogSoftmaxWithLoss(D, V, cutoffs, div_value=2.0, head_bias=True).double()
    with torch.no_grad():
        theirs.head.bias.normal_()
        shortlist = cutoffs[0]
        ours.weights[0].copy_(theirs.head.weight[:shortlist])
        ours.cluster_weight_KE.copy_(theirs.head.weight[shortlist:])
        ours.bias_V[:shortlist] = theirs.head.bias[:shortlist]
        ours.cluster_bias_K.copy_(theirs.head.bias[shortlist:])
        for k, (projection, output) in enumerate(theirs.tail):
            ours.projections[k].weight.copy_(projection.weight)
            ours.weights[k + 1].copy_(output.weight)
    mine, yours = (torch.randn(40, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    mine.requires_grad_(), yours.requires_grad_()
    targets = torch.randint(0, V, (40,), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(ours.log_probs(mine), theirs.log_prob(yours), rtol=1e-12, atol=1e-12)
    output, loss = theirs(yours, targets)
    torch.testing.assert_close(ours.target_log_probs(mine, targets), output, rtol=1e-12, atol=1e-12)
    total = ours.loss(mine, targets)
    torch.testing.assert_close(total / 40, loss, rtol=1e-12, atol=1e-12)
    total.backward(), (40 * loss).backward()
    torch.testing.assert_close(mine.grad, yours.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours.weights[1].grad, theirs.tail[0][1].weight.grad, rtol=1e-10, atol=1e-12)


def test_a_cluster_is_reached_through_its_own_probability():
    head, features, _ = make(adaptive)
    x = features[0, 0]
    scores = torch.cat([head.weights[0] @ x + head.bias_V[:4], head.cluster_weight_KE @ x + head.cluster_bias_K])
    within = head.weights[2] @ head.projections[1].weight @ x + head.bias_V[11:]
    expected = scores.softmax(0)[4 + 1] * within.softmax(0)[7]
    torch.testing.assert_close(head.log_probs(x)[11 + 7].exp(), expected)


def test_clusters_that_no_target_visits_get_no_gradient_and_cost_nothing():
    head, features, _ = make(adaptive)
    head.loss(features, torch.full((T, B), 5)).backward()
    assert head.weights[1].grad is not None
    assert head.weights[2].grad is None


def test_cutoffs_that_do_not_ascend_within_the_vocabulary_are_refused():
    for cutoffs in ([0, 4], [4, 4], [11, 4], [4, V]):
        with pytest.raises(ValueError, match="must ascend and lie between 1 and 22"):
            AdaptiveSoftmax(D, V, cutoffs=cutoffs)


# ---- sampled


@pytest.mark.parametrize("proposal", ["log_uniform", "unigram"])
def test_sampled_loss_is_its_formula_word_by_word(proposal):
    head, features, targets = make(lambda: sampled(proposal=proposal))
    head.set_proposal(torch.arange(V, 0, -1) ** 3)
    total = head.train().loss(features, targets, torch.Generator().manual_seed(5)).detach()
    samples, _ = head.sample(torch.Generator().manual_seed(5))
    q = head.proposal_V / head.proposal_V.sum()
    expected, weight, bias = 0.0, head.weight_VE.detach(), head.bias_V.detach()
    for x, y in zip(features.flatten(0, 1), targets.flatten().tolist(), strict=True):
        score = {k: float(weight[k] @ x + bias[k]) for k in [y, *samples.tolist()]}
        others = [math.exp(score[k]) / (1 - (1 - float(q[k])) ** 9) for k in samples.tolist() if k != y]
        expected -= math.log(math.exp(score[y]) / (math.exp(score[y]) + sum(others)))
    torch.testing.assert_close(total.item(), expected, rtol=1e-9, atol=0)


def test_proposals_are_zipfs_law_or_the_add_one_unigram_and_sum_to_one():
    log_uniform, unigram = sampled().proposal_V, sampled(proposal="unigram")
    assert log_uniform[3].item() == pytest.approx(math.log(5 / 4) / math.log(V + 1))
    counts = torch.arange(V)
    unigram.set_proposal(counts)
    torch.testing.assert_close(unigram.proposal_V, (counts + 1) / (counts + 1).sum().double())
    for proposal in (log_uniform, unigram.proposal_V):
        assert proposal.sum().item() == pytest.approx(1)


def test_words_are_among_the_samples_as_often_as_their_expected_count_says(generator):
    head, num = sampled(), 4000
    seen, expected = torch.zeros(V), torch.zeros(V)
    for _ in range(num):
        samples, log_expected = head.sample(generator)
        assert len(samples.unique()) == len(samples)
        seen[samples] += 1
        expected[samples] = log_expected.exp().float()
    assert ((seen / num - expected).abs() < 5 * (expected * (1 - expected) / num).sqrt() + 1e-9).all()


def test_the_estimated_normaliser_has_the_exact_one_as_its_mean(generator):
    head, features, targets = make(sampled)
    x, y = features[:1, :1], targets[:1, :1]
    exact = head.eval().loss(x, y).exp()  # Z / exp(s_y)
    head.train()
    estimates = torch.stack([head.loss(x, y, generator).exp().detach() for _ in range(4000)])
    error = estimates.std() / len(estimates) ** 0.5
    assert (estimates.mean() - exact).abs() < 4 * error
    assert error < 0.05 * exact  # so the test can fail


def test_with_many_samples_loss_and_gradients_approach_those_of_the_full_softmax():
    head, features, targets = make(lambda: sampled(num_samples=8))
    features.requires_grad_()
    inputs = [features, head.weight_VE, head.bias_V]

    def of_full():
        loss = head.eval().loss(features, targets)
        return [loss, *torch.autograd.grad(loss, inputs)]

    def mean_of_sampled(num_samples):
        head.train().num_samples = num_samples
        runs = []
        for seed in range(40):
            loss = head.loss(features, targets, torch.Generator().manual_seed(seed))
            runs.append([loss, *torch.autograd.grad(loss, inputs)])
        return [torch.stack(column).mean(0) for column in zip(*runs, strict=True)]

    exact = of_full()
    for index, tensor in enumerate(exact):
        errors = [(mean_of_sampled(n)[index] - tensor).norm() / tensor.norm() for n in (8, 64, 5000)]
        assert errors[0] > errors[1] > errors[2]
        assert errors[2] < 1e-9


def test_a_sample_that_is_the_target_is_removed():
    head = SampledSoftmax(D, 1, num_samples=5).train()
    loss = head.loss(torch.randn(2, 1, D), torch.zeros(2, 1, dtype=torch.long), torch.Generator().manual_seed(1))
    assert loss.item() == 0


def test_sampled_gradients_name_only_the_rows_used_and_are_the_same_sparse_or_dense():
    grads = []
    for sparse in (False, True):
        head, features, targets = make(lambda sparse=sparse: sampled(num_samples=3, sparse=sparse))
        head.train().loss(features[:2], targets[:2], torch.Generator().manual_seed(5)).backward()
        grads.append(head.weight_VE.grad)
    assert grads[1].is_sparse
    torch.testing.assert_close(grads[1].to_dense(), grads[0])
    used = {*targets[:2].flatten().tolist(), *head.sample(torch.Generator().manual_seed(5))[0].tolist()}
    assert {*grads[1].coalesce().indices()[0].tolist()} == used


def test_the_seed_alone_decides_the_samples():
    head, features, targets = make(sampled)
    losses = [head.train().loss(features, targets, torch.Generator().manual_seed(seed)).item() for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_an_unknown_proposal_is_refused():
    with pytest.raises(ValueError, match='proposal is "zipf"; it must be one of log_uniform, unigram'):
        sampled(proposal="zipf")


def test_a_unigram_proposal_is_saved_with_the_model_and_a_log_uniform_one_is_not():
    assert "proposal_V" in sampled(proposal="unigram").state_dict()
    assert "proposal_V" not in sampled().state_dict()
