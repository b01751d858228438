"""How other layouts call our modules, as tables.  Source: the published checkpoints and adapter files.

A table is plain text, one line a module: `theirs -> ours [ours ...] [: op]`.  {i} and {j} stand for numbers.  Several
names of ours: the file keeps these fused, rows in this order.  Op `swap_halves`: first and second half of the rows are
exchanged.  Our names are diffusers'.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Rule(NamedTuple):
    """Where one of their modules goes."""

    ours: tuple[str, ...]
    op: str = "copy"


def read_table(text: str) -> dict[str, Rule]:
    """Their names -> rules, {i} and {j} still in both."""
    rules = {}
    for line in filter(str.strip, text.splitlines()):
        theirs, _, rest = line.partition("->")
        ours, _, op = rest.partition(":")
        rules[theirs.strip()] = Rule(tuple(ours.split()), op.strip() or "copy")
    return rules


def numbered(table: dict[str, Rule], blocks: int) -> dict[str, Rule]:
    """The table with its {i} and {j} filled in by 0..blocks - 1."""
    return {
        theirs.format(i=i, j=j): Rule(tuple(name.format(i=i, j=j) for name in rule.ours), rule.op)
        for theirs, rule in table.items()
        for i in (range(blocks) if "{i}" in theirs else (0,))
        for j in (range(blocks) if "{j}" in theirs else (0,))
    }


def blocks_in(names: Iterable[str]) -> int:
    """One more than the highest block number among dotted names."""
    return 1 + max((int(part) for name in names for part in name.split(".") if part.isdigit()), default=0)


def spellings(modules: Iterable[str], *tables: dict[str, Rule]) -> dict[str, Rule]:
    """Every spelling of a network's modules -> rule: their own names, those of the tables, and both with underscores.

    A spelling whose modules the network lacks is left out, so that a file for a deeper network is noticed.
    """
    names = set(modules)
    blocks = blocks_in(names)
    found = {name: Rule((name,)) for name in names}
    for table in tables:
        found |= {
            theirs: rule for theirs, rule in numbered(table, blocks).items() if all(ours in names for ours in rule.ours)
        }
    return found | {name.replace(".", "_"): rule for name, rule in found.items()}


# Black Forest Labs' own names; also ComfyUI's, kohya's (with underscores), ai-toolkit's and fal's.
BFL = read_table("""
    img_in -> x_embedder
    txt_in -> context_embedder
    time_in.in_layer -> time_text_embed.timestep_embedder.linear_1
    time_in.out_layer -> time_text_embed.timestep_embedder.linear_2
    guidance_in.in_layer -> time_text_embed.guidance_embedder.linear_1
    guidance_in.out_layer -> time_text_embed.guidance_embedder.linear_2
    vector_in.in_layer -> time_text_embed.text_embedder.linear_1
    vector_in.out_layer -> time_text_embed.text_embedder.linear_2
    final_layer.linear -> proj_out
    final_layer.adaLN_modulation.1 -> norm_out.linear : swap_halves
    double_blocks.{i}.img_mod.lin -> transformer_blocks.{i}.norm1.linear
    double_blocks.{i}.txt_mod.lin -> transformer_blocks.{i}.norm1_context.linear
    double_blocks.{i}.img_attn.qkv -> transformer_blocks.{i}.attn.to_q transformer_blocks.{i}.attn.to_k transformer_blocks.{i}.attn.to_v
    double_blocks.{i}.txt_attn.qkv -> transformer_blocks.{i}.attn.add_q_proj transformer_blocks.{i}.attn.add_k_proj transformer_blocks.{i}.attn.add_v_proj
    double_blocks.{i}.img_attn.proj -> transformer_blocks.{i}.attn.to_out.0
    double_blocks.{i}.txt_attn.proj -> transformer_blocks.{i}.attn.to_add_out
    double_blocks.{i}.img_attn.norm.query_norm -> transformer_blocks.{i}.attn.norm_q
    double_blocks.{i}.img_attn.norm.key_norm -> transformer_blocks.{i}.attn.norm_k
    double_blocks.{i}.txt_attn.norm.query_norm -> transformer_blocks.{i}.attn.norm_added_q
    double_blocks.{i}.txt_attn.norm.key_norm -> transformer_blocks.{i}.attn.norm_added_k
    double_blocks.{i}.img_mlp.0 -> transformer_blocks.{i}.ff.net.0.proj
    double_blocks.{i}.img_mlp.2 -> transformer_blocks.{i}.ff.net.2
    double_blocks.{i}.txt_mlp.0 -> transformer_blocks.{i}.ff_context.net.0.proj
    double_blocks.{i}.txt_mlp.2 -> transformer_blocks.{i}.ff_context.net.2
    single_blocks.{i}.modulation.lin -> single_transformer_blocks.{i}.norm.linear
    single_blocks.{i}.linear1 -> single_transformer_blocks.{i}.attn.to_q single_transformer_blocks.{i}.attn.to_k single_transformer_blocks.{i}.attn.to_v single_transformer_blocks.{i}.proj_mlp
    single_blocks.{i}.linear2 -> single_transformer_blocks.{i}.proj_out
    single_blocks.{i}.norm.query_norm -> single_transformer_blocks.{i}.attn.norm_q
    single_blocks.{i}.norm.key_norm -> single_transformer_blocks.{i}.attn.norm_k
