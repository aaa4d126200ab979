"""RTIC's text encoders: the maximum over time, with and without the padding."""

from __future__ import annotations

from tests.parity.checks.text_encoders import _compare_mode, _load
from tests.parity.harness import Fixture, checks
from tf_fashion.encoders.text import TEXT_ENCODERS


@checks(r"text_rtic_(lstm|gru|lstm_gru)\.npz")
def text_rtic(fixture: Fixture) -> None:
    weights, ids, lengths = fixture.inputs_below("w."), fixture.input("ids"), fixture.input("lengths")
    cells = [cell for cell in ("lstm", "gru") if f"{cell}.weight_ih_l0" in weights]
    embedding = next(key for key in weights if "embedding" in key)
    encoders = {}
    for leak in (True, False):
        encoder = encoders[leak] = TEXT_ENCODERS.get("_".join(cells))(
            vocabulary_size=weights[embedding].shape[0],
            embedding_dim=weights[embedding].shape[1],
            units=weights[f"{cells[0]}.weight_hh_l0"].shape[1],
            layers=sum(key.startswith(f"{cells[0]}.weight_ih_l") for key in weights),
            dim=weights["fc_output.weight"].shape[0],
            dropout=0.0,
            pooling="max",
            legacy_padding_leak=leak,
        )
        encoder.build(ids.shape)
        entries = _load(encoder, weights, cells, embedding)
        if leak:
            _compare_mode(fixture, encoder, entries, (ids, lengths), False, "out_padded_batch", "eval.R", "eval.grad.")
    fixture.compare("out_each_alone", encoders[False](ids, lengths, training=False), rtol=1e-5, atol=1e-5, note="in one batch")
