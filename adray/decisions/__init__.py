"""What is decided for each part of a store, and how it is said; `adray.decide` is its door."""
