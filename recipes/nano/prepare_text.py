"""Learn the vocabulary and write prompts as token ids for training."""

import argparse
from itertools import islice
from pathlib import Path

import numpy as np
from transformers import T5Tokenizer

from recipes.nano.camera import MOVES, SPEEDS
from recipes.nano.config import DEFAULT, load_recipe
from recipes.nano.prompts import MAX_TOKENS, labelled_prompts, read_words
from recipes.nano.tokenizer import train_tokenizer


def main() -> None:
    """Write OUTPUT/tokenizer and OUTPUT/prompts.npz (ids int16 [num_prompts, MAX_TOKENS], label
    int16).
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--config", type=Path, default=DEFAULT)
    parser.add_argument("--tokenizer", type=Path, help="an existing tokenizer folder to keep")
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.config)
    words = read_words(arguments.words)
    if arguments.tokenizer:
        tokenizer = T5Tokenizer.from_pretrained(arguments.tokenizer)
        tokenizer.save_pretrained(arguments.output / "tokenizer")
    else:
        folder = arguments.output / "tokenizer"
        tokenizer = train_tokenizer(folder, words, recipe.text.vocab_size, recipe.seed)
    prompts = list(islice(labelled_prompts(recipe.seed + 1, words), recipe.text.num_prompts))
    encoded = tokenizer(
        [prompt.text for prompt in prompts],
        padding="max_length",
        max_length=MAX_TOKENS,
        truncation=True,
        return_tensors="np",
    )
    speeds = list(SPEEDS)
    labels = [MOVES.index(p.move) * len(SPEEDS) + speeds.index(p.speed) for p in prompts]
    np.savez_compressed(
        arguments.output / "prompts.npz",
        ids=encoded["input_ids"].astype(np.int16),
        label=np.array(labels, dtype=np.int16),
    )
    print(f"{len(tokenizer)} pieces, {len(prompts)} prompts")


if __name__ == "__main__":
    main()
