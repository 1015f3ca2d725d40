"""A judge of drawn faces that never saw a model's answer: a small network trained on true pictures and labels alone."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional

EPOCHS, BATCH = 10, 64


@dataclass(frozen=True)
class Probe:
    """Tells attributes from pictures float32 [B, 3, 32, 32] in [0, 1]."""

    network: nn.Module
    gap: Tensor
    """[A] Mean logit of true held-out pictures with the attribute minus that of those without."""

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        return self.network(images)

    def aucs(self, images: Tensor, labels: Tensor) -> Tensor:
        """[A] Area under the ROC curve."""
        logits = self.logits(images)
        return torch.tensor([roc_auc_score(labels[:, k], logits[:, k]) for k in range(labels.shape[1])])

    def effects(self, latents: Tensor, vectors: Tensor, decode: Callable[[Tensor], Tensor], units: float) -> Tensor:
        """[A, A] What moving `latents` from -units to +units along each direction does to each attribute, in gaps."""
        rows = []
        for vector in vectors:
            up, down = (self.logits(decode(latents + sign * units * vector)) for sign in (1, -1))
            rows.append((up - down).mean(0) / self.gap)
        return torch.stack(rows)


def train_probe(images: Tensor, labels: Tensor, held_out: Tensor, truth: Tensor) -> Probe:
    """Train on true pictures [N, 3, 32, 32] and 0/1 labels [N, A]; `held_out` and `truth` give the scale of answers."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        widths = (3, 32, 64, 128)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * 16, labels.shape[1]))
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=0.1)
    steps = EPOCHS * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(images), generator=generator).split(BATCH):
            answers = network(_varied(images[chosen], generator))
            loss = functional.binary_cross_entropy_with_logits(answers, labels[chosen].float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    probe = Probe(network, torch.ones(labels.shape[1]))
    logits = probe.logits(held_out)
    having, lacking = truth == 1, truth == 0
    gap = (logits * having).sum(0) / having.sum(0) - (logits * lacking).sum(0) / lacking.sum(0)
    return Probe(network, gap)


def _varied(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrored or not, blurred or not: what must not matter to a judge."""
    flip, blur = (bool(torch.randint(2, (), generator=generator)) for _ in range(2))
    images = images.flip(3) if flip else images
    return functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), "replicate"), 3, 1) if blur else images
