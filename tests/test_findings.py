"""Small histories built by hand: what is found in them, in which words, and when nothing is."""

import io
import json

import numpy as np
import pandas as pd
import pytest

from fastai_gradcam.findings import COLUMNS, KINDS, TITLES, Thresholds, checks, checks_in_words, findings
from fastai_gradcam.measures import MEASURES

HISTORY = (
    "frame",
    "fit",
    "epoch",
    "item",
    "layer",
    "label",
    "target",
    "prob",
    "pred",
    "pred_prob",
    "correct",
    "loss",
)
HISTORY += MEASURES
LABELS = ["Bass", "Mullet", "Sprat", "Trout"]


def row(frame, item, label, **given):
    """One image that looks at its object and is right, as the callback writes it, but for what is `given`."""
    pred = given.get("pred", label)
    pred_prob = given.pop("pred_prob", 0.95)
    trained = frame > 0
    numbers = {
        "frame": frame,
        "fit": 0,
        "epoch": frame - 1,
        "item": item,
        "layer": "0.7",
        "label": label,
        "target": label,
        "prob": pred_prob if pred == label else 1 - pred_prob,
        "pred": pred,
        "pred_prob": pred_prob,
        "correct": pred == label,
        "loss": 0.05,
        "evidence": 12.0,
        "negative_share": 0.2,
        "entropy": 0.8,
        "concentration": 0.3,
        "border_share": 0.45,
        "centroid_y": 0.5,
        "centroid_x": 0.5,
        "centroid_shift": 0.03 if trained else np.nan,
        "similarity_prev": 0.93 if trained else np.nan,
        "similarity_first": 0.5 if trained else np.nan,
        "iou_prev": 0.7 if trained else np.nan,
        "mask_share": 0.45,
        "pointing_hit": True,
    }
    assert given.keys() <= numbers.keys()
    return numbers | given


