"""Tensor-in tensor-out parts shared by several models or named by the specification."""
