"""A tiny language model as a .gguf file: the llama architecture with random weights, and a tokenizer of bytes and letters."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
LETTERS = [*"abcdefghijklmnopqrstuvwxyz", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", *" .,?!0123456789", " the", " of", "ing", "er"]


def write(
    path: Path,
    *,
    seed: int = 0,
    arch: str = "llama",
    context: int = 256,
    width: int = 64,
    layers: int = 2,
    template: str | None = TEMPLATE,
) -> Path:
    """Writes the model (about 470 KB) and returns its path. Bytes and special tokens are improbable, so that its answers are letters.

    Args:
        path: ends in .gguf.
        seed: of the weights.
        arch: the name that the file gives of the architecture.
        context: tokens that it was trained for, as the file says.
        width: of the embedding.
        layers: of it.
        template: of a chat; None: the file has none.
    """
    random = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(path), arch)
    heads, inner = 4, 2 * width
    writer.add_name("tiny")
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // heads)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    kinds, normal = gguf.TokenType, gguf.TokenType.NORMAL
    tokens = [(b"<unk>", kinds.UNKNOWN), (b"<s>", kinds.CONTROL), (b"</s>", kinds.CONTROL)]
    tokens += [(f"<0x{byte:02X}>".encode(), kinds.BYTE) for byte in range(256)]
    tokens += [(letter.replace(" ", "\u2581").encode(), normal) for letter in LETTERS]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([token for token, _ in tokens])
    writer.add_token_scores([-float(i) for i in range(len(tokens))])
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    if template is not None:
        writer.add_chat_template(template)

    def tensor(name: str, *shape: int, scale: float = 0.3) -> None:
        writer.add_tensor(name, random.normal(0, scale, shape).astype(np.float32))

    tensor("token_embd.weight", len(tokens), width, scale=1.0)
    head = random.normal(0, 0.5, (len(tokens), width)).astype(np.float32)
    head[: len(tokens) - len(LETTERS)] = 0
    writer.add_tensor("output.weight", head)
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    for i in range(layers):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{name}.weight", np.ones(width, np.float32))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensor(f"blk.{i}.{name}.weight", width, width)
        tensor(f"blk.{i}.ffn_gate.weight", inner, width)
        tensor(f"blk.{i}.ffn_up.weight", inner, width)
        tensor(f"blk.{i}.ffn_down.weight", width, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
