"""The run folder, written and read; never torch or fastai."""
