"""FluxSpace: what is bit-identical, what the mathematics promise, and what is refused.  F1..F17 of methods.md."""

import sys
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mflux import Config, UsageError
from mflux.conditions import FluxSpace, Kontext, Redux
from mflux.conditions.fluxspace import Edit, FineEdit, attention_to, direction, moved, moved_pooled
from mflux.engine.denoise import At
from mflux.engine.network import Network
from mflux.engine.slots import EncodedText, Inputs, Run
from mflux.models import transformer
from mflux.models.transformer import BlockHooks, beside

CONFIG = Config(num_inference_steps=3, max_sequence_length=16, height=48, width=64)


@pytest.fixture
def flux(random_flux):
    return random_flux("dev")


def draw(flux, *conditions, config=CONFIG, **rest):
    return flux.generate_image(seed=3, prompt="a fox", config=config, conditions=conditions, **rest)


def latents(image):
    return np.array(image.artifacts["latents"])


def trace(flux, *conditions):
    seen = []
    draw(flux, *conditions, on_step=lambda progress: seen.append(np.array(progress.latents)))
    return seen


def normal(*shape, key=0):
    return mx.random.normal(shape, key=mx.random.key(key))


def close(one, other, limit=1e-5):
    one, other = np.array(one), np.array(other)
    return np.abs(one - other).max() <= limit * np.abs(other).max()


@pytest.mark.parametrize("off", [{"lambda_fine": 0}, {"start": 3}, {"start": 50}])  # F1, F3
def test_without_strength_or_steps_it_is_the_plain_picture_to_the_bit(flux, off):
    assert np.array_equal(latents(draw(flux, FluxSpace("red", **off))), latents(draw(flux)))


def test_streams_without_weight_change_nothing(flux):  # F2
    assert close(latents(draw(flux, FluxSpace("red", mask_threshold=1.0))), latents(draw(flux)))


def test_steps_before_the_window_are_the_plain_ones_to_the_bit(flux):  # F4
    plain, edited = trace(flux), trace(flux, FluxSpace("red", start=1, stop=2))
    assert np.array_equal(plain[0], edited[0])
    assert np.abs(plain[1] - edited[1]).max() > 1e-3


def test_the_direction_is_at_right_angles_to_the_empty_text_s_and_no_longer_than_the_edit_s():  # F5
    e, u = normal(2, 7, 32), normal(2, 7, 32, key=1)
    move = direction(e, u)
    lengths = [np.linalg.norm(np.array(each), axis=-1) for each in (move, u, e)]
    assert (np.abs(np.array((move * u).sum(axis=-1))) <= 1e-5 * lengths[0] * lengths[1]).all()
    assert (lengths[0] <= lengths[2]).all()


def test_an_edit_that_says_what_the_empty_text_says_moves_nothing(flux):  # F6, F7
    u = normal(2, 7, 32)
    for alpha in (1.0, -3.0, 0.01):
        assert np.abs(np.array(direction(alpha * u, u))).max() < 1e-5
    away = FluxSpace([Edit("red", minus="red")], mask_threshold=0)  # its direction is taken away from itself
    assert close(latents(draw(flux, away)), latents(draw(flux)))
    edit, network, branch, noise = editor(flux, FluxSpace("red", start=0, mask_threshold=0), [""])
    plain, empty = (
        network.velocity(branch, noise, mx.array([0.7]), hooks)
        for hooks in (BlockHooks(), BlockHooks(edit_attention=edit))
    )
    assert close(empty, plain)


def test_threshold_0_selects_everything_and_1_nothing():  # F8
    looks = mx.abs(normal(2, 12))
    assert (np.array(FluxSpace("x", mask_threshold=0.006).selected(looks)) == 1).all()
    assert (np.array(FluxSpace("x", mask_threshold=1).selected(looks)) == 0).all()
    queries = normal(2, 4, 12, 16)
    assert (np.array(FluxSpace("x", mask_threshold=0).mask_of(queries, None, 1)) == 1).all()
    some = np.array(FluxSpace("x", mask_threshold=0.5).selected(looks))
    assert set(some.ravel()) == {0, 1}
    soft = np.array(FluxSpace("x", mask="soft").selected(looks))
    assert len(set(soft.ravel())) > 12 and 0 < soft.min() < soft.max() < 1


