"""The embedded corpus: domain-labelled documents out of what is installed on this machine.

Code loses its docstrings to a domain of their own. A paragraph of 100 or more letters is kept
once in the whole corpus, compared by its letters alone in lower case, so licence banners and
copied files neither repeat nor leak between splits. All pieces of a parent file share its split.
One machine gives the same corpus every time; another Python or torch gives another.
"""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import chain

from pellucid.core.errors import DataError
from pellucid.data.balance import balanced, bounded
from pellucid.data.document import DataConfig, Document
from pellucid.data.inventory import Parent, list_parents
from pellucid.data.python_text import split_docstrings
from pellucid.data.text import cut_pieces, unit_hash

VERSION = 1  # raise it when the same files give other documents
DOMAIN_BYTES = 5_000_000
LEAST_GROUP_BYTES = 100_000
LEAST_DOMAINS = 3
LEAST_PIECE = 200
HELD_OUT_BYTES = 100_000  # wanted from each group, at most an eighth of it
LARGEST_HELD_OUT = 50_000  # a longer parent would be most of its domain's validation text
PARAGRAPH_LETTERS = 100


def fingerprint() -> str:
    """A hash of everything the embedded corpus is made from on this machine."""
    parents = "\n".join(f"{p.group}/{p.name} {p.digest}" for p in list_parents())
    return hashlib.sha256(f"{VERSION}\n{parents}".encode("utf-8", "surrogatepass")).hexdigest()


def embedded_documents(config: DataConfig) -> Iterator[Document]:
    """The embedded corpus as a stream; fewer than three domains are a ``DataError``."""
    groups: dict[str, list[Parent]] = {}
    for parent in list_parents():
        groups.setdefault(parent.group, []).append(parent)
    sizes = {name: sum(parent.size for parent in found) for name, found in groups.items()}
    names = sorted((n for n in groups if sizes[n] >= LEAST_GROUP_BYTES), key=lambda n: sizes[n])
    if len(names) < LEAST_DOMAINS:
        raise DataError(
            f"embedded corpus: found {', '.join(names) or 'nothing'}, expected at least "
            f"{LEAST_DOMAINS} of {', '.join(sorted(groups))}; install Python's complete standard "
            "library or give the path of your own data"
        )
    seen: set[bytes] = set()
    streams = [
        bounded(_group_documents(groups[name], config.validation_share, seen), _limit(name))
        for name in names
    ]
    return (
        chain.from_iterable(streams)
        if config.max_bytes is None
        else balanced(streams, config.max_bytes)
    )


def _limit(group: str) -> int:
    """The group's room; Python code brings two domains, its docstrings being one."""
    return 2 * DOMAIN_BYTES if group == "python_code" else DOMAIN_BYTES


def _group_documents(
    parents: Sequence[Parent], share: float, seen: set[bytes]
) -> Iterator[Document]:
    """A group's documents, parents in the order of their names' hashes.

    Scattering them so makes any beginning of the stream a fair sample of the whole.
    """
    ordered = sorted(parents, key=lambda parent: unit_hash(parent.name))
    wanted = max(share, min(0.125, HELD_OUT_BYTES / sum(parent.size for parent in ordered)))
    taken = {"train": 0, "validation": 0}
    for parent in ordered:
        held_out = (
            taken["validation"] < wanted * sum(taken.values()) and parent.size <= LARGEST_HELD_OUT
        )
        split = "validation" if held_out else "train"
        for domain, text in _texts(parent):
            lines = _fresh_paragraphs(text, seen)
            for index, piece in enumerate(cut_pieces(lines)):
                if len(piece.strip()) >= LEAST_PIECE:
                    taken[split] += len(piece)
                    yield Document(
                        id=f"{domain}/{parent.name}#{index}",
                        text=piece,
                        domain=domain,
                        split=split,
                    )


def _texts(parent: Parent) -> Iterator[tuple[str, str]]:
    text = parent.load()
    if parent.group == "python_code":
        module = parent.name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        code, documentation = split_docstrings(text, module)
        yield "python_code", code
        yield "python_docs", documentation
    else:
        yield parent.group, text


def _fresh_paragraphs(text: str, seen: set[bytes]) -> Iterator[str]:
    """The text's lines, less every long paragraph that is in ``seen`` already."""
    paragraph: list[str] = []
    for line in chain(text.splitlines(keepends=True), ("",)):
        if line.strip():
            paragraph.append(line)
            continue
        letters = "".join(filter(str.isalpha, "".join(paragraph))).lower()
        digest = hashlib.blake2b(letters.encode(), digest_size=12).digest()
        if len(letters) < PARAGRAPH_LETTERS or digest not in seen:
            seen.add(digest)
            yield from paragraph
            yield line
        paragraph.clear()
