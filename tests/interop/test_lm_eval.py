"""lm-eval's Hugging Face adapter evaluates our decoder: log-likelihoods and generation.

Requests are built by hand, so no task, data set or network is needed.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from pellucid.models import hf
from pellucid.models.config import TransformerConfig
from pellucid.models.transformer import Transformer
from pellucid.pools import POOLS

pytestmark = pytest.mark.interop

TEXT = ["the pool opens where the text is code", "def main(argument): return argument"] * 4
CONTEXT = 24


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXT, trainer)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end)


@pytest.fixture(params=POOLS, ids=lambda kind: kind.tiny().kind)
def adapter(request, tmp_path: Path, tokenizer) -> tuple[Any, Transformer]:
    """HFLM over a model that went through the disk, and ours beside it."""
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    config = TransformerConfig(
        width=16,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=4,
        vocab_size=len(tokenizer),
        context=CONTEXT,
        ffn=(request.param.tiny(),),
    )
    ours = Transformer(config).eval()
    with torch.no_grad():
        ours.embed.weight.mul_(20)
    hf.export_pretrained(ours, tmp_path, tokens_end=tokenizer.eos_token_id)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    return huggingface.HFLM(
        pretrained=theirs, tokenizer=tokenizer, backend="causal", device="cpu", batch_size=2
    ), ours


def requests(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [
        Instance(request_type=kind, doc={}, arguments=pair, idx=i)
        for i, pair in enumerate(arguments)
    ]


@torch.no_grad()
def score(ours: Transformer, context: list[int], ending: list[int]) -> tuple[float, bool]:
    """Σ log p of the ending after the context, read from the last ``CONTEXT`` + 1 tokens."""
    whole = torch.tensor([*context, *ending][-(CONTEXT + 1) :])
    logits = ours(whole[None, :-1])[0, -len(ending) :]
    wanted = whole[-len(ending) :]
    log_p = logits.log_softmax(-1).gather(-1, wanted[:, None]).sum()
    return float(log_p), bool((logits.argmax(-1) == wanted).all())


def test_the_context_length_is_read_from_the_config(adapter):
    assert adapter[0].max_length == CONTEXT
    assert adapter[0].vocab_size == adapter[1].config.vocab_size


def test_loglikelihood_equals_ours(adapter, tokenizer):
    """A batch of two lengths, an empty context, and one request longer than the context."""
    lm, ours = adapter
    pairs = [
        ("the pool", " opens where"),
        ("def main", "(argument): return"),
        ("", "the text"),
        (TEXT[0] + " " + TEXT[1], " is code"),
    ]
    found = lm.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
    for (context, ending), (log_p, greedy) in zip(pairs, found, strict=True):
        before = tokenizer(context)["input_ids"] or [tokenizer.bos_token_id]
        wanted, is_greedy = score(ours, before, tokenizer(ending)["input_ids"])
        # float32 sums of at most ten terms near 6, in batches of other shapes.
        assert log_p == pytest.approx(wanted, abs=1e-4)
        assert greedy == is_greedy


def test_rolling_loglikelihood_equals_ours(adapter, tokenizer):
    lm, ours = adapter
    text = TEXT[0]
    found = lm.loglikelihood_rolling(
        requests("loglikelihood_rolling", [(text,)]), disable_tqdm=True
    )
    ids = tokenizer(text)["input_ids"]
    assert len(ids) <= CONTEXT
    # float32 sums of about twenty terms near 6.
    assert found[0] == pytest.approx(score(ours, [tokenizer.bos_token_id], ids)[0], abs=1e-3)


def test_generation_equals_greedy_decoding(adapter, tokenizer):
    """Two prompts of different lengths are padded on the left in one batch."""
    lm, ours = adapter
    prompts = ["the pool opens", "def"]
    options = {"until": ["\n\n\n"], "max_gen_toks": 6, "do_sample": False}
    found = lm.generate_until(
        requests("generate_until", [(prompt, options) for prompt in prompts]), disable_tqdm=True
    )
    for prompt, text in zip(prompts, found, strict=True):
        ids = torch.tensor(tokenizer(prompt)["input_ids"])
        for _ in range(6):
            ids = torch.cat((ids, ours(ids[None])[0, -1].argmax(keepdim=True)))
        made = ids[-6:].tolist()
        if tokenizer.eos_token_id in made:
            made = made[: made.index(tokenizer.eos_token_id)]
        assert text == tokenizer.decode(made)
