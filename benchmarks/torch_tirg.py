"""One training step of the FashionIQ 2020 entry in PyTorch, for `benchmarks/train_step.py --fashion-iq-2020 --against-torch`.

A program of its own, so that it runs under an interpreter that has PyTorch and not this library. ResNet-50, LSTM beside GRU, TIRG
with a two-layer gate, batch-hard triplet loss on vectors of learned length, AdamW. As released, the trunk runs three times: over
the references once more than is used.

OMP_WAIT_POLICY=PASSIVE python benchmarks/torch_tirg.py --steps 5
python benchmarks/torch_tirg.py --skip-unused-pass

Prints one JSON object; with --serve it reads lines from standard input, runs one step for each, and answers with its CPU-seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import torch
from torch import nn
from torch.nn import functional

UNITS = (3, 4, 6, 3)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions with a shortcut."""

    def __init__(self, channels: int, base: int, stride: int) -> None:
        super().__init__()
        plan = [(channels, base, 1, 1), (base, base, 3, stride), (base, 4 * base, 1, 1)]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, k, s, k // 2, bias=False) for i, o, k, s in plan)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o, _, _ in plan)
        self.shortcut = nn.Identity()
        if stride > 1 or channels != 4 * base:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, 4 * base, 1, stride, bias=False), nn.BatchNorm2d(4 * base))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = self.shortcut(x)
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(x))
            if number < 2:
                x = self.relu(x)
        return self.relu(x + shortcut)


def resnet50() -> nn.Sequential:
    """torchvision's ResNet-50 without its classifier, up to the pooled vector `(batch, 2048)`."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, units in enumerate(UNITS):
        for unit in range(units):
            layers.append(Bottleneck(channels, 64 << stage, 2 if stage and not unit else 1))
            channels = 256 << stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Entry(nn.Module):
    """The whole model; returns the query's and the target's vectors on the sphere of learned radius."""

    def __init__(self, vocabulary: int, embedding: int, dim: int, triple: bool) -> None:
        super().__init__()
        self.triple = triple
        self.backbone = resnet50()
        self.image = nn.Linear(2048, dim)
        self.words = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, dim, 2, dropout=0.1)
        self.gru = nn.GRU(embedding, dim, 2, dropout=0.1)
        self.text = nn.Linear(2 * dim, dim)
        self.radius = nn.Parameter(torch.tensor(5.0))
        wide = 2 * dim
        self.gate = nn.Sequential(
            nn.BatchNorm1d(wide), nn.ReLU(), nn.Linear(wide, wide), nn.BatchNorm1d(wide), nn.ReLU(), nn.Linear(wide, dim)
        )
        self.residual = nn.Sequential(nn.BatchNorm1d(wide), nn.ReLU(), nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, dim))

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return self.image(self.backbone(images))

    def forward(self, reference: torch.Tensor, ids: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        image = self.encode(reference)
        words = self.words(ids).transpose(0, 1)
        # All sentences of the benchmark fill all places.
        text = self.text(torch.cat([self.lstm(words)[0][-1], self.gru(words)[0][-1]], dim=1))
        both = torch.cat([image, text], dim=1)
        query = torch.sigmoid(self.gate(both)) * image + 10.0 * self.residual(both)
        goal = self.encode(target)
        if self.triple:
            self.encode(reference)
        return self.radius * functional.normalize(query), self.radius * functional.normalize(goal)


def batch_hard(query: torch.Tensor, target: torch.Tensor, margin: float = 1.0) -> torch.Tensor:
    """Farthest positive against nearest negative, over queries and targets together, with squared distances."""
    members = torch.cat([query, target])
    squares = (members * members).sum(1)
    distances = (squares[:, None] - 2.0 * members @ members.T + squares[None, :]).clamp(min=0.0)
    labels = torch.arange(len(query)).repeat(2)
    same = labels[:, None] == labels[None, :]
    own = torch.eye(len(members), dtype=torch.bool)
    positive = distances.masked_fill(~same | own, float("-inf")).amax(1)
    negative = distances.masked_fill(same, float("inf")).amin(1)
    return functional.relu(positive - negative + margin).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--words", type=int, default=13)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--embedding", type=int, default=900)
    parser.add_argument("--vocabulary", type=int, default=3512)
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after one of warm-up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--skip-unused-pass", action="store_true", help="two passes of the trunk instead of the released three")
    parser.add_argument("--channels-last", action="store_true", help="the other layout of maps, which some machines run faster")
    parser.add_argument("--serve", action="store_true", help="one step per line of standard input")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = Entry(arguments.vocabulary, arguments.embedding, arguments.dim, not arguments.skip_unused_pass)
    layout = torch.channels_last if arguments.channels_last else torch.contiguous_format
    model.backbone.to(memory_format=layout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.55, 0.999), eps=1e-8, weight_decay=0.01)
    shape = (arguments.batch, 3, arguments.size, arguments.size)
    reference, target = (torch.randn(shape).to(memory_format=layout) for _ in range(2))
    ids = torch.randint(3, arguments.vocabulary, (arguments.batch, arguments.words))
    model.train()

    def step() -> dict[str, float]:
        start, clock = time.process_time(), time.perf_counter()
        optimizer.zero_grad()
        loss = batch_hard(*model(reference, ids, target))
        loss.backward()
        optimizer.step()
        return {"cpu": time.process_time() - start, "wall": time.perf_counter() - clock, "loss": loss.item()}

    step()
    if arguments.serve:
        print(json.dumps({"ready": True, "parameters": sum(p.numel() for p in model.parameters())}), flush=True)
        for _ in sys.stdin:
            print(json.dumps(step()), flush=True)
        return
    steps = [step() for _ in range(arguments.steps)]
    middle = sorted(steps, key=lambda found: found["cpu"])[len(steps) // 2]
    print(json.dumps({"torch": torch.__version__, **middle, "parameters": sum(p.numel() for p in model.parameters())}))


if __name__ == "__main__":
    main()
