"""Runs a bundle, the file of a trained model, with numpy, Pillow, and onnxruntime or OpenVINO.

from adray.runtime import load

model = load("part_a.adray")
print(model.predict("new.png").verdict)
"""

from adray.runtime.loading import load
from adray.runtime.model import Bundle, Result

__all__ = ["Bundle", "Result", "load"]
