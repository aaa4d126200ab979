"""RTIC-GCN: the graph and its stream."""

from __future__ import annotations

import itertools
import re

import numpy as np
import tensorflow as tf

from tests.parity.checks import torch_layouts as torch
from tests.parity.checks.composers_rtic import count_blocks, load_parts, rtic_table
from tests.parity.harness import Fixture, checks
from tf_fashion.composers import COMPOSERS
from tf_fashion.training.graph import GraphStream, TripletGraph, build_graph


def _graphs(fixture: Fixture, number: int, features: list[np.ndarray]) -> dict[str, TripletGraph]:
    group, graphs = f"g{number}", {}
    ratio, tau = float(fixture.input(f"{group}.ratio")), float(fixture.input(f"{group}.tau"))
    for layout in ("bits", "sparse"):
        # Blocks that do not divide the number of nodes.
        graph = graphs[layout] = build_graph(*features, ratio=ratio, tau=tau, block=len(features[0]) // 3 + 1, layout=layout)
        fixture.exact(f"{group}.threshold", graph.threshold)
        fixture.exact(f"{group}.Z", graph.adjacency.neighbours(np.arange(graph.adjacency.nodes)).numpy())
        fixture.compare(f"{group}.A", graph.adjacency.matmul(tf.eye(graph.adjacency.nodes)), rtol=1e-4, atol=1e-7, note=layout)
        fixture.compare(f"{group}.X", np.concatenate([graph.image, graph.text], axis=1))
    return graphs


@checks(r"rtic_gcn\.npz")
def rtic_gcn(fixture: Fixture) -> None:
    features = [fixture.input(key) for key in ("ref_image", "text", "target", "composed")]
    numbers = sorted(int(match[1]) for key in fixture.data if (match := re.fullmatch(r"g(\d+)\.ratio", key)))
    graphs = {number: _graphs(fixture, number, features) for number in numbers}
    weights = fixture.inputs_below("w.")
    query, rows = fixture.input("query"), fixture.input("label_rows")
    blocks = count_blocks(weights, "composer.ee.{}.module.0.weight")
    for balanced, graph in itertools.product((False, True), graphs[1].values()):
        stream = GraphStream(COMPOSERS.get("rtic")(blocks=blocks), graph, weights["gcn_1.weight"].shape[1], balanced)
        stream.build()
        entries = load_parts(stream.composer, rtic_table(blocks, "composer."), weights)
        for layer, name in ((stream.first, "gcn_1"), (stream.second, "gcn_2")):
            layer.set_weights([weights[f"{name}.weight"], weights[f"{name}.bias"]])
            entries += [(f"{name}.weight", layer.kernel, np.asarray), (f"{name}.bias", layer.bias, np.asarray)]
        for mode in ("eval", "train"):
            q, training = tf.constant(query), mode == "train"
            if balanced:
                fixture.compare(f"{mode}.bce_balanced", stream(q, rows, training=training), rtol=1e-4)
                continue
            fixture.compare(f"{mode}.node_prob", tf.sigmoid(stream.node_logits(q, training)), rtol=1e-4)
            with tf.GradientTape() as tape:
                tape.watch(q)
                loss = stream(q, rows, training=training)
            gradients = tape.gradient(loss, [q, *(v.value for _, v, _ in entries)])
            fixture.compare(f"{mode}.bce", loss, rtol=1e-4)
            fixture.compare(f"{mode}.dbce.query", gradients[0], rtol=1e-4, atol=torch.gradient_atol(gradients[0].numpy()))
            for (theirs, _, convert), gradient in zip(entries, gradients[1:], strict=True):
                key = f"{mode}.dbce.{theirs}"
                fixture.compare(key, convert(gradient.numpy()), rtol=1e-4, atol=torch.gradient_atol(fixture.data[key]))