def history(change=lambda frame, item, label: {}, frames=6, per_class=4, labels=LABELS):
    """Sixteen images of four classes (items 0–3, 4–7, …), `change`d where the test says so."""
    rows = [
        row(frame, item, labels[item // per_class], **change(frame, item, labels[item // per_class]))
        for frame in range(frames)
        for item in range(per_class * len(labels))
    ]
    return pd.DataFrame(rows, columns=list(HISTORY))


def only(table):
    assert len(table) == 1, table[["kind", "text"]].to_string()
    return table.iloc[0]


def trout(items=(12, 13, 14), since=0, **given):
    return lambda frame, item, label: given if item in items and frame >= since else {}


# ---- silence


def test_a_healthy_run_gives_an_empty_table():
    rng = np.random.default_rng(0)
    for _ in range(5):
        noisy = history(
            lambda frame, item, label: {
                "mask_share": rng.uniform(0.3, 0.6) if frame else rng.uniform(0.0, 0.9),
                "pred_prob": rng.uniform(0.6, 1.0),
                "centroid_y": rng.uniform(0.32, 0.68),
                "centroid_x": rng.uniform(0.32, 0.68),
                "border_share": rng.uniform(0.3, 0.7),
                "similarity_prev": rng.uniform(0.7, 1.0) if frame else np.nan,
            }
        )
        table = findings(noisy)
        assert table.empty, table["text"].tolist()
        assert tuple(table.columns) == COLUMNS


@pytest.mark.parametrize("empty", [pd.DataFrame(), history().iloc[:0], pd.DataFrame({"frame": [1], "item": [None]})])
def test_an_empty_history_gives_an_empty_table(empty):
    table = findings(empty)
    assert len(table) == 0 and tuple(table.columns) == COLUMNS


def test_a_failed_or_missing_frame_changes_nothing():
    run = history()
    assert findings(run[run["frame"] != 3]).empty


# ---- each kind


def test_right_and_confident_outside_the_object():
    found = only(findings(history(trout(mask_share=0.11, pred_prob=0.92))))
    assert found["kind"] == "outside"
    assert found["text"] == (
        "Trout (3 of 4 images): 92 % sure and right, but only 11 % of the attention is on the object; "
        "it is centred in the middle"
    )
    assert (found["frame"], found["layer"], found["label"], found["items"]) == (
        5,
        "0.7",
        "Trout",
        (12, 13, 14),
    )
    assert all(type(item) is int for item in found["items"])
    # 0.1 and, of the 0.8 up to 0.9: (1 − 0.11/0.2) · 3/4 · 3/4
    assert found["severity"] == pytest.approx(0.1 + 0.8 * 0.45 * 9 / 16)
    evidence = found["evidence"]
    assert (evidence["images"], evidence["of"]) == (3, 4)
    assert evidence["mask_share"] == pytest.approx(0.11)
    assert evidence["by_item"][13]["pred_prob"] == pytest.approx(0.92)
    json.dumps(evidence, allow_nan=False)


def test_neither_unsure_nor_wrong_images_are_confident():
    assert findings(history(trout(mask_share=0.11, pred_prob=0.79))).empty
    wrong = findings(history(trout(mask_share=0.11, pred_prob=0.9, pred="Bass")))
    assert wrong["kind"].tolist() == ["wrong"]


def test_the_means_are_of_the_images_found():
    shares = {12: 0.02, 13: 0.06, 14: 0.10}
    found = only(findings(history(lambda f, i, k: {"mask_share": shares[i]} if i in shares and f else {})))
    assert found["evidence"]["mask_share"] == pytest.approx(0.06)
    assert "only 6 % of the attention" in found["text"]


def test_where_the_attention_is_instead():
    found = only(findings(history(trout(mask_share=0.05, centroid_y=0.2, centroid_x=0.8))))
    assert found["kind"] == "outside"  # and no second row for the corner
    assert found["text"].endswith("; it is centred in the upper right part of the picture")
    apart = history(lambda f, i, k: {"mask_share": 0.05, "centroid_x": 0.1 if i % 2 else 0.9} if i > 11 else {})
    assert "centred" not in only(findings(apart))["text"]


@pytest.mark.slow
def test_with_the_masks_area_attention_is_judged_against_chance():
    run = history(trout(items=(12,), mask_share=0.3))
    assert findings(run).empty
    # a fish on half of the picture would get half of even attention: 0.3 < 0.75 · 0.5
    found = only(findings(run, mask_areas={12: 0.5}))
    assert found["text"].startswith("Trout (1 of 4 images): ")
    assert "30 % of the attention is on the object, which covers 50 % of the picture" in found["text"]
    # 0.3 of the attention on 0.35 of the picture is a little less than by chance, on 0.15 twice as much
    assert findings(run, mask_areas={12: 0.35}).empty
    assert findings(run, mask_areas={12: 0.15}).empty
    # a small one with 11 % is well above its 5 %
    small = history(trout(mask_share=0.11))
    assert len(findings(small)) == 1
    assert findings(small, mask_areas={12: 0.05, 13: 0.05, 14: 0.05, 3: 0.9e-9}).empty


def test_a_tag_that_gives_every_class_away_is_one_row():
    tag = history(lambda f, i, k: {"mask_share": 0.08, "pred_prob": 0.97} if f and i != 7 else {})
    found = only(findings(tag))
    assert found["kind"] == "outside" and found["label"] == ""
    assert found["text"].startswith("4 of 4 classes (15 of 16 images): 97 % sure and right, but only 8 % of the")
    assert found["items"] == tuple(i for i in range(16) if i != 7)
    assert len(findings(tag, thresholds=Thresholds(classes=4))) == 4


AREAS = dict.fromkeys(range(16), 0.2)


def beside(*items, **given):
    """Attention of 0.27 on a fifth of the picture in some images: 0.27/0.73 · 0.8/0.2 = 1.48 times as dense there."""
    return history(lambda f, i, k: {"mask_share": 0.27 if i in items else 0.6} | given)


def test_a_panel_that_is_right_without_its_objects_is_a_shortcut():
    found = only(findings(beside(*range(2, 14)), mask_areas=AREAS))
    assert (found["kind"], found["label"], found["items"]) == ("shortcut", "", tuple(range(2, 14)))
    assert found["text"] == (
        "4 of 4 classes (12 of 16 images): 95 % sure and right, but only 27 % of the attention is on the object, which "
        "covers 20 % of the picture; it is centred in the middle; so it is in 12 of the 16 images that are right and "
        "this sure: is there a tag, a watermark or a telling background beside it?"
    )
    # 1.48 of 2 in twelve images, at least 2 in four; by 12/16 and 12/13
    density = 0.27 / 0.73 * 4
    strength = 1 - (12 * density + 4 * 2) / 16 / 2
    assert found["severity"] == pytest.approx(0.6 + 0.4 * strength * 12 / 16 * 12 / 13)
    assert found["evidence"]["by_item"][5]["density"] == pytest.approx(density)


def test_a_shortcut_takes_most_of_several_images_that_are_right_and_confident():
    few = dict.fromkeys(range(5), 0.2)
    assert findings(beside(*range(7)), mask_areas=AREAS).empty  # 7 of 16 are not most
    assert len(findings(beside(*range(8)), mask_areas=AREAS)) == 1
    assert findings(beside(*range(16), pred_prob=0.79), mask_areas=AREAS).empty
    assert len(findings(beside(*range(3)), mask_areas=few)) == 1  # 3 of 5
    del few[4]
    assert findings(beside(*range(3)), mask_areas=few).empty  # 3 of 4: too few to tell
    assert findings(beside(*range(16))).empty  # how large the objects are is not known


def test_how_dense_the_attention_on_the_object_must_be_can_be_moved():
    run = beside(*range(16))
    assert findings(run, mask_areas=AREAS, thresholds=Thresholds(dense=1.4)).empty
    assert len(findings(run, mask_areas=AREAS, thresholds=Thresholds(dense=1.5))) == 1
    assert findings(run, mask_areas=AREAS, thresholds=Thresholds(dense_images=17)).empty


def test_images_of_a_shortcut_are_told_once():
    nothing = history(lambda f, i, k: {"mask_share": 0.02, "centroid_y": 0.1, "centroid_x": 0.1, "border_share": 1.0})
    assert only(findings(nothing, mask_areas=AREAS))["kind"] == "shortcut"


def test_classes_of_few_images_share_a_row():
    preds = dict.fromkeys([0, 4, 12, 13, 14, 15], "Pike")
    table = findings(history(lambda f, i, k: {"pred": preds[i]} if i in preds else {}))
    assert table["label"].tolist() == ["Trout", ""]
    assert table["items"].tolist() == [(12, 13, 14, 15), (0, 4)]
    assert table["text"][1].startswith("2 of 4 classes (2 of 16 images): taken for Pike")


def no_masks(**given):
    given |= {"mask_share": np.nan, "pointing_hit": np.nan}
    return lambda frame, item, label: given if label == "Trout" else {"mask_share": np.nan}


def test_a_corner_that_a_class_shares():
    found = only(findings(history(no_masks(centroid_y=0.8, centroid_x=0.15))))
    assert (found["kind"], found["label"], found["items"]) == ("corner", "Trout", (12, 13, 14, 15))
    assert found["text"] == (
        "Trout (4 of 4 images): the attention is in the lower left corner, 95 % sure; "
        "is there a tag, a watermark or a telling background?"
    )
    assert found["evidence"]["centroid_y"] == pytest.approx(0.8)
    # the farther of the two axes is 0.2 from its edge: 1 − 0.4, by 4/4 · 4/5
    assert found["severity"] == pytest.approx(0.4 + 0.4 * 0.6 * 0.8)


def test_an_edge_is_no_corner_and_different_corners_are_not_shared():
    assert findings(history(no_masks(centroid_y=0.8, centroid_x=0.5))).empty
    corners = {12: (0.1, 0.1), 13: (0.1, 0.9), 14: (0.9, 0.1), 15: (0.9, 0.9)}
    spread = history(
        lambda f, i, k: (
            {"mask_share": np.nan}
            | (dict(zip(("centroid_y", "centroid_x"), corners[i], strict=True)) if i in corners else {})
        )
    )
    assert findings(spread).empty


def test_two_of_four_images_in_a_corner_are_not_the_class():
    def some(n):
        return history(
            lambda f, i, k: (
                {"mask_share": np.nan} | ({"centroid_y": 0.1, "centroid_x": 0.1} if 12 <= i < 12 + n else {})
            )
        )

    assert findings(some(2)).empty
    assert only(findings(some(3)))["items"] == (12, 13, 14)
    assert only(findings(some(2), thresholds=Thresholds(class_images=2, class_share=0.5)))["items"] == (
        12,
        13,
    )


def test_three_of_six_images_in_a_corner_are_not_the_class():
    there = {"centroid_y": 0.1, "centroid_x": 0.1}
    run = history(lambda f, i, k: {"mask_share": np.nan} | (there if i > 20 else {}), per_class=6)
    assert findings(run).empty


def test_what_is_known_of_some_images_only_is_told_of_these():
    table = findings(history(trout(mask_share=0.1)), mask_areas={12: 0.3, 13: np.nan})
    by_item = only(table)["evidence"]["by_item"]
    assert by_item[12]["mask_area"] == 0.3
    assert "mask_area" not in by_item[13] and "mask_area" not in by_item[14]
    infinite = history(lambda f, i, k: {"mask_share": 0.1, "border_share": np.inf} if i == 12 else {})
    assert "border_share" not in only(findings(infinite))["evidence"]


def test_a_corner_that_the_whole_panel_shares():
    one_each = history(
        lambda f, i, k: {"mask_share": np.nan, "centroid_y": 0.1, "centroid_x": 0.9} if i else {}, per_class=1
    )
    found = only(findings(one_each))
    assert (found["kind"], found["label"], found["items"]) == ("corner", "", (1, 2, 3))
    assert found["text"].startswith("3 of 4 classes (3 of 4 images): the attention is in the upper right corner")


def test_a_guess_or_a_mistake_in_a_corner_gives_no_class_away():
    there = {"centroid_y": 0.1, "centroid_x": 0.1, "border_share": 1.0}
    assert findings(history(no_masks(pred_prob=0.4, **there))).empty
    assert findings(history(no_masks(pred="Bass", **there)))["kind"].tolist() == ["wrong"]


def test_an_object_in_a_corner_is_no_finding():
    on_it = history(lambda f, i, k: {"mask_share": 0.5, "centroid_y": 0.2, "centroid_x": 0.2, "border_share": 1.0})
    assert findings(on_it).empty


def test_the_border_that_a_class_shares():
    found = only(findings(history(no_masks(border_share=0.92))))
    assert (found["kind"], found["items"]) == ("border", (12, 13, 14, 15))
    assert found["text"] == "Trout (4 of 4 images): 92 % of the attention is on the border of the picture, 95 % sure"
    assert findings(history(no_masks(border_share=0.89))).empty


def test_with_the_maps_shape_the_border_is_judged_against_chance():
    # 14×14: 52 of 196 cells are border, 0.265; six tenths on from there: 0.71
    found = only(findings(history(no_masks(border_share=0.72)), map_shapes={"0.7": (14, 14)}))
    assert "72 % of the attention is on the border of the picture (spread evenly it would be 27 %)" in found["text"]
    assert findings(history(no_masks(border_share=0.70)), map_shapes={"0.7": (14, 14)}).empty
    # 4×4: 0.75, so that 0.91 is only 0.64 of the way, and 0.89 is 0.56
    assert len(findings(history(no_masks(border_share=0.91)), map_shapes={"0.7": (4, 4)})) == 1
    assert findings(history(no_masks(border_share=0.89)), map_shapes={"0.7": (4, 4)}).empty
    # 2×2: everything is border
    assert findings(history(no_masks(border_share=1.0)), map_shapes={"0.7": (2, 2)}).empty


def test_a_corner_is_told_once():
    table = findings(history(no_masks(border_share=0.95, centroid_y=0.1, centroid_x=0.1)))
    assert table["kind"].tolist() == ["corner"]


def test_wrong_and_where_it_looked():
    found = only(findings(history(trout(items=(12,), pred="Bass", pred_prob=0.81, mask_share=0.12))))
    assert (found["kind"], found["items"]) == ("wrong", (12,))
    assert found["text"] == (
        "Trout (1 of 4 images): taken for Bass (81 % sure); of what speaks for Trout, 12 % is on the object"
    )
    unmasked = trout(items=(12,), pred="Bass", mask_share=np.nan, centroid_y=0.8, centroid_x=0.8)
    assert only(findings(history(unmasked)))["text"].endswith(
        "what speaks for Trout is centred in the lower right part of the picture"
    )


def looked_at(places, frames=6):
    "Trout 12, 13, … taken for Bass, without masks; each at one of `places`, `None` for an empty map."

    def change(frame, item, label):
        if not frame or not 12 <= item < 12 + len(places):
            return {"mask_share": np.nan}
        at = places[item - 12]
        y, x = (np.nan, np.nan) if at is None else at
        found = {"pred": "Bass", "mask_share": np.nan, "centroid_y": y, "centroid_x": x}
        return found | ({"evidence": 0.0, "border_share": np.nan} if at is None else {})

    table = findings(history(change, frames), thresholds=Thresholds(late_frames=99))
    return only(table[table["kind"] == "wrong"])["text"].partition("; ")[2]


LEFT, MIDDLE, RIGHT = (0.2, 0.2), (0.5, 0.5), (0.8, 0.8)


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ([LEFT] * 3, "what speaks for Trout is centred in the upper left part of the picture"),
        (
            [LEFT, MIDDLE, LEFT],
            "what speaks for Trout is centred in different places: 2 in the upper left, 1 in the middle",
        ),
        ([None], "its map is empty"),
        ([None] * 3, "their maps are empty"),
        (
            [RIGHT, None],
            "what speaks for Trout is centred in the lower right part of the picture; 1 of the maps is empty",
        ),
        (
            [RIGHT, None, LEFT, None],
            "what speaks for Trout is centred in different places: 1 in the lower right, 1 in the upper left; "
            "2 of the maps are empty",
        ),
    ],
    ids=str,
)
def test_wrong_images_without_masks_always_say_where(places, words):
    assert looked_at(places) == words


