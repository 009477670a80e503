"""What an export can be, and what is known of its ONNX graph. Importing this loads no torch."""

from __future__ import annotations

FORMATS = ("all", "safetensors", "onnx")
TOLERANCE = 1e-4
"""Largest difference of an ONNX output from torch's, as a part of the output's largest value
over several images."""
PRECISIONS = ("float32", "float16", "int8")
"""What the layers of a bundle's network may count in."""
ONNX_UNSUPPORTED: dict[str, str] = {
    "vlm-ad": "torch.export cannot follow a chat model's text processing and generation, whose steps depend on values"
}
"""Configurations that do not become an exact graph, with the reason; measured by
`tests/test_export.py -m slow`."""
ONNX_SINGLE: tuple[str, ...] = (
    "cfa",
    "cfa-resnet18",
    "dsr",
    "fastflow-cait",
    "fastflow-deit",
    "musc-large-518",
    "musc-small-448",
    "patchcore",
    "patchcore-resnet18",
    "softpatch-resnet18",
    "softpatch-wide-resnet50",
    "superad-large-672",
    "superad-small-448",
    "uflow-mcait",
    "winclip",
)
"""Configurations whose graph takes one image at a time, measured likewise; the others' take any
number."""
