"""Buffers whose size is known only after fitting, such as a memory bank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


class DynamicBufferMixin(nn.Module):
    """Lets `load_state_dict` bring buffers of another shape than the fresh module has."""

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Give each buffer the stored one's shape and type, then load as torch does."""
        for name, buffer in list(self.named_buffers(recurse=False)):
            stored = state_dict.get(prefix + name)
            if stored is not None and buffer.shape != stored.shape:
                setattr(self, name, stored.new_empty(stored.shape, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *args)