def test_many_different_places_are_not_listed():
    many = [(y, x) for y in (0.1, 0.5, 0.9) for x in (0.1, 0.9)][:5]

    def change(frame, item, label):
        if not frame or item > 4:
            return {"mask_share": np.nan}
        return {"pred": "Trout", "mask_share": np.nan, "centroid_y": many[item][0], "centroid_x": many[item][1]}

    table = findings(history(change, per_class=5), thresholds=Thresholds(late_frames=99))
    assert only(table[table["kind"] == "wrong"])["text"].endswith("what speaks for Bass is centred in different places")


def test_wrong_images_of_a_class_are_one_row():
    preds = {12: "Bass", 13: "Bass", 14: "Sprat"}
    run = history(lambda f, i, k: {"pred": preds[i]} if i in preds and f == 5 else {})
    assert "Trout (3 of 4 images): mostly taken for Bass (95 % sure)" in only(findings(run))["text"]


def test_a_wrong_guess_that_is_not_confident_is_no_finding():
    assert findings(history(trout(pred="Bass", pred_prob=0.75))).empty


def test_wrong_is_worse_off_the_object():
    on, off = (only(findings(history(trout(pred="Bass", mask_share=share)))) for share in (0.5, 0.1))
    assert off["severity"] > on["severity"]


