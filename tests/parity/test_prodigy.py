"""Prodigy, as its authors' package computes it."""

import mlx.core as mx
import numpy as np
import pytest

from mflux.training.prodigy import Prodigy

torch = pytest.importorskip("torch", reason="the parity extra is not installed")
prodigyopt = pytest.importorskip("prodigyopt", reason="the parity extra is not installed")

STEPS = 200


@pytest.mark.parametrize(
    ("decay", "corrected", "guarded"), [(0.0, False, False), (0.01, True, False), (0.01, True, True)]
)
def test_two_hundred_steps_agree_with_prodigyopt(decay, corrected, guarded):
    """In float64: its first differences from the start are of the size of float32's last bits, and they grow."""
    random = np.random.default_rng(0)
    start = {"a": random.standard_normal((6, 4)), "b": np.zeros((5, 6))}
    wanted = {name: random.standard_normal(value.shape) for name, value in start.items()}
    theirs = {name: torch.nn.Parameter(torch.from_numpy(value.copy())) for name, value in start.items()}
    settings = {"use_bias_correction": corrected, "safeguard_warmup": guarded, "weight_decay": decay}
    reference = prodigyopt.Prodigy(theirs.values(), lr=1.0, **settings)
    with mx.stream(mx.cpu):
        ours = {name: mx.array(value, mx.float64) for name, value in start.items()}
        goal = {name: mx.array(value, mx.float64) for name, value in wanted.items()}
        optimizer = Prodigy(1.0, [0.9, 0.999], 1e-8, decay, corrected, guarded)
        optimizer.init(ours)
        for step in range(STEPS):
            rate = min(1.0, (step + 1) / 8) if guarded else 1.0
            reference.param_groups[0]["lr"] = optimizer.learning_rate = rate
            for name, value in theirs.items():
                value.grad = value.detach() - torch.from_numpy(wanted[name])
            ours = optimizer.apply_gradients({name: value - goal[name] for name, value in ours.items()}, ours)
            mx.eval(ours, optimizer.state)
            reference.step()
    assert optimizer.state["d"].item() == pytest.approx(reference.param_groups[0]["d"], rel=1e-4)
    for name, value in ours.items():
        np.testing.assert_allclose(np.array(value), theirs[name].detach().numpy(), atol=1e-4)
        assert np.abs(np.array(value) - start[name]).max() > 0.1, "it has moved"
