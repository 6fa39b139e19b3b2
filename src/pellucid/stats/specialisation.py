"""What units know about domains: mutual information, normalised, beside its permutation null.

    I(U; D) / min(H(U), H(D))            p(u, d) ∝ mass per token, so that domains weigh alike
    I(U; D | token) / H(U | token)       over occurrences of tokens that are common enough

The first is large as soon as units follow words and words follow domains. The second is what is
left once the word is known: a choice that is a table of the token scores 0.

Both are biased upwards, since finite counts and the habits of single documents look like
structure. The null permutes domain labels over documents, which keeps both effects; its mean is to
be subtracted. For the second figure labels are dealt anew for each token, among the documents that
use it about equally often (counts equal up to a factor of two): words lean towards domains, and a
null that broke this would have wider margins than the text and subtract too much.

A permutation costs O(documents · units), and a sort of the distinct (token, document) pairs.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.stats.information import (
    MIN_NORMALISER,
    normalised_mutual_information,
    normaliser,
)

PERMUTATIONS = 50
MIN_OCCURRENCES = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class AgainstNull:
    """A normalised information beside the same figure under permuted domain labels.

    ``normaliser`` is the denominator in nats. Below ``MIN_NORMALISER`` the units leave no choice
    to explain (one unit takes all, or the token decides), and value and null are 0.
    """

    value: float
    null_mean: float
    null_std: float
    normaliser: float

    @property
    def lift(self) -> float:
        """The value with its null subtracted."""
        return self.value - self.null_mean

    @property
    def z(self) -> float:
        """The lift in standard deviations of the null."""
        if self.null_std > 0:
            return self.lift / self.null_std
        return math.copysign(math.inf, self.lift) if self.lift else 0.0


@torch.no_grad()
def domain_information(
    mass: Float[Tensor, "documents units"],
    tokens: Int[Tensor, " documents"],
    domain: Int[Tensor, " documents"],
    *,
    domains: int,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> AgainstNull:
    """Normalised I(unit; domain) of the mass that each document gives to each unit.

    ``tokens`` is each document's length and ``domain`` its label below ``domains``. A domain's
    mass is divided by its tokens. Documents without tokens take no part in the permutations.
    """
    seen = tokens > 0
    mass, tokens, domain = mass[seen].double(), tokens[seen].double(), domain[seen]

    def table(label: Tensor) -> Tensor:
        total = mass.new_zeros(domains, mass.shape[1])
        total.index_add_(0, label, mass)
        length = torch.zeros(domains, dtype=torch.float64).index_add_(0, label, tokens)
        return (total / length.clamp_min(1.0).unsqueeze(1)).t()

    observed = table(domain)
    most = normaliser(observed)
    if most < MIN_NORMALISER:
        return _nothing(most)
    null = [
        normalised_mutual_information(table(label))
        for label in _permuted(domain, permutations, seed)
    ]
    return _against(normalised_mutual_information(observed), null, most)


@torch.no_grad()
def domain_information_given_token(
    choice: Int[Tensor, " n"],
    token: Int[Tensor, " n"],
    document: Int[Tensor, " n"],
    domain: Int[Tensor, " documents"],
    *,
    min_occurrences: int = MIN_OCCURRENCES,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> AgainstNull:
    """I(choice; domain | token) / H(choice | token) over n occurrences of tokens.

    ``choice`` is the unit or pool that an occurrence chose, ``document`` where it stands and
    ``domain`` the label of each document. Tokens count that occur ``min_occurrences`` times or
    more and in at least two domains.
    """
    kept, word = _common_tokens(token, domain[document], min_occurrences)
    if len(kept) == 0:
        return _nothing(0.0)
    # A place is one token in one document: what a permutation moves. Equal (token, choice, place)
    # triples collapse to one weighted cell before the first permutation.
    place, at, count = (word * len(domain) + document[kept]).unique(
        return_inverse=True, return_counts=True
    )
    _, pair = (word * (int(choice.max()) + 1) + choice[kept]).unique(return_inverse=True)
    cell, times = (pair * len(place) + at).unique(return_counts=True)
    pair_of_cell, place_of_cell = cell // len(place), cell % len(place)
    word_of_place, document_of_place = place // len(domain), place % len(domain)
    label, domains = domain[document_of_place], int(domain.max()) + 1
    choice_nats = _n_log_n(_count(word)) - _n_log_n(_count(pair))

    def information(label: Tensor) -> float:
        joint = _count(pair_of_cell * domains + label[place_of_cell], times)
        margin = _count(word_of_place * domains + label, count)
        return (_n_log_n(joint) - _n_log_n(margin) + choice_nats) / len(kept)

    left = choice_nats / len(kept)
    if left < MIN_NORMALISER:
        return _nothing(left)
    stratum = word_of_place * 64 + count.double().log2().long()
    drawn = _permuted_within(stratum, document_of_place, label, permutations, seed)
    return _against(information(label) / left, [information(p) / left for p in drawn], left)


def _common_tokens(token: Tensor, domain: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Occurrences of tokens that are frequent and in two domains; their tokens renumbered."""
    _, word, count = token.unique(return_inverse=True, return_counts=True)
    domains = int(domain.max()) + 1 if len(domain) else 1
    cells = torch.bincount(word * domains + domain, minlength=len(count) * domains)
    common = (count >= least) & ((cells.view(-1, domains) > 0).sum(1) >= 2)
    kept = common[word].nonzero().squeeze(1)
    return kept, (common.cumsum(0) - 1)[word[kept]]


def _permuted(label: Tensor, permutations: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(label), generator=generator) for _ in range(permutations)]
    return [label[order] for order in orders]


def _permuted_within(
    stratum: Tensor, document: Tensor, label: Tensor, permutations: int, seed: int
) -> Iterator[Tensor]:
    """Labels dealt anew within each stratum, all strata by the same two draws.

    Documents queue in one random order and labels in one random order of the domains, so that a
    document meets much the same label in every stratum, as it would if whole documents moved.
    """
    documents, domains = int(document.max()) + 1, int(label.max()) + 1
    generator = torch.Generator().manual_seed(seed)
    for _ in range(permutations):
        turn = torch.randperm(documents, generator=generator)[document]
        rank = torch.randperm(domains, generator=generator)[label]
        dealt = torch.empty_like(label)
        order = torch.argsort(stratum * documents + turn)
        dealt[order] = label[torch.argsort(stratum * domains + rank)]
        yield dealt


def _count(index: Tensor, weight: Tensor | None = None) -> Tensor:
    return torch.bincount(index, weights=None if weight is None else weight.double()).double()


def _n_log_n(count: Tensor) -> float:
    return torch.special.xlogy(count, count).sum().item()


def _nothing(normaliser: float) -> AgainstNull:
    return AgainstNull(value=0.0, null_mean=0.0, null_std=0.0, normaliser=normaliser)


def _against(value: float, null: list[float], normaliser: float) -> AgainstNull:
    drawn = torch.tensor(null, dtype=torch.float64)
    return AgainstNull(
        value=max(value, 0.0),
        null_mean=drawn.mean().item(),
        null_std=drawn.std().item(),
        normaliser=normaliser,
    )