def test_attention_that_still_moves():
    found = only(findings(history(lambda f, i, k: {"similarity_prev": 0.3} if k == "Trout" and f else {})))
    assert (found["kind"], found["frame"], found["items"]) == ("unsettled", 5, (12, 13, 14, 15))
    # the last third of six frames
    assert found["text"] == (
        "Trout (4 of 4 images): the attention still moves in frames 4 to 5: on average the maps of two frames "
        "correlate by 0.30 and their centre moves by 3 % of the picture"
    )
    assert found["evidence"]["similarity_late"] == pytest.approx(0.3)
    shifting = history(lambda f, i, k: {"centroid_shift": 0.2, "similarity_prev": np.nan} if i < 4 and f else {})
    assert only(findings(shifting))["evidence"]["shift_late"] == pytest.approx(0.2)


def test_the_attention_of_a_few_images_always_moves():
    few = history(lambda f, i, k: {"similarity_prev": 0.1} if i < 3 and f else {})
    assert findings(few).empty
    assert only(findings(few, thresholds=Thresholds(late_share=0.1)))["items"] == (0, 1, 2)


def test_attention_that_has_settled_or_is_young_may_have_moved():
    assert findings(history(lambda f, i, k: {"similarity_prev": 0.1} if f < 4 else {})).empty
    assert findings(history(lambda f, i, k: {"similarity_prev": 0.1}, frames=4)).empty


