"""Small corpora, tokenizers and splits for the tests of the data package."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import zstandard

from pellucid.data.store import Split
from pellucid.data.tokenizer import TextTokenizer, fit_bpe

MakeSplit = Callable[..., Split]
WriteRecords = Callable[..., Path]


@pytest.fixture
def write_records(tmp_path: Path) -> WriteRecords:
    """Write records as ``name`` below the test's folder; the suffix decides on compression."""

    def write(name: str, records: Sequence[object]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = "".join(json.dumps(record) + "\n" for record in records).encode()
        path.write_bytes(zstandard.compress(data) if name.endswith(".zst") else data)
        return path

    return write


@pytest.fixture(scope="session")
def tokenizer() -> TextTokenizer:
    """Byte-level BPE of 300 tokens, of which 43 are merges."""
    text = "def read(self): return self.read_all()\nthe cat sat on the mat, naïve café\n"
    return fit_bpe([text * 30], 300)


@pytest.fixture(scope="session")
def make_split() -> MakeSplit:
    """A split from token lists; end of text is 0, a token of value v stands for v bytes."""

    def make(documents: Sequence[Sequence[int]], domains: Sequence[int] | None = None) -> Split:
        flat = [token for document in documents for token in document]
        lengths = [len(document) for document in documents]
        return Split(
            tokens=np.array(flat, dtype=np.uint16),
            start=np.cumsum([0, *lengths], dtype=np.int64),
            num_bytes=np.array([sum(document) for document in documents], dtype=np.int64),
            domain=np.array(domains or [0] * len(documents), dtype=np.int64),
            ids=[f"document-{index}" for index in range(len(documents))],
            end_of_text=0,
        )

    return make
