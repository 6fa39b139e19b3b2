"""The embedded corpus: labelled, deduplicated, split by parent, the same every time."""

from collections import Counter, defaultdict
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.core.errors import DataError
from pellucid.data import embedded
from pellucid.data.document import DataConfig, Document
from pellucid.data.embedded import LEAST_PIECE, embedded_documents, fingerprint
from pellucid.data.inventory import Parent
from pellucid.data.text import PIECE_CHARACTERS


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    """This machine's corpus, bounded to keep the test short."""
    return list(embedded_documents(DataConfig(max_bytes=3_000_000)))


def parent(group: str, name: str, text: str) -> Parent:
    return Parent(group, name, len(text), f"digest of {name}", partial(str, text))


def prose(name: str, size: int) -> str:
    """Lines in paragraphs of eight that occur nowhere else."""
    letters = name.translate(str.maketrans("0123456789", "abcdefghij"))
    words = (
        f"{letters}{'x' * (index % 97)}{'y' * (index // 97)} says so\n" for index in range(size)
    )
    lines: list[str] = []
    while sum(map(len, lines)) < size:
        lines += [next(words) for _ in range(8)] + ["\n"]
    return "".join(lines)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[Parent]:
    """Three groups of thirty parents of about 6,000 characters; a test may add to them."""
    found = [
        parent(group, f"{group}{index}", prose(f"{group}{index}", 6000))
        for group in ("legal", "c_headers", "characters")
        for index in range(30)
    ]
    monkeypatch.setattr(embedded, "list_parents", lambda: iter(found))
    return found


def parent_of(document: Document) -> str:
    return document.id.split("/", 1)[1].rpartition("#")[0]


def test_six_domains_with_text_in_both_splits(documents: list[Document]) -> None:
    splits: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for document in documents:
        splits[document.domain][document.split] += len(document.text.encode())
    assert len(splits) >= 6
    assert all(count["train"] > 20_000 for count in splits.values()), splits
    assert all(count["validation"] > 0 for count in splits.values()), splits


def test_the_bound_is_met_and_shared(documents: list[Document]) -> None:
    """No domain takes more than an equal share of the groups, code and docstrings being one."""
    size: Counter[str] = Counter()
    for document in documents:
        size[document.domain] += len(document.text.encode())
    assert 2_000_000 < size.total() <= 3_000_000
    assert max(size.values()) < 2 * size.total() / len(size)


def test_pieces_have_their_sizes_and_ids_are_unique(documents: list[Document]) -> None:
    assert all(LEAST_PIECE <= len(d.text) <= PIECE_CHARACTERS for d in documents)
    assert len({document.id for document in documents}) == len(documents)


def test_no_parent_straddles_the_splits(documents: list[Document]) -> None:
    """A file's docstrings follow its code: both domains count as one parent here."""
    splits: defaultdict[str, set[str]] = defaultdict(set)
    for document in documents:
        splits[parent_of(document)].add(document.split)
    assert all(len(found) == 1 for found in splits.values())
    shared = {parent_of(d) for d in documents if d.domain == "python_docs"}
    assert shared & {parent_of(d) for d in documents if d.domain == "python_code"}


def test_no_long_paragraph_occurs_twice(documents: list[Document]) -> None:
    """Checked without regard to case, white space, digits and marks, over both splits."""
    seen: Counter[str] = Counter()
    for document in documents:
        for paragraph in document.text.split("\n\n"):
            letters = "".join(filter(str.isalpha, paragraph)).lower()
            if len(letters) >= 400:
                seen[letters] += 1
    assert len(seen) > 500
    repeated = [letters for letters, count in seen.items() if count > 1]
    assert len(repeated) <= len(seen) // 100  # a cut inside a paragraph makes new beginnings


def test_the_corpus_is_the_same_twice(documents: list[Document]) -> None:
    assert list(embedded_documents(DataConfig(max_bytes=3_000_000))) == documents


def test_fingerprint_follows_each_parent(machine: list[Parent]) -> None:
    before = fingerprint()
    machine.append(parent("legal", "one more", "text"))
    assert fingerprint() != before
    machine.pop()
    assert fingerprint() == before


def test_a_longer_stream_begins_like_a_shorter_one(machine: list[Parent]) -> None:
    """Splits and ids do not move when the bound does."""
    short = {d.id: d for d in embedded_documents(DataConfig(max_bytes=150_000))}
    long = {d.id: d for d in embedded_documents(DataConfig())}
    assert 0 < len(short) < len(long)
    assert all(long[name] == document for name, document in short.items())