def test_one_late_move_alone_is_not_judged():
    once = history(lambda f, i, k: {"similarity_prev": 0.1 if f == 5 else np.nan, "centroid_shift": np.nan})
    assert findings(once).empty


def test_maps_of_another_class_have_not_moved():
    # the explained class is the predicted one, which changed in the last but one frame
    run = history(
        lambda f, i, k: (
            {"target": "Bass" if f < 4 else "Trout", "similarity_prev": 0.1 if f == 4 else 0.8}
            | ({"mask_share": 0.9 if f < 4 else 0.4})
            if i == 12
            else {}
        )
    )
    assert findings(run).empty


def test_attention_that_moved_off_the_object():
    shares = [0.9, 0.5, 0.56, 0.58, 0.2, 0.12]
    low = {"pred_prob": 0.7}
    found = only(findings(history(lambda f, i, k: {"mask_share": shares[f]} | low if i == 9 else {})))
    assert (found["kind"], found["items"], found["label"]) == ("left_object", (9,), "Sprat")
    assert found["frame"] == 4  # where it fell
    assert found["text"] == (
        "Sprat (1 of 4 images): the attention moved off the object: 56 % of it was there in frame 3, 12 % in frame 5"
    )
    assert found["evidence"]["by_item"][9]["frame_before"] == 3
    # the lower one of the two frames in which it stayed there
    assert found["evidence"]["mask_share_before"] == pytest.approx(0.56)


def test_attention_that_moved_off_the_object_is_told_once():
    run = history(lambda f, i, k: {"mask_share": 0.1 if f > 3 else 0.9} if i == 9 else {})
    assert only(findings(run))["kind"] == "outside"


@pytest.mark.parametrize(
    "shares",
    [
        [0.9, 0.9, 0.1, 0.1, 0.1, 0.1],  # only from the frame before training and the first one
        [0.5, 0.1, 0.9, 0.1, 0.9, 0.1],  # it never stayed there
        [0.5, 0.6, 0.6, 0.1, 0.5, 0.5],  # it came back
        [0.5, 0.9, 0.9, 0.7, 0.3, 0.3],  # a third is still there
        [0.5, 0.9, 0.8, 0.7, 0.6, 0.5],  # most is still there
        [0.3, 0.4, 0.4, 0.4, 0.3, 0.21],  # a little less than before
        [0.5, 0.6, 0.6, 0.1, np.nan, np.nan],  # not known where it is in the last frame
    ],
)
def test_less_attention_on_the_object_is_not_off_it(shares):
    low = {"pred_prob": 0.7}  # not so sure that it would be told as outside
    assert findings(history(lambda f, i, k: {"mask_share": shares[f]} | low if i == 9 else {})).empty


def test_whether_attention_is_off_the_object_depends_on_its_area():
    shares = [0.9, 0.7, 0.7, 0.7, 0.3, 0.3]
    run = history(lambda f, i, k: {"mask_share": shares[f], "pred_prob": 0.7} if i == 9 else {})
    assert findings(run, mask_areas={9: 0.35}).empty  # 0.75 · 0.35 = 0.26
    assert only(findings(run, mask_areas={9: 0.45}))["kind"] == "left_object"


