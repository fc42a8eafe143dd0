"""One small training in four loops (fastai, plain PyTorch, Lightning, transformers), each watched or not.

`LOOPS[who](path, watch, **how)` trains and gives what the training leaves behind, to compare bit by bit, and what
watched. All four train the same network on the same images; `how` says in what way.
"""

import random
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from training import Quiet, flat, random_states

from fastai_gradcam import GradCAMCallback, Run, Watch

VOCAB = ["red", "green", "blue"]
# The imports of the loops in a process of their own (`processes.Nursery`).
NEEDS = ("fastai.vision.all", "lightning.pytorch", "transformers.trainer")
SIZE, BATCH = 12, 4


class OwnState(nn.Module):
    "A layer that counts its calls and draws from a generator of its own; both change what it gives."

    def __init__(self):
        super().__init__()
        self.calls, self.rng = [0], random.Random(3)

    def forward(self, x):
        self.calls[0] += 1
        return x * (1 + 0.01 * self.rng.random() * self.calls[0])


class Net(nn.Module):
    "Takes pixels, and with labels gives a loss, as the models of transformers do."

    def __init__(self, dropout=0.3, own_state=False):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        own = [OwnState()] if own_state else []
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), *own, nn.Linear(6, 3))

    def forward(self, pixel_values, labels=None):
        logits = self.head(self.body(pixel_values))
        return logits if labels is None else {"loss": cross_entropy(logits, labels), "logits": logits}


class Images(torch.utils.data.Dataset):
    "A square of its class's colour on noise. With `own_state` it counts and draws, as a careless data set does."

    classes = VOCAB

    def __init__(self, seed, own_state=False, keys=False):
        rng = torch.Generator().manual_seed(seed)
        self.x, self.targets = torch.rand(SIZE, 3, 16, 16, generator=rng), [i % 3 for i in range(SIZE)]
        for i, k in enumerate(self.targets):
            self.x[i, k, 4:12, 4:12] += 1
        self.own_state, self.keys, self.reads, self.rng = own_state, keys, 0, random.Random(4)

    def __len__(self):
        return SIZE

    def __getitem__(self, i):
        self.reads += 1
        x = self.x[i] + (self.rng.random() + torch.rand(())) * self.own_state
        return {"pixel_values": x, "labels": self.targets[i]} if self.keys else (x, self.targets[i])


@dataclass
class How:
    "In what way a training goes. `at`: what is done before epoch k, given what watches."

    epochs: int = 2
    accumulate: int = 1
    autocast: bool = False
    compiled: bool = False
    dropout: float = 0.3
    own_state: bool = False
    shuffle: bool = True
    at: dict[int, Any] = field(default_factory=dict)
    careless: bool = False
    distributed: bool = False
    more: dict[str, Any] = field(default_factory=dict)

    def network(self):
        torch.manual_seed(0)
        random.seed(0)
        return Net(self.dropout, self.own_state)

    def data(self, keys=False):
        return Images(1, self.own_state, keys), Images(2, self.own_state, keys)

    def before(self, epoch, watch, net):
        if epoch in self.at:
            self.at[epoch](watch)
        if self.careless and epoch:
            net.train()(torch.ones(2, 3, 16, 16))

    def left(self, net, opt, data, metrics):
        found = flat("weights", net.state_dict()) | flat("optimiser", opt.state_dict()) | random_states()
        found |= {f"training {k}": m.training for k, m in net.named_modules()}
        found |= {f"grad {k}": None if p.grad is None else p.grad.clone() for k, p in net.named_parameters()}
        own = net.head[3] if self.own_state else None
        found["own state"] = own and (own.calls[0], own.rng.getstate())
        return (
            found | flat("metrics", metrics) | {f"reads {i}": (d.reads, d.rng.getstate()) for i, d in enumerate(data)}
        )


def plain(path, watch=None, **how):
    how = How(**how)
    net, (train, valid) = how.network(), how.data()
    sampler = torch.utils.data.DistributedSampler(train) if how.distributed else None
    loaders = [
        torch.utils.data.DataLoader(train, BATCH, shuffle=how.shuffle and not how.distributed, sampler=sampler),
        torch.utils.data.DataLoader(valid, BATCH),
    ]
    opt = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    called = torch.compile(net, backend="eager") if how.compiled else net
    called = nn.parallel.DistributedDataParallel(called) if how.distributed else called
    seeded()
    watching = None
    if watch is not None:
        settings = {"n": 4, "path": path / "gradcam", **watch}
        n = settings.pop("n")
        x, y = valid.x[:n], valid.targets[:n]
        watching = Watch(called, x, labels=y, vocab=VOCAB, **settings)
    metrics = []
    with watching or nullcontext():
        for epoch in range(how.epochs):
            how.before(epoch, watching, net)
            net.train()
            for i, (x, y) in enumerate(loaders[0]):
                with torch.autocast("cpu", torch.bfloat16, enabled=how.autocast):
                    loss = cross_entropy(called(x), y) / how.accumulate
                loss.backward()
                if (i + 1) % how.accumulate == 0:
                    opt.step()
                    opt.zero_grad()
            net.eval()
            with torch.no_grad():
                metrics.append([float(cross_entropy(called(x), y)) for x, y in loaders[1]])
                if watching is not None:
                    watching(epoch, {"valid_loss": metrics[-1][0]})
    return how.left(net, opt, (train, valid), metrics), watching


