"""Output layers: from features to the distribution of the next token, exact and normalised whatever trained it.

    FullSoftmax      p(w | h) = exp(u_w h + b_w) / Z                            (Bengio et al. 2003)
    AdaptiveSoftmax  p(w | h) = p(w | h) of frequent words, else p(cluster | h) p(w | cluster, h)   (Grave et al. 2017)
    SampledSoftmax   the full softmax, but in training Z is estimated from shared samples   (Jean et al. 2015)

Sampled: of S draws from a proposal q the distinct ones K are kept; word k is among them with probability
pi_k = 1 - (1 - q_k)^S, so Z' = exp(s_y) + sum over k in K, k != y, of exp(s_k - log pi_k) has expectation Z: logits are
corrected by the log expected count, and a sample that is the target itself is removed (Horvitz and Thompson 1952).

Token ids ascend from frequent to rare, as our tokenizers number them; AdaptiveSoftmax and log-uniform samples rely on it.

    legend   T steps · B streams · N rows (T x B) · D features · E size of a word's vector · V vocabulary · K clusters, samples
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Generator, Tensor, nn

from lmtrain.choices import Proposal, names
from lmtrain.ops.linear import Linear, linear
from lmtrain.ops.linear_cross_entropy import linear_cross_entropy, linear_nats
from lmtrain.ops.native.step import Stage
from lmtrain.ops.sampled_cross_entropy import sampled_cross_entropy

MAX_LOGITS_BYTES = 64 << 20  # of the logits held at once when only the targets' probabilities are asked for


class Head(nn.Module, ABC):
    """An output layer. Its features may have any leading axes, written TBD here; all results are float32 or wider."""

    vocab_size: int
    ranges: Mapping[str, tuple[float, float]] = MappingProxyType({})  # of its own tensors that are no weights: least, most
    estimates = False  # whether `loss` in training is not that of evaluation but an estimate
    can_be_recorded = True  # whether `loss` does the same work, on tensors of the same sizes, whatever the words and samples

    @abstractmethod
    def loss(self, features_TBD: Tensor, targets_TB: Tensor, generator: Generator | None = None) -> Tensor:
        """Total nats of the targets, a scalar; in training a head may estimate it, with samples from `generator`."""

    @abstractmethod
    def log_probs(self, features_TBD: Tensor) -> Tensor:
        """Log-probabilities (nats) of all words, [T, B, V]: exact, their exponentials sum to one."""

    @abstractmethod
    def target_log_probs(self, features_TBD: Tensor, targets_TB: Tensor) -> Tensor:
        """Log-probabilities [T, B] of the targets alone, without holding those of all words."""

    def target_nats(self, features_ND: Tensor, targets_N: Tensor) -> Tensor:
        """Minus the same as fast as it can be had: where the kernel of the loss does it, rounding differs."""
        return -self.target_log_probs(features_ND, targets_N)

    @abstractmethod
    def set_unigram_bias(self, counts_V: Tensor) -> None:
        """Starts from the relative frequencies of words (add one), so that training need not find them."""

    def set_proposal(self, counts_V: Tensor) -> None:
        """Tells how frequent words are; only a head that samples listens."""

    def stages(self) -> list[Stage] | None:
        """From features to logits as stages of a native step; None for a head that is more than one softmax."""
        return None


class MatrixHead(Head):
    """A head that holds one vector and one bias per word.

    tied_weight      the embedding matrix [V, E], which the head then shares (Press and Wolf 2017)
    projection_size  E of a linear layer in front, where features and word vectors differ in size; 0: none
    init_range       half width of the uniform initialisation of an untied matrix
    """

    def __init__(
        self,
        feature_size: int,
        vocab_size: int,
        *,
        tied_weight: nn.Parameter | None = None,
        projection_size: int = 0,
        init_range: float = 0.1,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.projection = _projection(feature_size, projection_size) if projection_size else None
        self.weight_VE = _word_vectors(vocab_size, projection_size or feature_size, tied_weight, init_range)
        self.is_tied = tied_weight is not None
        self.bias_V = nn.Parameter(torch.zeros(vocab_size))

    def log_probs(self, features_TBD: Tensor) -> Tensor:
        return _log_probs(self.projected(features_TBD), self.weight_VE, self.bias_V)

    def target_log_probs(self, features_TBD: Tensor, targets_TB: Tensor) -> Tensor:
        features_NE = self.projected(features_TBD).flatten(0, -2)
        return _target_log_probs(features_NE, self.weight_VE, self.bias_V, targets_TB.flatten()).view(targets_TB.shape)

    def target_nats(self, features_ND: Tensor, targets_N: Tensor) -> Tensor:
        return _nats(self.projected(features_ND), self.weight_VE, self.bias_V, targets_N)

    @torch.no_grad()
    def set_unigram_bias(self, counts_V: Tensor) -> None:
        self.bias_V.copy_(_log_frequencies(counts_V))

    def projected(self, features_TBD: Tensor) -> Tensor:
        """Features of the size of word vectors."""
        return features_TBD if self.projection is None else self.projection(features_TBD)

    def stages(self) -> list[Stage] | None:
        projection = [] if self.projection is None else [Stage("linear", self.projection.weight)]
        return [*projection, Stage("linear", self.weight_VE, self.bias_V)]

    def _exact_loss(self, features_NE: Tensor, targets_N: Tensor) -> Tensor:
        return _cross_entropy(features_NE, self.weight_VE, self.bias_V, targets_N)


class FullSoftmax(MatrixHead):
    """The softmax over all words; logits are never held all at once in training."""

    def loss(self, features_TBD: Tensor, targets_TB: Tensor, generator: Generator | None = None) -> Tensor:
        weight_VE = _added_last(self.weight_VE) if self.is_tied else self.weight_VE
        return _cross_entropy(self.projected(features_TBD).flatten(0, -2), weight_VE, self.bias_V, targets_TB.flatten())


class SampledSoftmax(MatrixHead):
    """The full softmax whose normaliser is estimated in training, from negatives that a chunk's targets share.

    num_samples  draws from the proposal; those that coincide are used once
    proposal     "log_uniform" (q_k ~ log((k + 2) / (k + 1)), Zipf's law for sorted ids) or "unigram" (from `set_proposal`)
    sparse       gradients of the word vectors name only the rows used; for an optimiser that knows what to do with them
    """

    can_be_recorded = False
    estimates = True
    ranges = MappingProxyType({"proposal_V": (0.0, 1.0)})
    proposal_V: Tensor

    def __init__(
        self,
        feature_size: int,
        vocab_size: int,
        *,
        num_samples: int,
        proposal: str = "log_uniform",
        tied_weight: nn.Parameter | None = None,
        projection_size: int = 0,
        init_range: float = 0.1,
        sparse: bool = False,
    ) -> None:
        super().__init__(
            feature_size, vocab_size, tied_weight=tied_weight, projection_size=projection_size, init_range=init_range
        )
        if proposal not in names(Proposal):
            raise ValueError(f'proposal is "{proposal}"; it must be one of {", ".join(names(Proposal))}.')
        self.num_samples, self.proposal, self.sparse = num_samples, proposal, sparse
        ids_V = torch.arange(vocab_size, dtype=torch.float64)
        proposal_V = ((ids_V + 2) / (ids_V + 1)).log() / math.log(vocab_size + 1)
        self.register_buffer("proposal_V", proposal_V, persistent=proposal == "unigram")

    def set_proposal(self, counts_V: Tensor) -> None:
        if self.proposal == "unigram":
            self.proposal_V.copy_(_log_frequencies(counts_V).exp())

    def loss(self, features_TBD: Tensor, targets_TB: Tensor, generator: Generator | None = None) -> Tensor:
        features_NE, targets_N = self.projected(features_TBD).flatten(0, -2), targets_TB.flatten()
        if not self.training:
            return self._exact_loss(features_NE, targets_N)
        assert generator is not None, "training with a sampled softmax takes a generator"
        samples_K, log_expected_K = self.sample(generator)
        return sampled_cross_entropy(
            features_NE, self.weight_VE, self.bias_V, targets_N, samples_K, log_expected_K,
            compute_dtype=_compute_dtype(features_NE), sparse=self.sparse,
        )  # fmt: skip

    def sample(self, generator: Generator) -> tuple[Tensor, Tensor]:
        """Distinct word ids [K] of `num_samples` draws, and the log probability of each to be among them (float64)."""
        cumulative_V = self.proposal_V.double().cumsum(0)
        points_S = torch.rand(self.num_samples, generator=generator, dtype=torch.float64, device=cumulative_V.device)
        ids_S = torch.searchsorted(cumulative_V, points_S * cumulative_V[-1], right=True)
        samples_K = ids_S.clamp_(max=self.vocab_size - 1).unique()
        q_K = self.proposal_V[samples_K].double() / cumulative_V[-1]
        return samples_K, (-torch.expm1(self.num_samples * torch.log1p(-q_K))).log()


class AdaptiveSoftmax(Head):
    """Frequent words and K clusters of rarer ones in a small softmax; each cluster has a softmax of its own.

    Cost: only the rows whose target lies in a cluster visit it, with features of a smaller size.

    cutoffs      first id of each cluster, ascending; none: a full softmax
    div_value    cluster i (from 1) sees features projected to D / div_value ** i; not used where weights are tied
    tied_weight  the embedding matrix [V, E], of which each cluster takes its rows; features are projected to E where D != E
    """

    can_be_recorded = False

    def __init__(
        self,
        feature_size: int,
        vocab_size: int,
        *,
        cutoffs: Sequence[int],
        div_value: float = 4.0,
        tied_weight: nn.Parameter | None = None,
        init_range: float = 0.1,
    ) -> None:
        super().__init__()
        bounds = [0, *cutoffs, vocab_size]
        if bounds != sorted(set(bounds)):
            raise ValueError(f"cutoffs are {list(cutoffs)}; they must ascend and lie between 1 and {vocab_size - 1}.")
        self.vocab_size, self.cutoffs = vocab_size, list(cutoffs)
        self.sizes = [end - start for start, end in pairwise(bounds)]
        self.tied_weight = tied_weight
        embed_size = feature_size if tied_weight is None else tied_weight.shape[1]
        self.projection = _projection(feature_size, embed_size) if embed_size != feature_size else None
        if tied_weight is None:
            tail_sizes = [max(1, int(feature_size / div_value**i)) for i in range(1, len(self.sizes))]
            self.projections = nn.ModuleList(_projection(feature_size, size) for size in tail_sizes)
            widths = zip(self.sizes, [embed_size, *tail_sizes], strict=True)
            self.weights = nn.ParameterList(_word_vectors(size, width, None, init_range) for size, width in widths)
        else:
            _word_vectors(vocab_size, embed_size, tied_weight, init_range)  # checks its shape
        self.cluster_weight_KE = nn.Parameter(torch.empty(len(cutoffs), embed_size).uniform_(-init_range, init_range))
        self.cluster_bias_K = nn.Parameter(torch.zeros(len(cutoffs)))
        self.bias_V = nn.Parameter(torch.zeros(vocab_size))

    def loss(self, features_TBD: Tensor, targets_TB: Tensor, generator: Generator | None = None) -> Tensor:
        (_, *head), *tails = self._products(self.projected(features_TBD).flatten(0, -2), targets_TB.flatten())
        total_nats = _cross_entropy(*head)
        for _, *tail in tails:
            total_nats = total_nats + _cross_entropy(*tail)
        return total_nats

    def log_probs(self, features_TBD: Tensor) -> Tensor:
        features_TBE = self.projected(features_TBD)
        (head_weight, *weights), (head_bias, *biases) = self.parameters_by_cluster()
        head = _log_probs(features_TBE, head_weight, head_bias)
        shortlist, clusters_TBK = head.split([self.sizes[0], len(self.cutoffs)], dim=-1)
        tails = [
            _log_probs(self._narrowed(features_TBE, k), weights[k], biases[k]) + clusters_TBK[..., k : k + 1]
            for k in range(len(self.cutoffs))
        ]
        return torch.cat([shortlist, *tails], dim=-1)

    def target_log_probs(self, features_TBD: Tensor, targets_TB: Tensor) -> Tensor:
        features_NE = self.projected(features_TBD).flatten(0, -2)
        return self._of_targets(features_NE, targets_TB.flatten(), _target_log_probs).view(targets_TB.shape)

    def target_nats(self, features_ND: Tensor, targets_N: Tensor) -> Tensor:
        return self._of_targets(self.projected(features_ND), targets_N, _nats)

    @torch.no_grad()
    def set_unigram_bias(self, counts_V: Tensor) -> None:
        shortlist, *tails = _log_frequencies(counts_V).to(self.bias_V.device).split(self.sizes)
        totals = [tail.logsumexp(0) for tail in tails]
        self.bias_V.copy_(torch.cat([shortlist, *(tail - total for tail, total in zip(tails, totals, strict=True))]))
        for k, total in enumerate(totals):
            self.cluster_bias_K[k] = total

    def _of_targets(self, features_NE: Tensor, targets_N: Tensor, softmax: Callable[..., Tensor]) -> Tensor:
        """What `softmax` says of each target within the head, plus what it says within the target's cluster."""
        (_, *head), *tails = self._products(features_NE, targets_N)
        values_N = softmax(*head)
        for rows, *tail in tails:
            values_N = values_N.index_add(0, rows, softmax(*tail))
        return values_N

    def _products(self, features_NE: Tensor, targets_N: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
        """(rows, features, weight, bias, targets) of the head and of each cluster that a target visits.

        Sorting the targets puts the rows of each cluster side by side: one gather, one split, one synchronisation.
        """
        (head_weight, *weights), (head_bias, *biases) = self.parameters_by_cluster()
        cutoffs_K = torch.tensor(self.cutoffs, dtype=targets_N.dtype, device=targets_N.device)
        sorted_N, order_N = targets_N.sort()
        starts = [*torch.searchsorted(sorted_N, cutoffs_K).tolist(), len(targets_N)]
        visits_N = torch.bucketize(targets_N, cutoffs_K, right=True)  # 0: the shortlist, k: cluster k
        head_targets_N = torch.where(visits_N == 0, targets_N, self.sizes[0] - 1 + visits_N)
        yield order_N, features_NE, head_weight, head_bias, head_targets_N
        counts = [end - start for start, end in pairwise(starts)]
        rows_M = order_N[starts[0] :]
        groups = zip(
            rows_M.split(counts),
            features_NE.index_select(0, rows_M).split(counts),
            sorted_N[starts[0] :].split(counts),
            strict=True,
        )
        for k, (rows, features, targets) in enumerate(groups):
            if len(rows):
                yield rows, self._narrowed(features, k), weights[k], biases[k], targets - self.cutoffs[k]

    def parameters_by_cluster(self) -> tuple[list[Tensor], list[Tensor]]:
        """Weights and biases of the head (shortlist, then clusters) and of each cluster."""
        weights = [*self.weights] if self.tied_weight is None else [*self.tied_weight.split(self.sizes)]
        biases = [*self.bias_V.split(self.sizes)]
        weights[0] = torch.cat([weights[0], self.cluster_weight_KE])
        biases[0] = torch.cat([biases[0], self.cluster_bias_K])
        return weights, biases

    def projected(self, features_TBD: Tensor) -> Tensor:
        """Features of the size of word vectors."""
        return features_TBD if self.projection is None else self.projection(features_TBD)

    def _narrowed(self, features: Tensor, k: int) -> Tensor:
        """The features that cluster k sees."""
        return features if self.tied_weight is not None else self.projections[k](features)


# ---- one softmax


def _cross_entropy(features_NE: Tensor, weight_VE: Tensor, bias_V: Tensor, targets_N: Tensor) -> Tensor:
    """Total nats; sums in float32 or wider."""
    return linear_cross_entropy(features_NE, weight_VE, bias_V, targets_N, compute_dtype=_compute_dtype(features_NE))


def _added_last(weight_VE: Tensor) -> Tensor:
    """The weight, whose gradient from here is added to those from elsewhere after these have been added up.

    The look-up of words makes a sparse gradient. PyTorch adds a dense one to that in place, and the other way round in a copy.
    """
    alias_VE = weight_VE.expand_as(weight_VE)  # whose backward pass hands on the same tensor
    if alias_VE.grad_fn is not None and not torch.compiler.is_compiling():
        alias_VE.grad_fn._set_sequence_nr(0)  # type: ignore[attr-defined]  # the backward pass begins with the largest
    return alias_VE


def _compute_dtype(features: Tensor) -> torch.dtype | None:
    """The type of an open autocast, in which products run."""
    device = features.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _log_probs(features: Tensor, weight_VE: Tensor, bias_V: Tensor) -> Tensor:
    return _wide(linear(features, weight_VE, bias_V, backend="eager")).log_softmax(-1)


def _target_log_probs(features_NE: Tensor, weight_VE: Tensor, bias_V: Tensor, targets_N: Tensor) -> Tensor:
    num_rows = max(1, MAX_LOGITS_BYTES // (4 * len(weight_VE)))
    parts = [
        -F.cross_entropy(_wide(linear(features, weight_VE, bias_V, backend="eager")), targets, reduction="none")
        for features, targets in zip(features_NE.split(num_rows), targets_N.split(num_rows), strict=True)
    ]
    return torch.cat(parts)


def _nats(features_NE: Tensor, weight_VE: Tensor, bias_V: Tensor, targets_N: Tensor) -> Tensor:
    """Minus the same, by the kernel of the loss."""
    return linear_nats(features_NE, weight_VE, bias_V, targets_N, compute_dtype=_compute_dtype(features_NE))


def _log_frequencies(counts_V: Tensor) -> Tensor:
    """Log relative frequencies, float64, add-one so that no word has none."""
    return (counts_V.double() + 1).log() - (counts_V.double() + 1).sum().log()


def _word_vectors(vocab_size: int, size: int, tied_weight: nn.Parameter | None, init_range: float) -> nn.Parameter:
    """The tied matrix, checked, or a new one."""
    if tied_weight is None:
        return nn.Parameter(torch.empty(vocab_size, size).uniform_(-init_range, init_range))
    if tied_weight.shape != (vocab_size, size):
        raise ValueError(
            f"the tied weight has shape {tuple(tied_weight.shape)}; the output layer needs ({vocab_size}, {size}). "
            "Give a projection_size where the sizes of features and embeddings differ."
        )
    return tied_weight


def _projection(size: int, projection_size: int) -> nn.Linear:
    projection = Linear(size, projection_size, bias=False)
    nn.init.xavier_uniform_(projection.weight)
    return projection


def _wide(x: Tensor) -> Tensor:
    return x if x.element_size() >= 4 else x.float()
