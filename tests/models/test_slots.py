"""What holds for a decoder with any pool in its slots: causality, batches, documents, parts."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import laws
from pellucid.models.config import TransformerConfig
from pellucid.models.transformer import Transformer
from pellucid.pools import POOLS, PoolConfig
from pellucid.pools.hierarchy import HierarchyConfig
from pellucid.pools.monet_hd import MonetHDConfig
from pellucid.pools.peer import PeerConfig
from pellucid.pools.pooled_peer import PooledPeerConfig

VOCAB, SEQ = 23, 12
HIERARCHY = HierarchyConfig.tiny()
CONFIG = TransformerConfig(
    width=8,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=2,
    vocab_size=VOCAB,
    context=SEQ,
    ffn=(POOLS[0].tiny(),),
    tied_mlp_width=3,
)
INDEPENDENT: dict[str, PoolConfig] = {
    **{cls.tiny().kind: cls.tiny() for cls in POOLS},
    "jumprelu": replace(HIERARCHY, select="jumprelu", jump_threshold=0.1),
    "gate-p": replace(HIERARCHY, gate="p", open_pools=1),
    "bias": replace(HIERARCHY, balance="bias", bias_rate=0.1),
    "unit-balance": replace(HIERARCHY, unit_balance=0.1),
    "sink": replace(HIERARCHY, shared="sink_unit", pool_scaling=True),
    "tied": replace(HIERARCHY, shared="tied_mlp"),
    "peer-without-norm": replace(PeerConfig.tiny(), norm="none", share_keys=True),
    "monet-row": replace(MonetHDConfig.tiny(), router="row"),
}
MIXING: dict[str, PoolConfig] = {
    "batchtopk": replace(HIERARCHY, select="batchtopk", k=2),
    "peer-batch": replace(PeerConfig.tiny(), norm="batch"),
    "pooled-peer-batch": replace(PooledPeerConfig.tiny(), norm="batch"),
    "monet-batch": replace(MonetHDConfig.tiny(), router="batch"),
}
EVERY = INDEPENDENT | MIXING


def _model(*slots: PoolConfig, **change: object) -> Transformer:
    """A float64 decoder off its initial values, in evaluation mode."""
    layers = max(len(slots), 2)
    config = replace(CONFIG, ffn=slots or CONFIG.ffn, layers=layers, **change)
    model = Transformer(config).double().eval()
    laws.perturb(model)
    return model


def _tokens(rows: int = 2, seq: int = SEQ) -> Tensor:
    return torch.randint(VOCAB, (rows, seq))


def _with_another_future(tokens: Tensor, start: int) -> Tensor:
    other = tokens.clone()
    other[:, start:] = (other[:, start:] + 1 + torch.randint(VOCAB - 1, (1,))) % VOCAB
    return other


@pytest.mark.parametrize("start", [1, 7, SEQ - 1])
@pytest.mark.parametrize("name", EVERY)
def test_no_token_sees_its_future(name, start):
    model, tokens = _model(EVERY[name]), _tokens()
    before, after = model(tokens), model(_with_another_future(tokens, start))
    assert torch.equal(before[:, :start], after[:, :start])
    assert not torch.equal(before[:, start:], after[:, start:])


@pytest.mark.parametrize("start", [1, 7, SEQ - 1])
@pytest.mark.parametrize("name", INDEPENDENT)
def test_no_token_sees_its_future_in_training(name, start):
    model, tokens = _model(INDEPENDENT[name]).train(), _tokens()
    before, _ = model.forward_with_parts(tokens)
    after, _ = model.forward_with_parts(_with_another_future(tokens, start))
    assert torch.equal(before[:, :start], after[:, :start])


@pytest.mark.parametrize("name", MIXING)
def test_batch_statistics_leak_the_future_in_training(name):
    # Documented as such; that the test sees it proves that the two above bite.
    model, tokens = _model(MIXING[name]).train(), _tokens()
    before, after = model(tokens), model(_with_another_future(tokens, 7))
    assert not torch.equal(before[:, :7], after[:, :7])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", INDEPENDENT)
def test_the_rest_of_the_batch_changes_nothing(name, training):
    model, tokens = _model(INDEPENDENT[name]).train(training), _tokens(3)
    whole = model(tokens)
    for row in range(3):
        # Other shapes take other kernels: float64 rounding.
        torch.testing.assert_close(model(tokens[row : row + 1])[0], whole[row], atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", EVERY)
def test_padding_on_the_right_changes_nothing(name):
    model, tokens = _model(EVERY[name]), _tokens(1)
    padded = torch.cat((tokens, torch.zeros(1, 5, dtype=torch.long)), 1)
    torch.testing.assert_close(model(padded)[:, :SEQ], model(tokens), atol=1e-10, rtol=0)


DOCUMENTS = torch.tensor([[0] * 5 + [1] * 7, [3] * 9 + [2] * 3])


@pytest.mark.parametrize("name", ["dense", "pools", "peer", "monet-hd"])
def test_a_token_sees_its_own_document_alone(name):
    model, tokens = _model(EVERY[name]), _tokens()
    packed = model(tokens, DOCUMENTS)
    for row, cut in enumerate((5, 9)):
        for part in (slice(0, cut), slice(cut, SEQ)):
            alone = model(tokens[row : row + 1, part])[0]
            # Positions differ, and rotary angles are float32.
            torch.testing.assert_close(packed[row, part], alone, atol=1e-5, rtol=0)


def test_changing_one_document_leaves_the_next_bit_equal():
    model, tokens = _model(), _tokens()
    other = tokens.clone()
    other[0, :5] = (other[0, :5] + 1) % VOCAB
    before, after = model(tokens, DOCUMENTS), model(other, DOCUMENTS)
    assert torch.equal(before[0, 5:], after[0, 5:])
    assert torch.equal(before[1], after[1])
    assert not torch.equal(model(tokens)[0, 5:], model(other)[0, 5:]), "unmasked, they do see it"


def test_one_document_is_plain_causal_attention():
    model, tokens = _model(), _tokens()
    same = torch.zeros_like(tokens)
    torch.testing.assert_close(model(tokens, same), model(tokens), atol=1e-10, rtol=0)


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["causal", "documents"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_logits_are_the_same_with_and_without_parts(name, training, documents):
    model, tokens = _model(EVERY[name]), _tokens()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    plain = model.train(training)(tokens, documents)
    model.load_state_dict(state)
    logits, parts = model.forward_with_parts(tokens, documents)
    assert torch.equal(plain, logits)
    assert bool(parts) <= training
