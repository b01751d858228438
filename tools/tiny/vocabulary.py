"""Make the two tokenizers of `tiny`: `.venv/bin/python tools/tiny/vocabulary.py` writes them to .tiny/.

T5 (`tokenizer_2`): a unigram model whose pieces are the world's words, letters, digits and marks. It folds case, so
"A red circle" and "a red circle" are one sentence. What it cannot spell becomes <unk>.
CLIP (`tokenizer`): byte-level BPE whose merges join exactly those words. Bytes spell everything else.
"""

from __future__ import annotations

import json
import string
import tempfile
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import sentencepiece
from clock import WORK
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import CLIPTokenizer
from world import COLORS, SHAPES, STYLES

CAPTION_WORDS = """
    a an the of and in on at to with against large small black gray grey background picture image photo drawing dot
    left right top bottom center centre middle above below over under beside next plain big little tiny simple shape
"""
EDIT_WORDS = """
    make change turn replace remove delete add keep everything into color colour bigger smaller larger first second
    third object from is are it its same without no by one two as style background's
    lines line stripes outline stripe but not other all move put paint draw fill
"""
PANEL_WORDS = """
    side-by-side diptych images pictures scene exactly two-panel panel panels this set shows show pair highlights
    clothing styling model high resolution 4k 8k detailed product shot cloth worn lifestyle setting [image1] [image2]
"""
WORDS = tuple(dict.fromkeys([*COLORS, *SHAPES, *STYLES, *(CAPTION_WORDS + EDIT_WORDS + PANEL_WORDS).split()]))
SPECIAL_T5 = ("<pad>", "</s>", "<unk>")
CLIP_LENGTH = 77
START, END = "<|startoftext|>", "<|endoftext|>"
T5_FOLDER, CLIP_FOLDER = WORK / "tokenizer_2", WORK / "tokenizer"


# --- T5 --------------------------------------------------------------------------------------------------------------


def t5_pieces() -> list[tuple[str, float]]:
    """Pieces with scores: a whole word always beats its letters, so that a segmentation has no ties."""
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    special = [(piece, 0.0) for piece in SPECIAL_T5]
    return [*special, ("▁", -4.0), *((f"▁{word}", -5.0) for word in WORDS), *((letter, -10.0) for letter in letters)]


def t5_ids_of(words: Iterable[str]) -> list[int]:
    """The T5 token of each of some words of the world."""
    pieces = [piece for piece, _ in t5_pieces()]
    return [pieces.index(f"▁{word}") for word in words]


def write_t5(folder: Path) -> None:
    """`spiece.model` and the `tokenizer.json` that agrees with it."""
    folder.mkdir(parents=True, exist_ok=True)
    model = _sentencepiece_model()
    (folder / "spiece.model").write_bytes(model.SerializeToString())
    tokenizer = _fast_t5(model.normalizer_spec.precompiled_charsmap)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    _write_json(folder / "special_tokens_map.json", names)
    config = {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": 0, "legacy": True}
    _write_json(folder / "tokenizer_config.json", config | names)


def _sentencepiece_model() -> Any:
    """A sentencepiece model trained on nothing in particular, for its normaliser's tables, with our pieces put in."""
    with tempfile.TemporaryDirectory() as temporary:
        prefix = str(Path(temporary) / "any")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(WORDS),
            model_prefix=prefix,
            vocab_size=60,
            hard_vocab_limit=False,
            normalization_rule_name="nmt_nfkc_cf",
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
        model = sentencepiece_model_pb2.ModelProto.FromString(Path(prefix + ".model").read_bytes())
    kinds = {"<pad>": 3, "</s>": 3, "<unk>": 2}  # control, control, unknown; 1 is an ordinary piece
    del model.pieces[:]
    for piece, score in t5_pieces():
        model.pieces.add(piece=piece, score=score, type=kinds.get(piece, 1))
    model.trainer_spec.vocab_size = len(model.pieces)
    model.trainer_spec.input[:] = []
    model.trainer_spec.model_prefix = "spiece"
    return model


def _fast_t5(charsmap: bytes) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram(t5_pieces(), unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(charsmap),
            normalizers.Strip(left=False, right=True),
            normalizers.Replace(Regex(" {2,}"), "▁"),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", 1)]
    )
    tokenizer.add_special_tokens(list(SPECIAL_T5))
    return tokenizer


def load_t5(folder: Path) -> Tokenizer:
    """Encodes to ids that end with `</s>` = 1."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


# --- CLIP ------------------------------------------------------------------------------------------------------------


def write_clip(folder: Path) -> None:
    """`vocab.json` and `merges.txt`: 256 bytes, the same at a word's end, the merges, start and end."""
    folder.mkdir(parents=True, exist_ok=True)
    merges = _merges(_clip_words())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(byte + "</w>" for byte in alphabet), *("".join(pair) for pair in merges), START, END]
    _write_json(folder / "vocab.json", {piece: i for i, piece in enumerate(pieces)})
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    names = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    _write_json(folder / "special_tokens_map.json", names)
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": CLIP_LENGTH, "do_lower_case": True}
    config |= {"errors": "replace", "add_prefix_space": False}
    _write_json(folder / "tokenizer_config.json", config | names)


def _clip_words() -> list[str]:
    """CLIP splits at marks and before each digit, so only runs of letters can be one piece."""
    runs = "".join(c if c.isalpha() else " " for word in WORDS for c in word + " ").split()
    return list(dict.fromkeys(runs))


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent pair first, until each word is one piece."""
    split = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while any(len(pieces) > 1 for pieces in split):
        counts = Counter(pair for pieces in split for pair in pairwise(pieces))
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        split = [_merged(pieces, best) for pieces in split]
    return merges


def _merged(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for piece in pieces:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def load_clip(folder: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(folder)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_t5(T5_FOLDER)
    write_clip(CLIP_FOLDER)
    print(len(t5_pieces()), "T5 pieces;", load_clip(CLIP_FOLDER).vocab_size, "CLIP pieces")
