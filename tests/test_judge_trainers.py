"""`judge=` in the callbacks for Lightning and transformers: their validation set is judged, nothing else changes."""

import pytest
import torch
from loops import quiet
from test_judge import NAMES, Filters, pictures
from torch import nn
from torch.utils.data import DataLoader, Dataset
from training import differences, one_thread, random_states  # noqa: F401

from fastai_gradcam import GradCAMError
from fastai_gradcam._run.verdicts import read_table
from fastai_gradcam.loggers import mean_numbers

pytestmark = pytest.mark.usefixtures("one_thread")


class Stamped(Dataset):
    "Pictures in which the class 'rows' has a stamp."

    classes = NAMES

    def __init__(self, n, keys):
        self.x, self.y, _ = (torch.cat(part) for part in zip(*pictures("stamp", n), strict=True))
        self.keys = keys

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        one = self.x[i], int(self.y[i])
        return {"pixel_values": one[0], "labels": one[1]} if self.keys else one


def by_lightning(path, **settings):
    lightning = pytest.importorskip("lightning.pytorch")
    from fastai_gradcam.lightning import GradCAMCallback

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Filters("magenta")

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, i):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch, i):
            pass

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 1e-6)

    callback, module = GradCAMCallback(n=3, path=path, name="run", **settings), Module()
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False, max_epochs=2,
        enable_model_summary=False, callbacks=[callback], default_root_dir=path,
    )  # fmt: skip
    trainer.fit(module, DataLoader(Stamped(24, False), 8), DataLoader(Stamped(72, False), 8))
    return callback.run, module.net


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Filters("magenta")

    def forward(self, pixel_values, labels=None):
        logits = self.net(pixel_values)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"logits": logits} if loss is None else {"loss": loss, "logits": logits}


def by_transformers(path, **settings):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from fastai_gradcam.transformers import GradCAMCallback

    callback, model = GradCAMCallback(n=3, path=path, name="run", **settings), Classifier()
    args = transformers.TrainingArguments(
        output_dir=str(path), num_train_epochs=2, use_cpu=True, report_to=[], per_device_train_batch_size=8,
        save_strategy="no", disable_tqdm=True, learning_rate=1e-6, weight_decay=0.0,
    )  # fmt: skip
    transformers.Trainer(
        model, args, train_dataset=Stamped(24, True), eval_dataset=Stamped(72, True), callbacks=[callback]
    ).train()
    return callback.run, model.net


BOTH = pytest.mark.parametrize("train", [by_lightning, by_transformers])


@pytest.mark.slow
@BOTH
def test_a_training_is_judged_by_its_validation_set_and_the_same_to_the_last_bit(train, tmp_path):
    with quiet():
        torch.manual_seed(1)
        _, plain = train(tmp_path / "plain", judge=None)
        before = random_states()
        torch.manual_seed(1)
        run, net = train(tmp_path / "judged", judge="every")
    assert differences(before, random_states()) == []
    assert differences(plain.state_dict(), net.state_dict()) == []
    named = run.verdicts[run.verdicts["verdict"] == "shortcut"]
    assert set(named["label"]) == {"rows"} and "transplant" in set(named["test"])
    # An alarm needs two judgements in succession; loggers have their number from then on.
    alarms = read_table(run.path, "alarms")
    assert set(alarms["label"]) == {"rows"} and set(alarms["frame"]) == {2}
    assert [mean_numbers(run, frame)["alarms"] for frame in run.frames] == [0, 0, 1]
    found = run.findings()
    assert found["severity"].iloc[0] > 0.5 and found["kind"].iloc[0] == "confirmed"


@BOTH
def test_a_time_to_judge_that_is_none_is_refused(train, tmp_path):
    with pytest.raises(GradCAMError, match="'end', 'every' or None"):
        train(tmp_path, judge="never")
