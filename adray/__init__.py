"""adray finds the best visual anomaly detector for a folder of product images."""

__version__ = "0.1.0"
