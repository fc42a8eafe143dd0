"""Watching a model while it trains, in any training loop: knows torch, the engine and the run; never fastai."""
