"""Everything that decides a training run, checked before anything slow happens."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tf_fashion.composers import COMPOSERS
from tf_fashion.core.errors import UsageError
from tf_fashion.encoders.image import BACKBONES, BATCH_NORM_MODES
from tf_fashion.encoders.text import TEXT_ENCODERS
from tf_fashion.inputs.augment import Augmentation
from tf_fashion.inputs.domain_batches import PairAugmentation
from tf_fashion.inputs.glove import MISSING
from tf_fashion.inputs.text import RULES
from tf_fashion.losses import LOSSES
from tf_fashion.retrieval.protocol import get_protocol
from tf_fashion.training.presets import COMPOSER_DEFAULTS, DEFAULTS, LEVELS, MAP_DROPOUT, PRESETS

# Its size is that of the model's pictures.
UDMA_AUGMENTATION = "udma"

AUGMENTATIONS: dict[str, Callable[[], Augmentation]] = {
    "fashion_iq_2020": Augmentation.fashion_iq_2020,
    "fashion_iq_2020_legacy": functools.partial(Augmentation.fashion_iq_2020, legacy=True),
    "clip": Augmentation.clip,
    "val": Augmentation.val,
    "val_mirror": functools.partial(Augmentation.val, crop=False),
    "imaterialist": Augmentation.imaterialist,
    UDMA_AUGMENTATION: PairAugmentation,
}

# Prefix of --backbone that names a SavedModel folder, such as an unpacked TF-Hub model.
SAVED_MODEL = "saved_model:"

CAPTION_ORDERS = ("shuffled", "file", "legacy")

# Options -> the choice that they belong to.
OPTIONS_OF = {
    "composer_options": "composer",
    "text_options": "text_encoder",
    "loss_options": "loss",
    "optimizer_options": "optimizer",
    "schedule_options": "schedule",
}

# RTIC-GCN's, from scratch; its authors' for fine-tuning are 0.164 and 0.326.
GRAPH_DEFAULTS: dict[str, Any] = {"graph_weight": 1.0, "graph_ratio": 0.198, "graph_tau": 0.445, "graph_options": {}}

# A field that the preset fills in: None until `ComposedConfig.resolved`.
FromPreset = Any


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What decides a run of any model. Fields that are None take the preset's value."""

    data: str
    out: str
    images: str | None = None
    dataset: str = "auto"
    preset: str = "auto"
    backbone: FromPreset = None
    weights: str | None = None
    freeze_backbone: bool = False
    image_size: FromPreset = None
    resize: FromPreset = None
    interpolation: FromPreset = None
    taps: FromPreset = None
    pooling: FromPreset = None
    descriptors: FromPreset = None
    batch_norm: FromPreset = None
    norm_momentum: FromPreset = None
    norm_unbiased: FromPreset = None
    scaling: FromPreset = None
    feature_norm: FromPreset = None
    feature_dropout: FromPreset = None
    loss: FromPreset = None
    loss_options: FromPreset = None
    init_from: str | None = None
    optimizer: FromPreset = None
    optimizer_options: FromPreset = None
    schedule: FromPreset = None
    schedule_options: FromPreset = None
    epochs: FromPreset = None
    batch_size: FromPreset = None
    learning_rate: FromPreset = None
    weight_decay: FromPreset = None
    ema: FromPreset = None
    backbone_factor: FromPreset = None
    flip: FromPreset = None
    augment: FromPreset = None
    steps_per_epoch: int | None = None
    seed: int = 0
    protocol: FromPreset = None
    split: str | None = None
    evaluate_every: int = 1
    select: str = "last"
    patience: int | None = None
    strategy: str = "none"
    devices: tuple[str, ...] | None = None
    precision: str = "auto"
    deterministic: bool = False
    cache: str | None = None
    skip_bad_images: bool = False
    black_bad_images: bool = False
    overwrite: bool = False
    tensorboard: bool = False
    progress: bool = True
    report: bool = True
    export: bool = True

    def _preset_name(self, known: Mapping[str, Any]) -> str:
        """The preset's name; "auto" goes by the weights and by whether they are trained."""
        preset = self.preset
        if preset == "auto":
            preset = "frozen" if self.freeze_backbone else ("finetune" if self.weights else "scratch")
        if preset not in known:
            raise UsageError(f"Unknown preset {self.preset!r}. Known: auto, {', '.join(known)}.")
        return preset

    def _merged_options(self, values: Mapping[str, Any], preset: Mapping[str, Any], owners: Mapping[str, str]) -> dict[str, Any]:
        """Dictionaries of options: single ones are given on top of the preset's, unless another class is chosen to which those do
        not belong."""
        merged = {}
        for key, chosen in owners.items():
            belongs = chosen == "composer" or getattr(self, chosen) in (None, preset.get(chosen))
            merged[key] = {**(values[key] if belongs else {}), **(getattr(self, key) or {})}
        return merged

    def check_run(self) -> None:
        """Raises `UsageError` for values that no run of any model can have."""
        self.one_of("optimizer", ("adamw", "adam"))
        self.one_of("schedule", ("cosine", "constant", "step", "thirds", "warmup_step"))
        self.one_of("batch_norm", BATCH_NORM_MODES)
        self.one_of("augment", (None, False, *AUGMENTATIONS))
        self.one_of("select", ("last", "best"))
        if self.ema is not None and not 0 < self.ema < 1:
            raise UsageError(f"--ema: expected a number between 0 and 1, found {self.ema}.")
        self.at_least_one("epochs", "batch_size", "evaluate_every")
        if not self.learning_rate or self.learning_rate <= 0:
            raise UsageError(f"--learning-rate: expected a positive number, found {self.learning_rate}.")
        self.shares("feature_dropout")

    def one_of(self, name: str, known: Sequence[Any]) -> None:
        """Raises `UsageError` if a field has a value that is not among the known ones."""
        if getattr(self, name) not in known:
            raise UsageError(f"--{name.replace('_', '-')}: expected {' or '.join(map(str, known))}; found {getattr(self, name)!r}.")

    def at_least_one(self, *names: str) -> None:
        """Raises `UsageError` if a field that is set is below 1."""
        for name in names:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')}: expected at least 1, found {getattr(self, name)}.")

    def shares(self, *names: str) -> None:
        """Raises `UsageError` if a field is not in [0, 1)."""
        for name in names:
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(
                    f"--{name.replace('_', '-')}: expected a number from 0 up to but not including 1, found {getattr(self, name)}."
                )

    def check_backbone(self) -> None:
        """Raises `UsageError` for backbones that are unknown, or frozen without weights."""
        if not str(self.backbone).startswith(SAVED_MODEL):
            BACKBONES.get(str(self.backbone))
        if str(self.backbone).startswith(SAVED_MODEL):
            if not self.freeze_backbone:
                raise UsageError("A SavedModel cannot be trained along: add --freeze-backbone.")
        elif self.freeze_backbone and not (self.weights or self.init_from):
            raise UsageError("--freeze-backbone without --weights would keep random features. Give --weights FILE (or imagenet).")

    def identity(self) -> dict[str, Any]:
        """The part that decides the weights: two runs with equal identities are one run."""
        ignored = {"out", "overwrite", "progress", "report", "export", "tensorboard", "cache", "data", "images"}
        return {key: value for key, value in self.plain().items() if key not in ignored}

    def plain(self) -> dict[str, Any]:
        """All fields as JSON has them."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}


@dataclass(frozen=True, kw_only=True)
class MatchingConfig(RunConfig):
    """What decides a run of a model that matches pictures with texts."""

    text_encoder: FromPreset = None
    text_options: FromPreset = None
    dim: FromPreset = None
    word_dim: FromPreset = None
    text_units: FromPreset = None
    text_dropout: FromPreset = None
    tokens: FromPreset = None
    projection: FromPreset = None
    scale: FromPreset = None

    def check_run(self) -> None:
        super().check_run()
        LOSSES.get(self.loss)
        self.one_of("tokens", RULES)
        self.at_least_one("dim", "word_dim")
        self.shares("text_dropout")


@dataclass(frozen=True, kw_only=True)
class ComposedConfig(MatchingConfig):
    """Everything that decides a run. Fields that are None take the preset's value (see `PRESETS`).

    Attributes are explained by `tf-fashion train composed --help`.
    """

    categories: tuple[str, ...] | None = None
    composer: FromPreset = None
    composer_options: FromPreset = None
    glove: tuple[str, ...] = ()
    glove_missing: FromPreset = None
    spelling: FromPreset = None
    marks: FromPreset = None
    captions: FromPreset = None
    caption_style: FromPreset = None
    caption_order: FromPreset = None
    legacy_markers: FromPreset = None
    caption_dropout: float = 0.0
    semantic_weight: float = 0.0
    semantic_with: FromPreset = None
    pretrain_epochs: int = 0
    target_embeddings: str | None = None
    graph_from: str | None = None
    graph_weight: FromPreset = None
    graph_ratio: FromPreset = None
    graph_tau: FromPreset = None
    graph_options: FromPreset = None
    train_steps: FromPreset = None
    l2_penalty: FromPreset = None
    legacy_triple_pass: FromPreset = None

    def resolved(self) -> ComposedConfig:
        """The same with the preset's values filled in.

        Raises:
            UsageError: an unknown name, or a number out of range.
        """
        preset = self._preset_name(PRESETS)
        values = {**DEFAULTS, **PRESETS[preset]}
        if self.composer is not None:
            values["composer"] = self.composer
        composer = COMPOSERS.get(values["composer"])
        if composer.spatial:
            values["feature_dropout"] = min(values["feature_dropout"], MAP_DROPOUT)
        if composer.multilevel:
            values |= {"pooling": "none", "descriptors": ()}
            if PRESETS[preset].get("composer") != values["composer"]:
                values["taps"] = LEVELS
        elif composer.spatial:
            values |= {"pooling": "none", "taps": ("stage5",), "descriptors": ()}
        given = {key: getattr(self, key) for key in values}
        changes = {key: value for key, value in values.items() if given[key] is None}
        if PRESETS[preset].get("composer") != values["composer"]:
            values["composer_options"] = COMPOSER_DEFAULTS.get(values["composer"], {})
        changes |= self._merged_options(values, PRESETS[preset], OPTIONS_OF)
        if self.epochs is not None:
            changes["train_steps"] = None
        if self.graph_from:
            changes |= {key: value for key, value in GRAPH_DEFAULTS.items() if getattr(self, key) is None}
        config = dataclasses.replace(self, preset=preset, **changes)
        if composer.spatial and (config.pooling != "none" or config.descriptors):
            raise UsageError(f"--composer {config.composer} works on feature maps: leave out --pooling and --descriptors.")
        config.check()
        return config

    def check(self) -> None:
        """Raises `UsageError` for values that no run can have."""
        self.check_run()
        TEXT_ENCODERS.get(str(self.text_encoder))
        COMPOSERS.get(self.composer)
        if self.protocol is not None:
            get_protocol(self.protocol)
        self.one_of("captions", ("joined", "single"))
        self.one_of("caption_order", CAPTION_ORDERS)
        self.one_of("spelling", (False, True, "vocabulary"))
        self.one_of("glove_missing", MISSING)
        self.shares("caption_dropout")
        if self.semantic_weight < 0 or self.pretrain_epochs < 0:
            raise UsageError("--semantic-weight and --pretrain-epochs cannot be negative.")
        if (self.loss == "match_embedding") != bool(self.target_embeddings):
            raise UsageError(
                "--loss match_embedding (the match presets) and --target-embeddings belong together: the loss compares with a given "
                "embedding of each target. Give both or neither."
            )
        self._check_graph()
        if self.skip_bad_images and self.black_bad_images:
            raise UsageError("--skip-bad-images and --black-bad-images exclude each other.")
        self.check_backbone()

    def _check_graph(self) -> None:
        if not self.graph_from:
            alone = [name for name in GRAPH_DEFAULTS if getattr(self, name) is not None]
            if alone:
                option = alone[0].replace("_", "-").removesuffix("s")
                raise UsageError(f"--{option} needs --graph-from FILE, the trained model whose features make the graph.")
            return
        if COMPOSERS.get(self.composer).spatial:
            raise UsageError(
                f"--graph-from: expected a composer that works on vectors; {self.composer} works on feature maps. Choose another "
                "--composer (rtic, tirg, ...) or leave the graph out."
            )
        for name, low in (("graph_weight", "more than 0"), ("graph_ratio", "more than 0 and at most 1"), ("graph_tau", "at least 0")):
            value = getattr(self, name)
            if value < 0 or (value == 0 and name != "graph_tau") or (value > 1 and name == "graph_ratio"):
                raise UsageError(f"--{name.replace('_', '-')}: expected {low}, found {value}.")
        if self.strategy != "none" and self.graph_options.get("class_balanced"):
            raise UsageError(
                "--graph-option class_balanced: the balance is over the whole batch, which several replicas share. Leave out "
                "--strategy or the balance."
            )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
