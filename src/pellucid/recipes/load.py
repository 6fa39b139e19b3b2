"""A trained model from its run folder."""

from dataclasses import dataclass
from pathlib import Path

from pellucid.data.tokenizer import TextTokenizer, load_tokenizer
from pellucid.models.transformer import Transformer
from pellucid.recipes.folder import read_run
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
