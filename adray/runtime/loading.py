"""From the file of a bundle to a model that judges as where it was made."""

from __future__ import annotations

from pathlib import Path

from adray.runtime.archive import open_archive
from adray.runtime.errors import BundleError
from adray.runtime.golden import judge_golden
from adray.runtime.model import Bundle


def load(path: str | Path, threads: int = 0, backend: str = "") -> Bundle:
    """Load a bundle, once all of it is checked.

    A backend that the bundle's maker did not have judges the golden images first.

    Args:
        path: a file that `adray bundle` made.
        threads: of the CPU; 0 for all.
        backend: ``onnxruntime`` or ``openvino``; empty for the first that is installed.

    Raises:
        BundleError: for a file that is no bundle, was changed, or cannot be run, and for a backend
            that is not installed or judges otherwise.
    """
    bundle = Bundle(open_archive(path), threads, backend)
    if not bundle.is_tried:
        check_golden(bundle)
    return bundle


def check_golden(bundle: Bundle) -> None:
    """Refuse a bundle that judges its golden images other than where it was made.

    Raises:
        BundleError: with the first of them.
    """
    problems = judge_golden(bundle)
    if problems:
        path = bundle.archive.path
        raise BundleError(
            f"bundle {path} judges other than where it was made: {problems[0]}; see `python -m "
            f"adray doctor {path}`"
        )
