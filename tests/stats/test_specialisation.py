"""Domain information beside its null: hand cases, and routers whose answer is known."""

import math

import pytest
import torch

from pellucid.stats.specialisation import (
    AgainstNull,
    domain_information,
    domain_information_given_token,
)

DOMAINS, DOCUMENTS, LENGTH, WORDS, POOLS = 4, 120, 100, 40, 8


@pytest.fixture
def text() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(token, document, domain of each document): words lean towards domains, all occur in all."""
    domain = torch.arange(DOCUMENTS) % DOMAINS
    document = torch.arange(DOCUMENTS).repeat_interleave(LENGTH)
    own = domain[document] * (WORDS // DOMAINS) + torch.randint(WORDS // DOMAINS, document.shape)
    leans = torch.rand(document.shape) < 0.7
    return torch.where(leans, own, torch.randint(WORDS, document.shape)), document, domain


def _mass(choice: torch.Tensor, document: torch.Tensor) -> torch.Tensor:
    mass = torch.zeros(DOCUMENTS, POOLS)
    return mass.index_put_((document, choice), torch.ones(len(choice)), accumulate=True)


def _plain(choice: torch.Tensor, document: torch.Tensor, domain: torch.Tensor) -> AgainstNull:
    length = torch.full((DOCUMENTS,), LENGTH)
    return domain_information(_mass(choice, document), length, domain, domains=DOMAINS)


def test_plain_by_hand_at_equal_tokens():
    # Documents of domain 0 give pool masses (6, 2) over 20 tokens, of domain 1 (1, 3) over 10:
    # per token (.3, .1) and (.1, .3), the table [3 1; 1 3] of .188722.
    mass = torch.tensor([[4.0, 2.0], [2.0, 0.0], [1.0, 3.0]])
    found = domain_information(mass, torch.tensor([15, 5, 10]), torch.tensor([0, 0, 1]), domains=2)
    assert found.value == pytest.approx(0.188722, abs=1e-6)
    assert found.normaliser == pytest.approx(math.log(2), abs=1e-9)


def test_plain_null_by_hand():
    # Two documents, one per domain: a permutation swaps the columns and changes nothing.
    found = domain_information(
        torch.tensor([[3.0, 1.0], [1.0, 3.0]]),
        torch.tensor([4, 4]),
        torch.tensor([0, 1]),
        domains=2,
    )
    assert found.null_mean == pytest.approx(found.value, abs=1e-12)
    assert found.lift == pytest.approx(0.0, abs=1e-12)


def test_unread_documents_change_nothing():
    mass = torch.rand(30, 3) + torch.eye(3).repeat(10, 1)
    tokens, domain = torch.full((30,), 7), torch.arange(3).repeat(10)
    padded = domain_information(
        torch.cat([mass, torch.zeros(5, 3)]),
        torch.cat([tokens, torch.zeros(5, dtype=torch.long)]),
        torch.cat([domain, torch.zeros(5, dtype=torch.long)]),
        domains=3,
    )
    assert padded == domain_information(mass, tokens, domain, domains=3)


def test_given_token_by_hand():
    # One token; pool 0 twice in domain A, pool 1 twice in domain B: the domain decides, 1 raw.
    found = domain_information_given_token(
        torch.tensor([0, 0, 1, 1]),
        torch.tensor([9, 9, 9, 9]),
        torch.tensor([0, 1, 2, 3]),
        torch.tensor([0, 0, 1, 1]),
        min_occurrences=4,
    )
    assert found.value == pytest.approx(1.0, abs=1e-12)
    assert found.normaliser == pytest.approx(math.log(2), abs=1e-12)
    # Of the 3 ways to split four documents into two pairs one tells all, two tell nothing, so the
    # null is Bernoulli(1/3): mean of 50 draws .333 ± .067, three deviations wide.
    assert 0.13 <= found.null_mean <= 0.54


def test_given_token_weighs_tokens_by_occurrences():
    # Token 0 (4 times): the domain decides, I = H = ln 2. Token 1 (8 times): pools 0 and 1 twice
    # each in both domains, I = 0, H = ln 2. Ratio (4·ln 2) / (12·ln 2) = 1/3.
    found = domain_information_given_token(
        torch.tensor([0, 0, 1, 1] + [0, 0, 1, 1] * 2),
        torch.tensor([0] * 4 + [1] * 8),
        torch.tensor([0, 0, 1, 1] + [0] * 4 + [1] * 4),
        torch.tensor([0, 1]),
        min_occurrences=4,
    )
    assert found.value == pytest.approx(1 / 3, abs=1e-12)


def test_rare_and_one_domain_tokens_are_left_out():
    # Token 0 has too few occurrences, token 1 lives in domain 0 only: nothing remains.
    found = domain_information_given_token(
        torch.tensor([0, 1, 0, 1, 0, 1]),
        torch.tensor([0, 0, 1, 1, 1, 1]),
        torch.tensor([0, 1, 0, 0, 0, 0]),
        torch.tensor([0, 1]),
        min_occurrences=3,
    )
    assert found == AgainstNull(value=0.0, null_mean=0.0, null_std=0.0, normaliser=0.0)
    empty = torch.zeros(0, dtype=torch.long)
    assert domain_information_given_token(empty, empty, empty, torch.tensor([0, 1])) == found


def test_a_table_of_the_token_fools_the_plain_figure_only(text):
    token, document, domain = text
    choice = token % POOLS if WORDS % POOLS else token * POOLS // WORDS
    plain = _plain(choice, document, domain)
    assert plain.lift > 0.2
    assert plain.z > 20
    given = domain_information_given_token(choice, token, document, domain)
    assert given.value == 0.0
    assert given.lift == 0.0


def test_a_noisy_table_of_the_token_stays_at_its_null(text):
    token, document, domain = text
    noise = torch.rand(len(token)) < 0.4
    choice = torch.where(noise, torch.randint(POOLS, token.shape), token * POOLS // WORDS)
    assert _plain(choice, document, domain).lift > 0.1
    given = domain_information_given_token(choice, token, document, domain)
    # Raw information is far from 0 by finite counts alone; the null takes it away.
    assert given.value > 0.02
    assert abs(given.z) < 4
    assert abs(given.lift) < 0.005


def test_a_router_by_domain_shows_in_both(text):
    token, document, domain = text
    noise = torch.rand(len(token)) < 0.3
    choice = torch.where(noise, torch.randint(POOLS, token.shape), domain[document])
    assert _plain(choice, document, domain).lift > 0.2
    given = domain_information_given_token(choice, token, document, domain)
    # Words lean so far that many documents meet only their own domain's in a stratum, and keep
    # their label under the null: the lift understates.
    assert given.lift > 0.1
    assert given.z > 20


def test_a_router_by_document_is_no_router_by_domain(text):
    token, document, domain = text
    favourite = torch.randint(POOLS, (DOCUMENTS,))
    given = domain_information_given_token(favourite[document], token, document, domain)
    # Thirty documents a domain make chance structure. Labels moved regardless of how often a
    # document uses the word would set the null near .13 and the lift near -.08.
    assert given.value > 0.03
    assert abs(given.lift) < 0.012
    assert abs(given.z) < 4


def test_the_null_keeps_how_often_documents_of_a_domain_use_a_word():
    # Documents 0-9 (domain 0) use the word ten times, 10-19 (domain 1) once; pools alternate, so
    # the domain tells nothing. No permutation may cross the two groups: all equal the value.
    count = torch.tensor([10] * 10 + [1] * 10)
    document = torch.arange(20).repeat_interleave(count)
    found = domain_information_given_token(
        torch.arange(110) % 2,
        torch.zeros(110, dtype=torch.long),
        document,
        torch.tensor([0] * 10 + [1] * 10),
    )
    assert found.null_mean == pytest.approx(found.value, abs=1e-12)
    assert found.null_std == pytest.approx(0.0, abs=1e-12)


def test_names_of_tokens_pools_and_documents_do_not_matter(text):
    token, document, domain = text
    choice = (token + domain[document]) % POOLS
    rename = torch.randperm(POOLS)
    one = domain_information_given_token(choice, token, document, domain)
    other = domain_information_given_token(rename[choice], token * 7 + 3, document, domain)
    assert other.value == pytest.approx(one.value, abs=1e-12)
    assert other.null_mean == pytest.approx(one.null_mean, abs=1e-12)


def test_the_null_repeats_and_follows_its_seed(text):
    token, document, domain = text
    choice = torch.randint(POOLS, token.shape)
    one = domain_information_given_token(choice, token, document, domain, seed=1)
    assert one == domain_information_given_token(choice, token, document, domain, seed=1)
    assert one != domain_information_given_token(choice, token, document, domain, seed=2)


def test_z_of_a_null_that_does_not_vary():
    assert AgainstNull(value=0.5, null_mean=0.1, null_std=0.2, normaliser=1.0).z == 2.0
    assert AgainstNull(value=0.5, null_mean=0.1, null_std=0.0, normaliser=1.0).z == math.inf
    assert AgainstNull(value=0.0, null_mean=0.0, null_std=0.0, normaliser=0.0).z == 0.0