def test_attention_of_frames_that_were_wrong_held_no_object():
    shares = [0.9, 0.7, 0.7, 0.7, 0.1, 0.1]

    def run(**given):
        return history(
            lambda f, i, k: {"mask_share": shares[f], "pred_prob": 0.7} | (given if f < 4 else {}) if i == 9 else {}
        )

    assert findings(run(pred="Pike")).empty
    for correct in (True, None):
        assert only(findings(run(correct=correct)))["kind"] == "left_object"


def test_empty_maps():
    undefined = dict.fromkeys(set(MEASURES) - {"evidence", "negative_share"}, np.nan)
    found = only(findings(history(trout(items=(13, 14), evidence=0.0, **undefined))))
    assert (found["kind"], found["items"]) == ("empty", (13, 14))
    assert found["text"] == ("Trout (2 of 4 images): the map is empty: nothing that this method shows speaks for Trout")
    assert found["severity"] == pytest.approx(0.1 + 0.7 * 2 / 4 * 2 / 3)
    wrong = only(findings(history(trout(items=(13, 14), evidence=0.0, pred="Bass", pred_prob=0.6, **undefined))))
    assert wrong["severity"] == pytest.approx(0.1 + 0.7 * 0.25 * 2 / 4 * 2 / 3)
    earlier = undefined | {"evidence": 0.0}
    assert findings(history(lambda f, i, k: earlier if f < 5 else {})).empty


def test_an_empty_map_of_a_right_answer_says_what_averages_it_away_and_what_would_not():
    undefined = dict.fromkeys(set(MEASURES) - {"evidence", "negative_share"}, np.nan) | {"evidence": 0.0}
    found = only(findings(history(trout(items=(13, 14), negative_share=0.96, **undefined))))
    assert found["text"] == (
        "Trout (2 of 4 images): the map is empty though the answer is right: averaged over the picture, 96 % of it "
        "speaks against Trout, which Grad-CAM cuts off. Its positive parts are shown by method='layercam' or "
        "'gradcam_elementwise'"
    )
    for given in ({"negative_share": 0.3}, {"negative_share": 0.96, "pred": "Bass", "pred_prob": 0.6}):
        found = only(findings(history(trout(items=(13, 14), **given, **undefined))))
        assert "layercam" not in found["text"]


@pytest.mark.parametrize("pred_prob", [0.3, 0.95])
def test_a_panel_that_is_mostly_wrong_is_a_finding_however_confident_it_is(pred_prob):
    wrong = lambda most: lambda f, i, k: {"pred": "Pike", "pred_prob": pred_prob} if i < most else {}
    table = findings(history(wrong(11)))
    found = table[table["kind"] == "mostly_wrong"].iloc[0]
    assert found["items"] == tuple(range(11)) and found["label"] == "" and 0.3 <= found["severity"] < 0.49
    assert found["text"].startswith(
        "3 of 4 classes (11 of 16 images): wrong, so the maps show what guesses are made of"
    )
    assert found["text"].endswith("right on only 5 of 16 images of the panel")
    assert "mostly_wrong" not in set(findings(history(wrong(8)))["kind"])
    assert "mostly_wrong" in set(findings(history(wrong(8)), thresholds=Thresholds(mostly=0.4))["kind"])
    # Two images are no panel, and what is not known is not wrong.
    assert "mostly_wrong" not in set(findings(history(wrong(2), per_class=1, labels=LABELS[:2]))["kind"])
    assert findings(history(wrong(16)).assign(correct=None)).empty


def test_attention_on_the_border_of_the_whole_panel_counts_whatever_is_predicted():
    change = {"border_share": 0.86, "pred": "Pike", "pred_prob": 0.3, "mask_share": np.nan}
    table = findings(history(lambda f, i, k: change if i < 12 else {"mask_share": np.nan}), map_shapes={"0.7": (7, 8)})
    found = table[table["kind"] == "border"].iloc[0]
    assert found["label"] == "" and found["items"] == tuple(range(12))
    assert "86 % of the attention is on the border of the picture (spread evenly it would be 46 %)" in found["text"]
    few = findings(history(lambda f, i, k: change if i < 6 else {}), map_shapes={"0.7": (7, 8)})
    assert "border" not in set(few["kind"])


def test_it_is_said_what_was_looked_for_and_what_could_not_be():
    assert not any(checks(history()).values()) and checks(history()).keys() == set(TITLES.values())
    cases = {
        "no masks": (history().assign(mask_share=None), {"shortcut", "outside", "left_object"}),
        "no labels": (history().assign(correct=None), {"shortcut", "outside", "left_object", "mostly_wrong", "wrong"}),
        "fewer than 5 frames": (history(frames=4), {"unsettled"}),
        "no frame after training": (history(frames=1), {*TITLES} - {"non_finite"}),
    }
    for reason, (rows, kinds) in cases.items():
        found = checks(rows)
        assert {kind for kind in TITLES if found[TITLES[kind]]} == kinds
        assert {found[TITLES[kind]] for kind in kinds} == {reason}
        words = checks_in_words(found)
        assert words.startswith("Looked for: ") and f"({reason})." in words
        assert all(title.lower() in words.lower() for title in TITLES.values())
    assert "Not looked for" not in checks_in_words(checks(history()))