""")  # noqa: E501

# BFL's `ae.safetensors`; its decoder counts levels the other way.
AUTOENCODER = read_table("""
    encoder.norm_out -> encoder.conv_norm_out
    encoder.mid.block_1.norm1 -> encoder.mid_block.resnets.0.norm1
    encoder.mid.block_1.conv1 -> encoder.mid_block.resnets.0.conv1
    encoder.mid.block_1.norm2 -> encoder.mid_block.resnets.0.norm2
    encoder.mid.block_1.conv2 -> encoder.mid_block.resnets.0.conv2
    encoder.mid.block_2.norm1 -> encoder.mid_block.resnets.1.norm1
    encoder.mid.block_2.conv1 -> encoder.mid_block.resnets.1.conv1
    encoder.mid.block_2.norm2 -> encoder.mid_block.resnets.1.norm2
    encoder.mid.block_2.conv2 -> encoder.mid_block.resnets.1.conv2
    encoder.mid.attn_1.norm -> encoder.mid_block.attentions.0.group_norm
    encoder.mid.attn_1.q -> encoder.mid_block.attentions.0.to_q
    encoder.mid.attn_1.k -> encoder.mid_block.attentions.0.to_k
    encoder.mid.attn_1.v -> encoder.mid_block.attentions.0.to_v
    encoder.mid.attn_1.proj_out -> encoder.mid_block.attentions.0.to_out.0
    decoder.norm_out -> decoder.conv_norm_out
    decoder.mid.block_1.norm1 -> decoder.mid_block.resnets.0.norm1
    decoder.mid.block_1.conv1 -> decoder.mid_block.resnets.0.conv1
    decoder.mid.block_1.norm2 -> decoder.mid_block.resnets.0.norm2
    decoder.mid.block_1.conv2 -> decoder.mid_block.resnets.0.conv2
    decoder.mid.block_2.norm1 -> decoder.mid_block.resnets.1.norm1
    decoder.mid.block_2.conv1 -> decoder.mid_block.resnets.1.conv1
    decoder.mid.block_2.norm2 -> decoder.mid_block.resnets.1.norm2
    decoder.mid.block_2.conv2 -> decoder.mid_block.resnets.1.conv2
    decoder.mid.attn_1.norm -> decoder.mid_block.attentions.0.group_norm
    decoder.mid.attn_1.q -> decoder.mid_block.attentions.0.to_q
    decoder.mid.attn_1.k -> decoder.mid_block.attentions.0.to_k
    decoder.mid.attn_1.v -> decoder.mid_block.attentions.0.to_v
    decoder.mid.attn_1.proj_out -> decoder.mid_block.attentions.0.to_out.0
    encoder.down.{i}.block.{j}.norm1 -> encoder.down_blocks.{i}.resnets.{j}.norm1
    encoder.down.{i}.block.{j}.conv1 -> encoder.down_blocks.{i}.resnets.{j}.conv1
    encoder.down.{i}.block.{j}.norm2 -> encoder.down_blocks.{i}.resnets.{j}.norm2
    encoder.down.{i}.block.{j}.conv2 -> encoder.down_blocks.{i}.resnets.{j}.conv2
    encoder.down.{i}.block.{j}.nin_shortcut -> encoder.down_blocks.{i}.resnets.{j}.conv_shortcut
    encoder.down.{i}.downsample.conv -> encoder.down_blocks.{i}.downsamplers.0.conv
    decoder.up.0.block.{i}.norm1 -> decoder.up_blocks.3.resnets.{i}.norm1
    decoder.up.0.block.{i}.conv1 -> decoder.up_blocks.3.resnets.{i}.conv1
    decoder.up.0.block.{i}.norm2 -> decoder.up_blocks.3.resnets.{i}.norm2
    decoder.up.0.block.{i}.conv2 -> decoder.up_blocks.3.resnets.{i}.conv2
    decoder.up.0.block.{i}.nin_shortcut -> decoder.up_blocks.3.resnets.{i}.conv_shortcut
    decoder.up.0.upsample.conv -> decoder.up_blocks.3.upsamplers.0.conv
    decoder.up.1.block.{i}.norm1 -> decoder.up_blocks.2.resnets.{i}.norm1
    decoder.up.1.block.{i}.conv1 -> decoder.up_blocks.2.resnets.{i}.conv1
    decoder.up.1.block.{i}.norm2 -> decoder.up_blocks.2.resnets.{i}.norm2
    decoder.up.1.block.{i}.conv2 -> decoder.up_blocks.2.resnets.{i}.conv2
    decoder.up.1.block.{i}.nin_shortcut -> decoder.up_blocks.2.resnets.{i}.conv_shortcut
    decoder.up.1.upsample.conv -> decoder.up_blocks.2.upsamplers.0.conv
    decoder.up.2.block.{i}.norm1 -> decoder.up_blocks.1.resnets.{i}.norm1
    decoder.up.2.block.{i}.conv1 -> decoder.up_blocks.1.resnets.{i}.conv1
    decoder.up.2.block.{i}.norm2 -> decoder.up_blocks.1.resnets.{i}.norm2
    decoder.up.2.block.{i}.conv2 -> decoder.up_blocks.1.resnets.{i}.conv2
    decoder.up.2.block.{i}.nin_shortcut -> decoder.up_blocks.1.resnets.{i}.conv_shortcut
    decoder.up.2.upsample.conv -> decoder.up_blocks.1.upsamplers.0.conv
    decoder.up.3.block.{i}.norm1 -> decoder.up_blocks.0.resnets.{i}.norm1
    decoder.up.3.block.{i}.conv1 -> decoder.up_blocks.0.resnets.{i}.conv1
    decoder.up.3.block.{i}.norm2 -> decoder.up_blocks.0.resnets.{i}.norm2
    decoder.up.3.block.{i}.conv2 -> decoder.up_blocks.0.resnets.{i}.conv2
    decoder.up.3.block.{i}.nin_shortcut -> decoder.up_blocks.0.resnets.{i}.conv_shortcut
    decoder.up.3.upsample.conv -> decoder.up_blocks.0.upsamplers.0.conv
