"""Runs a bundle, the file of a trained model, with numpy, Pillow and onnxruntime alone.

from adray.runtime import load

model = load("part_a.adray")
print(model.predict("new.png").verdict)
"""

from adray.runtime.model import Bundle, Result, load

__all__ = ["Bundle", "Result", "load"]