@pytest.mark.slow
def test_what_could_not_be_looked_for_is_not_found():
    for given in ({"mask_share": None}, {"correct": None}):
        rows = many_kinds().assign(**given)
        lacking = {kind for kind in TITLES if checks(rows)[TITLES[kind]]}
        assert not lacking & set(findings(rows)["kind"])


@pytest.mark.parametrize("evidence", [np.nan, np.inf])
def test_maps_that_are_not_finite_come_first(evidence):
    undefined = dict.fromkeys(MEASURES, np.nan) | {"evidence": evidence}
    diverged = history(lambda f, i, k: undefined | {"prob": np.nan, "pred_prob": np.nan} if f >= 3 else {})
    found = only(findings(diverged))
    assert (found["kind"], found["severity"], found["frame"]) == ("non_finite", 1.0, 3)
    assert found["text"] == "4 of 4 classes (16 of 16 images): the map holds NaN or infinity, since frame 3"
    both = findings(history(lambda f, i, k: undefined if i == 0 else {"mask_share": 0.0}))
    assert both["kind"].tolist()[0] == "non_finite" and len(both) == 2
    assert both["items"][0] == (0,) and both["label"][0] == "Bass"


def test_maps_are_broken_since_they_were_last_whole():
    run = history(lambda f, i, k: {"evidence": np.nan} if i == 3 and f in (1, 4, 5) else {})
    assert only(findings(run))["frame"] == 4


def test_before_training_only_broken_maps_are_named():
    wild = history(lambda f, i, k: {"mask_share": 0.0, "pred": "Bass", "evidence": 0.0 if i else np.nan}, frames=1)
    assert findings(wild)["kind"].tolist() == ["non_finite"]


# ---- the table


def many_kinds():
    def change(f, i, k):
        if i < 4:
            return {"mask_share": 0.02}
        if i == 5:
            return {"pred": "Bass", "pred_prob": 0.85}
        if 8 <= i < 12:
            return {"similarity_prev": 0.4}
        return {"evidence": 0.0, "mask_share": np.nan} if i == 12 and f == 5 else {}

    return history(change)


def test_the_most_severe_comes_first():
    table = findings(many_kinds())
    assert table["kind"].tolist() == ["outside", "wrong", "empty", "unsettled"]
    assert table["severity"].is_monotonic_decreasing
    for kind, severity in zip(table["kind"], table["severity"], strict=True):
        assert KINDS[kind][0] <= severity <= KINDS[kind][1]


@pytest.mark.slow
def test_more_images_and_stronger_numbers_are_more_severe():
    def severity(items, share):
        return only(findings(history(trout(items=items, mask_share=share))))["severity"]

    assert severity((12,), 0.1) < severity((12, 13), 0.1) < severity((12, 13, 14, 15), 0.1)
    assert severity((12,), 0.15) < severity((12,), 0.1)


@pytest.mark.slow
def test_the_table_stays_short():
    labels = [f"class {i}" for i in range(16)]
    rng = np.random.default_rng(1)
    wild = history(
        lambda f, i, k: {
            "mask_share": rng.uniform(0, 0.5),
            "pred": rng.choice([k, "class 0"]),
            "similarity_prev": rng.uniform(0, 1),
            "evidence": rng.choice([0.0, 1.0]),
            "centroid_y": rng.uniform(),
            "centroid_x": rng.uniform(),
        },
        per_class=1,
        labels=labels,
    )
    assert 3 <= len(findings(wild)) <= 8
    assert len(findings(wild, thresholds=Thresholds(classes=99))) <= 8
    assert len(findings(wild, thresholds=Thresholds(classes=99, class_images=1))) == 12
    assert len(findings(wild, thresholds=Thresholds(classes=99, class_images=1, rows=5))) == 5


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ({"mask_share": 0.25}, {"on_object": 0.3}),
        ({"mask_share": 0.1, "pred_prob": 0.7}, {"confident": 0.6}),
        ({"pred": "Bass", "pred_prob": 0.7}, {"confident": 0.6}),
        ({"mask_share": np.nan, "centroid_y": 0.1, "centroid_x": 0.1, "pred_prob": 0.4}, {"likely": 0.3}),
        ({"mask_share": np.nan, "centroid_y": 0.35, "centroid_x": 0.35}, {"corner": 0.4}),
        ({"mask_share": np.nan, "border_share": 0.8}, {"border": 0.75}),
        ({"mask_share": 0.19, "pred_prob": 0.7, "since": 5}, {"fall": 0.2}),
        ({"mask_share": 0.25, "pred_prob": 0.7, "since": 5}, {"fall": 0.15, "fall_to": 0.6, "on_object": 0.3}),
    ],
)
def test_thresholds_can_be_moved(given, changed):
    run = history(trout(**given))
    assert findings(run).empty
    assert len(findings(run, thresholds=Thresholds(**changed))) == 1


