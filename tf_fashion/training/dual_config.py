"""Everything that decides the training of a dual encoder, checked before anything slow happens."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tf_fashion.core.errors import DataError, UsageError
from tf_fashion.core.files import read_json
from tf_fashion.encoders.clip import CLIPConfig
from tf_fashion.encoders.text import TEXT_ENCODERS
from tf_fashion.inputs.pairs import SAME
from tf_fashion.losses.concept import WEIGHTINGS
from tf_fashion.retrieval.dual_protocol import get_dual_protocol
from tf_fashion.training.config import FromPreset, MatchingConfig
from tf_fashion.training.presets import DUAL_DEFAULTS, DUAL_PRESETS

# The name among text encoders of CLIP's text tower.
CLIP = "clip"

OPTIONS_OF = {
    "text_options": "text_encoder",
    "loss_options": "loss",
    "optimizer_options": "optimizer",
    "schedule_options": "schedule",
    "concept_options": "concept_loss",
}

CONCEPT_SOURCES = ("data", "data+kb")


@dataclass(frozen=True, kw_only=True)
class DualConfig(MatchingConfig):
    """Everything that decides a run. Fields that are None take the preset's value (see `DUAL_PRESETS`).

    Attributes are explained by `tf-fashion train dual --help`.
    """

    data_options: dict[str, Any] = field(default_factory=dict)
    groups: str | None = None
    clip: FromPreset = None
    bpe: str | None = None
    bpe_size: FromPreset = None
    context_length: FromPreset = None
    original_truncation: FromPreset = None
    bias: FromPreset = None
    same_pairs: FromPreset = None
    global_batch: int | None = None
    concept_loss: FromPreset = None
    concept_options: FromPreset = None
    concept_slots: FromPreset = None
    concept_sources: FromPreset = None
    concept_weighting: FromPreset = None
    concept_weight: FromPreset = None
    concept_start: FromPreset = None
    concept_candidates: FromPreset = None
    concept_prototypes: FromPreset = None
    concept_diversity: FromPreset = None
    original_selection: FromPreset = None
    swap_father_maps: FromPreset = None

    def resolved(self) -> DualConfig:
        """The same with the preset's values filled in.

        Raises:
            UsageError: an unknown name, or a number out of range.
        """
        preset = self._preset_name(DUAL_PRESETS)
        values = {**DUAL_DEFAULTS, **DUAL_PRESETS[preset]}
        text = self.text_encoder or values["text_encoder"]
        if self.backbone:
            # Another image network takes the place of a preset's CLIP, whose text tower goes with it unless it is asked for.
            if values["clip"]:
                values |= {"projection": "linear"}
            values["clip"] = (values["clip"] or "tiny") if text == CLIP else None
        elif self.clip or values["clip"]:
            values |= {"backbone": None, "text_encoder": CLIP}
            values |= {"projection": "none", "feature_norm": False, "feature_dropout": 0.0}
        changes = {key: value for key, value in values.items() if getattr(self, key) is None}
        changes |= self._merged_options(values, DUAL_PRESETS[preset], OPTIONS_OF)
        config = dataclasses.replace(self, preset=preset, **changes)
        config.check()
        return config

    @property
    def clip_sizes(self) -> CLIPConfig:
        """The sizes that `clip` names: of a known model, or of a file in the form of OpenAI's configurations.

        Raises:
            UsageError: unknown name, or sizes that no model has.
            DataError: a file that is not JSON.
        """
        if not str(self.clip).endswith(".json"):
            return CLIPConfig.of(str(self.clip))
        if not Path(str(self.clip)).is_file():
            raise UsageError(f"--clip {self.clip}: no such file.")
        sizes = read_json(Path(str(self.clip)))
        if not isinstance(sizes, dict):
            raise DataError(f"{self.clip}: expected an object with the sizes of a CLIP, found {type(sizes).__name__}.")
        return CLIPConfig.of(sizes)

    @property
    def image_is_clip(self) -> bool:
        """Whether the image tower is CLIP's."""
        return self.backbone is None

    @property
    def step_batch(self) -> int:
        """Pairs per optimizer step."""
        return int(self.global_batch or self.batch_size)

    @property
    def micro_batch(self) -> int | None:
        """Pairs that go through the towers at a time, where that is less than a step's."""
        return int(self.batch_size) if self.global_batch and self.global_batch > self.batch_size else None

    def check(self) -> None:
        """Raises `UsageError` for values that no run can have."""
        self.check_run()
        self.one_of("same_pairs", SAME)
        self.one_of("concept_sources", CONCEPT_SOURCES)
        self.one_of("concept_weighting", WEIGHTINGS)
        get_dual_protocol(self.protocol)
        if self.text_encoder == CLIP:
            if not self.clip:
                raise UsageError("--text-encoder clip: give its sizes with --clip (tiny, ViT-B/32, ...).")
        else:
            TEXT_ENCODERS.get(str(self.text_encoder))
        if self.clip:
            self.clip_sizes  # noqa: B018  (checks itself)
        if self.image_is_clip:
            if self.freeze_backbone and not (self.weights or self.init_from):
                raise UsageError("--freeze-backbone without --weights would keep random features. Give --weights FILE.")
            if self.weights and self.text_encoder == CLIP and not self.bpe:
                raise UsageError(
                    "--weights of a CLIP need the vocabulary that it was trained with: give --bpe bpe_simple_vocab_16e6.txt.gz (from "
                    "OpenAI's CLIP repository)."
                )
        else:
            self.check_backbone()
        if self.pooling == "none":
            raise UsageError("--pooling none: a dual encoder compares vectors. Choose avg, max, gem or avg_max.")
        self.at_least_one("bpe_size", "context_length", "concept_slots", "concept_candidates", "concept_prototypes")
        if self.global_batch is not None and self.global_batch < self.batch_size:
            raise UsageError(
                f"--global-batch: expected at least --batch-size ({self.batch_size}), the pairs that go through the towers at a time; "
                f"found {self.global_batch}."
            )
        if self.micro_batch and self.strategy != "none":
            raise UsageError("--global-batch and --strategy exclude each other: several replicas have a large batch without it.")
        if self.micro_batch and self.feature_norm:
            raise UsageError(
                "--global-batch: the batch normalisation of --feature-norm would see a part of the batch only. Choose a preset without "
                "it (tiny_clip, finetune, fashion_klip), or a larger --batch-size in place of --global-batch."
            )
        if (self.loss == "sigmoid") != (self.bias is not None):
            raise UsageError(
                "--loss sigmoid and --bias belong together (SigLIP begins with --bias -10 --scale 10). Give both or neither."
            )


def describe_model(config: DualConfig) -> str:
    """The towers in a few words."""
    image = f"CLIP {config.clip}" if config.image_is_clip else str(config.backbone)
    text = image if config.image_is_clip and config.text_encoder == CLIP else f"{image} + {config.text_encoder}"
    return text + (" with concepts" if config.concept_loss else "")
