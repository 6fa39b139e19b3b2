"""Byte-level BPE: exact, deterministic, clean of special tokens, and at home in transformers."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from pellucid.core.errors import ConfigError, DataError
from pellucid.data.backends import CompiledBackend
from pellucid.data.document import Document
from pellucid.data.text import mend_surrogates
from pellucid.data.tokenizer import (
    END_OF_TEXT,
    TextTokenizer,
    balanced_sample,
    fit_bpe,
    load_tokenizer,
)


def documents(domain: str, *texts: str, split: str = "train") -> list[Document]:
    held_out = split == "validation"
    return [
        Document(
            id=f"{domain}{index}",
            text=text,
            domain=domain,
            split="validation" if held_out else "train",
        )
        for index, text in enumerate(texts)
    ]


def word_tokenizer(**words: int) -> Tokenizer:
    return Tokenizer(models.WordLevel(dict(words), unk_token="unknown"))


@given(st.text(alphabet=st.characters(exclude_categories=()), max_size=100))
def test_every_text_comes_back(tokenizer: TextTokenizer, text: str) -> None:
    """Every Unicode text, controls and unassigned characters included; surrogates mended."""
    assert tokenizer.decode(tokenizer.encode(text)) == mend_surrogates(text)


@given(st.lists(st.text(max_size=40), max_size=5))
def test_a_batch_is_its_texts(tokenizer: TextTokenizer, texts: list[str]) -> None:
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


@given(st.text(max_size=20), st.text(max_size=20))
def test_no_text_makes_the_end_of_text(tokenizer: TextTokenizer, before: str, after: str) -> None:
    text = f"{before}{END_OF_TEXT}{after}"
    ids = tokenizer.encode(text)
    assert tokenizer.end_of_text not in ids
    assert tokenizer.decode(ids) == text


@given(st.text(max_size=40))
def test_ids_lie_in_the_vocabulary(tokenizer: TextTokenizer, text: str) -> None:
    assert all(0 <= token < tokenizer.vocab_size for token in tokenizer.encode(text))


def test_empty_text_has_no_tokens(tokenizer: TextTokenizer) -> None:
    assert tokenizer.encode("") == []
    assert tokenizer.encode_batch(["", ""]) == [[], []]
    assert tokenizer.decode([]) == ""


def test_end_of_text_is_spelled_out(tokenizer: TextTokenizer) -> None:
    assert tokenizer.decode([tokenizer.end_of_text]) == END_OF_TEXT
    assert tokenizer.token_text(tokenizer.end_of_text) == END_OF_TEXT


def test_the_most_frequent_pair_is_merged_first() -> None:
    """'ab' occurs 6 times, 'bc' and 'cd' less often: id 257, after 256 bytes and one special."""
    tokenizer = fit_bpe(["ab ab ab ab abc bcd cd"], 258)
    assert tokenizer.vocab_size == 258
    assert tokenizer.token_text(257) == "ab"
    assert tokenizer.encode("ab") == [257]


def test_no_merge_crosses_words_lines_or_four_digits() -> None:
    """However often the pairs stand together, a token keeps to one word, number or line end."""
    tokenizer = fit_bpe(["12345678 the end.\n" * 200], 400)
    pieces = [tokenizer.token_text(token) for token in tokenizer.encode("12345678 the end.\n")]
    assert pieces == ["123", "456", "78", " the", " end", ".\n"]


def test_too_little_text_gives_fewer_tokens() -> None:
    """'aaa' allows the merges aa and aaa: 257 + 2."""
    assert fit_bpe(["aaa"], 5000).vocab_size == 257 + 2


def test_vocabulary_below_the_bytes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"vocab_size = 256, expected at least 257"):
        fit_bpe(["text"], 256)
    assert fit_bpe(["text"], 257).vocab_size == 257


def test_no_training_text_is_refused() -> None:
    with pytest.raises(DataError, match="found no training text"):
        fit_bpe([], 300)


def test_validation_text_is_no_sample() -> None:
    seen = [*documents("a", "ab"), *documents("a", "zq", split="validation")]
    assert balanced_sample(seen) == ["ab"]


def test_training_is_the_same_in_another_process() -> None:
    """Hash seeds and thread timing differ between processes; the tokenizer may not."""
    code = (
        "from pellucid.data.tokenizer import fit_bpe\n"
        "import random\n"
        "draw = random.Random(5)\n"
        "words = [''.join(draw.choices('abcdefgh', k=draw.randint(2, 7))) for _ in range(4000)]\n"
        "texts = [' '.join(words[i : i + 50]) for i in range(0, 4000, 50)]\n"
        "print(fit_bpe(texts, 1000).identity)"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
        ).stdout
        for _ in range(3)
    }
    assert len(runs) == 1


def test_sample_takes_each_domain_to_a_common_level() -> None:
    """Bound 100, domains of 20, 200 and 200 bytes: 20 + 40 + 40."""
    corpus = [
        *documents("big", *["b" * 10] * 20),
        *documents("small", *["s" * 10] * 2),
        *documents("large", *["l" * 10] * 20),
    ]
    count = Counter(text[0] for text in balanced_sample(corpus, 100))
    assert count == {"b": 4, "s": 2, "l": 4}


def test_sample_does_not_depend_on_the_order_of_domains() -> None:
    one = [*documents("a", *["a" * 5] * 9), *documents("b", *["b" * 5] * 9)]
    assert balanced_sample(one, 40) == balanced_sample(one[9:] + one[:9], 40)


def test_sample_keeps_a_small_corpus_whole() -> None:
    assert balanced_sample(documents("a", "x", "y"), 2) == ["x", "y"]


def test_a_document_above_the_bound_is_cut_to_the_room_left() -> None:
    """Bound 10: of 11 letters ten are left; beside 4 bytes of another domain, 6."""
    assert balanced_sample(documents("a", "x" * 11), 10) == ["x" * 10]
    two = [*documents("a", "y" * 4), *documents("b", "x" * 11)]
    assert balanced_sample(two, 10) == ["y" * 4, "x" * 6]
    assert balanced_sample(two[::-1], 10) == ["y" * 4, "x" * 6]
    # A domain that takes no more, and one whose only document is dropped down to nothing.
    assert balanced_sample([*documents("b", "x" * 11), *documents("b", "x")], 10) == ["x" * 10]
    assert balanced_sample(documents("a", "€€"), 2) == []


def test_a_cut_keeps_whole_characters() -> None:
    """A euro sign takes three bytes: ten hold three of them."""
    assert balanced_sample(documents("a", "€" * 9), 10) == ["€€€"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9)), max_size=40))
def test_sample_is_bounded_and_fair(draws: list[tuple[str, int]]) -> None:
    """No domain lacks a document while another holds two of the largest (9 bytes) more.

    A domain gives back one document, 9 bytes below the level at most; the room that makes lets
    another rise by 9 above it.
    """
    corpus = [document for name, size in draws for document in documents(name, name * size)]
    kept = Counter({name: 0 for name, _ in draws})
    for text in balanced_sample(corpus, 60):
        kept[text[0]] += len(text)
    total = Counter({name: 0 for name, _ in draws})
    for name, size in draws:
        total[name] += size
    assert kept.total() <= 60
    short = [kept[name] for name in kept if kept[name] < total[name]]
    assert all(level >= max(kept.values()) - 18 for level in short)


def test_token_text_of_whole_and_broken_characters(tokenizer: TextTokenizer) -> None:
    """A euro sign is the bytes e2 82 ac, none of which stands alone."""
    pieces = [tokenizer.token_text(token) for token in tokenizer.encode("€")]
    assert pieces == ["\\xe2", "\\x82", "\\xac"]
    pieces = [tokenizer.token_text(token) for token in tokenizer.encode(" the cat\n")]
    assert "".join(pieces) == " the cat\n"
    assert pieces[0] == " the"


def test_token_text_of_an_id_that_does_not_exist(tokenizer: TextTokenizer) -> None:
    assert tokenizer.token_text(tokenizer.vocab_size + 5) == f"⟨{tokenizer.vocab_size + 5}⟩"


def test_token_text_of_a_sentencepiece_vocabulary() -> None:
    backend = CompiledBackend(word_tokenizer(**{"unknown": 0, "</s>": 1, "▁the": 2}))
    tokenizer = TextTokenizer(backend, 1)
    assert tokenizer.token_text(2) == " the"


def test_saved_and_loaded(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "deep" / "folder")
    for place in (tmp_path / "deep" / "folder", tmp_path / "deep" / "folder" / "tokenizer.json"):
        again = load_tokenizer(place)
        assert again.identity == tokenizer.identity
        assert again.end_of_text == tokenizer.end_of_text
        assert again.encode("the café") == tokenizer.encode("the café")


def test_transformers_loads_what_is_saved(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    text = "def read(self):\n    return 'naïve  café .'\n"
    assert theirs(text)["input_ids"] == tokenizer.encode(text)
    assert theirs.decode(theirs(text)["input_ids"]) == text
    assert theirs.eos_token_id == theirs.bos_token_id == tokenizer.end_of_text
    assert len(theirs) == tokenizer.vocab_size
    assert theirs(END_OF_TEXT)["input_ids"] == [tokenizer.end_of_text]


def test_through_transformers_it_is_the_same(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    """There and back, saved by either side, the identity stays: caches stay valid."""
    tokenizer.save(tmp_path / "ours")
    theirs = load_tokenizer(f"hub:{tmp_path / 'ours'}")
    assert theirs.identity == tokenizer.identity
    assert theirs.encode(f"a{END_OF_TEXT} b") == tokenizer.encode(f"a{END_OF_TEXT} b")
    theirs.save(tmp_path / "theirs")
    assert load_tokenizer(tmp_path / "theirs").identity == tokenizer.identity


def test_a_python_tokenizer_from_its_folder(tmp_path: Path) -> None:
    """ByT5 has no tokenizer.json; its end of text is </s>, id 1."""
    from transformers import ByT5Tokenizer

    ByT5Tokenizer().save_pretrained(str(tmp_path / "byt5"))
    tokenizer = load_tokenizer(tmp_path / "byt5")
    assert tokenizer.end_of_text == 1
    assert tokenizer.encode("a</s>") == [byte + 3 for byte in b"a</s>"]
    tokenizer.save(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").identity == tokenizer.identity


def test_identity_follows_vocabulary_and_end(tokenizer: TextTokenizer) -> None:
    other = fit_bpe(["another text altogether " * 9], 300)
    words = CompiledBackend(word_tokenizer(unknown=0, a=1, b=2))
    identities = {other.identity, tokenizer.identity, TextTokenizer(words, 1).identity}
    assert len(identities | {TextTokenizer(words, 2).identity}) == 4


def test_vocab_size_counts_to_the_largest_id() -> None:
    """Ids may have holes; a model's table must reach the last one: 9 + 1."""
    assert TextTokenizer(CompiledBackend(word_tokenizer(unknown=0, a=9)), 9).vocab_size == 10