def test_tokens_keep_their_length():  # F9
    base, change = normal(2, 7, 32), 5 * normal(2, 7, 32, key=1)
    lengths = [np.linalg.norm(np.array(each), axis=-1) for each in (base, moved(base, change, True))]
    assert close(lengths[1], lengths[0])
    assert not close(np.linalg.norm(np.array(moved(base, change, False)), axis=-1), lengths[0], 0.1)


def test_without_that_the_edit_is_linear(flux):  # F10
    def block_output(*edits):
        return first_block(flux, FluxSpace(edits, mask_threshold=0, keep_norm=False, start=0))

    zero, one, two = (block_output(Edit("red", scale)) for scale in (1e-30, 1.0, 2.0))
    assert close(two - one, one - zero, 1e-4)
    assert close(block_output(Edit("red", 0.5), Edit("red", 0.5)), one)


def first_block(flux, condition):
    """The attention output of the first joint block, with an edit."""
    seen = []
    edit, network, branch, noise = editor(flux, condition)

    def keep(view, out):
        seen.append(edit(view, out))
        return seen[-1]

    network.velocity(branch, noise, mx.array([0.7]), BlockHooks(edit_attention=keep, target_tokens=12))
    return np.array(seen[0])


def editor(flux, condition, texts=()):
    """An edit of one pass, with its network, branch and noise.  texts: in place of the edits' own."""
    plan = flux.plan(3, "a fox", CONFIG, conditions=[condition])
    branches, (prepared,) = flux._prepare(plan)
    network, noise = Network(flux.parts.get("transformer"), 48, 64, Inputs()), normal(1, 12, 64)
    hooks = prepared.bind(run_of(plan, noise, branches, network))
    edit = hooks.edit_attention(At(0, plan.sigmas[0], 0.5), 0)
    if texts:
        null, *encoded = (EncodedText(*flux.encode_prompt(text, None, 16), 1) for text in ("", *texts))
        edit = condition.edited(network, null, [FineEdit(5.0, text, None) for text in encoded], ())
    return edit, network, branches[0], noise


def run_of(plan, noise, branches, network):
    return Run(plan, noise, branches, network.inputs, None, (3,), lambda: network, lambda: noise)


def text(key):
    return EncodedText(normal(1, 4, 8), normal(1, 32, key=key), 1)


def test_the_pooled_text_moves_at_right_angles(flux):  # F11
    own = normal(1, 32)
    to, away = moved_pooled(own, [(1.0, text(5), None)]), moved_pooled(own, [(0.3, EncodedText(None, own, 1), None)])
    assert abs(float((to * own).sum())) < 1e-4
    assert close(away, 0.7 * own)


def test_the_coarse_edit_changes_only_the_text_s_modulation(flux):  # F12
    condition = FluxSpace("red", lambda_fine=0, lambda_coarse=0.8)
    assert np.abs(latents(draw(flux, condition)) - latents(draw(flux))).max() > 1e-3
    blocks = flux.parts.get("transformer").transformer_blocks
    kept = [block.norm1_context.linear.weight for block in blocks]
    try:
        for block in blocks:
            block.norm1_context.linear.weight = mx.zeros_like(block.norm1_context.linear.weight)
        assert close(latents(draw(flux, condition)), latents(draw(flux)))
    finally:
        for block, weight in zip(blocks, kept, strict=True):
            block.norm1_context.linear.weight = weight


def test_side_texts_read_the_edited_picture_from_the_second_block_on(flux, monkeypatch):  # F13
    def sides(scale):
        seen = []
        monkeypatch.setattr(
            "mflux.conditions.fluxspace.beside",
            lambda view, *rest, **more: seen.append(beside(view, *rest, **more)) or seen[-1],
        )
        edit, network, branch, noise = editor(flux, FluxSpace([Edit("red", scale)], start=0, mask_threshold=0))
        network.velocity(branch, noise, mx.array([0.7]), BlockHooks(edit_attention=edit, target_tokens=12))
        return [np.array(each.after) for each in seen]

    weak, strong = sides(1.0), sides(8.0)
    assert len(weak) == 2 * len(flux.parts.get("transformer").transformer_blocks)
    assert all(np.array_equal(one, other) for one, other in zip(weak[:2], strong[:2], strict=True))
    assert all(np.abs(one - other).max() > 1e-4 for one, other in zip(weak[2:], strong[2:], strict=True))


