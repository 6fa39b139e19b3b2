"""Find a trained model by name: a run folder of ours, or anything transformers can load."""

from dataclasses import dataclass
from pathlib import Path

from pellucid.core.errors import ConfigError
from pellucid.core.host import Host
from pellucid.data.tokenizer import TextTokenizer, load_tokenizer
from pellucid.models.transformer import Transformer
from pellucid.recipes.folder import is_run, read_run
from pellucid.recipes.language import LanguageRun
from pellucid.train.checkpoint import load_checkpoint, load_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedRun:
    """A trained model in evaluation mode, with its tokenizer and the config it was trained by."""

    model: Transformer
    tokenizer: TextTokenizer
    config: LanguageRun
    step: int


def load_run(run: Path, *, checkpoint: str | None = None, device: str = "cpu") -> LoadedRun:
    """The model of a run's newest (or named) checkpoint; its checksum is verified first."""
    config, _ = read_run(run)
    saved = load_checkpoint(run, checkpoint)
    model = Transformer(config.model)
    load_weights(model, saved)
    return LoadedRun(
        model=model.to(device).eval(),
        tokenizer=load_tokenizer(str(run)),
        config=config,
        step=int(saved.state["step"]),
    )


def load_teacher(name: str, device: str) -> Host:
    """A host to distil from: a run folder, or the name or folder of a Hugging Face causal LM."""
    if is_run(Path(name)):
        return load_run(Path(name), device=device).model
    # Half of the time to start, and it lets transformers know our own exported models.
    from transformers import AutoModelForCausalLM

    from pellucid.models.hf import HuggingFaceHost

    try:
        model = AutoModelForCausalLM.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"distil.teacher {name!r}: neither a run folder nor a model that transformers can "
            f"load: {reason}"
        ) from None
    host = HuggingFaceHost(model.eval())
    host.model.to(device)
    return host
