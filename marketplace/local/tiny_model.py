"""Writes the demo's model: a random-weight llama GGUF of half a megabyte that a real llama.cpp serves.

The vocabulary is one token per byte and a space token, so the engine's own tokenizer maps printable text to
tokens one to one: what was sampled re-tokenises to exactly as many tokens. One hidden dimension carries a
constant through all layers and drives the logits, so that only printable ASCII and the end token are ever
sampled. It says nothing sensible, at the frequency of English letters.
"""

from math import log
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, LlamaFileType, TokenType
from numpy.typing import NDArray

DEFAULT_CONTEXT = 2048
UNKNOWN, BEGIN, END, TURN = 0, 1, 2, 3
_SPECIAL = ("<unk>", "<s>", "</s>", "<|turn|>")
_BYTES_FROM = len(_SPECIAL)
_SPACE = _BYTES_FROM + 256
_VOCABULARY = _SPACE + 1

_LAYERS = 2
_WIDTH = 64
_HEADS = 4
_FEED_FORWARD = 128
_EPSILON = 1e-5
_DRIVER = 0  # The hidden dimension that no layer writes to.

# Never sampled: far below what the random part of a logit can make up for.
_FORBIDDEN_LOGIT = -200.0
# Relative frequency of a printable character, per 10,000; what is not named shares the small rest.
_FREQUENCIES = {
    " ": 1700,
    "e": 1020,
    "t": 740,
    "a": 650,
    "o": 620,
    "i": 570,
    "n": 570,
    "s": 530,
    "h": 490,
    "r": 490,
}
_FREQUENCIES |= {
    "d": 350,
    "l": 330,
    "u": 230,
    "c": 220,
    "m": 200,
    "w": 190,
    "f": 180,
    "g": 160,
    "y": 160,
    "p": 150,
}
_FREQUENCIES |= {"b": 120, "v": 80, "k": 60, ",": 100, ".": 100, "x": 12, "j": 10, "q": 8, "z": 6}
_RARE = 4
_END_FREQUENCY = 240

CHAT_TEMPLATE = (
    "{% for message in messages %}<|turn|>{{ message['role'] }}\n{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


def write_tiny_model(
    path: Path, *, seed: int = 1, n_ctx: int = DEFAULT_CONTEXT, name: str = "tokenyard-tiny"
) -> None:
    """Writes the model to `path`, whole or not at all. Same arguments, same bytes; another seed, another
    model.

    `n_ctx` is the context length that the model declares it was trained for.
    """
    partial = path.with_name(path.name + ".partial")
    writer = GGUFWriter(partial, "llama")
    writer.add_name(name)
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(_LAYERS)
    writer.add_feed_forward_length(_FEED_FORWARD)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS)
    writer.add_layer_norm_rms_eps(_EPSILON)
    writer.add_rope_dimension_count(_WIDTH // _HEADS)
    writer.add_vocab_size(_VOCABULARY)
    writer.add_file_type(LlamaFileType.ALL_F32)
    _add_vocabulary(writer)
    for tensor_name, tensor in _weights(np.random.default_rng(seed)).items():
        writer.add_tensor(tensor_name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.replace(path)


def _add_vocabulary(writer: GGUFWriter) -> None:
    # SentencePiece writes a space as U+2581; without a token for it every space would be three byte tokens.
    tokens = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.CONTROL]
    types += [TokenType.BYTE] * 256 + [TokenType.NORMAL]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * _VOCABULARY)
    writer.add_token_types(types)
    writer.add_unk_token_id(UNKNOWN)
    writer.add_bos_token_id(BEGIN)
    writer.add_eos_token_id(END)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _weights(random: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    def matrix(rows: int, columns: int, scale: float) -> NDArray[np.float32]:
        return random.normal(0.0, scale, (rows, columns)).astype(np.float32)

    embedding = matrix(_VOCABULARY, _WIDTH, 1.0)
    embedding[:, _DRIVER] = 1.0
    output = matrix(_VOCABULARY, _WIDTH, 0.15)
    output[:, _DRIVER] = _driven_logits()
    ones = np.ones(_WIDTH, dtype=np.float32)
    tensors = {"token_embd.weight": embedding, "output_norm.weight": ones, "output.weight": output}
    for layer in range(_LAYERS):
        block = f"blk.{layer}."
        attention_out = matrix(_WIDTH, _WIDTH, 0.15)
        feed_forward_down = matrix(_WIDTH, _FEED_FORWARD, 0.1)
        attention_out[_DRIVER] = 0.0
        feed_forward_down[_DRIVER] = 0.0
        tensors |= {
            block + "attn_norm.weight": ones,
            block + "attn_q.weight": matrix(_WIDTH, _WIDTH, 0.3),
            block + "attn_k.weight": matrix(_WIDTH, _WIDTH, 0.3),
            block + "attn_v.weight": matrix(_WIDTH, _WIDTH, 0.15),
            block + "attn_output.weight": attention_out,
            block + "ffn_norm.weight": ones,
            block + "ffn_gate.weight": matrix(_FEED_FORWARD, _WIDTH, 0.15),
            block + "ffn_up.weight": matrix(_FEED_FORWARD, _WIDTH, 0.15),
            block + "ffn_down.weight": feed_forward_down,
        }
    return tensors


def _driven_logits() -> NDArray[np.float32]:
    logits = np.full(_VOCABULARY, _FORBIDDEN_LOGIT, dtype=np.float32)
    logits[END] = log(_END_FREQUENCY)
    for byte in range(0x21, 0x7F):
        logits[_BYTES_FROM + byte] = log(_FREQUENCIES.get(chr(byte), _RARE))
    logits[_SPACE] = log(_FREQUENCIES[" "])
    return logits
