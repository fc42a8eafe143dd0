"""From a fastai learner to what the engine takes; knows fastai."""