def test_small_groups_hold_out_an_eighth(machine: list[Parent]) -> None:
    """Thirty parents of equal size: after n the held-out share is as near n/8 as parents allow."""
    documents = list(embedded_documents(DataConfig()))
    for group in ("legal", "c_headers", "characters"):
        held = {parent_of(d) for d in documents if d.domain == group and d.split == "validation"}
        assert len(held) == 4  # 30 / 8 = 3.75, and a fourth is due once 24 parents are through


def test_a_large_share_is_honoured(machine: list[Parent]) -> None:
    documents = list(embedded_documents(DataConfig(validation_share=0.5)))
    held = {parent_of(document) for document in documents if document.split == "validation"}
    assert len(held) == 45


def test_a_huge_parent_is_never_held_out(machine: list[Parent]) -> None:
    for index in range(8):
        machine.append(parent("legal", f"huge{index}", prose(f"huge{index}", 60_000)))
    documents = embedded_documents(DataConfig(validation_share=0.5))
    held = {parent_of(document) for document in documents if document.split == "validation"}
    assert held
    assert not any(name.startswith("huge") for name in held)


def test_a_copied_file_is_kept_once(machine: list[Parent]) -> None:
    """The copy differs in case, digits and white space only, and stands in another group."""
    text = prose("original", 3000)
    machine.append(parent("legal", "original", text))
    machine.append(parent("characters", "copy", "1 " + text.upper().replace(" ", "  ")))
    names = [parent_of(document) for document in embedded_documents(DataConfig())]
    assert ("original" in names) != ("copy" in names)


def test_a_repeated_banner_is_dropped_from_the_second_file(machine: list[Parent]) -> None:
    banner = "permission is hereby granted to any person obtaining a copy of this software\n" * 3
    for name in ("one", "two"):
        machine.append(parent("legal", name, banner + "\n" + prose(name, 1000)))
    texts = [d.text for d in embedded_documents(DataConfig()) if parent_of(d) in ("one", "two")]
    assert len(texts) == 2
    assert sum(banner in text for text in texts) == 1


def test_short_paragraphs_may_repeat(machine: list[Parent]) -> None:
    for name in ("one", "two"):
        machine.append(parent("legal", name, "import os\n\n" + prose(name, 1000)))
    texts = [d.text for d in embedded_documents(DataConfig()) if parent_of(d) in ("one", "two")]
    assert [text.startswith("import os") for text in texts] == [True, True]


def test_python_files_give_two_domains(machine: list[Parent]) -> None:
    body = "".join(
        f"def f{i}():\n    '''{prose(f'd{i}', 300)}'''\n    return {i}\n" for i in range(300)
    )
    machine.append(parent("python_code", "pkg/__init__.py", body + prose_code()))
    documents = [d for d in embedded_documents(DataConfig()) if "pkg" in d.id]
    assert {document.domain for document in documents} == {"python_code", "python_docs"}
    docs = next(d.text for d in documents if d.domain == "python_docs")
    assert docs.startswith("pkg.f0()\n    ")
    assert not any("says so" in d.text for d in documents if d.domain == "python_code")


def prose_code() -> str:
    return "".join(f"value_{index} = {index} * {index}\n" for index in range(500))


def test_fewer_than_three_domains_are_refused(machine: list[Parent]) -> None:
    machine[:] = [found for found in machine if found.group != "legal"]
    expected = r"embedded corpus: found c_headers, characters, expected at least 3 of"
    with pytest.raises(DataError, match=expected):
        embedded_documents(DataConfig())


def test_a_group_too_small_for_a_domain_is_left_out(machine: list[Parent]) -> None:
    machine.append(parent("arithmetic", "small", prose("small", 2000)))
    assert "arithmetic" not in {d.domain for d in embedded_documents(DataConfig())}


def test_nothing_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "list_parents", lambda: iter(()))
    with pytest.raises(DataError, match="found nothing, expected at least 3"):
        embedded_documents(DataConfig())


@given(st.lists(st.text(alphabet="ab\n ", max_size=40), max_size=20))
def test_fresh_text_passes_whole(blocks: list[str]) -> None:
    """Paragraphs too short to be compared are never dropped, repeated or not."""
    text = "\n\n".join(blocks)
    if all(len(block) < embedded.PARAGRAPH_LETTERS for block in text.split("\n\n")):
        assert "".join(embedded._fresh_paragraphs(text, set())) == text
