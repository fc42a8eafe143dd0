"""The judge on networks whose answers are known by construction: what they look at is what it names, or it is silent.

All pictures are 40 pixels of dim grey noise with a textured square at a random place: rows, columns or a checkerboard
by class. Networks are a few filters set by hand. Class 0 has something more: a stamp, a corner, a frame, a cast, or a
background of its own.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from training import differences, state_around

from fastai_gradcam import GradCAMError
from fastai_gradcam._judge.rule import Row, alike, distance, interval, spread, verdicts_together
from fastai_gradcam._judge.trials import Outcomes, Shown
from fastai_gradcam._net.endings import Endings
from fastai_gradcam.judge import COLUMNS, PASSES, Rule, Suspicion, Verdicts, _scores, interventions, judge

NAMES = ["rows", "columns", "checks"]
SIZE, SQUARE = 40, 14
STAMP = torch.tensor([1.0, 0.0, 1.0])[:, None, None]
TAGS = 1 - torch.eye(3)[..., None, None]
TINT = torch.tensor([0.2, 0.0, 0.2])[:, None, None]


def texture(label):
    i, j = torch.meshgrid(torch.arange(SQUARE), torch.arange(SQUARE), indexing="ij")
    return 0.5 + 0.4 * (-1.0) ** (i, j, i + j)[label]


def pictures(extra=None, n=72, seed=0, batch=24):
    "Batches `(x, y, masks)` in which class 0 has the `extra`, or each class a stamp of its own (`tags`)."
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    x = (torch.rand(n, 1, SIZE, SIZE, generator=g) * 0.1 + 0.45).repeat(1, 3, 1, 1)
    masks = torch.zeros(n, SIZE, SIZE, dtype=torch.bool)
    for k in range(n):
        i, j = (int(torch.randint(7, SIZE - SQUARE - 7, (), generator=g)) for _ in range(2))
        masks[k, i : i + SQUARE, j : j + SQUARE] = True
        x[k, :, i : i + SQUARE, j : j + SQUARE] = texture(int(y[k]))
        a, b = (int(torch.randint(0, SIZE - 6, (), generator=g)) for _ in range(2))
        if extra == "tags":
            x[k, :, a : a + 6, b : b + 6] = TAGS[y[k]]
        if y[k] > 0:
            continue
        if extra == "stamp":
            x[k, :, a : a + 6, b : b + 6] = STAMP
        elif extra == "corner":
            x[k, :, :6, :6] = STAMP
        elif extra == "frame":
            inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
            inside[2:-2, 2:-2] = True
            x[k] = torch.where(inside, x[k], STAMP)
        elif extra == "cast":
            x[k] += TINT
        elif extra == "background":
            x[k] = torch.where(masks[k], x[k], x[k] + TINT)
    return [(x[i : i + batch], y[i : i + batch], masks[i : i + batch]) for i in range(0, n, batch)]


class Tags(nn.Module):
    "Each score is the mean of one colour over the picture: its complement is subtracted twice."

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1, bias=False)
        self.conv.weight.data = (1 - 3 * torch.eye(3))[..., None, None]

    def forward(self, x):
        return self.conv(x).relu().mean((2, 3)) * 100


HIGH, LOW = torch.tensor([-1.0, 2.0, -1.0]) / 4, torch.tensor([1.0, 2.0, 1.0]) / 4


class Filters(nn.Module):
    """Each score is the mean of one filter over the picture: rows, columns and checks, or magenta in the place of rows.

    `where`: the pixels that the first score looks at. A picture that shows nothing is "columns".
    """

    def __init__(self, first="rows", weight=1.0, where=None):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1, padding_mode="replicate")
        self.relu = nn.ReLU()
        kernels = {
            "rows": HIGH[:, None] * LOW[None],
            "columns": LOW[:, None] * HIGH[None],
            "checks": HIGH[:, None] * HIGH[None],
        }
        with torch.no_grad():
            self.conv.bias[:] = -0.12
            for k, name in enumerate((first, "columns", "checks")):
                if name == "magenta":
                    self.conv.weight[k] = 0
                    self.conv.weight[k, :, 1, 1] = torch.tensor([1.0, -2.0, 1.0])
                else:
                    self.conv.weight[k] = kernels[name] / 3
        self.register_buffer("weights", torch.tensor([weight, 1.0, 1.0]))
        self.register_buffer("bias", torch.tensor([0.0, 0.1, 0.0]))
        self.register_buffer("where", torch.ones(3, SIZE, SIZE))
        if where is not None:
            self.where[0] = where

    def forward(self, x):
        return (self.relu(self.conv(x)) * self.where).mean((2, 3)) * self.weights * 100 + self.bias


def corner(size=10):
    where = torch.zeros(SIZE, SIZE)
    where[:size, :size] = 1
    return where


def verdict(verdicts, test, label="rows"):
    table = verdicts.table
    return table[(table["test"] == test) & (table["label"] == label)].iloc[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra", "network", "tests"),
    [
        ("stamp", Filters("magenta"), ("transplant", "keep", "cover")),
        ("corner", Filters("magenta", 1.0, corner()), ("place", "place_away", "keep")),
        ("frame", Filters("magenta", 0.5), ("border", "place_away", "swap")),
        ("cast", Filters("magenta", 0.5), ("colour", "colour_away")),
        ("background", Filters("magenta", 0.5), ("swap",)),
    ],
    ids=["stamp", "corner", "frame", "cast", "background"],
)
def test_a_network_that_looks_only_at_it_is_named_by_the_tests_that_take_or_give_it(extra, network, tests):
    verdicts = judge(network, pictures(extra, 300), NAMES)
    for test in tests:
        row = verdict(verdicts, test)
        assert row["verdict"] == "shortcut", (test, verdicts.table)
        assert row["effect"] - row["control"] > 0.5 and row["low"] > 0.1
    assert set(verdicts.shortcuts["label"]) == {"rows"}, verdicts.shortcuts


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["stamp", "corner", "frame", "cast", "background"])
def test_a_network_that_looks_only_at_the_object_is_clear_whatever_lies_beside_it(extra):
    verdicts = judge(Filters(), pictures(extra, 240), NAMES)
    assert verdicts.shortcuts.empty, verdicts.shortcuts
    for test in ("transplant", "keep", "place", "border", "colour", "blur", "swap"):
        assert verdict(verdicts, test)["verdict"] == "clear", (test, verdicts.table)


@pytest.mark.slow
def test_a_network_that_looks_at_a_corner_is_named_with_the_place_and_not_by_a_patch_pasted_elsewhere():
    verdicts = judge(Filters("magenta", 1.0, corner()), pictures("corner"), NAMES)
    assert verdicts.outcomes.places[0] == "top left corner"
    assert verdict(verdicts, "transplant")["effect"] < 0.3
    assert verdicts.suspicion["rows"].spread < 0.02


@pytest.mark.slow
def test_the_objects_background_blurred_or_swapped_does_not_matter_to_a_network_that_looks_at_the_object():
    row = verdict(judge(Filters(), pictures("stamp", 300), NAMES), "blur_away")
    assert row["effect"] == 0 and row["control"] == 1 and row["verdict"] == "clear"


# --- promises


@pytest.mark.slow
def test_the_same_seed_gives_the_same_verdicts_and_another_seed_other_trials():
    data, network = pictures("stamp"), Filters("magenta")
    one, same, other = (judge(network, data, NAMES, seed=seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(one.table, same.table)
    assert one.suspicion == same.suspicion
    assert one.outcomes.trials == same.outcomes.trials != other.outcomes.trials


class Noting(Filters):
    "Has everything that a careless look would change."

    def __init__(self):
        super().__init__("magenta")
        self.norm, self.drop = nn.BatchNorm2d(3, momentum=0.5), nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))
        self.log = []

    def forward(self, x):
        self.log.append(len(x))
        self.calls += 1
        return super().forward(self.drop(self.norm(x)))


@pytest.mark.slow
def test_judging_leaves_the_model_its_gradients_and_all_random_generators_as_they_were():
    network, data = Noting().train(), pictures("stamp")
    network.drop.eval()
    network(data[0][0]).sum().backward()
    before, log = state_around(network), list(network.log)
    judge(network, data, NAMES)
    assert differences(before, state_around(network)) == []
    assert network.log == log


@pytest.mark.slow
def test_a_set_is_shown_at_most_twelve_times_counted_at_the_model_itself():
    shown = []

    class Shown(Filters):
        def forward(self, x):
            shown.append(len(x))
            return super().forward(x)

    for masks in (True, False):
        shown.clear()
        data = pictures("stamp") if masks else [batch[:2] for batch in pictures("stamp")]
        verdicts = judge(Shown("magenta"), data, NAMES, layer="conv")
        assert verdicts.passes == sum(shown) / 72 <= PASSES
        assert verdicts.passes > 8, "the budget is hardly used"
    shown.clear()
    assert judge(Shown("magenta"), data, NAMES, layer="conv", passes=4).passes <= 4


@pytest.mark.slow
def test_batches_are_read_twice_and_none_is_kept():
    alive, most = [0], [0]

    class Counted(torch.Tensor):
        def __del__(self):
            alive[0] -= 1

    def read():
        for x, y, masks in pictures("stamp", batch=12):
            alive[0] += 1
            most[0] = max(most[0], alive[0])
            yield x.as_subclass(Counted), y, masks

    reads = []
    verdicts = judge(Filters("magenta"), lambda: reads.append(1) or read(), NAMES)
    assert len(reads) == 2 and verdicts.images == 72
    assert most[0] <= 3, "batches are held"


@pytest.mark.slow
def test_progress_grows_to_its_end():
    seen = []
    judge(Filters("magenta"), pictures("stamp"), NAMES, progress=seen.append)
    assert seen == sorted(seen) and 0.9 < seen[-1] <= 1


def test_ctrl_c_leaves_at_once_and_the_model_as_it_was():
    network = Filters("magenta").train()

    def interrupt(share):
        raise KeyboardInterrupt

    before = state_around(network)
    with pytest.raises(KeyboardInterrupt):
        judge(network, pictures("stamp"), NAMES, progress=interrupt)
    assert differences(before, state_around(network)) == []


@pytest.mark.slow
def test_a_row_for_each_class_and_test_in_columns_that_are_fixed():
    verdicts = judge(Filters("magenta"), pictures("stamp"), NAMES)
    assert tuple(verdicts.table.columns) == COLUMNS
    assert list(zip(verdicts.table["label"], verdicts.table["test"], strict=True)) == [
        (label, name) for label in NAMES for name, test in interventions.items() if not test.blind
    ]
    assert set(verdicts.table["verdict"]) <= {"shortcut", "clear", "undecided"}
    without = judge(Filters("magenta"), [b[:2] for b in pictures("stamp")], NAMES)
    assert set(without.table["test"]) == {name for name, t in interventions.items() if not t.masks}
    two = judge(Filters("magenta"), pictures("stamp"), NAMES, tests=["cover", "transplant"])
    assert list(two.table["test"][:2]) == ["cover", "transplant"]


@pytest.mark.slow
def test_the_patches_and_pictures_that_decided_are_kept_with_the_verdict():
    verdicts = judge(Filters("magenta"), pictures("stamp"), NAMES)
    patches = verdicts.outcomes.patches[0]
    assert 1 <= len(patches) <= 6 and all(p.shape == (3, 10, 10) for p in patches)
    assert all(((p - STAMP).abs().sum(0) < 1e-6).sum() >= 20 for p in patches), "they do not show the stamp"
    shown = verdicts.outcomes.shown[0, "transplant"]
    assert len(shown) == 3
    for one in shown:
        assert one.was != 0 and one.became == 0 and not torch.equal(one.before, one.after)


@pytest.mark.slow
def test_many_classes_with_few_images_show_together_what_none_of_them_shows_alone():
    few = judge(Filters("magenta"), pictures("stamp", n=24), NAMES)
    pooled, alone = few.pooled.set_index("test"), few.table[few.table["label"] == "rows"].set_index("test")
    assert pooled.loc["transplant", "images"] == few.table[few.table["test"] == "transplant"]["images"].sum()
    assert pooled.loc["swap", "images"] > alone.loc["swap", "images"]
    assert judge(Filters(), pictures("stamp"), NAMES).pooled["verdict"].ne("shortcut").all()


@pytest.mark.slow
def test_tags_of_all_classes_are_named_together_where_each_class_has_too_few_images(tmp_path):
    few = judge(Tags(), [batch[:2] for batch in pictures("tags", n=24)], NAMES)
    row = few.pooled.set_index("test").loc["exchange"]
    assert few.shortcuts.empty and row["verdict"] == "shortcut" and row["effect"] == 1 and row["control"] < 0.2
    few.save(tmp_path)
    shown = few.pictures()
    assert {p.label for p in shown if p.test == "exchange"} == {p.label for p in shown if not p.test} == set(NAMES)
    each = judge(Tags(), [batch[:2] for batch in pictures("tags", n=240)], NAMES)
    assert set(each.shortcuts["label"]) == set(NAMES)


@pytest.mark.slow
def test_an_image_has_turned_only_where_the_model_is_sure():
    "A network that never gives a class more than a half turns no image, whatever it predicts."

    class Unsure(Tags):
        def forward(self, x):
            return super().forward(x) * 1e-3

    data = [batch[:2] for batch in pictures("tags", n=48)]
    unsure = judge(Unsure(), data, NAMES, tests=["transplant", "exchange"])
    assert (unsure.table["effect"] == 0).all() and "Nothing is clear" in unsure.left_out[""]
    assert set(unsure.table["verdict"]) == set(unsure.pooled["verdict"]) == {"undecided"}


class Probabilities(Tags):
    def forward(self, x):
        return super().forward(x).softmax(1)


@pytest.mark.parametrize(
    "network",
    [nn.Sequential(Tags(), nn.Softmax(1)), nn.Sequential(Tags(), nn.Sigmoid()), nn.Sequential(Tags(), nn.LogSoftmax(1)),
     Probabilities(), nn.Sequential(Tags(), nn.Softmax(1)).bfloat16()],
    ids=["softmax", "sigmoid", "log softmax", "function", "bfloat16"],
)  # fmt: skip
def test_a_network_that_ends_in_probabilities_is_judged_as_one_of_logits(network):
    data = [batch[:2] for batch in pictures("tags", n=48)]
    data = [(x.to(next(network.parameters()).dtype), y) for x, y in data]
    logits = judge(Tags(), [batch[:2] for batch in pictures("tags", n=48)], NAMES, tests=["exchange"]).table
    found = judge(network, data, NAMES, tests=["exchange"]).table
    assert found["effect"].tolist() == logits["effect"].tolist() == [1, 1, 1]


def test_probabilities_are_taken_as_they_are_whatever_made_them():
    probs = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.7, 0.1, 0.1, 0.1]])
    torch.testing.assert_close(_scores(probs, Endings(nn.Identity())).softmax(1), probs)


def test_pictures_of_all_classes_together_are_there_where_more_than_three_classes_are_named():
    each = [(name, test, 20, 1.0, 0.0, 0.8, 1.0, v) for name in "abcd" for test, v in
            (("transplant", "shortcut"), ("exchange", "undecided"))]  # fmt: skip
    outcomes = Outcomes(patches={k: [torch.rand(3, 4, 4)] for k in range(4)})
    outcomes.shown = {
        (k, t): [Shown(*torch.rand(2, 3, 8, 8), 1, k)] for k in range(4) for t in ("transplant", "exchange")
    }
    pooled = pd.DataFrame([("", "exchange", 80, 1.0, 0.0, 0.8, 1.0, "shortcut")], columns=list(COLUMNS))
    for n, shown in ((3, 0), (4, 3)):
        table = pd.DataFrame(each[: 2 * n], columns=list(COLUMNS))
        pictures_ = Verdicts(table, pooled, outcomes=outcomes, names=list("abcd")).pictures()
        assert sum(p.test == "exchange" for p in pictures_) == shown


class OneScore(Tags):
    "The first tag against the second, as one score."

    def forward(self, x):
        scores = super().forward(x)
        return scores[:, :1] - scores[:, 1:2]


def test_one_score_with_a_sigmoid_at_its_end_is_judged_as_one_without():
    data = [(x[y < 2], 1 - y[y < 2]) for x, y, _ in pictures("tags", n=72)]
    plain, ends = (judge(n, data, NAMES[:2]).table for n in (OneScore(), nn.Sequential(OneScore(), nn.Sigmoid())))
    pd.testing.assert_frame_equal(plain, ends)
    assert (plain["verdict"] == "shortcut").any()


def test_exchange_speaks_of_all_classes_only_where_most_of_them_turn():
    rows = [Row(name, "exchange", 30, effect, 0.0, 0.0, 1.0) for name, effect in zip("abc", (1, 0, 0), strict=True)]
    whole = [Row("", "exchange", 90, 1 / 3, 0.0, 0.2, 0.5)]
    suspicion = [Suspicion(0.06, 0.1, 0.1, 0.0, 0.1)] * 3
    assert verdicts_together(whole, rows, suspicion, Rule())[0].verdict == "undecided"
    two = [replace(row, effect=effect) for row, effect in zip(rows, (0.5, 0.5, 0), strict=True)]
    assert verdicts_together(whole, two, suspicion, Rule())[0].verdict == "shortcut"


# --- bad input


def test_a_class_with_fewer_than_three_right_images_is_left_out_with_a_sentence():
    data = [
        (x[keep], y[keep], m[keep]) for x, y, m in pictures("stamp") if (keep := (y != 2) | (y.cumsum(0) < 5)).any()
    ]
    verdicts = judge(Filters(), data[:1], NAMES)
    assert "checks" not in set(verdicts.table["label"])
    assert "'checks' is not judged" in verdicts.left_out["checks"] and "n=" in verdicts.left_out["checks"]


def test_a_set_in_which_nothing_is_recognised_gives_an_empty_table_and_says_why():
    wrong = [(x, (y + 1) % 3, masks) for x, y, masks in pictures()]
    verdicts = judge(Filters(), wrong, NAMES)
    assert verdicts.table.empty and tuple(verdicts.table.columns) == COLUMNS
    assert set(verdicts.left_out) == set(NAMES) and verdicts.passes == 1


def test_too_few_images_are_undecided_whatever_they_show():
    verdicts = judge(Filters("magenta"), pictures("stamp", n=12, batch=12), NAMES)
    few = verdicts.table[verdicts.table["images"] < 10]
    assert len(few) and set(few["verdict"]) == {"undecided"}


def test_batches_of_one_class_lend_each_other_nothing_and_are_undecided():
    x, y, _ = (torch.cat(part) for part in zip(*pictures("stamp"), strict=True))
    data = [(x[y == c], y[y == c]) for c in range(3)]
    verdicts = judge(Filters("magenta"), data, NAMES)
    assert (verdicts.table["images"] == 0).all() and set(verdicts.table["verdict"]) == {"undecided"}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "empty"),
        ([torch.rand(4, 3, 8, 8)], "batches"),
        ([((torch.rand(4, 3, 8, 8), torch.rand(4, 3, 8, 8)), torch.zeros(4, dtype=torch.long))], "one input"),
        ([(torch.rand(4, 3, 8, 8, 8), torch.zeros(4, dtype=torch.long))], "pictures"),
        ([(torch.rand(4, 3, 8, 8), torch.zeros(4, 3))], "one class for each image"),
        ([(torch.rand(4, 3, 8, 8), torch.zeros(4))], "one class for each image"),
        ([(torch.rand(4, 3, 8, 8), torch.zeros(4, 8, 8, dtype=torch.long))], "one class for each image"),
        ([(torch.rand(4, 3, 40, 40), torch.full((4,), 7))], "7 is out of range"),
        ([(torch.rand(4, 3, s, s), torch.arange(4) % 3) for s in (40, 48)], "one size"),
    ],
)
def test_data_that_cannot_be_judged_is_refused_with_its_reason(data, words):
    class Any(Filters):
        def forward(self, x):
            return self.relu(self.conv(x)).mean((2, 3))

    with pytest.raises(GradCAMError, match=words):
        judge(Any(), data, NAMES, layer="conv")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Sequential(nn.Conv2d(3, 1, 1), nn.AdaptiveAvgPool2d(1)), None),
        (nn.Sequential(nn.Conv2d(3, 2, 1)), "score per class"),
    ],
)
def test_one_logit_is_two_classes_and_a_map_of_classes_is_refused(model, words):
    data = [(torch.rand(12, 3, 20, 20), torch.arange(12) % 2)]
    if words is None:
        assert judge(model, data, layer="0").images == 12
    else:
        with pytest.raises(GradCAMError, match=words):
            judge(model, data, layer="0")


def test_a_set_that_changes_between_reads_is_refused():
    shuffled = iter([pictures("stamp", seed=1), pictures("stamp", seed=2)])
    for data in (lambda: next(shuffled), iter(pictures("stamp"))):
        with pytest.raises(GradCAMError, match="read again"):
            judge(Filters("magenta"), data, NAMES)


def test_a_test_that_does_not_exist_or_needs_masks_is_refused():
    with pytest.raises(GradCAMError, match=r"no test 'trans'.*transplant"):
        judge(Filters(), pictures(), NAMES, tests=["trans"])
    with pytest.raises(GradCAMError, match="need masks"):
        judge(Filters(), [b[:2] for b in pictures()], NAMES, tests=["swap"])
    with pytest.raises(GradCAMError, match="for sets without masks"):
        judge(Filters(), pictures(), NAMES, tests=["exchange"])


def test_maps_that_are_empty_or_not_finite_lend_no_patch():
    class Broken(Filters):
        def forward(self, x):
            return super().forward(x) * torch.tensor([float("nan"), 1.0, 1.0])

    verdicts = judge(Broken(), pictures(), NAMES)
    assert "rows" in verdicts.left_out


# --- the rule


@pytest.mark.parametrize(("images", "added"), [(12, 1), (9, 1), (4, 6)])
def test_the_interval_is_that_of_a_literal_bootstrap_over_images(images, added):
    rng = np.random.default_rng(0)
    source = rng.integers(0, images, 60)
    excess = np.where(source % 3 == 0, 1.0, rng.integers(0, 2, 60))
    images = sorted(set(source))
    rng, share, ends = np.random.default_rng(5), len(excess) / len(images), []
    for nothing in (added, 0):
        groups = [excess[source == k] for k in images] + [np.zeros(1)] * nothing
        means = []
        for draw in rng.integers(len(groups), size=(1000, len(images))):
            total = sum(groups[k].sum() for k in draw)
            means.append(total / sum(share if k >= len(images) else len(groups[k]) for k in draw))
        ends.append(np.quantile(means, (0.025, 0.975)))
    wanted = min(ends[0][0], ends[1][0]), ends[1][1]
    assert interval(excess, source, np.random.default_rng(5)) == pytest.approx(wanted)


def test_three_images_that_agree_are_less_sure_than_thirty():
    few = interval(np.ones(3), np.arange(3), np.random.default_rng(0))
    many = interval(np.ones(30), np.arange(30), np.random.default_rng(0))
    assert few[0] < many[0] < 1 and few[1] == many[1] == 1
    assert interval(-np.ones(3), np.arange(3), np.random.default_rng(0)) == (-1, -1)


def test_patches_are_alike_where_they_overlap_more_with_each_other_than_with_others():
    same, other = np.array([[1.0, 0.0, 0.0]] * 4), np.array([[0.0, 0.5, 0.5]] * 3)
    assert alike(same, other) == 1 and alike(same, same) == 0
    mixed = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert alike(mixed, other) == pytest.approx(0 - (0 + 0.5) / 2)
    assert np.isnan(alike(same[:1], other)) and np.isnan(alike(same, other[:0]))


def test_spread_and_distance_by_hand():
    assert spread(np.array([[0.1, 0.2]] * 5)) == 0
    assert spread(np.array([[0.0, 0.0], [0.0, 1.0]])) == 0.5
    # Deviation 1 in each class, means 0 and 3.
    means = np.array([[-1.0], [0.0], [1.0], [2.0], [3.0], [4.0]])
    assert distance(means, np.array([0, 0, 0, 1, 1, 1]), 1) == pytest.approx(3, rel=1e-2)
    # The nearest of several others counts.
    more, classes = np.concatenate([means, means[3:] + 1.5]), np.repeat([0, 1, 2], 3)
    assert distance(more, classes, 1) == pytest.approx(1.5, rel=1e-2)
    assert distance(more, classes, 0) == pytest.approx(3, rel=1e-2)


# --- as a run keeps it


@pytest.mark.slow
def test_a_judgement_is_read_back_from_a_run_folder_as_it_was_written(tmp_path):
    from fastai_gradcam._run.verdicts import read_table

    names = ["NA", 'a "quoted", name', "checks"]
    verdicts = judge(Filters("magenta"), pictures("stamp"), names)
    verdicts.save(tmp_path)
    pd.testing.assert_frame_equal(read_table(tmp_path), verdicts.table.astype({"images": int}))
    pd.testing.assert_frame_equal(read_table(tmp_path, "pooled"), verdicts.pooled.astype({"images": int}))
    classes = read_table(tmp_path, "classes").set_index("label")
    assert list(classes.index) == names and classes.loc["NA", "alike"] == verdicts.suspicion["NA"].alike
    shown = read_table(tmp_path, "pictures")
    assert set(shown["label"]) == {"NA"} and {"", "transplant"} <= set(shown["test"])
    for file in shown["file"]:
        assert (tmp_path / file).is_file()
    assert "became NA" in shown.set_index("test").loc["transplant", "caption"]
    judge(Filters(), pictures("stamp"), names).save(tmp_path)
    assert not list((tmp_path / "patches").glob("*.png")), "pictures of an earlier judgement are left"


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"label,test\n1,2\n", None])
def test_verdicts_that_are_not_there_or_damaged_are_an_empty_table(tmp_path, damage):
    from fastai_gradcam._run.verdicts import read_table

    if damage is not None:
        (tmp_path / "verdicts.csv").write_bytes(damage)
    table = read_table(tmp_path)
    assert table.empty and tuple(table.columns) == COLUMNS
