"""Batches of chosen images of a loader, each made while the one before it is at work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from fastai.data.load import DataLoader
from fastai.learner import Learner

from .._errors import GradCAMError, GradCAMTypeError
from .._watch.nested import tensors
from .private import private

__all__ = ["ahead", "still"]


def still(learn: Learner, dl: Any) -> DataLoader:
    """A loader like `dl` that gives its images in order and without augmentation: training as validation sees it.

    Raises `GradCAMTypeError` where that cannot be had, and `GradCAMError` where there are no images.
    """
    if not isinstance(dl, DataLoader):
        raise GradCAMTypeError(
            f"An atlas needs a fastai DataLoader, such as learn.dls.valid or learn.dls.test_dl(items, with_labels=True)"
            f", got a {type(dl).__module__}.{type(dl).__qualname__}."
        )
    dataset = dl.dataset
    if not hasattr(dataset, "__len__"):
        raise GradCAMTypeError(f"An atlas needs data with a length and an order; a {type(dataset).__name__} has none.")
    if not len(dataset):
        raise GradCAMError("The loader has no images.")
    if getattr(dataset, "split_idx", None) == 0 and hasattr(dataset, "items"):
        dl = learn.dls.test_dl(dataset.items, with_labels=True)
    return private(dl.new(shuffle=False, drop_last=False, bs=dl.bs or 32))


def ahead(dl: DataLoader, indices: Sequence[int]) -> Iterator[Any]:
    """The batches of the images `indices` of `dl`. While one is at work, the next is read and copied to the device.

    On a GPU it is copied in a stream of its own, beside the work on the one before.
    """
    dl.get_idxs = partial(list, indices)
    device = torch.device(dl.device) if getattr(dl, "device", None) is not None else torch.device("cpu")
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    batches = iter(dl)

    def fetch() -> tuple[Any, Any]:
        with torch.no_grad(), torch.cuda.stream(stream) if stream is not None else nullcontext():
            batch = next(batches, None)
            return batch, None if stream is None else stream.record_event()

    with ThreadPoolExecutor(1, thread_name_prefix="gradcam-atlas") as thread:
        coming = thread.submit(fetch)
        while True:
            batch, copied = coming.result()
            if batch is None:
                return
            coming = thread.submit(fetch)
            if copied is not None:
                at_work = torch.cuda.current_stream(device)
                at_work.wait_event(copied)
                for tensor in tensors(batch):
                    tensor.record_stream(at_work)
            yield batch
