"""Is a map any good? Faithfulness metrics, sanity checks, baselines and intervals, in plain PyTorch.

Each metric is a function `(model, x, maps, target, …)` and gives `Scores`, a value per image, NaN where there is no
answer. `x`: `(N, C, *space)` as the model takes it; `maps`: `(N, *space)` at any resolution; `target`: LongTensor
`(N,)`, or `None` for the predicted classes. `mean`, `std`: how pixels of 0…1 become the model's input, which is
(pixels - mean) / std. The model, the random number generators and torch's modes are left as they were. `metrics` holds
them by name.

The model is asked in batches, but `x` and `maps` are in memory as a whole. For a set that is too large, call a metric
for each part with `seed=` the number of images before it (`randomisation`: the same for all), and join the values.

Maps without an order or mass have a defined answer. A map that holds a NaN or an infinity: NaN. An empty or
constant map: for `road`, `deletion` and `insertion` the random order; for `average_drop` and `increase` what is left,
nothing or everything; for `energy_pointing` and `pointing_hit` NaN where it is empty.
"""

from ._faithfulness.baselines import baseline, baselines
from ._faithfulness.check import check
from ._faithfulness.common import Metric, Scores, metrics, register
from ._faithfulness.curves import deletion, insertion
from ._faithfulness.imputation import impute
from ._faithfulness.intervals import Interval, interval
from ._faithfulness.masking import average_drop, increase, win
from ._faithfulness.pointing import energy_pointing, pointing_hit
from ._faithfulness.road import road
from ._faithfulness.sanity import random_logit, randomisation

__all__ = [
    "Interval",
    "Metric",
    "Scores",
    "average_drop",
    "baseline",
    "baselines",
    "check",
    "deletion",
    "energy_pointing",
    "impute",
    "increase",
    "insertion",
    "interval",
    "metrics",
    "pointing_hit",
    "random_logit",
    "randomisation",
    "register",
    "road",
    "win",
]
