"""A corpus made ready: tokenizer trained or loaded, every document tokenised once, memory-mapped.

The cache is keyed by content: a source's fingerprint names the tokenizer trained on it, and with
that tokenizer's identity its tokens. One pass over the source trains, one tokenises; a second
call does neither. Memory stays at the tokenizer's sample (32 MB), one chunk of text and the
documents' ids.
"""

import hashlib
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from pellucid.core.errors import DataError
from pellucid.data.corpus import fingerprint, open_corpus
from pellucid.data.document import DataConfig, Document
from pellucid.data.lossless import LosslessCheck
from pellucid.data.store import FORMAT, Corpus, SplitWriter, open_store, replacing, write_meta
from pellucid.data.survey import Progress, Survey, check_splits
from pellucid.data.text import one_line
from pellucid.data.tokenizer import TextTokenizer, balanced_sample, fit_bpe, load_tokenizer

CHUNK_BYTES = 4 << 20
LARGEST_NARROW = 1 << 16
LOSS = "lossy.txt"  # what the tokenizer of a store loses, if anything


def prepare(
    config: DataConfig,
    *,
    vocab_size: int,
    cache: Path,
    tokenizer: TextTokenizer | None = None,
    progress: Progress | None = None,
) -> Corpus:
    """The corpus of ``config``, from ``cache`` where it is there and whole, else built into it.

    ``vocab_size`` counts only where a tokenizer is trained. ``progress`` gets a stage's name, the
    bytes of text done and the bytes in all, 0 where not known. Errors: ``DataError`` for all that
    cannot be read, for a domain without validation text, for a config's tokenizer that loses text,
    for a cache that cannot be written; the cache then is as it was.
    """
    try:
        source = fingerprint(config)
    except OSError as error:
        raise _unreadable(config, error) from None
    total = 0
    # A run's or a model's own tokenizer is no choice that could be made better.
    may_lose = config.lossy_tokenizer or tokenizer is not None
    try:
        if tokenizer is None and config.tokenizer == "train":
            tokenizer, total = _trained(config, source, vocab_size, cache, progress)
        elif tokenizer is None:
            tokenizer = load_tokenizer(config.tokenizer)
        identity = _hash(source, tokenizer.identity)
        folder = _folder(cache, identity)
        corpus = reopen(cache, identity, tokenizer)
        if corpus is None:
            whole = partial(_is_whole, folder, identity, tokenizer)
            with replacing(folder, whole) as aside:
                _write(aside, identity, config, tokenizer, progress, total, may_lose)
            corpus = reopen(cache, identity, tokenizer)
        elif not may_lose and (folder / LOSS).exists():
            raise DataError(f"{config.source}: {(folder / LOSS).read_text(encoding='utf-8')}")
    except OSError as error:
        raise DataError(
            f"{cache}: the token cache cannot be written: {error.strerror or one_line(error)}; "
            "free space or choose another folder"
        ) from None
    assert corpus is not None
    return corpus


def reopen(cache: Path, identity: str, tokenizer: TextTokenizer) -> Corpus | None:
    """A corpus prepared before, by its identity, without a look at its source; else ``None``."""
    return open_store(_folder(cache, identity), identity, tokenizer)


def _trained(
    config: DataConfig, source: str, vocab_size: int, cache: Path, progress: Progress | None
) -> tuple[TextTokenizer, int]:
    """The tokenizer trained on this source, and its bytes of text where they were counted."""
    folder = cache / f"tokenizer-{_hash(source, str(vocab_size))[:16]}"
    found = _loaded(folder)
    if found is not None:
        return found, 0
    survey = Survey()
    documents = survey.watch(_documents(config), progress, "training the tokenizer", 0)
    sample = balanced_sample(documents)
    check_splits(config, survey.train, survey.validation)
    tokenizer = fit_bpe(sample, vocab_size)
    with replacing(folder, lambda: _loaded(folder) is not None) as aside:
        tokenizer.save(aside)
    return load_tokenizer(folder), survey.num_bytes


def _loaded(folder: Path) -> TextTokenizer | None:
    """The tokenizer of a folder, unless it is missing or damaged."""
    try:
        return load_tokenizer(folder) if folder.is_dir() else None
    except DataError:
        return None


def _documents(config: DataConfig) -> Iterator[Document]:
    """The source's documents; what the disk refuses is the source's fault, not the cache's."""
    try:
        yield from open_corpus(config)
    except OSError as error:
        raise _unreadable(config, error) from None


def _unreadable(config: DataConfig, error: OSError) -> DataError:
    return DataError(f"{config.source}: cannot be read: {error.strerror or one_line(error)}")


def _is_whole(folder: Path, identity: str, tokenizer: TextTokenizer) -> bool:
    return open_store(folder, identity, tokenizer) is not None


def _write(
    folder: Path,
    identity: str,
    config: DataConfig,
    tokenizer: TextTokenizer,
    progress: Progress | None,
    total: int,
    may_lose: bool,
) -> None:
    wide = tokenizer.vocab_size > LARGEST_NARROW
    domains: dict[str, int] = {}
    documents = Survey().watch(_documents(config), progress, "tokenising", total)
    check = LosslessCheck(tokenizer)
    with (
        SplitWriter(folder, "train", domains, wide) as train,
        SplitWriter(folder, "validation", domains, wide) as validation,
    ):
        for chunk in _chunks(documents):
            rows = tokenizer.encode_batch([document.text for document in chunk])
            for document, row in zip(chunk, rows):
                check.see(document)
                if check.loss is not None and not may_lose:
                    raise DataError(f"{config.source}: {check.loss}")
                (train if document.split == "train" else validation).add(document, row)
        check_splits(config, train.documents, validation.documents)
        train.finish()
        validation.finish()
    if check.loss is not None:
        (folder / LOSS).write_text(check.loss, encoding="utf-8")
    write_meta(folder, identity, list(domains), wide)


def _chunks(documents: Iterable[Document]) -> Iterator[list[Document]]:
    held: list[Document] = []
    size = 0
    for document in documents:
        held.append(document)
        size += len(document.text)
        if size >= CHUNK_BYTES:
            yield held
            held, size = [], 0
    if held:
        yield held


def _folder(cache: Path, identity: str) -> Path:
    return cache / f"tokens-{identity[:16]}"


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join((str(FORMAT), *parts)).encode()).hexdigest()
