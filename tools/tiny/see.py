"""Teach redux' picture encoder to say what a caption says: `.venv/bin/python tools/tiny/see.py --minutes 6`.

Its tokens learn to be the T5 states of a caption that leaves nothing out, which the transformer can read already; no
transformer runs, so a picture costs a tenth of what it costs in the stage `redux`, which goes on from here. Kept in
.tiny/see.pt; another run goes on from it.
"""

from __future__ import annotations

import argparse

import torch
from clock import Clock, decay, log, mixed, save_checkpoint
from evaluate import SHIPPED, plain_prompt
from latents import PART, scenes_of_part, token_ids
from looks import looks
from networks import PARTS, REDUX_PARTS, REDUX_TOKENS, Networks
from torch import Tensor, nn
from train import SEE_FILE, load_taught, optimizers_of, set_rates
from world import draw

FIRST_SEED, BATCH = 170_000, 96


def pictures_and_states(networks: Networks, count: int) -> tuple[Tensor, Tensor]:
    """(N, 3, side, side) uint8, and what T5 says of each: (N, REDUX_TOKENS, width) float16."""
    seen, states = [], []
    for seed in range(FIRST_SEED, FIRST_SEED + count // PART):
        scenes = scenes_of_part(seed, PART)[0]
        seen.append(looks([draw(scene) for scene in scenes]))
        ids = token_ids([plain_prompt(scene) for scene in scenes], REDUX_TOKENS)[0]
        with torch.no_grad():
            states.append(networks.text_encoder_2(input_ids=ids).last_hidden_state.half())
    return torch.cat(seen), torch.cat(states)


def train(networks: Networks, seen: Tensor, states: Tensor, minutes: float) -> None:
    for part in PARTS:
        getattr(networks, part).requires_grad_(False)
    optimizers = optimizers_of(networks)
    held, clock, step = len(seen) // 20, Clock(minutes), 0
    while not clock.over:
        rows = torch.randint(held, len(seen), (BATCH,))
        loss = distance(networks, seen[rows], states[rows])
        loss.backward()
        nn.utils.clip_grad_norm_(networks.parameters(), 1.0)
        set_rates(optimizers, decay(clock.share) * min(1.0, (step + 1) / 100))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 200 == 0:
            with torch.no_grad():
                unseen = distance(networks, seen[:held], states[:held]).item()
            save(networks)
            log("see", step=step, loss=round(loss.item(), 4), unseen=round(unseen, 4), spent=round(clock.spent))
    save(networks)


def save(networks: Networks) -> None:
    save_checkpoint(SEE_FILE, {part: getattr(networks, part).state_dict() for part in REDUX_PARTS})


def distance(networks: Networks, seen: Tensor, states: Tensor) -> Tensor:
    with mixed():
        said = networks.look(seen.float() / 127.5 - 1)
    return (said.float() - states.float()).square().mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--scenes", type=int, default=16_000)
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    networks = Networks(redux=True)
    networks.load_parts(SHIPPED / "base")
    load_taught(networks)
    train(networks, *pictures_and_states(networks, options.scenes), options.minutes)


if __name__ == "__main__":
    main()
