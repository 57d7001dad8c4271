"""The tokenizer of a checkpoint, and its token counts without importing transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from vidgen_ray.errors import ConfigError
from vidgen_ray.model.quiet import quiet
from vidgen_ray.model.weights import cannot_load


def token_counter(folder: Path, vocab_size: int) -> Callable[[str], int]:
    """How many tokens a text has, with the one that ends it. Raises ConfigError."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        converted = load_tokenizer(folder, vocab_size)
        return lambda text: len(converted(text).input_ids)
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the bindings raise plain Exception
        raise cannot_load(folder, error) from error
    tokenizer.no_truncation()  # a file may ask for it
    tokenizer.no_padding()
    _check_vocabulary(folder, tokenizer.get_vocab_size(), vocab_size)
    return lambda text: len(tokenizer.encode(text).ids)


def load_tokenizer(folder: Path, vocab_size: int) -> Any:
    """The tokenizer of a text encoder with `vocab_size` embeddings. Raises ConfigError."""
    from transformers import T5Tokenizer

    quiet()
    try:
        tokenizer = T5Tokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise cannot_load(folder, error) from error
    if tokenizer.pad_token is None:
        raise ConfigError(f"model.checkpoint: {folder} has no pad token; take that of the model")
    _check_vocabulary(folder, len(tokenizer), vocab_size)
    return tokenizer


def _check_vocabulary(folder: Path, num_tokens: int, vocab_size: int) -> None:
    if num_tokens > vocab_size:
        raise ConfigError(
            f"model.checkpoint: {folder} has {num_tokens} tokens, over the text encoder's "
            f"vocab_size of {vocab_size}; take both from one checkpoint"
        )
