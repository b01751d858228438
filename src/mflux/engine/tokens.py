"""Prompts to token ids.

Both tokenizers are `tokenizers` pipelines opened directly: importing transformers' classes would cost 0.9 s.  They give
the same ids as transformers' CLIPTokenizer and T5TokenizerFast.
"""

from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from mflux.errors import ModelError
from mflux.weights.files import read_json

# The pieces that byte-pair encoding never crosses.  Source: OpenAI's CLIP.
CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class PromptTokenizer:
    """Ids of prompts, cut and padded to a length."""

    def __init__(self, tokenizer: Tokenizer, pad: int, folder: Path):
        self._tokenizer, self._pad, self.folder = tokenizer, pad, folder

    def ids(self, prompts: list[str], length: int) -> np.ndarray:
        """(len(prompts), length) int64; too long prompts are cut, the end token is kept."""
        self._tokenizer.enable_truncation(length)
        self._tokenizer.enable_padding(length=length, pad_id=self._pad)
        # Lone surrogates come from undecodable bytes on the command line; no tokenizer takes them.
        clean = [prompt.encode("utf-8", "replace").decode("utf-8") for prompt in prompts]
        return np.array([encoding.ids for encoding in self._tokenizer.encode_batch(clean)], np.int64)

    def count(self, prompt: str) -> int:
        """How many ids the whole prompt has, its end token included."""
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        return len(self._tokenizer.encode(prompt.encode("utf-8", "replace").decode("utf-8")).ids)


def open_clip(folder: Path) -> PromptTokenizer:
    """CLIP's byte-level BPE from `vocab.json` and `merges.txt`, or from a `tokenizer.json` that holds both."""
    settings = read_json(folder / "tokenizer_config.json")
    try:
        vocabulary, merges = byte_pairs(folder)
        start, end = token(settings, "bos_token", "<|startoftext|>"), token(settings, "eos_token", "<|endoftext|>")
        pad = token(settings, "pad_token", end)
        bpe = models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>", unk_token=end)
        tokenizer = Tokenizer(bpe)
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        words = pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        tokenizer.add_special_tokens(special_tokens(settings) or [AddedToken(start), AddedToken(end)])
        ends = ((end, vocabulary[end]), (start, vocabulary[start]))
        tokenizer.post_processor = processors.RobertaProcessing(*ends, trim_offsets=False, add_prefix_space=False)
        return PromptTokenizer(tokenizer, vocabulary[pad], folder)
    except ModelError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelError(f"the tokenizer in `{folder}` is damaged ({error})", "download the model again") from None


def byte_pairs(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    whole = folder / "tokenizer.json"
    if (folder / "vocab.json").is_file() or not whole.is_file():
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
        merges = [pair(line.split()) for line in lines if line and not line.startswith("#version")]
        return read_json(folder / "vocab.json"), merges
    model = read_json(whole)["model"]
    return model["vocab"], [pair(each.split() if isinstance(each, str) else each) for each in model["merges"]]


def open_t5(folder: Path) -> PromptTokenizer:
    """T5's SentencePiece unigram model from `tokenizer.json`; from `spiece.model` alone by way of transformers."""
    path = folder / "tokenizer.json"
    try:
        if path.is_file():
            tokenizer = Tokenizer.from_file(str(path))
        elif (folder / "spiece.model").is_file():
            from transformers import T5TokenizerFast  # type: ignore[attr-defined]

            tokenizer = T5TokenizerFast.from_pretrained(str(folder)).backend_tokenizer
        else:
            raise ModelError(f"`{folder}` has neither `tokenizer.json` nor `spiece.model`", "the model is incomplete")
        pad = tokenizer.token_to_id(token(read_json(folder / "tokenizer_config.json"), "pad_token", "<pad>"))
        return PromptTokenizer(tokenizer, pad or 0, folder)
    except ModelError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise ModelError(f"the tokenizer in `{folder}` is damaged ({error})", "download the model again") from None


def pair(pieces: list[str]) -> tuple[str, str]:
    first, second = pieces
    return first, second


def token(settings: dict[str, Any], key: str, default: str) -> str:
    """The text of one special token; older files store a dictionary."""
    value = settings.get(key) or default
    return value["content"] if isinstance(value, dict) else value


def special_tokens(settings: dict[str, Any]) -> list[AddedToken]:
    """The tokens that a tokenizer_config.json declares special, in the order of their ids."""
    table = settings.get("added_tokens_decoder", {})
    names = ("lstrip", "rstrip", "normalized", "single_word")
    return [
        AddedToken(entry["content"], special=True, **{name: entry.get(name, False) for name in names})
        for _, entry in sorted(table.items(), key=lambda item: int(item[0]))
    ]