def test_late_and_settled_can_be_moved():
    run = history(lambda f, i, k: {"similarity_prev": 0.6, "centroid_shift": 0.1} if f > 2 else {}, frames=4)
    assert findings(run, thresholds=Thresholds(late_frames=4)).empty
    assert len(findings(run, thresholds=Thresholds(late_frames=4, settled_similarity=0.7, late=0.25))) == 0
    both = history(lambda f, i, k: {"similarity_prev": 0.6, "centroid_shift": 0.1} if f else {}, frames=4)
    assert len(findings(both, thresholds=Thresholds(late_frames=4, settled_similarity=0.7))) == 1
    assert len(findings(both, thresholds=Thresholds(late_frames=4, settled_shift=0.05))) == 1
    assert findings(both, thresholds=Thresholds(settled_shift=0.05)).empty


# ---- histories as they come


def test_a_history_read_back_from_its_file_says_the_same():
    run = many_kinds()
    read = pd.read_csv(io.StringIO(run.to_csv(index=False)))
    read["correct"] = read["correct"].astype(object).where(read["item"] != 15, None)
    assert findings(read)["text"].tolist() == findings(run)["text"].tolist()
    words = pd.read_csv(io.StringIO(run.to_csv(index=False)), dtype=str)
    assert findings(words)["text"].tolist() == findings(run)["text"].tolist()


def test_findings_leave_the_history_alone():
    run = many_kinds()
    before = run.copy()
    findings(run)
    pd.testing.assert_frame_equal(run, before)


@pytest.mark.slow
@pytest.mark.parametrize("name", HISTORY)
def test_no_column_is_needed(name):
    run = many_kinds()
    findings(run.drop(columns=name))
    findings(run.assign(**{name: None}))
    findings(run.assign(**{name: "?"}))


def test_an_image_whose_rightness_is_not_known_is_not_judged_by_it():
    assert findings(history(trout(mask_share=0.05, correct=None))).empty


def test_one_frame_is_enough():
    run = many_kinds()
    table = findings(run[run["frame"] == 5])
    assert table["kind"].tolist() == ["outside", "wrong", "empty"]


def test_of_several_classes_that_of_the_label_is_judged():
    run = history()
    other = run.assign(target="Pike", mask_share=0.01, evidence=0.0, similarity_prev=0.0)
    for several in (pd.concat([run, other]), pd.concat([other, run])):
        several = several.sort_values(["frame", "item"], kind="stable")
        assert findings(several).empty
    of_pred = run.assign(label="Pike", correct=True)
    assert len(findings(pd.concat([other.assign(target="Eel"), of_pred]).assign(label="Pike"))) == 0


def test_the_last_layer_is_judged_unless_another_is_asked_for():
    deep = history()
    early = deep.assign(layer="0.4", mask_share=0.05)
    both = pd.concat([early, deep])
    assert findings(both).empty
    found = only(findings(both, layer="0.4"))
    assert (found["kind"], found["layer"]) == ("outside", "0.4")
    with pytest.raises(ValueError, match=r"'0\.9'.*0\.4, 0\.7"):
        findings(both, layer="0.9")


def test_images_without_labels_are_counted():
    run = history(lambda f, i, k: {"mask_share": 0.05} if i < 3 else {}).assign(label=None)
    assert only(findings(run))["text"].startswith("3 of 16 images: 95 % sure and right")
    alone = history(lambda f, i, k: {"mask_share": 0.05}, per_class=1, labels=["Eel"])
    assert only(findings(alone))["text"].startswith("Eel (1 image): ")


def test_hostile_labels_are_text():
    names = ["<script>alert(1)</script>", "a\nb\t\"'", "x" * 300, "🐟 שלום"]
    run = history(lambda f, i, k: {"mask_share": 0.05} if f else {}, labels=names)
    table = findings(run, thresholds=Thresholds(classes=4)).set_index("label")
    assert set(table.index) == set(names)
    assert table["text"][names[0]].startswith("<script>alert(1)</script> (4 of 4 images): ")
    assert table["text"][names[1]].startswith("a b \"' (4 of 4 images): ")
    assert table["text"][names[2]].startswith("x" * 30 + "…" + "x" * 29 + " (4 of 4 images): ")
    assert table["text"][names[3]].startswith("🐟 שלום (4 of 4 images): ")


def test_the_area_of_a_patch_is_known_beside_a_class_that_was_left_out():
    from fastai_gradcam._findings.tried import tried

    classes = pd.DataFrame([{"label": "", "area": np.nan, "place": ""}, {"label": "a", "area": 0.06, "place": ""}])
    row = {"label": "", "test": "exchange", "images": 30, "effect": 0.6, "control": 0.1, "verdict": "shortcut"}
    assert "(6 % of the picture)" in tried(pd.DataFrame([row]), classes)[""]["says"]
