"""Buffers of a size known only after fitting survive a checkpoint."""

from __future__ import annotations

import torch
from torch import nn

from adray.components.dynamic_buffer import DynamicBufferMixin


class Bank(DynamicBufferMixin):
    def __init__(self):
        super().__init__()
        self.register_buffer("bank", torch.empty(0))
        self.layer = nn.Linear(2, 2)


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Bank()


def test_a_fresh_module_takes_a_buffer_of_another_shape_and_type():
    fitted, fresh = Bank(), Bank()
    for bank in (torch.randn(5, 3), torch.arange(4), torch.tensor(2.0)):
        fitted.bank = bank
        fresh.load_state_dict(fitted.state_dict())
        assert torch.equal(fresh.bank, bank)
        assert fresh.bank.dtype == bank.dtype


def test_it_works_inside_another_module_and_leaves_the_rest_strict():
    fitted, fresh = Outer(), Outer()
    fitted.inner.bank = torch.randn(5, 3)
    outcome = fresh.load_state_dict(fitted.state_dict())
    assert not outcome.missing_keys
    assert not outcome.unexpected_keys
    assert torch.equal(fresh.inner.bank, fitted.inner.bank)
    missing = fresh.load_state_dict({"inner.layer.bias": torch.zeros(2)}, strict=False).missing_keys
    assert "inner.bank" in missing


def test_the_loaded_buffer_is_a_buffer_and_not_the_stored_tensor_itself():
    stored = {"bank": torch.ones(3), "layer.weight": torch.ones(2, 2), "layer.bias": torch.ones(2)}
    fresh = Bank()
    fresh.load_state_dict(stored)
    stored["bank"].zero_()
    assert float(fresh.bank.sum()) == 3.0
    assert "bank" in dict(fresh.named_buffers())