def fastai(path, watch=None, **how):
    from fastai.callback.core import Callback
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner
    from fastai.optimizer import OptimWrapper
    from fastai.vision.all import GradientAccumulation

    how = How(**how)
    net, (train, valid) = how.network(), how.data()
    loaders = [DataLoader(d, bs=BATCH, shuffle=how.shuffle and d is train, num_workers=0) for d in (train, valid)]

    def optimiser(params, lr):
        return OptimWrapper(params, torch.optim.SGD, lr=lr, momentum=0.9)

    before = Callback(before_epoch=lambda self: how.before(self.learn.epoch, watching, net))
    cbs = [before] + [GradientAccumulation(how.accumulate * BATCH)] * (how.accumulate > 1)
    with Quiet():
        dls = DataLoaders(*loaders, path=path, device="cpu")
        learn = Learner(dls, net, cross_entropy, opt_func=optimiser, path=path, cbs=cbs)
    learn.remove_cbs([cb for cb in learn.cbs if cb.name == "progress"])
    learn.logger = lambda *args: None
    seeded()
    watching = None if watch is None else GradCAMCallback(**{"n": 4, "show": False, "judge": None, **watch})
    learn.add_cbs(watching)
    with Quiet():
        learn.fit(how.epochs, 0.1)
    return how.left(net, learn.opt, (train, valid), list(learn.recorder.values)), watching


def lightning(path, watch=None, **how):
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.strategies import DDPStrategy

    from fastai_gradcam.lightning import GradCAMCallback

    how = How(**how)
    train, valid = how.data()

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.compile(how.network(), backend="eager") if how.compiled else how.network()

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, i):
            return cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch, i):
            self.log("valid_loss", cross_entropy(self(batch[0]), batch[1]), sync_dist=how.distributed)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)

    class Before(Callback):
        seen = ()

        def on_train_epoch_start(self, trainer, module):
            how.before(trainer.current_epoch, watching, module)

        def on_validation_end(self, trainer, module):
            self.seen = (*self.seen, {k: float(v) for k, v in trainer.callback_metrics.items()})

    module, before = Module(), Before()
    watching = None if watch is None else GradCAMCallback(**{"n": 4, "judge": None, **watch})
    loaders = [torch.utils.data.DataLoader(d, BATCH, shuffle=how.shuffle and d is train) for d in (train, valid)]
    callbacks = [*([watching] if watching else []), before]
    settings = {
        "max_epochs": how.epochs, "accelerator": "cpu", "devices": 1, "logger": False, "default_root_dir": path,
        "accumulate_grad_batches": how.accumulate, "precision": "bf16-mixed" if how.autocast else None,
        "enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False,
        **({"devices": 2, "strategy": DDPStrategy(process_group_backend="gloo")} if how.distributed else {}),
        **how.more,
    }  # fmt: skip
    settings["callbacks"] = callbacks + settings.get("callbacks", [])
    with quiet():
        trainer = Trainer(**settings)
        seeded()
        trainer.fit(module, *loaders)
    left = how.left(getattr(module.net, "_orig_mod", module.net), trainer.optimizers[0], (train, valid), before.seen)
    return left | {"epochs": trainer.current_epoch}, watching


def transformers(path, watch=None, **how):
    from torch.utils.data import SequentialSampler
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from fastai_gradcam.transformers import GradCAMCallback

    how = How(**how)
    train, valid = how.data(keys=True)

    class Ours(Trainer):
        def _get_train_sampler(self, *args):
            return super()._get_train_sampler(*args) if how.shuffle else SequentialSampler(train)

    class Before(TrainerCallback):
        def on_epoch_begin(self, args, state, control, **kwargs):
            how.before(round(state.epoch or 0), watching, net)

    net, settings = how.network(), dict(how.more)
    opt = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    watching = None if watch is None else GradCAMCallback(**{"n": 4, "vocab": VOCAB, "judge": None, **watch})
    callbacks = [*([watching] if watching else []), Before(), *settings.pop("callbacks", [])]
    with quiet():
        args = TrainingArguments(
            **{
                "output_dir": str(path), "num_train_epochs": how.epochs, "use_cpu": True, "report_to": [],
                "per_device_train_batch_size": BATCH, "eval_strategy": "epoch", "save_strategy": "no",
                "disable_tqdm": True, "max_grad_norm": 0, "bf16": how.autocast,
                "gradient_accumulation_steps": how.accumulate, "lr_scheduler_type": "constant",
                "torch_compile": how.compiled, "torch_compile_backend": "eager" if how.compiled else None,
                "logging_strategy": "epoch", "ddp_backend": "gloo" if how.distributed else None, **settings,
            }
        )  # fmt: skip
        optimisers = (opt, torch.optim.lr_scheduler.ConstantLR(opt, 1))
        trainer = Ours(net, args, train_dataset=train, eval_dataset=valid, callbacks=callbacks, optimizers=optimisers)
        trainer.remove_callback(next(c for c in trainer.callback_handler.callbacks if "Printer" in type(c).__name__))
        seeded()
        trainer.train()
    log = [{k: v for k, v in d.items() if "loss" in k and k != "train_loss"} for d in trainer.state.log_history]
    left = how.left(net, opt, (train, valid), log)
    return left | {"steps": trainer.state.global_step}, watching


LOOPS = {"fastai": fastai, "plain": plain, "lightning": lightning, "transformers": transformers}


def seeded():
    torch.manual_seed(5)
    random.seed(5)


class quiet(warnings.catch_warnings):
    "Warnings of the trainers of the machine and of small data sets, left out; not what we say."

    def __enter__(self):
        log = super().__enter__()
        for module in ("lightning", "transformers", "accelerate", "torch"):
            warnings.filterwarnings("ignore", module=rf"{module}\.", message="(?!GradCAMCallback|Watch|The panel)")
        return log


def heard(train):
    "The result of `train()`, and the warnings of ours while it ran."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        result = train()
    return result, [
        str(w.message) for w in said if str(w.message).startswith(("GradCAMCallback", "Watch", "The panel"))
    ]


def run_of(watching) -> Run:
    assert watching.run is not None
    return watching.run
