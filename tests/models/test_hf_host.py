"""Any causal LM of transformers as a host, tried on a Llama and a GPT-2 with random weights."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from pellucid.core.errors import AddressError
from pellucid.core.host import Edit, Host
from pellucid.core.unit import Site
from pellucid.models.hf_host import HuggingFaceHost


def llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            vocab_size=20,
            max_position_embeddings=16,
            attention_dropout=0.5,
        )
    )


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(
            n_embd=16, n_layer=2, n_head=2, vocab_size=20, n_positions=16, bos_token_id=0,
            eos_token_id=0,
        )
    )  # fmt: skip


X = torch.arange(12).view(2, 6)
SLOTS = {llama: "model.layers.1.mlp", gpt2: "transformer.h.1.mlp"}


@pytest.mark.parametrize("build", SLOTS)
def test_it_is_a_host_and_runs_in_evaluation(build):
    model = build()
    host = HuggingFaceHost(model.train())
    assert isinstance(host, Host)
    first, second = host.run(X).logits, host.run(X).logits
    assert torch.equal(first, second), "dropout must be off"
    assert torch.equal(first, model.eval()(X).logits)


def test_modes_are_put_back_module_by_module():
    model = llama().train()
    model.model.layers[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    host = HuggingFaceHost(model)
    host.run(X)
    host.width(Site.parse("model.norm:out"))
    assert {name: module.training for name, module in model.named_modules()} == before
    with pytest.raises(AddressError):
        host.run(X, keep=[Site.parse("model.nowhere:out")])
    assert {name: module.training for name, module in model.named_modules()} == before


@pytest.mark.parametrize("build", SLOTS)
def test_kept_sites_are_what_the_modules_saw(build):
    model = build().eval()
    seen = {}
    slot = model.get_submodule(SLOTS[build])
    handle = slot.register_forward_hook(lambda _, args, out: seen.update(x=args[0], y=out))
    model(X)
    handle.remove()
    reads, writes = (Site(module=SLOTS[build], port=port) for port in ("in", "out"))
    kept = HuggingFaceHost(model).run(X, keep=[reads, writes]).kept
    assert torch.equal(kept[reads], seen["x"])
    assert torch.equal(kept[writes], seen["y"])
    assert not slot._forward_hooks
    assert not slot._forward_pre_hooks


@pytest.mark.parametrize("build", SLOTS)
def test_an_edit_replaces_the_output(build):
    """Doubling what the slot writes must equal doubling the tensor inside the model."""
    model = build().eval()
    reads, writes = (Site(module=SLOTS[build], port=port) for port in ("in", "out"))
    edit = Edit(reads=reads, writes=writes, apply=lambda _, y: 2 * y)
    found = HuggingFaceHost(model).run(X, edits=[edit]).logits
    slot = model.get_submodule(SLOTS[build])
    handle = slot.register_forward_hook(lambda *called: 2 * called[-1])
    assert torch.equal(found, model(X).logits)
    handle.remove()
    assert not torch.equal(found, model(X).logits)


@pytest.mark.parametrize("port", ["in", "out"])
def test_width_and_an_unknown_site(port):
    host = HuggingFaceHost(llama())
    assert host.width(Site(module="model.layers.0.mlp.down_proj", port="in")) == 24
    assert host.width(Site(module="model.layers.0.self_attn", port="out")) == 16
    with pytest.raises(AddressError, match=r"did you mean 'model\.layers\.0\.mlp'") as caught:
        host.run(X, keep=[Site(module="model.layers.0.mpl", port=port)])
    assert "\n" not in str(caught.value)