""")

# XLabs' adapters.
XLABS = read_table("""
    double_blocks.{i}.processor.qkv_lora1 -> transformer_blocks.{i}.attn.to_q transformer_blocks.{i}.attn.to_k transformer_blocks.{i}.attn.to_v
    double_blocks.{i}.processor.qkv_lora2 -> transformer_blocks.{i}.attn.add_q_proj transformer_blocks.{i}.attn.add_k_proj transformer_blocks.{i}.attn.add_v_proj
    double_blocks.{i}.processor.proj_lora1 -> transformer_blocks.{i}.attn.to_out.0
    double_blocks.{i}.processor.proj_lora2 -> transformer_blocks.{i}.attn.to_add_out
    single_blocks.{i}.processor.qkv_lora -> single_transformer_blocks.{i}.attn.to_q single_transformer_blocks.{i}.attn.to_k single_transformer_blocks.{i}.attn.to_v
    single_blocks.{i}.processor.proj_lora -> single_transformer_blocks.{i}.proj_out
""")  # noqa: E501

# Models saved by mflux, 0.6 to today's, by part; names that are diffusers' are left out, and CLIP has no others.
MFLUX = {
    "transformer": read_table("""
        transformer_blocks.{i}.ff.linear1 -> transformer_blocks.{i}.ff.net.0.proj
        transformer_blocks.{i}.ff.linear2 -> transformer_blocks.{i}.ff.net.2
        transformer_blocks.{i}.ff_context.linear1 -> transformer_blocks.{i}.ff_context.net.0.proj
        transformer_blocks.{i}.ff_context.linear2 -> transformer_blocks.{i}.ff_context.net.2
    """),
    "text_encoder_2": read_table("""
        t5_blocks.{i}.attention.SelfAttention.q -> encoder.block.{i}.layer.0.SelfAttention.q
        t5_blocks.{i}.attention.SelfAttention.k -> encoder.block.{i}.layer.0.SelfAttention.k
        t5_blocks.{i}.attention.SelfAttention.v -> encoder.block.{i}.layer.0.SelfAttention.v
        t5_blocks.{i}.attention.SelfAttention.o -> encoder.block.{i}.layer.0.SelfAttention.o
        t5_blocks.{i}.attention.SelfAttention.relative_attention_bias -> encoder.block.{i}.layer.0.SelfAttention.relative_attention_bias
        t5_blocks.{i}.attention.layer_norm -> encoder.block.{i}.layer.0.layer_norm
        t5_blocks.{i}.ff.DenseReluDense.wi_0 -> encoder.block.{i}.layer.1.DenseReluDense.wi_0
        t5_blocks.{i}.ff.DenseReluDense.wi_1 -> encoder.block.{i}.layer.1.DenseReluDense.wi_1
        t5_blocks.{i}.ff.DenseReluDense.wo -> encoder.block.{i}.layer.1.DenseReluDense.wo
        t5_blocks.{i}.ff.layer_norm -> encoder.block.{i}.layer.1.layer_norm
        final_layer_norm -> encoder.final_layer_norm
    """),  # noqa: E501
    "vae": read_table("""
        encoder.conv_in.conv2d -> encoder.conv_in
        encoder.conv_out.conv2d -> encoder.conv_out
        encoder.conv_norm_out.norm -> encoder.conv_norm_out
        decoder.conv_in.conv2d -> decoder.conv_in
        decoder.conv_out.conv2d -> decoder.conv_out
        decoder.conv_norm_out.norm -> decoder.conv_norm_out
    """),
}

# Old adapter files call the output projection so.
TO_OUT = read_table("transformer_blocks.{i}.attn.to_out -> transformer_blocks.{i}.attn.to_out.0")

# Prefixes of adapter files -> the part of the model.
PREFIXES = {
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.t5xxl.transformer.": "text_encoder_2",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder.": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_2",
    "base_model.model.transformer.": "transformer",
    "base_model.model.": "transformer",
    "model.diffusion_model.": "transformer",
    "diffusion_model.": "transformer",
    "transformer.": "transformer",
    "lora_transformer_": "transformer",
    "lora_unet_": "transformer",
    "lycoris__": "transformer",
    "lycoris_": "transformer",
}
