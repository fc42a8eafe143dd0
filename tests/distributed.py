"""One process of a training on two: without the callback, with it, and with one that fails. Run by test_distributed.py.

torchrun --nproc_per_node 2 distributed.py IMAGES OUT
"""

import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from fastai.distributed import DistributedDL
from fastai.torch_core import rank_distrib
from fastai.vision.all import aug_transforms
from training import differences, left_by, tiny_learner

from fastai_gradcam import GradCAMCallback


def broadcast_on_the_cpu(self, t, rank):
    t = torch.LongTensor(t)
    dist.broadcast(t, rank)
    return t.tolist()


def trained(images, path, how, *cbs):
    # One image per process and batch is too few for the head's BatchNorm.
    learn = tiny_learner(images, path, bs=8, batch_tfms=aug_transforms(size=32), cbs=cbs)
    with learn.distrib_ctx(sync_bn=False, cpu=True):
        how(learn)
    dist.barrier()
    return learn, left_by(learn)


def fit(learn):
    learn.fit(2, 1e-2)


def fine_tune(learn):
    learn.fine_tune(1, 1e-2)


def failing(output):
    if failing.armed and dist.get_rank() == 0:
        raise RuntimeError("on purpose")
    return output[:, 0]


failing.armed = False


def main(images, out):
    DistributedDL._broadcast = broadcast_on_the_cpu
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = rank_distrib()
    assert dist.get_world_size() == 2
    for how in (fit, fine_tune):
        _, plain = trained(images, out / "without", how)
        learn, watched = trained(images, out / how.__name__, how, GradCAMCallback(n=3, layer=[0, 2], name="run"))
        report(f"{how.__name__}: differences", differences(plain, watched))
        report(f"{how.__name__}: has a run", learn.grad_cam.run is not None)
    # On one process only, as a user may well add it.
    _, watched = trained(images, out / "rank 0 only", fine_tune, *([] if rank else [GradCAMCallback(n=3, name="run")]))
    report("rank 0 only: differences", differences(plain, watched))
    failing.armed = False
    cb = GradCAMCallback(n=3, name="run", target=failing)
    cb.after_train = arm
    GradCAMCallback._events |= {"after_train"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, watched = trained(images, out / "failing", fine_tune, cb)
    report("failing: differences", differences(plain, watched))
    dist.destroy_process_group()


def arm():
    failing.armed = True


def report(what, found):
    print(f"rank {rank_distrib()} {what}: {found}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
