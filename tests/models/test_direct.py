"""Direct n-gram connections against their formula; contexts across chunks, lines and documents."""

import itertools

import pytest
import torch
from torch import nn

from lmtrain.errors import SettingsError
from lmtrain.models import direct
from lmtrain.models.base import StatePolicy
from lmtrain.models.direct import DirectNgramHead, DirectNgramModel
from lmtrain.models.heads import FullSoftmax
from lmtrain.models.window import WindowLanguageModel
from lmtrain.rules import MAX_TABLE_SIZE

V, EOS = 7, 0


def make(order=3, table_size=50, policy=StatePolicy.carry, dtype=torch.float64, **rest):
    torch.manual_seed(4)
    embedding = nn.Embedding(V, 4)
    head = FullSoftmax(6, V, tied_weight=embedding.weight, projection_size=4)
    inner = WindowLanguageModel(
        head=head, embedding=embedding, context=1, hidden_size=6, num_layers=1, activation="tanh", eos_id=EOS,
        state_policy=policy, **rest,
    )  # fmt: skip
    model = DirectNgramModel(inner, order=order, table_size=table_size).to(dtype)
    nn.init.normal_(model.head.table)
    return model


def buckets(model, tokens_TB):
    features, _ = model.eval().features(tokens_TB, model.initial_state(tokens_TB.shape[1]))
    return features[..., 6:].long()


def texts(seed=0, shape=(12, 2)):
    return torch.randint(0, V, shape, generator=torch.Generator().manual_seed(seed))


def test_logits_are_the_inner_models_plus_a_slice_of_the_table_for_each_order():
    model, tokens = make(), texts()
    log_probs, _ = model.eval().log_probs(tokens, model.initial_state(2))
    inner, _ = model.inner.log_probs(tokens, model.inner.initial_state(2))
    scores = inner.clone()
    for t, b in itertools.product(range(12), range(2)):
        for start in buckets(model, tokens)[t, b].tolist():
            scores[t, b] += model.head.table.detach()[start : start + V]
    torch.testing.assert_close(log_probs, scores.log_softmax(-1))
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(12, 2, dtype=torch.float64))


def test_loss_and_target_log_probs_agree_with_all_log_probs_whatever_rows_are_taken_at_once(monkeypatch):
    model, tokens, targets = make(), texts(), texts(1)
    expected = model.eval().log_probs(tokens, model.initial_state(2))[0].gather(-1, targets[..., None]).squeeze(-1)
    for rows in (256, 5):
        monkeypatch.setattr(direct, "ROWS", rows)
        log_probs, _ = model.target_log_probs(tokens, targets, model.initial_state(2))
        torch.testing.assert_close(log_probs, expected)
        total_nats, penalty, _ = model.training_loss(tokens, targets, model.initial_state(2))
        torch.testing.assert_close(total_nats, -expected.sum())
        assert penalty == 0


@pytest.mark.parametrize("rows", [256, 4])
def test_loss_has_the_gradient_of_central_differences(rows, monkeypatch):
    monkeypatch.setattr(direct, "ROWS", rows)
    model, targets = make(table_size=12), texts(1, (3, 2))
    features, _ = model.features(texts(0, (3, 2)), model.initial_state(2))
    hidden, columns = features[..., :6].detach().requires_grad_(), features[..., 6:].detach()
    names = [name for name, _ in model.head.named_parameters()]
    model.head.forward = model.head.loss

    def loss(hidden, *parameters):
        arguments = torch.cat([hidden, columns], dim=-1), targets
        return torch.func.functional_call(model.head, dict(zip(names, parameters, strict=True)), arguments)

    parameters = [parameter.detach().clone().requires_grad_() for parameter in model.head.parameters()]
    assert torch.autograd.gradcheck(loss, (hidden, *parameters))


def test_the_bucket_of_an_n_gram_depends_on_its_tokens_and_on_nothing_before_them():
    model = make(order=4, table_size=1 << 20)
    first, second = texts(0, (9, 1)), texts(1, (9, 1))
    second[-3:] = first[-3:]
    assert torch.equal(buckets(model, first)[-1], buckets(model, second)[-1])
    second[-3] = (second[-3] + 1) % V
    same = buckets(model, first)[-1, 0] == buckets(model, second)[-1, 0]
    assert same.tolist() == [True, True, False]


