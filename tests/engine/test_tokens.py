"""Are the ids those of transformers' own tokenizers, for any string?"""

import random

import pytest

from mflux.engine.tokens import open_clip, open_t5

WORDS = ["a", "The", "  ", "\n", "\t", "isn't", "日本語", "🦊", "é", "e\u0301", "</s>", "<|endoftext|>", "①", "ﬁ"]
WORDS += ["<extra_id_3>", "1,234.5", "A" * 30, "\x07", "I'LL", "ß", "İ", "_", "▁", "…", "“q”", "\r\n", "<pad>", "<unk>"]


def strings():
    chance = random.Random(1)
    for _ in range(300):
        yield (" " if chance.random() < 0.5 else "").join(chance.choices(WORDS, k=chance.randint(0, 12)))


@pytest.mark.parametrize("model", ["dev", "schnell"])
def test_the_ids_are_those_of_transformers(oracle_model, model):
    from transformers import CLIPTokenizer, T5TokenizerFast

    folder = oracle_model(model)
    pairs = [
        (open_clip(folder / "tokenizer"), CLIPTokenizer.from_pretrained(folder / "tokenizer"), 77),
        (open_t5(folder / "tokenizer_2"), T5TokenizerFast.from_pretrained(folder / "tokenizer_2"), 48),
    ]
    for ours, theirs, length in pairs:
        for text in strings():
            wanted = theirs(text, padding="max_length", max_length=length, truncation=True).input_ids
            assert ours.ids([text], length)[0].tolist() == wanted, text


def test_undecodable_bytes_of_a_command_line_do_not_stop_it(oracle_model):
    for opened in (open_clip(oracle_model("dev") / "tokenizer"), open_t5(oracle_model("dev") / "tokenizer_2")):
        assert opened.ids(["a \udcff b"], 16).tolist() == opened.ids(["a ? b"], 16).tolist()


def test_the_count_says_how_long_the_whole_prompt_is(oracle_model):
    opened = open_t5(oracle_model("dev") / "tokenizer_2")
    words = "fox " * 30
    assert opened.count(words) > 16 and opened.ids([words], 16).shape == (1, 16)
    assert opened.count("") == 1
