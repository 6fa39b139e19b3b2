"""The data config: its JSON round trip and its bounds."""

import dataclasses

import pytest

from pellucid.core.config import from_dict, to_dict
from pellucid.core.errors import ConfigError
from pellucid.data.document import DataConfig, Document


def test_config_survives_json() -> None:
    config = DataConfig(source="data", tokenizer="hub:gpt2", max_bytes=7, validation_share=0.5)
    assert from_dict(DataConfig, to_dict(config)) == config


def test_defaults_are_the_embedded_corpus_and_a_trained_tokenizer() -> None:
    config = from_dict(DataConfig, {})
    assert (config.source, config.tokenizer, config.max_bytes) == ("embedded", "train", None)
    assert not config.mask_documents


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5])
def test_a_share_outside_the_open_interval_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=rf"validation_share = {share}, expected a share"):
        DataConfig(validation_share=share)


@pytest.mark.parametrize("bound", [0, -5])
def test_a_bound_below_one_byte_is_refused(bound: int) -> None:
    with pytest.raises(ConfigError, match=f"^max_bytes: expected at least 1, found {bound}$"):
        DataConfig(max_bytes=bound)


def test_an_unknown_key_offers_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'text_field'"):
        from_dict(DataConfig, {"text_feild": "body"})


def test_a_document_cannot_be_changed() -> None:
    document = Document(id="1", text="a", domain="b", split="train")
    with pytest.raises(dataclasses.FrozenInstanceError):
        document.text = "c"  # pyright: ignore[reportAttributeAccessIssue]
