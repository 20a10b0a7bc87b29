"""HTTP around the models: what gets in, how it is read, what is answered, and how that is described."""