def test_each_picture_of_a_batch_has_its_own_mask():  # F14
    looks = mx.concatenate([mx.abs(normal(1, 12)), 100 * mx.abs(normal(1, 12, key=1))])
    both, turned = FluxSpace("x").selected(looks), FluxSpace("x").selected(looks[::-1])
    assert np.array_equal(np.array(both)[::-1], np.array(turned))
    assert np.array_equal(np.array(both)[:1], np.array(FluxSpace("x").selected(looks[:1])))


def test_a_step_is_one_pass_with_three_attentions_a_joint_block(flux, monkeypatch):  # F15
    """Counted where both kinds of attention go through."""
    lengths, passes, real = [], [], transformer.attention
    monkeypatch.setattr(transformer, "attention", lambda *a, **k: lengths.append(a[0].shape[2]) or real(*a, **k))
    whole = transformer.FluxTransformer.__call__
    monkeypatch.setattr(transformer.FluxTransformer, "__call__", lambda *a: passes.append(1) or whole(*a))
    config = flux.parts.transformer_config
    draw(flux, FluxSpace("red", start=1, stop=2))
    assert len(passes) == 3
    assert len(lengths) == 3 * (config.num_layers + config.num_single_layers) + 2 * config.num_layers


def test_a_step_that_edits_costs_less_than_a_third_of_a_plain_one_more():  # counted at FLUX.1's width
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    import inside

    operations = inside.counts(inside.steps())
    assert operations["plain"] < operations["one edit"] <= inside.MOST_OPERATIONS * operations["plain"]
    assert operations["two edits"] - operations["one edit"] < operations["one edit"] - operations["plain"]


def test_a_constant_map_selects_everything_and_is_finite():  # F16
    mask = np.array(FluxSpace("x", mask_threshold=0.9).selected(mx.full((2, 12), 0.25)))
    assert (mask == 1).all()
    looks = attention_to(mx.zeros((1, 2, 12, 16)), normal(1, 2, 8, 16), "words", 3)
    assert np.isfinite(np.array(looks)).all() and close(looks, np.full((1, 12), 0.25))  # 3 words and the end token


