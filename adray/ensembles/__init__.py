"""Teams of models: who may be in one, how it is chosen, what it gains, and its file."""
