"""What is compared with what: every arm of every experiment as a frozen value.

gates, routing    matched on all latents, on latents evaluated per row, on encoder multiply-adds
balance           the weight of the load balance, the same in both routed arms
trained           what training adds: a frozen random decoder, a frozen encoder
storage           sparse atoms of s entries against dense ones and four other supports
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from pellucid.core.unit import Site
from pellucid.dictionaries import DICTIONARIES, Coder, CoderConfig, build_coder
from pellucid.dictionaries.atoms import DenseAtomsConfig, ExpanderAtomsConfig
from pellucid.dictionaries.cost import DictionaryCost, dictionary_cost
from pellucid.dictionaries.router import RouterConfig
from pellucid.recipes.dictionary import BASE_LATENTS, BASE_LR

SEEDS = (0, 1, 2)
EXPERTS, ACTIVE = 16, 4
BALANCES = (0.0, 0.01, 0.1, 1.0)
NONZEROS = (4, 7, 16, 64)
SHARED = 16  # latents on one support in the control of that name
LM = "lm"

_ONE = RouterConfig(experts=EXPERTS, active=1, gate="p")
_MANY = RouterConfig(experts=EXPERTS, active=ACTIVE, gate="renorm")
_TIED = replace(DICTIONARIES["topk"], atoms=DenseAtomsConfig(tied=True))

# Both mechanisms of the Scale SAE apart and together; ``switch`` has neither.
ROUTED = {
    "switch": CoderConfig(router=_ONE),
    "multi": CoderConfig(router=_MANY),
    "scaling": CoderConfig(router=replace(_ONE, lowpass="learned")),
    "scale": CoderConfig(router=replace(_MANY, lowpass="learned")),
}
GATES = {name: DICTIONARIES[name] for name in ("topk", "batchtopk", "jumprelu", "matryoshka")}
FAMILIES = {**GATES, **ROUTED, "expander": DICTIONARIES["expander"], "tied": _TIED}

Frozen = Literal["decoder", "encoder"]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One fit: on which rows, what, with which seed, and which records it gives.

    ``family`` says whose learning-rate trials are its own; ``rate`` multiplies the usual rate.
    ``matched`` names the comparisons that it stands in. ``pruned`` is the name of the fit whose
    rows it starts from, of which it keeps the largest entries.
    """

    experiment: str
    source: str
    dictionary: str
    family: str
    config: CoderConfig
    seed: int
    matched: tuple[str | None, ...] = (None,)
    inferences: tuple[str, ...] = ("encoder",)
    rate: float = 1.0
    frozen: Frozen | None = None
    pruned: str | None = None

    @property
    def name(self) -> str:
        """Names the fit's weights: unique among all arms."""
        config = self.config
        router = f"-b{config.router.balance:g}" if config.router else ""
        atoms = config.atoms
        sparse = f"-s{atoms.nonzeros}" if isinstance(atoms, ExpanderAtomsConfig) else ""
        k = "" if config.k is None else f"-k{config.k}"
        sizes = f"n{config.latents}{k}{sparse}{router}"
        return f"{self.experiment}-{self.source}-{self.dictionary}-{sizes}-seed{self.seed}"

    @property
    def lr(self) -> float:
        """The usual rate for so many latents, times what the trials chose."""
        return self.rate * BASE_LR * (BASE_LATENTS / self.config.latents) ** 0.5


def build(arm: Arm, site: Site, width: int) -> Coder:
    """The arm's dictionary on a site with its initial weights."""
    return build_coder(
        arm.config,
        name=arm.dictionary,
        reads=site,
        writes=site,
        d_in=width,
        d_out=width,
        seed=arm.seed,
    )


def trial_arms(source: str, *, latents: int, k: int, rates: tuple[float, ...]) -> Iterator[Arm]:
    """Every family at every rate, seed 0."""
    for family, config in FAMILIES.items():
        for rate in rates:
            yield Arm(
                experiment=f"trial-{rate:g}",
                source=source,
                dictionary=family,
                family=family,
                config=replace(config.with_k(k), latents=latents),
                seed=0,
                rate=rate,
            )