def test_the_single_blocks_see_the_prompt_s_text_alone(flux, monkeypatch):  # F17
    """In the last joint block the text attends to an image that this block's edit has not changed yet."""
    given, single = [], transformer.SingleBlock.__call__

    def keep(block, both, *rest):
        given.append(np.array(both[:, :16]))
        return single(block, both, *rest)

    monkeypatch.setattr(transformer.SingleBlock, "__call__", keep)
    last = len(flux.parts.get("transformer").transformer_blocks) - 1
    edit, network, branch, noise = editor(flux, FluxSpace("red", start=0))

    def only_last(view, out):
        edited = edit(view, out)
        return edited if view.index == last else out

    for hooks in (BlockHooks(edit_attention=only_last, target_tokens=12), BlockHooks()):
        network.velocity(branch, noise, mx.array([0.7]), hooks)
    assert np.array_equal(given[0], given[len(given) // 2])


def test_two_edits_are_not_one(flux):
    one, two = (latents(draw(flux, FluxSpace(edits))) for edits in (["red"], ["red", "striped"]))
    assert np.abs(one - two).max() > 1e-3


def test_masks_are_pictures_of_the_run_s_size(flux):
    made = draw(flux, FluxSpace(["red", "a star"], start=0)).artifacts
    assert {name for name in made if name.startswith("mask")} == {"mask_01", "mask_02"}
    assert made["mask_01"].size == (64, 48)


def test_reference_tokens_are_not_edited(random_flux):
    """FluxSpace + Kontext: the references' attention output is what it was; the drawn tokens' is not."""
    flux, seen = random_flux("kontext"), []
    picture = np.asarray(Image.effect_noise((64, 48), 60).convert("RGB"))
    condition = FluxSpace("red", start=0, mask_threshold=0)
    plan = flux.plan(3, "a fox", CONFIG, conditions=[Kontext(picture, fit="own"), condition])
    branches, (references, prepared) = flux._prepare(plan)
    network = Network(flux.parts.get("transformer"), 48, 64, references.inputs)
    hooks = prepared.bind(run_of(plan, normal(1, 12, 64), branches, network))
    edit = hooks.edit_attention(At(0, 1.0, 0.5), 0)

    def keep(view, out):
        seen.append((np.array(out), np.array(edit(view, out))))
        return out

    network.velocity(branches[0], normal(1, 12, 64), mx.array([0.7]), BlockHooks(edit_attention=keep, target_tokens=12))
    for plain, edited in seen:
        assert plain.shape[1] == 24
        assert np.array_equal(plain[:, 12:], edited[:, 12:])
        assert np.abs(plain[:, :12] - edited[:, :12]).max() > 1e-4


def test_it_goes_with_redux(random_flux):
    flux = random_flux("redux")
    picture = np.asarray(Image.effect_noise((64, 48), 60).convert("RGB"))
    plain, edited = (draw(flux, Redux(picture), *more) for more in ([], [FluxSpace("red", start=0)]))
    assert np.abs(latents(plain) - latents(edited)).max() > 1e-3


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (FluxSpace([]), "there is no edit"),
        (FluxSpace(" "), "' ' is no text to edit with"),
        (FluxSpace([Edit(3)]), "3 is no text to edit with"),
        (FluxSpace("red", lambda_coarse=1.1), "1.1 is out of range"),
        (FluxSpace([Edit("red", coarse=-2)]), "-2 is out of range"),
        (FluxSpace("red", lambda_fine=float("nan")), "nan is not a number"),
        (FluxSpace("red", mask_threshold=1.5), "1.5 is out of range"),
        (FluxSpace("red", start=2, stop=2), "steps 2 to below 2 are none"),
        (FluxSpace("red", start=0.9, stop=1), "steps 2 to below 1 are none"),
        (FluxSpace("red", start=-1), "-1 is out of range"),
        (FluxSpace("red", stop=1.5), "1.5 is out of range"),
        (FluxSpace("red", mask="round"), "'round' is unknown"),
        (FluxSpace("red", mask_words="last"), "'last' is unknown"),
    ],
)
def test_what_cannot_be_meant_is_refused(flux, condition, message):
    with pytest.raises(UsageError, match=message):
        flux.plan(3, "x", CONFIG, conditions=[condition])


def test_two_of_them_are_refused_with_a_way_out(flux):
    with pytest.raises(UsageError, match="both edit inside the attention") as error:
        flux.plan(3, "x", CONFIG, conditions=[FluxSpace("red"), FluxSpace("blue")])
    assert error.value.hint == "give all edits to one"


def test_what_a_run_does_not_use_is_told(flux, random_flux):
    def notes(condition, on=flux):
        return on.plan(3, "x", CONFIG, conditions=[condition]).notes

    assert notes(FluxSpace("red", start=7)) == ("FluxSpace begins at step 7, but the run has 3: it does nothing",)
    assert notes(FluxSpace("red", stop=9)) == ("FluxSpace ends with the run, after 3 steps, not at step 9",)
    assert notes(FluxSpace("red", start=0.5, stop=1.0)) == ()
    assert "models with guidance" in notes(FluxSpace("red"), random_flux("schnell"))[0]


def test_a_strip_shows_each_value_and_plain_is_the_first(flux):
    condition = FluxSpace([Edit("red", 3.0)], start=0)
    plan = flux.plan([3], "a fox", CONFIG, conditions=[condition])
    (drawn,) = condition.draw_sweep(flux, plan, "lambda_fine", [0, 4], None)
    assert drawn.image.width == 128
    assert np.array_equal(np.asarray(drawn.image)[:48, :64], np.asarray(draw(flux).image))
    assert drawn.plan.request.conditions[0] == replace(condition, edits=["red"], lambda_fine=4)
