"""One training step of CLIP in PyTorch, for `benchmarks/train_step.py --clip --against-torch`.

A program of its own, so that it runs under an interpreter that has PyTorch and HuggingFace's transformers and not this library:
`CLIPModel` with random weights, the contrastive loss, AdamW. Captions are padded to 77, as CLIP's tokenizers do.

OMP_WAIT_POLICY=PASSIVE python benchmarks/torch_clip.py --steps 5

Prints one JSON object; with --serve it reads lines from standard input, runs one step for each, and answers with its CPU-seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import torch
import transformers
from torch.nn import functional

SIZES = {
    "ViT-B/32": {"embed": 512, "patch": 32, "vision": (12, 768, 12), "text": (12, 512, 8)},
    "ViT-B/16": {"embed": 512, "patch": 16, "vision": (12, 768, 12), "text": (12, 512, 8)},
    "ViT-L/14": {"embed": 768, "patch": 14, "vision": (24, 1024, 16), "text": (12, 768, 12)},
}


def build(name: str) -> transformers.CLIPModel:
    sizes = SIZES[name]

    def tower(layers: int, width: int, heads: int) -> dict[str, int]:
        shape = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads, "intermediate_size": 4 * width}
        return {**shape, "projection_dim": sizes["embed"]}

    vision = {**tower(*sizes["vision"]), "patch_size": sizes["patch"], "image_size": 224}
    # CLIP's own start and end, so that the vector is taken where the ids are largest.
    text = {**tower(*sizes["text"]), "bos_token_id": 49406, "eos_token_id": 49407}
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=sizes["embed"])
    return transformers.CLIPModel(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B/32", choices=SIZES)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48, help="of the longest caption, before padding to 77")
    parser.add_argument("--steps", type=int, default=5, help="timed steps, after one of warm-up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--serve", action="store_true", help="one step per line of standard input")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = build(arguments.model).train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.001}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-5, betas=(0.9, 0.98), eps=1e-6)
    pixels = torch.randn(arguments.batch, 3, 224, 224)
    ids = torch.randint(320, 49000, (arguments.batch, 77))
    ids[:, 0] = 49406
    ids[:, arguments.tokens - 1] = 49407
    ids[:, arguments.tokens :] = 0
    right = torch.arange(arguments.batch)

    def step() -> dict[str, float]:
        start, clock = time.process_time(), time.perf_counter()
        optimizer.zero_grad()
        logits = model(input_ids=ids, pixel_values=pixels).logits_per_image
        loss = (functional.cross_entropy(logits, right) + functional.cross_entropy(logits.T, right)) / 2
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)
        return {"cpu": time.process_time() - start, "wall": time.perf_counter() - clock, "loss": loss.item()}

    step()
    parameters = sum(p.numel() for p in model.parameters())
    if arguments.serve:
        print(json.dumps({"ready": True, "parameters": parameters}), flush=True)
        for _ in sys.stdin:
            print(json.dumps(step()), flush=True)
        return
    steps = sorted((step() for _ in range(arguments.steps)), key=lambda found: found["cpu"])
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({**versions, **steps[len(steps) // 2], "parameters": parameters}))


if __name__ == "__main__":
    main()
