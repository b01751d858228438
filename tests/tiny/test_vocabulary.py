"""Both tokenizers: every string encodes, and all ways to load them agree."""

from __future__ import annotations

import json

import numpy as np
import pytest
import sentencepiece
from transformers import CLIPTokenizer, T5TokenizerFast

from captions import caption
from evaluate import SHIPPED
from vocabulary import END, load_t5
from world import sample_scene

T5, CLIP = SHIPPED / "base" / "tokenizer_2", SHIPPED / "base" / "tokenizer"
STRANGE = ["", "  two   spaces ", "Émile 漢字", "🙂🏽", "a\tb\nc", "½ Ⅷ ﬁ", "A Red Circle.", "x" * 300, "\u200d\u0301"]


def captions() -> list[str]:
    rng = np.random.default_rng(1)
    return [caption(sample_scene(rng), rng).text for _ in range(300)]


@pytest.mark.parametrize("text", STRANGE)
def test_t5_files_agree_on_any_string(text: str):
    slow = sentencepiece.SentencePieceProcessor(model_file=str(T5 / "spiece.model")).encode(text)
    slow.append(1)
    assert load_t5(T5).encode(text).ids == slow
    assert T5TokenizerFast.from_pretrained(T5)(text).input_ids == slow


def test_a_caption_is_at_most_23_tokens_and_none_is_unknown():
    ids = [encoding.ids for encoding in load_t5(T5).encode_batch(captions())]
    assert max(map(len, ids)) <= 23
    assert not any(2 in one for one in ids)


def test_t5_folds_case():
    tokenizer = load_t5(T5)
    assert tokenizer.encode("A Red Circle").ids == tokenizer.encode("a red circle").ids


@pytest.mark.parametrize("text", STRANGE)
def test_clip_spells_any_string_within_77_tokens(text: str):
    ids = CLIPTokenizer.from_pretrained(CLIP)(text, truncation=True, max_length=77).input_ids
    assert 2 <= len(ids) <= 77
    assert ids[-1] == CLIPTokenizer.from_pretrained(CLIP).eos_token_id


def test_each_word_of_a_caption_is_one_clip_token():
    tokenizer = CLIPTokenizer.from_pretrained(CLIP)
    for text in captions()[:50]:
        words = text.replace(",", " ,").replace(".", " .").split()
        assert len(tokenizer(text).input_ids) == len(words) + 2


def test_clip_s_config_names_the_real_end_token():
    config = json.loads((SHIPPED / "base" / "text_encoder" / "config.json").read_text())
    vocabulary = json.loads((CLIP / "vocab.json").read_text())
    assert config["eos_token_id"] == vocabulary[END]
