"""The data sets, one source a file; `train.data` is what the rest of the project imports."""