def matched_arms(source: str, *, width: int, latents: int, k: int, gates: bool) -> Iterator[Arm]:
    """All families at three matched sizes; arms of one size are fitted once."""
    scale = replace(ROUTED["scale"].with_k(k), latents=latents)
    goal = _cost(scale, width)
    wanted = {"latents": latents, "active": goal.active, "encoder_macs": goal.encoder_macs}
    names = ["topk", *ROUTED, "expander"]
    for seed in SEEDS:
        sizes: dict[tuple[str, int], list[str]] = {}
        for family in [*names, *(("batchtopk", "jumprelu", "matryoshka") if gates else ())]:
            config = FAMILIES[family].with_k(k)
            for matched, amount in wanted.items():
                if matched == "latents" or family in names:
                    size = solve(config, matched, amount, width)
                    sizes.setdefault((family, size), []).append(matched)
        for (family, size), matched in sizes.items():
            yield Arm(
                experiment="routing" if family in names else "gates",
                source=source,
                dictionary=family,
                family=family,
                config=replace(FAMILIES[family].with_k(k), latents=size),
                seed=seed,
                matched=tuple(matched),
            )


def balance_arms(source: str, *, latents: int, k: int) -> Iterator[Arm]:
    """The balance weight swept in both routed arms, one seed."""
    for family in ("switch", "multi", "scale"):
        config = replace(ROUTED[family].with_k(k), latents=latents)
        assert config.router is not None
        for balance in BALANCES:
            if balance != config.router.balance:  # that one stands among the matched arms
                yield Arm(
                    experiment="balance",
                    source=source,
                    dictionary=family,
                    family=family,
                    config=replace(config, router=replace(config.router, balance=balance)),
                    seed=0,
                )


def trained_arms(source: str, *, latents: int, k: int) -> Iterator[Arm]:
    """TopK with one of its halves left at its random start."""
    parts: tuple[Frozen, ...] = ("decoder", "encoder")
    for seed in SEEDS:
        for part in parts:
            yield Arm(
                experiment="trained",
                source=source,
                dictionary=f"frozen-{part}",
                family="topk",
                config=replace(FAMILIES["topk"].with_k(k), latents=latents),
                seed=seed,
                frozen=part,
            )


def storage_arms(source: str, *, width: int, latents: int, k: int) -> Iterator[Arm]:
    """Sparse atoms and their controls, with the encoder and with orthogonal matching pursuit."""

    def sized(family: str, size: int) -> CoderConfig:
        return replace(FAMILIES[family], latents=size).with_k(min(k, size))

    expander = sized("expander", latents)
    for seed in SEEDS:

        def arm(dictionary: str, family: str, config: CoderConfig, seed: int = seed) -> Arm:
            return Arm(
                experiment="storage",
                source=source,
                dictionary=dictionary,
                family=family,
                config=config,
                seed=seed,
                inferences=("encoder", "omp"),
            )

        tied = arm("dense-tied", "tied", sized("tied", latents))
        yield tied
        yield arm("dense", "topk", sized("topk", latents))
        for s in NONZEROS:
            small, atoms = latents * s // width, ExpanderAtomsConfig(nonzeros=s)
            yield arm(f"small-tied-s{s}", "tied", sized("tied", small))
            yield arm(f"small-s{s}", "topk", sized("topk", small))
            for name, support in (
                ("expander", atoms),
                ("clustered", replace(atoms, mask="clustered")),
                ("shared", replace(atoms, mask="shared", group=SHARED)),
            ):
                yield arm(name, "expander", replace(expander, atoms=support))
            pruned = arm("pruned", "expander", replace(expander, atoms=replace(atoms, stored=True)))
            yield replace(pruned, pruned=tied.name)


def solve(config: CoderConfig, matched: str, amount: int, width: int) -> int:
    """The number of latents at which a cost that grows linearly with it is the amount."""
    step = config.router.experts if config.router else 1
    low, high = 64 * step, 128 * step
    at_low, at_high = (
        getattr(_cost(replace(config, latents=n), width), matched) for n in (low, high)
    )
    exact = low + (amount - at_low) * (high - low) / (at_high - at_low)
    return max(1, round(exact / step)) * step


def _cost(config: CoderConfig, width: int) -> DictionaryCost:
    site = Site.parse("cost:in")
    coder = build_coder(config, name="cost", reads=site, writes=site, d_in=width, d_out=width)
    return dictionary_cost(coder)
