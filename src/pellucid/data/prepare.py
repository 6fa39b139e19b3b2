"""A corpus made ready: tokenizer trained or loaded, every document tokenised once, memory-mapped.

The cache is keyed by content: a source's fingerprint names the tokenizer trained on it, and with
that tokenizer's identity its tokens. One pass over the source trains, one tokenises; a second
call does neither. Memory stays at the tokenizer's sample (32 MB), one chunk of text and the
documents' ids.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from pellucid.core.errors import DataError
from pellucid.data.corpus import fingerprint, open_corpus
from pellucid.data.document import DataConfig, Document
from pellucid.data.store import FORMAT, Corpus, SplitWriter, open_store, replacing, write_meta
from pellucid.data.survey import Progress, Survey, check_splits
from pellucid.data.text import one_line
from pellucid.data.tokenizer import TextTokenizer, balanced_sample, fit_bpe, load_tokenizer

CHUNK_BYTES = 4 << 20
LARGEST_NARROW = 1 << 16


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
    cannot be read, for a domain without validation text, for a cache that cannot be written; the
    cache then is as it was.
    """
    source = fingerprint(config)
    total = 0
    try:
        if tokenizer is None and config.tokenizer == "train":
            tokenizer, total = _trained(config, source, vocab_size, cache, progress)
        elif tokenizer is None:
            tokenizer = load_tokenizer(config.tokenizer)
        identity = _hash(source, tokenizer.identity)
        corpus = reopen(cache, identity, tokenizer)
        if corpus is None:
            with replacing(_folder(cache, identity)) as aside:
                _write(aside, identity, config, tokenizer, progress, total)
            corpus = reopen(cache, identity, tokenizer)
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
    if folder.is_dir():
        try:
            return load_tokenizer(folder), 0
        except DataError:  # damaged: trained again below
            pass
    survey = Survey()
    documents = survey.watch(open_corpus(config), progress, "training the tokenizer", 0)
    sample = balanced_sample(documents)
    check_splits(config, survey.train, survey.validation)
    tokenizer = fit_bpe(sample, vocab_size)
    with replacing(folder) as aside:
        tokenizer.save(aside)
    return tokenizer, survey.num_bytes


def _write(
    folder: Path,
    identity: str,
    config: DataConfig,
    tokenizer: TextTokenizer,
    progress: Progress | None,
    total: int,
) -> None:
    wide = tokenizer.vocab_size > LARGEST_NARROW
    domains: dict[str, int] = {}
    documents = Survey().watch(open_corpus(config), progress, "tokenising", total)
    with (
        SplitWriter(folder, "train", domains, wide) as train,
        SplitWriter(folder, "validation", domains, wide) as validation,
    ):
        for chunk in _chunks(documents):
            rows = tokenizer.encode_batch([document.text for document in chunk])
            for document, row in zip(chunk, rows):
                (train if document.split == "train" else validation).add(document, row)
        check_splits(config, train.documents, validation.documents)
        train.finish()
        validation.finish()
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
