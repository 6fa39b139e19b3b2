"""A model to distil from: a run of ours, or a causal language model of transformers.

Teacher and student must read the same tokens and the same documents. A teacher that was trained
within documents, or whose student is, is shown the documents' borders; only our own models take
them.
"""

from pathlib import Path

import torch
from torch import Tensor

from pellucid.core.errors import ConfigError
from pellucid.data.tokenizer import TextTokenizer
from pellucid.recipes.folder import is_run
from pellucid.recipes.host import load_transformers
from pellucid.recipes.load import load_run
from pellucid.train.language import Teacher


def load_teacher(
    name: str, device: str, *, tokenizer: TextTokenizer, mask_documents: bool
) -> Teacher:
    """The teacher of a student of ``tokenizer``: a run folder, or transformers' name or folder.

    Errors: a ``ConfigError`` for what is neither, for a run with another tokenizer, and for a
    model that cannot keep to one document where the student does.
    """
    if is_run(Path(name)):
        return _run(name, device, tokenizer, mask_documents)
    if mask_documents:
        raise ConfigError(
            f"distil.teacher {name!r}: expected a run folder, since models of transformers cannot "
            "keep attention within a document; distil from a run, or leave data.mask_documents off"
        )
    return _from_transformers(name, device)


@torch.no_grad()
def check_vocabulary(name: str, teacher: Teacher, vocab_size: int, device: str) -> None:
    """Whether a teacher's logits are over the student's vocabulary; if not, a ``ConfigError``."""
    one_token = torch.zeros(1, 1, dtype=torch.long, device=device)
    vocab = teacher(one_token, one_token).shape[-1]
    if vocab != vocab_size:
        raise ConfigError(
            f"distil.teacher {name!r}: expected logits over {vocab_size} tokens, found {vocab}; "
            "give its tokenizer as data.tokenizer"
        )


def _run(name: str, device: str, tokenizer: TextTokenizer, mask_documents: bool) -> Teacher:
    loaded = load_run(Path(name), device=device)
    if loaded.tokenizer.identity != tokenizer.identity:
        raise ConfigError(
            f"distil.teacher {name!r}: was trained with another tokenizer than data.tokenizer "
            f"gives; give data.tokenizer {name}"
        )
    masks = mask_documents or loaded.config.data.mask_documents

    def teach(tokens: Tensor, documents: Tensor) -> Tensor:
        return loaded.model(tokens, documents if masks else None)

    return teach


def _from_transformers(name: str, device: str) -> Teacher:
    from pellucid.models.hf import HuggingFaceHost

    try:
        host = HuggingFaceHost(load_transformers(name).to(device).eval())
    except ConfigError as error:
        raise ConfigError(f"distil.teacher {error}") from None

    def teach(tokens: Tensor, _: Tensor) -> Tensor:
        return host.run(tokens).logits

    return teach
