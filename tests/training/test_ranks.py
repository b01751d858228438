"""Two processes that train together end in the bits of one; where one dies, the other saves.

The processes talk through mlx.distributed's ring on this machine, as `mlx.launch -n 2` starts them.
"""

import time

import pytest
import together

from mflux.cli.commands import BY_NAME
from mflux.cli.main import main
from mflux.ranks import Ranks

GONE_WITHIN = 60  # seconds


def start(folder, ranks, *flags):
    return together.start(folder, ranks, "mflux-train", *flags)


def alone(*flags):
    """A run of this process."""
    assert main(BY_NAME["mflux-train"], list(map(str, flags))) == 0


@pytest.mark.parametrize("batch", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_two_ranks_are_one_to_the_bit(train_json, tmp_path, batch):
    """Three examples, so that the last update of an epoch has fewer of them than the others, and one rank has none."""
    repeats = {"examples__images": [{"image": f"{name}.png", "prompt": name, "repeats": batch - 1} for name in "abc"]}
    path = train_json(training_loop__batch_size=batch, **repeats)
    alone("--config", path, "--output", tmp_path / "one")
    both = start(tmp_path, 2, "--config", path, "--output", tmp_path / "two")
    (out, err), (other, _) = together.finished(both)
    assert [process.returncode for process in both] == [0, 0], err
    assert "adapter.safetensors" in out and other == "", "the first rank writes"
    assert (tmp_path / "one/adapter.safetensors").read_bytes() == (tmp_path / "two/adapter.safetensors").read_bytes()


def test_where_a_rank_dies_the_run_ends_with_a_checkpoint_that_goes_on(train_json, tmp_path):
    path = train_json(training_loop__num_epochs=12, save__checkpoint_frequency=2)
    first, second = start(tmp_path, 2, "--config", path, "--output", tmp_path / "run")
    first.stdout.readline()  # the first checkpoint
    second.kill()
    started = time.monotonic()
    out, err = first.communicate(timeout=GONE_WITHIN)
    assert first.returncode == 1 and time.monotonic() - started < GONE_WITHIN
    assert "another process of this run is gone" in err and "goes on from here" in err
    saved = out.splitlines()[-1]
    assert saved in err
    alone("--resume", saved)
    alone("--config", path, "--output", tmp_path / "whole")
    assert (tmp_path / "run/adapter.safetensors").read_bytes() == (tmp_path / "whole/adapter.safetensors").read_bytes()


def test_examples_that_cannot_be_shared_are_refused(train_json, tmp_path):
    path = train_json(training_loop__batch_size=3)
    both = start(tmp_path, 2, "--config", path)
    for process, (_, err) in zip(both, together.finished(both), strict=True):
        assert process.returncode == 2 and "3 examples cannot be shared by 2 processes" in err


def test_a_share_is_a_part_of_the_whole_in_its_order():
    for count in range(9):
        slots = list(range(count))
        for ranks in (1, 2, 3):
            members = [Ranks() for _ in range(ranks)]
            for rank, member in enumerate(members):
                member.rank, member.count = rank, ranks
            assert [slot for member in members for slot in member.share(slots)] == slots