def test_contexts_of_one_and_of_two_tokens_spread_over_the_table():
    model = make(table_size=100_000)
    pairs = torch.cartesian_prod(torch.arange(V), torch.arange(V)).T
    single, pair = buckets(model, pairs)[-1].unbind(-1)
    assert len(single.unique()) == V
    assert len(pair.unique()) >= V * V - 1
    assert pair.float().std() > 0.2 * 100_000


def test_slices_never_leave_the_table():
    for table_size in (V, V + 1, 30):
        starts = buckets(make(table_size=table_size), texts(0, (200, 3)))
        assert starts.min() >= 0
        assert starts.max() <= table_size - V


@pytest.mark.parametrize("policy", list(StatePolicy))
@pytest.mark.parametrize("lengths", [[12], [1] * 12, [5, 1, 6]])
def test_chunks_with_carried_state_give_the_buckets_of_the_whole(policy, lengths):
    model = make(order=4, table_size=1 << 20, policy=policy).eval()
    tokens = texts(2, (12, 5)) % 3  # many ends of lines, and some of documents
    whole, _ = model.features(tokens, model.initial_state(5))
    state, parts = model.initial_state(5), []
    for chunk in tokens.split(lengths):
        features, state = model.features(chunk, state)
        parts.append(features)
    assert torch.equal(torch.cat(parts)[..., 6:], whole[..., 6:])


@pytest.mark.parametrize(
    ("policy", "forgets"), [(StatePolicy.carry, False), (StatePolicy.line, True), (StatePolicy.document, False)]
)
def test_a_context_reaches_behind_the_end_of_a_line_only_where_the_state_does(policy, forgets):
    model = make(order=4, table_size=1 << 20, policy=policy)
    ends = [torch.tensor([[before], [EOS], [3]]) for before in (1, 2)]
    assert torch.equal(*(buckets(model, tokens)[-1] for tokens in ends)) == forgets


def test_a_context_does_not_reach_behind_an_empty_line_where_documents_are_forgotten():
    model = make(order=5, table_size=1 << 20, policy=StatePolicy.document)
    ends = [torch.tensor([[before], [EOS], [EOS], [3]]) for before in (1, 2)]
    assert torch.equal(*(buckets(model, tokens)[-1] for tokens in ends))


def test_float32_holds_every_bucket_of_the_largest_table_exactly():
    assert float(torch.tensor(float(MAX_TABLE_SIZE), dtype=torch.float32)) == MAX_TABLE_SIZE
    model = make(table_size=MAX_TABLE_SIZE, dtype=torch.float32)
    history = torch.cat([torch.zeros(2, 3, dtype=torch.long), texts(0, (50, 3))])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(buckets(model, history[2:]), model._buckets(history)[2:])


def test_the_inner_models_output_dropout_does_not_touch_buckets(generator):
    model, tokens = make(output_dropout=0.5), texts()
    expected = buckets(model, tokens)
    features, _ = model.train().features(tokens, model.initial_state(2), generator)
    assert torch.equal(features[..., 6:].long(), expected)
    assert (features[..., :6] == 0).any()


def test_sizes_that_cannot_work_and_penalties_on_activations_are_refused():
    softmax = FullSoftmax(6, V)
    for order, size, words in [
        (1, 50, "Allowed is at least 2"),
        (3, V - 1, "between the vocabulary's size, 7, and 16777216"),
        (3, MAX_TABLE_SIZE + 1, "between the vocabulary's size, 7, and 16777216"),
    ]:
        with pytest.raises(SettingsError, match=words):
            DirectNgramHead(softmax, order=order, table_size=size)
    with pytest.raises(SettingsError, match="go without penalties"):
        make(activation_penalty=1.0)


def test_the_table_alone_learns_which_word_follows_which():
    model = make(table_size=2000, dtype=torch.float32)
    for parameter in model.inner.parameters():
        nn.init.zeros_(parameter)
    nn.init.zeros_(model.head.table)
    tokens = torch.tensor([1, 2, 3, 4, 5, 6, 0] * 3)[:, None]
    targets = torch.roll(tokens, -1, 0)
    for _ in range(30):
        total_nats, _, _ = model.training_loss(tokens, targets, model.initial_state(1))
        (gradient,) = torch.autograd.grad(total_nats, model.head.table)
        with torch.no_grad():
            model.head.table -= 0.3 * gradient
    log_probs, _ = model.eval().target_log_probs(tokens, targets, model.initial_state(1))
    assert log_probs[1:].exp().min() > 0.9
