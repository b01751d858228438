"""Heads that begin by looking at one place look there, in the arithmetic of diffusers' own attention."""

import pytest

torch = pytest.importorskip("torch", reason="the parity extra is not installed")
pytest.importorskip("diffusers", reason="the parity extra is not installed")
pytest.importorskip("peft", reason="the parity extra is not installed")

from diffusers.models.embeddings import apply_rotary_emb  # noqa: E402
from diffusers.models.transformers.transformer_flux import FluxPosEmbed  # noqa: E402

from copying import SHARP, looking  # noqa: E402
from networks import image_ids  # noqa: E402

TEXT = 32


def attention(queries, keys, ids):
    """Shares (N, N) of one head whose tokens all have the same q and k; its norms have the weight SHARP."""
    rope = FluxPosEmbed(10000, (8, 12, 12))(ids)
    q, k = (each * each.square().mean().rsqrt() * SHARP for each in (queries, keys))
    q, k = (apply_rotary_emb(each.expand(1, len(ids), 1, -1), rope, sequence_dim=1)[0, :, 0] for each in (q, k))
    return (q @ k.T / 32**0.5).softmax(dim=1)


def test_a_head_of_kontext_looks_at_the_same_place_of_the_reference():
    ids = torch.cat([torch.zeros(TEXT, 3), image_ids(8, 8), image_ids(8, 8, number=1)])
    drawn = attention(looking(number=1), looking(), ids)[TEXT : TEXT + 64]
    same = drawn[:, TEXT + 64 :].diagonal()
    assert same[1:].min() > 0.6 and drawn.argmax(dim=1)[1:].tolist() == list(range(TEXT + 65, TEXT + 128))


def test_a_head_of_panels_looks_at_the_same_place_of_the_left_one():
    ids = torch.cat([torch.zeros(TEXT, 3), image_ids(8, 16)])
    drawn = attention(looking(None, column=-8), looking(None), ids)[TEXT:].view(8, 16, -1)
    where = drawn[:, 8:].argmax(dim=2) - TEXT
    assert where[1:].flatten().tolist() == [16 * row + column for row in range(1, 8) for column in range(8)]
