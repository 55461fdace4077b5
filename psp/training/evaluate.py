"""The error of a network on images that it was not trained on."""

from typing import NamedTuple

import torch

from psp.data.sets import normalize
from psp.training.distributed import ALONE

TOP = 5


class Errors(NamedTuple):
    """Shares of images in percent whose class is not the one (not among the five) with the largest logits."""

    top1: float
    top5: float


@torch.no_grad()
def errors_pct(model, images, data, config, processes=ALONE):
    """`Errors` of a model on `images`, in evaluation mode, float32, without augmentation; all processes do a share."""
    model.eval()
    device = next(model.parameters()).device
    wrong = torch.zeros(2, dtype=torch.long, device=device)
    rows = torch.arange(processes.rank, len(images), processes.count)
    for pixels, labels in images.plain(rows, config):
        labels = labels.to(device, non_blocking=True)
        logits = model(normalize(pixels.to(device, non_blocking=True), data.mean, data.std))
        best = logits.topk(min(TOP, data.num_classes), 1).indices == labels.unsqueeze(1)
        wrong += torch.stack([(logits.argmax(1) != labels).sum(), (~best.any(1)).sum()])
    return Errors(*(100 * number / len(images) for number in processes.sum(wrong).tolist()))
