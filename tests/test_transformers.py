"""`GradCAMCallback` in a transformers `Trainer`: which images, when, and what is said of them."""

import numpy as np
import pytest
import torch
from loops import VOCAB, Images, heard, quiet
from training import assert_whole, differences, flat, one_thread, places, random_states, statuses  # noqa: F401

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from fastai_gradcam import GradCAMError, gradcam  # noqa: E402
from fastai_gradcam.transformers import GradCAMCallback  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread", "undrawn")


def vit(**config):
    torch.manual_seed(0)
    config = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "image_size": 16, "patch_size": 4, "id2label": dict(enumerate(VOCAB)), "hidden_dropout_prob": 0.2, **config,
    }  # fmt: skip
    return transformers.ViTForImageClassification(transformers.ViTConfig(**config))


@pytest.fixture
def fit(tmp_path):
    "`fit(callback, *callbacks, model, valid, **settings)`: the run of a training."

    def run(callback, *others, model=None, valid=None, train=None, checkpoint=None, **settings):
        own = {k: settings.pop(k) for k in ("processing_class", "data_collator") if k in settings}
        with quiet():
            args = transformers.TrainingArguments(
                **{
                    "output_dir": str(tmp_path), "num_train_epochs": 2, "use_cpu": True, "report_to": [],
                    "per_device_train_batch_size": 4, "eval_strategy": "epoch", "save_strategy": "no",
                    "logging_strategy": "epoch", "disable_tqdm": True, "learning_rate": 1e-2, **settings,
                }
            )  # fmt: skip
            run.trainer = transformers.Trainer(
                model or vit(), args, train_dataset=train or Images(1, keys=True),
                eval_dataset=Images(2, keys=True) if valid is None else valid,
                callbacks=[*([callback] if callback else []), *others], **own,
            )  # fmt: skip
            run.trainer.train(resume_from_checkpoint=checkpoint)
        return callback and callback.run

    run.trainer = None
    return run


@pytest.mark.slow
def test_the_panel_is_of_the_evaluation_set_and_named_by_the_configuration(fit, tmp_path):
    run = assert_whole(fit(GradCAMCallback(n=6)).path)
    assert run.path.parent == tmp_path / "gradcam"
    assert run.vocab == VOCAB
    assert [p["label"] for p in run.panel] == ["red", "red", "green", "green", "blue", "blue"]
    assert places(run) == [(0, -1), (0, 0), (0, 1)] and run.status == "finished"
    assert [sorted(f["metrics"]) for f in run.frames] == [[], ["eval_loss", "loss"], ["eval_loss", "loss"]]
    assert run.info["arch"] == "ViTForImageClassification"


@pytest.mark.slow
def test_a_vision_transformer_is_the_same_to_the_last_bit(fit):
    def left(callback):
        fit(callback, weight_decay=0.1, gradient_accumulation_steps=2)
        trainer = fit.trainer
        found = flat("weights", trainer.model.state_dict()) | flat("opt", trainer.optimizer.state_dict())
        return found | random_states() | flat("log", [d.get("eval_loss") for d in trainer.state.log_history])

    assert differences(left(None), left(GradCAMCallback(n=3))) == []


class Keep(transformers.TrainerCallback):
    "The weights at the end of each epoch."

    def __init__(self):
        self.states = []

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        self.states.append({k: v.clone() for k, v in model.state_dict().items()})


class Worse(transformers.TrainerCallback):
    "The first epoch is the best."

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        metrics["eval_rank"] = state.epoch


def explained(state, layers):
    "The maps of two images by the network in this state."
    model = vit().eval()
    model.load_state_dict(state)
    x = {"pixel_values": Images(2).x[[4, 0]]}
    return gradcam(model, x, layer=layers, target=torch.tensor([1, 0]))


@pytest.mark.slow
def test_frames_are_of_the_model_at_the_end_of_each_epoch_not_of_the_best(fit):
    keep = Keep()
    settings = {"save_strategy": "epoch", "load_best_model_at_end": True, "metric_for_best_model": "eval_rank"}
    run = fit(GradCAMCallback(items=[4, 0]), keep, Worse(), greater_is_better=False, **settings)
    best = fit.trainer.model.state_dict()
    assert torch.equal(best["classifier.weight"], keep.states[0]["classifier.weight"])
    for frame, state in enumerate(keep.states, 1):
        cams = explained(state, run.layers)
        assert np.array_equal(run.maps(frame)[run.layers[0]], cams.maps[0].numpy())


@pytest.mark.slow
def test_the_last_epoch_before_early_stopping_is_seen(fit):
    stop = transformers.EarlyStoppingCallback(1, early_stopping_threshold=100)
    settings = {"save_strategy": "epoch", "load_best_model_at_end": True, "metric_for_best_model": "eval_rank"}
    settings["greater_is_better"] = False
    keep = Keep()
    run = fit(GradCAMCallback(items=[4, 0], every=5), Worse(), stop, keep, num_train_epochs=20, **settings)
    assert fit.trainer.state.epoch == 2
    assert places(run) == [(0, -1), (0, 1)] and "eval_loss" in run.frames[1]["metrics"]
    # The weights are those of that epoch, not the best, which the trainer has loaded since.
    cams = explained(keep.states[-1], run.layers)
    assert np.array_equal(run.maps(1)[run.layers[0]], cams.maps[0].numpy())
    assert not torch.equal(fit.trainer.model.state_dict()["classifier.weight"], keep.states[-1]["classifier.weight"])


