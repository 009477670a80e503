"""The store of finished trials and all that is derived from it."""
