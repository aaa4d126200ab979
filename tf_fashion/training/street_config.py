"""Everything that decides the training of street-to-shop models, checked before anything slow happens."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tf_fashion.clustering.meta_domains import STRATEGIES
from tf_fashion.clustering.neighbours import NEIGHBOURS
from tf_fashion.core.errors import UsageError
from tf_fashion.datasets.street_lists import STATUSES
from tf_fashion.inputs.domain_batches import COMBINATIONS
from tf_fashion.losses import LOSSES
from tf_fashion.retrieval.multi_positive import get_street_protocol
from tf_fashion.training.config import FromPreset, RunConfig
from tf_fashion.training.presets import ADAPT_DEFAULTS, ADAPT_PRESETS, STREET_DEFAULTS, STREET_PRESETS

OPTIONS_OF = {"loss_options": "loss", "optimizer_options": "optimizer", "schedule_options": "schedule"}

SOURCES = ("df", "s2s")
# Losses that know several sets of rows in one batch.
CATEGORY_LOSSES = ("mined_triplet", "supervised_contrastive")
SAMPLERS = ("pairs", "products")
STARTS = ("torch", "identity", "components")
# No photo of the target: the same further training on the source alone, against which the others have to be measured.
NO_TARGET = "none"
# Few products fill a batch by giving their pairs several times.
MOST_DRAWS = 3
WEIGHTINGS = (NO_TARGET, *STRATEGIES)
ALIGNMENTS = ("single", "by_name", "deepfashion")


@dataclass(frozen=True, kw_only=True)
class _StreetRunConfig(RunConfig):
    """What training and adaptation share.

    Attributes:
        test: Sources whose test lists are measured; the first is the one of `metrics.json`'s main numbers. None: all that are there.
        protocol: Name of a protocol for all of them; None: that of the source.
        ap: Definition of average precision in place of the protocol's.
    """

    test: tuple[str, ...] | None = None
    ap: str | None = None
    draws: FromPreset = None

    def check_street(self) -> None:
        """Raises `UsageError` for values that no run can have."""
        self.check_run()
        LOSSES.get(self.loss)
        if self.loss == "match_embedding":
            raise UsageError("--loss match_embedding compares with given embeddings, which there are none of here. Choose another.")
        unknown = [name for name in self.test or () if name not in SOURCES]
        if unknown or self.test == ():
            raise UsageError(f"--test: expected df, s2s or df,s2s; found {','.join(self.test or ()) or 'nothing'}.")
        if self.protocol is not None:
            get_street_protocol(self.protocol)
        if self.ap is not None:
            get_street_protocol("cross-domain", ap=self.ap)
        if self.split not in (None, "test", "none"):
            raise UsageError(f"--split: expected test or none, found {self.split!r}.")
        self.at_least_one("steps_per_epoch")
        if self.draws < 0:
            raise UsageError(f"--draws: expected a number from 0 (as many as fill a batch), found {self.draws}.")
        if self.batch_size < 2:
            raise UsageError(f"--batch-size: expected at least 2 products, which are told apart; found {self.batch_size}.")

    def draws_of(self, products: int) -> int:
        """How often each of so many products gives its pairs: with `draws` 0 once for each whole time that they go into a batch, up to
        three times."""
        return self.draws or max(1, min(MOST_DRAWS, self.batch_size // products))

    def check_category_loss(self) -> None:
        """Raises `UsageError` for losses and devices that batches of categories cannot have."""
        if self.loss not in CATEGORY_LOSSES:
            raise UsageError(f"--loss {self.loss}: batches of whole products take {' or '.join(CATEGORY_LOSSES)}.")
        if self.strategy != "none":
            raise UsageError(
                f"--strategy {self.strategy}: one linear layer on computed features is trained on one device. Leave it out."
            )

    def identity(self) -> dict[str, Any]:
        return {key: value for key, value in super().identity().items() if key not in ("protocol", "ap", "test")}


@dataclass(frozen=True, kw_only=True)
class StreetConfig(_StreetRunConfig):
    """Everything that decides a run. Fields that are None take the preset's value (see `STREET_PRESETS`).

    Attributes are explained by `tf-fashion train street_to_shop --help`.
    """

    dim: FromPreset = None
    start: FromPreset = None
    standardize: FromPreset = None
    norm_features: FromPreset = None
    sampler: FromPreset = None
    combination: FromPreset = None
    statuses: tuple[str, ...] = ("train", "val")

    def resolved(self) -> StreetConfig:
        """The same with the preset's values filled in.

        Raises:
            UsageError: an unknown name, or a number out of range.
        """
        preset = self._preset_name(STREET_PRESETS)
        values = {**STREET_DEFAULTS, **STREET_PRESETS[preset]}
        changes = {key: value for key, value in values.items() if getattr(self, key) is None}
        changes |= self._merged_options(values, STREET_PRESETS[preset], OPTIONS_OF)
        if self.dim == 0:
            changes["dim"] = None
        config = dataclasses.replace(self, preset=preset, **changes)
        config.check()
        return config

    def check(self) -> None:
        """Raises `UsageError` for values that no run can have."""
        self.check_street()
        self.one_of("start", STARTS)
        self.one_of("sampler", SAMPLERS)
        self.one_of("combination", COMBINATIONS)
        if not self.statuses or not set(self.statuses) <= set(STATUSES):
            raise UsageError(f"--statuses: expected some of {','.join(STATUSES)}; found {','.join(self.statuses) or 'nothing'}.")
        self.check_backbone()
        if self.pooling == "none":
            raise UsageError("--pooling none: embeddings are made of vectors. Choose avg, max, gem or avg_max.")
        if self.standardize and self.norm_features:
            raise UsageError("--standardize and --norm-features exclude each other.")
        if not self.freeze_backbone:
            frozen = [f"--{name}" for name in ("standardize",) if getattr(self, name)]
            frozen += ["--start components"] * (self.start == "components") + ["--sampler products"] * (self.sampler == "products")
            if frozen:
                raise UsageError(f"{frozen[0]} looks at the features of all photos, which do not change: add --freeze-backbone.")
        if self.augment and self.freeze_backbone:
            raise UsageError("--augment: features of a frozen backbone are computed once. Leave out one of the two.")
        if self.sampler == "products":
            self.check_category_loss()
        self.at_least_one("dim")


@dataclass(frozen=True, kw_only=True)
class AdaptConfig(_StreetRunConfig):
    """Everything that decides an adaptation. Fields that are None take the preset's value (see `ADAPT_PRESETS`).

    Attributes are explained by `tf-fashion adapt --help`.
    """

    model: str = ""
    features: str | None = None
    preset: str = "short"
    weighting: FromPreset = None
    weighting_options: FromPreset = None
    partition: FromPreset = None
    alignment: FromPreset = None
    neighbours: FromPreset = None
    matches: str | None = None
    categories_per_batch: FromPreset = None
    merge: FromPreset = None
    freeze_backbone: bool = field(default=True, init=False)

    def resolved(self) -> AdaptConfig:
        """The same with the preset's values filled in.

        Raises:
            UsageError: an unknown name, or a number out of range.
        """
        preset = self._preset_name(ADAPT_PRESETS)
        values = {**ADAPT_DEFAULTS, **ADAPT_PRESETS[preset]}
        changes = {key: value for key, value in values.items() if getattr(self, key) is None}
        changes |= self._merged_options(values, ADAPT_PRESETS[preset], {**OPTIONS_OF, "weighting_options": "weighting"})
        config = dataclasses.replace(self, preset=preset, **changes)
        config.check()
        return config

    def check(self) -> None:
        """Raises `UsageError` for values that no run can have."""
        self.check_street()
        self.one_of("weighting", WEIGHTINGS)
        self.one_of("neighbours", NEIGHBOURS)
        if self.alignment not in ALIGNMENTS and Path(str(self.alignment)).suffix != ".json":
            raise UsageError(f"--alignment: expected {', '.join(ALIGNMENTS)} or a .json file; found {self.alignment!r}.")
        if self.partition < 0:
            raise UsageError(f"--partition: expected a number from 0 (the finest), found {self.partition}.")
        self.at_least_one("categories_per_batch")
        if self.merge and self.categories_per_batch != 1:
            raise UsageError(
                "--merge makes one category of all products, of which a batch cannot take "
                f"{self.categories_per_batch}. Leave out --categories-per-batch, or add --no-merge."
            )
        self.check_category_loss()
        if self.matches and self.weighting in (NO_TARGET, "unweighted", "soft"):
            raise UsageError(f"--matches: {self.weighting!r} has no matches. They go with ws5, ws6, ws7 and ws8.")
        if self.weighting_options and self.weighting != "soft":
            raise UsageError(f"--weighting-option belongs to --weighting soft, not to {self.weighting!r}.")
