"""StableAdamW against a slow numpy loop and, where nothing is clipped, against torch's AdamW."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adray.components.stable_adamw import StableAdamW


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def gradients(steps, shapes, growth=1.0):
    """Gradients of float64 tensors, each step's larger than the last one's by `growth`."""
    return [
        [growth**step * torch.randn(s, dtype=torch.float64) for s in shapes]
        for step in range(steps)
    ]


def run(optimizer, parameters, steps):
    for grads in steps:
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad.clone()
        optimizer.step()
    return [p.detach().clone() for p in parameters]


def slow(start, grads, lr, beta1, beta2, eps, weight_decay, amsgrad, clip):
    """One tensor by the formulas, element by element; the factor of each step beside."""
    p, m, v, largest = (
        start.copy(),
        np.zeros_like(start),
        np.zeros_like(start),
        np.zeros_like(start),
    )
    factors = []
    for t, g in enumerate(grads, start=1):
        ratios = []
        for i in np.ndindex(p.shape):
            m[i] = beta1 * m[i] + (1 - beta1) * g[i]
            v[i] = beta2 * v[i] + (1 - beta2) * g[i] ** 2
            largest[i] = max(largest[i], v[i])
        root = np.sqrt(largest if amsgrad else v) / np.sqrt(1 - beta2**t) + eps
        ratios = [(g[i] / root[i]) ** 2 for i in np.ndindex(p.shape)]
        factors.append(max(1.0, np.sqrt(sum(ratios) / len(ratios)) / clip))
        for i in np.ndindex(p.shape):
            p[i] -= lr * weight_decay * p[i] + lr / factors[-1] * (m[i] / (1 - beta1**t)) / root[i]
    return p, factors


@pytest.mark.parametrize("amsgrad", [False, True])
def test_growing_gradients_are_clipped_as_the_formulas_say_per_tensor(amsgrad):
    shapes = [(3, 4), (5,)]
    start = [torch.randn(s, dtype=torch.float64) for s in shapes]
    parameters = [torch.nn.Parameter(s.clone()) for s in start]
    steps = gradients(12, shapes, growth=1.7)
    optimizer = StableAdamW(parameters, 0.01, (0.8, 0.95), 1e-6, 0.1, amsgrad=amsgrad)
    ours = run(optimizer, parameters, steps)
    for i, parameter in enumerate(ours):
        grads = [step[i].numpy() for step in steps]
        expected, factors = slow(start[i].numpy(), grads, 0.01, 0.8, 0.95, 1e-6, 0.1, amsgrad, 1.0)
        assert max(factors) > 1.5
        np.testing.assert_allclose(parameter.numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_without_clipping_it_is_torchs_adamw(amsgrad):
    shapes = [(4, 3), (6,)]
    start, steps = [torch.randn(s, dtype=torch.float64) for s in shapes], gradients(20, shapes)
    ends = []
    for cls, extra in ((StableAdamW, {"clip_threshold": 1e9}), (torch.optim.AdamW, {})):
        parameters = [torch.nn.Parameter(s.clone()) for s in start]
        ends.append(
            run(
                cls(parameters, lr=2e-3, weight_decay=1e-2, amsgrad=amsgrad, **extra),
                parameters,
                steps,
            )
        )
    for ours, torchs in zip(*ends, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-14)


def test_a_first_step_is_never_clipped_and_moves_by_lr():
    parameter = torch.nn.Parameter(torch.zeros(7))
    run(StableAdamW([parameter], lr=0.1, weight_decay=0.0), [parameter], [[1e3 * torch.randn(7)]])
    torch.testing.assert_close(parameter.detach().abs(), torch.full((7,), 0.1))


def test_parameters_without_a_gradient_stay_and_groups_have_their_own_rates():
    still, slow_one, fast = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
    groups = [{"params": [still, slow_one], "lr": 0.01}, {"params": [fast], "lr": 0.1}]
    optimizer = StableAdamW(groups, weight_decay=0.0)
    slow_one.grad, fast.grad = torch.ones(2), torch.ones(2)
    optimizer.step()
    torch.testing.assert_close(
        torch.stack([still, slow_one, fast])[:, 0], torch.tensor([1.0, 0.99, 0.9])
    )


def test_it_continues_from_its_state_as_if_never_stopped(tmp_path):
    start, steps = [torch.randn(5, dtype=torch.float64)], gradients(10, [(5,)], growth=1.5)
    through = [torch.nn.Parameter(start[0].clone())]
    expected = run(StableAdamW(through, 0.01, amsgrad=True), through, steps)
    first = [torch.nn.Parameter(start[0].clone())]
    optimizer = StableAdamW(first, 0.01, amsgrad=True)
    run(optimizer, first, steps[:4])
    torch.save(optimizer.state_dict(), tmp_path / "state.pth")
    second = [torch.nn.Parameter(first[0].detach().clone())]
    continued = StableAdamW(second, 0.5)
    continued.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    torch.testing.assert_close(run(continued, second, steps[4:]), expected, rtol=0, atol=0)


def test_a_closure_computes_the_gradients_and_its_loss_is_given_back():
    parameter = torch.nn.Parameter(torch.tensor([3.0]))
    optimizer = StableAdamW([parameter], lr=0.1, weight_decay=0.0)

    def closure():
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert float(optimizer.step(closure).detach()) == 9.0
    assert float(parameter.detach()) == pytest.approx(2.9)
