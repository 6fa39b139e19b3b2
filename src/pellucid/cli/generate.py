"""``pellucid generate FOLDER --prompt TEXT``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pellucid.cli.parse import parse
from pellucid.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class GenerateFlags:
    """Write text with a run; with edits, show the changed text beside the unchanged one."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    prompt: str
    """The text to continue."""
    tokens: int = 100
    """How many tokens to write."""
    temperature: float = 0.8
    """0 always takes the likeliest token."""
    top_k: int | None = 50
    """Sample among this many likeliest tokens."""
    seed: int = 0
    """Seed of the sampling; both texts use it."""
    ablate: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Silence units: MODULE@UNITS, such as blocks.1.ffn@pool=3. May be repeated."""
    scale: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Multiply units: MODULE@UNITS=FACTOR, such as blocks.1.ffn@17=4. May be repeated."""
    checkpoint: str | None = None
    """A checkpoint other than the newest."""


def main(argv: Sequence[str]) -> int:
    """Print the text, or the unchanged and the changed text one after the other."""
    flags = parse(GenerateFlags, argv, verb="generate", says=GenerateFlags.__doc__ or "")
    if flags.tokens < 1:
        raise ConfigError(f"--tokens: expected at least 1, found {flags.tokens}")
    import torch

    from pellucid.core.host import Edit
    from pellucid.models.generate import generate, parse_ablation, parse_scale
    from pellucid.recipes.load import load_run

    loaded = load_run(flags.run, checkpoint=flags.checkpoint)
    prompt = loaded.tokenizer.encode(flags.prompt)
    if not prompt:
        raise ConfigError("--prompt: encodes to no tokens; give some text to continue")
    pools = loaded.model.pools()
    edits = [parse_ablation(text, pools) for text in flags.ablate]
    edits += [parse_scale(text, pools) for text in flags.scale]

    def write(applied: Sequence[Edit]) -> str:
        tokens = generate(
            loaded.model,
            torch.tensor([loaded.tokenizer.end_of_text, *prompt]),
            max_new_tokens=flags.tokens,
            temperature=flags.temperature,
            top_k=flags.top_k,
            seed=flags.seed,
            edits=applied,
            end=loaded.tokenizer.end_of_text,
        )
        return loaded.tokenizer.decode(tokens[1:].tolist())

    plain = write(())
    if not edits:
        print(plain)
        return 0
    named = ", ".join(
        [*(f"without {a}" for a in flags.ablate), *(f"with {s}" for s in flags.scale)]
    )
    print(f"--- unchanged\n{plain}\n\n--- {named}\n{write(edits)}")
    return 0
