"""What runs the graph of a bundle: onnxruntime or OpenVINO, of which a machine needs one."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from adray.runtime.errors import BundleError

if TYPE_CHECKING:
    from openvino import InferRequest

_QUIET = 4
"""Level of onnxruntime's log: what goes wrong is raised, too."""
_INPUT = "image"
OUTPUTS = ("pred_score", "verdict", "p_value", "anomaly_map")
"""What the graph of a bundle may give."""


class Backend(Protocol):
    """A graph that is ready to run. Several threads may run it at once."""

    outputs: tuple[str, ...]
    """Names of what the graph gives."""

    def run(self, pixels: np.ndarray, wanted: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Run the graph.

        Args:
            pixels: (H, W, 3).
            wanted: some of the outputs.
        """


class OnnxRuntime:
    """The graph in onnxruntime, on the CPU.

    Args:
        graph: file of it, or its bytes, of which onnxruntime keeps a copy.
        threads: of the CPU; 0 for all.
    """

    def __init__(self, graph: Path | bytes, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = _QUIET
        provider = ["CPUExecutionProvider"]
        given = graph if isinstance(graph, bytes) else str(graph)
        self._session = onnxruntime.InferenceSession(given, options, providers=provider)
        self.outputs = tuple(output.name for output in self._session.get_outputs())

        # What is not asked for is not computed, such as a map of the image's size.
        self._options = onnxruntime.RunOptions()
        self._options.only_execute_path_to_fetches = True

    def run(self, pixels: np.ndarray, wanted: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Run the graph, see `Backend`."""
        values = self._session.run(list(wanted), {_INPUT: pixels}, self._options)
        return dict(zip(wanted, values, strict=True))


class OpenVino:
    """The graph in OpenVINO, on the CPU and in float32, which it would leave where it could.

    Args:
        graph: file of it, or its bytes.
        threads: of the CPU; 0 for all.
    """

    def __init__(self, graph: Path | bytes, threads: int) -> None:
        import openvino

        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "EXECUTION_MODE_HINT": "ACCURACY",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        }
        core = openvino.Core()
        model = core.read_model(graph)
        self._compiled = core.compile_model(model, "CPU", settings)

        # It may have several names for one value, of which one is that of the output.
        names = set().union(*[output.names for output in self._compiled.outputs])
        self.outputs = tuple(name for name in OUTPUTS if name in names)
        self._own = threading.local()

    def run(self, pixels: np.ndarray, wanted: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Run the graph, see `Backend`."""
        request = self._request()
        request.infer({_INPUT: pixels})

        # The next image is written over what the request holds, so its values are copied.
        return {name: request.get_tensor(name).data.copy() for name in wanted}

    def _request(self) -> InferRequest:
        """Give the request of this thread."""
        if not hasattr(self._own, "request"):
            self._own.request = self._compiled.create_infer_request()
        return self._own.request


BACKENDS: Mapping[str, Callable[[Path | bytes, int], Backend]] = {
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
}
"""By the name that users write, which is that of the package. The first that is there is used."""


def installed_backends() -> list[str]:
    """Name the backends of this machine, without loading them."""
    return [name for name in BACKENDS if importlib.util.find_spec(name) is not None]


def choose_backend(name: str = "") -> str:
    """Give the backend to use.

    Args:
        name: the one that is asked for; empty for the first that is installed.

    Raises:
        BundleError: for a name that is none, and where it is not installed.
    """
    installed = installed_backends()
    if name and name not in BACKENDS:
        raise BundleError(f"backend {name!r} is none; allowed: {', '.join(BACKENDS)}")
    if name and name not in installed:
        raise BundleError(f"the package {name} is not installed; pip install {name}")
    if not installed:
        raise BundleError(
            f"none of the packages {', '.join(BACKENDS)} is installed; pip install onnxruntime"
        )
    return name or installed[0]