@pytest.mark.slow
def test_several_models_in_turn_have_runs_of_their_own(fit):
    callback = GradCAMCallback(n=2, name="fold")
    runs = [fit(callback, num_train_epochs=1) for _ in range(3)]
    assert [run.path.name for run in runs] == ["fold", "fold_2", "fold_3"]


@pytest.mark.slow
def test_the_number_of_steps_may_end_an_epoch_early(fit):
    assert places(fit(GradCAMCallback(n=2), max_steps=4)) == [(0, -1), (0, 0), (0, 1)]


@pytest.mark.slow
def test_only_trainings_are_watched_and_each_has_its_number(fit):
    callback, model = GradCAMCallback(n=2), vit()
    run = fit(callback, model=model, num_train_epochs=1)
    with quiet():
        fit.trainer.evaluate()
        fit.trainer.predict(Images(2, keys=True))
        assert places(run) == [(0, -1), (0, 0)]
        fit.trainer.train()
    assert callback.run.path == run.path
    assert places(run) == [(0, -1), (0, 0), (1, 0)] and run.status == "finished"
    assert fit(callback, num_train_epochs=1).path != run.path


@pytest.mark.slow
def test_all_evaluation_sets_are_in_the_heading_and_the_first_is_the_panel(fit):
    valid = {"near": Images(2, keys=True), "far": Images(3, keys=True)}
    run = fit(GradCAMCallback(n=2), valid=valid)
    assert sorted(run.frames[2]["metrics"]) == ["eval_far_loss", "eval_near_loss", "loss"]


@pytest.mark.slow
def test_classes_without_names_have_numbers(fit):
    run = fit(GradCAMCallback(n=3), model=vit(id2label={i: f"LABEL_{i}" for i in range(3)}), num_train_epochs=1)
    # The data set has names for them.
    assert run.vocab == VOCAB

    class Nameless(Images):
        classes = None

    model = vit(id2label={i: f"LABEL_{i}" for i in range(3)})
    run = fit(GradCAMCallback(n=3), model=model, valid=Nameless(2, keys=True), num_train_epochs=1)
    assert run.vocab is None and [p["label"] for p in run.panel] == ["0", "1", "2"]


@pytest.mark.slow
def test_pictures_have_the_processors_normalisation_undone(fit):
    class Processor:
        image_mean, image_std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.1]

    mean, std = (torch.tensor(v)[:, None, None] for v in (Processor.image_mean, Processor.image_std))
    data = Images(2, keys=True)
    plain = data.x.clamp(0, 1)
    data.x = (plain - mean) / std
    run = fit(GradCAMCallback(items=[1]), valid=data, processing_class=Processor(), num_train_epochs=1)
    assert np.abs(np.asarray(run.image(0), float) - plain[1].permute(1, 2, 0).numpy() * 255).mean() < 20


@pytest.mark.slow
def test_columns_that_the_model_does_not_take_are_left_out(fit):
    class More(Images):
        def __getitem__(self, i):
            return super().__getitem__(i) | {"image": object(), "file": f"{i}.png"}

    # As the trainer itself does with a data set of the datasets library.
    run = fit(GradCAMCallback(n=2), valid=More(2, keys=True), eval_strategy="no", num_train_epochs=1)
    assert statuses(run) == ["ok"] * 2 and sorted(run.frames[1]["metrics"]) == ["loss"]


@pytest.mark.slow
def test_a_collator_of_ones_own_makes_the_batch(fit):
    def collate(samples):
        return {"pixel_values": torch.stack([s[0] for s in samples]), "labels": torch.tensor([s[1] for s in samples])}

    settings = {"data_collator": collate, "remove_unused_columns": False}
    run = fit(GradCAMCallback(items=[1, 2]), train=Images(1), valid=Images(2), **settings)
    assert [p["label"] for p in run.panel] == ["green", "blue"] and statuses(run) == ["ok"] * 3


@pytest.mark.slow
def test_a_setting_that_does_not_fit_is_refused_before_the_first_batch(fit, tmp_path):
    for settings, words in [({"items": [12]}, "index 12"), ({"layer": "tail"}, "tail"), ({"target": "pink"}, "pink")]:
        with pytest.raises(GradCAMError, match=words):
            fit(GradCAMCallback(**{"n": 4, **settings}))
        assert fit.trainer.state.global_step == 0
    with pytest.raises(GradCAMError, match="no validation set"):
        fit(GradCAMCallback(), valid={}, eval_strategy="no")
    assert not (tmp_path / "gradcam").exists() or not list((tmp_path / "gradcam").iterdir())


def test_without_a_trainer_it_says_what_it_needs():
    callback, control = GradCAMCallback(), transformers.TrainerControl()
    args = transformers.TrainingArguments(output_dir="unused", use_cpu=True, report_to=[])
    with pytest.raises(GradCAMError, match=r"Trainer\.train"):
        callback.on_train_begin(args, transformers.TrainerState(), control, model=vit())


@pytest.mark.slow
def test_a_run_is_resumed_with_the_trainers_checkpoint(fit):
    fit(GradCAMCallback(n=2, name="night"), num_train_epochs=1, save_strategy="epoch")
    run = fit(GradCAMCallback(n=2, name="night", resume=True), num_train_epochs=2, checkpoint=True)
    assert places(run) == [(0, -1), (0, 0), (1, 1)]


@pytest.mark.slow
def test_a_panel_larger_than_the_set_takes_all_of_it_with_a_warning(fit):
    run, said = heard(lambda: fit(GradCAMCallback(n=13), num_train_epochs=1))
    assert len(run.panel) == 12
    assert said == ["The panel takes all 12 images of the validation set, not n=13."]
