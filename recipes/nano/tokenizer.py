"""Learn the text encoder's vocabulary of unigram pieces from the recipe's prompts."""

import tempfile
from itertools import islice
from pathlib import Path

import sentencepiece
from transformers import T5Tokenizer

from recipes.nano.prompts import MAX_TOKENS, labelled_prompts

NUM_PROMPTS = 60_000
# Capitals, accents and typographic marks are read as their plain forms.
_ACCENTED = {
    "a": "àáâãäåāą", "c": "çćč", "d": "ď", "e": "èéêëēėę", "i": "ìíîïī", "l": "ł", "n": "ñńň",
    "o": "òóôõöøō", "r": "ř", "s": "śš", "t": "ť", "u": "ùúûüūů", "y": "ýÿ", "z": "źżž",
}  # fmt: skip
_PLAIN = {"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "...", "\u00a0": " "}


def train_tokenizer(folder: Path, words: list[str], vocab_size: int, seed: int = 0) -> T5Tokenizer:
    """Learn `vocab_size` pieces and write them to `folder` as diffusers' pipelines load them."""
    prompts = [prompt.text for prompt in islice(labelled_prompts(seed, words), NUM_PROMPTS)]
    with tempfile.TemporaryDirectory() as work:
        rules = Path(work, "rules.tsv")
        rules.write_text("\n".join(_rules()) + "\n", encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(prompts + words),
            model_prefix=f"{work}/spiece",
            vocab_size=vocab_size,
            model_type="unigram",
            character_coverage=1.0,
            normalization_rule_tsv=str(rules),
            required_chars="abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'\"()-&%/",
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
        tokenizer = T5Tokenizer.from_pretrained(work, extra_ids=0, model_max_length=MAX_TOKENS)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _rules() -> list[str]:
    """Lines `from<tab>to` of hexadecimal code points, the format of sentencepiece."""
    pairs = dict(_PLAIN)
    for letter in "abcdefghijklmnopqrstuvwxyz":
        pairs[letter.upper()] = letter
    for plain, accented in _ACCENTED.items():
        for letter in accented:
            pairs[letter] = pairs[letter.upper()] = plain
    return [f"{_hex(source)}\t{_hex(target)}" for source, target in pairs.items()]


def _hex(text: str) -> str:
    return " ".join(f"{ord(character):X}" for character in text)
