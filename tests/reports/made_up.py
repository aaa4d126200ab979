"""Made-up results and pictures for the tests of reports."""

from __future__ import annotations

from PIL import Image

from tf_fashion.retrieval.protocol import get_protocol


def metrics(more=0.0, protocol="original"):
    chosen = get_protocol(protocol)

    def numbers(r10, r50, **others):
        return {"R@10": r10 + more, "R@50": r50 + more, "mean": (r10 + r50) / 2 + more, **others}

    return {
        "protocol": {**chosen.to_config(), "fingerprint": chosen.fingerprint},
        "categories": {
            "dress": numbers(30.0, 56.0, queries=10, gallery=100, interval={"R@10": [29.0, 31.0], "R@50": [56.0, 56.0]}),
            "shirt": numbers(40.0, 60.0, queries=20, gallery=200),
        },
        "mean": numbers(35.0, 58.0),
        "run": {"seed": 1, "config": {"lr": 0.001, "composer": "<b>tirg</b>"}, "versions": {"keras": "3.15.1"}},
    }


def picture(path, colour, size=(60, 90)):
    Image.new("RGB", size, colour).save(path)
    return path
