"""Hyperparameters of each method, one file each. Importing these loads no torch."""
