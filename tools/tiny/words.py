"""Teach the T5 encoder whose place is whose: `.venv/bin/python tools/tiny/words.py --seconds 70`, then train `base`.

"A red circle on the left and a blue star on the right": the transformer alone did not find out in 3,000 steps which
colour stands left (two objects: 55 % right colours). Captions without pictures are forty times cheaper; a minute of
them binds each word to its place, here in the base's checkpoint (made new where there is none). The states stay near
those that the transformer has learnt to read.
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
from clock import log, mixed
from torch import Tensor
from train import DISTANCES, Texts, Trainer, batches

RATE, DISTANCE_RATE = 1.5e-3, 3e-2
STAY = 0.3  # weight of the change of the states, relative to their mean square


def words_first(trainer: Trainer, texts: Texts, seconds: float) -> None:
    """Train the T5 encoder and the placing head; the running average moves by what they move."""
    networks = trainer.networks
    before = {name: value.clone() for name, value in networks.state_dict().items()}
    known = copy.deepcopy(networks.text_encoder_2).requires_grad_(False)
    stay = STAY if trainer.step else 0.0
    optimizer = _optimizer(trainer)
    rates = [group["lr"] for group in optimizer.param_groups]
    start, step = time.time(), 0
    while (share := (time.time() - start) / seconds) < 1:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1.0, (step + 1) / 30) * (1 - 0.9 * max(0.0, 2 * share - 1))
        loss, moved = _losses(trainer, known, *texts())
        (loss + stay * moved).backward()
        torch.nn.utils.clip_grad_norm_(networks.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 50 == 0:
            log("words", step=step, place=round(loss.item(), 4), moved=round(moved.item(), 4))
    with torch.no_grad():
        after = networks.state_dict()
        for name, value in trainer.average.state_dict().items():
            if name.startswith(("text_encoder_2.", "placing.")):
                value += after[name] - before[name]


def _losses(trainer: Trainer, known: torch.nn.Module, t5_ids: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """How badly the places are told, and how far the states moved from the known ones."""
    networks = trainer.networks
    with torch.no_grad():
        old = known(input_ids=t5_ids).last_hidden_state
    with mixed():
        states = networks.text_encoder_2(input_ids=t5_ids).last_hidden_state
        loss = networks.place_loss(states, places)
    return loss, (states.float() - old).square().mean() / old.square().mean()


def _optimizer(trainer: Trainer) -> torch.optim.AdamW:
    named = [*trainer.networks.text_encoder_2.named_parameters(), *trainer.networks.placing.named_parameters()]
    groups = [
        {"params": [p for name, p in named if DISTANCES not in name], "lr": RATE},
        {"params": [p for name, p in named if DISTANCES in name], "lr": DISTANCE_RATE},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=70)
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    trainer = Trainer("base", None)
    _, texts = batches("base", 64)
    words_first(trainer, texts, options.seconds)
    trainer.save(trainer.spent)


if __name__ == "__main__":
    main()