def test_the_end_is_found_by_name_or_by_config(tmp_path: Path) -> None:
    """</s> is known by name; <stop> only because the config names it."""
    file = tmp_path / "tokenizer.json"
    word_tokenizer(**{"unknown": 0, "</s>": 1, "<stop>": 2}).save(str(file))
    assert load_tokenizer(file).end_of_text == 1
    for stop in ("<stop>", {"content": "<stop>", "special": True}):
        config = json.dumps({"eos_token": stop, "bos_token": None})
        (tmp_path / "tokenizer_config.json").write_text(config, encoding="utf-8")
        assert load_tokenizer(file).end_of_text == 2


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    word_tokenizer(unknown=0, a=1).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match=r"tokenizer.json: has no end-of-text token; expected one"):
        load_tokenizer(tmp_path)


def test_text_that_spells_the_end_is_refused() -> None:
    """A vocabulary of characters whose end of text is the ordinary letter x."""
    tokenizer = word_tokenizer(unknown=0, a=1, b=2, x=3)
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    with pytest.raises(DataError, match=r"text that spells .* is encoded as the end of text"):
        TextTokenizer(CompiledBackend(tokenizer), 3)


@pytest.mark.parametrize("content", ["", "{", '{"version": "1.0"}', "\x00\x01"])
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"tokenizer.json: expected a tokenizer, found") as caught:
        load_tokenizer(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_damaged_config_is_refused(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"tokenizer_config.json: expected JSON"):
        load_tokenizer(tmp_path)


def test_a_missing_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such tokenizer; give a tokenizer.json"):
        load_tokenizer(tmp_path / "nowhere")


def test_a_folder_transformers_cannot_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the tokenizer cannot be loaded: ") as caught:
        load_tokenizer(f"hub:{tmp_path}")
    assert len(str(caught.value).splitlines()) == 1
