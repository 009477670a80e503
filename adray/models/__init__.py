"""One file, one paper. The registry loads these lazily; models never import each other."""
