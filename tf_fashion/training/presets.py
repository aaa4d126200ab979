"""Settings that belong together: the library's own, and those of published systems."""

from __future__ import annotations

from typing import Any

# The feature maps that multi-level composers work on.
LEVELS = ("low", "mid", "high")
ALL_STAGES = ("stage5", "stage4", "stage3", "stage2", "stage1")

# What neither the command line nor the preset says: of all models, of those that match pictures with texts, of composed retrieval.
RUN_DEFAULTS: dict[str, Any] = {
    "resize": "squash",
    "interpolation": "bilinear",
    "scaling": None,
    "batch_norm": "auto",
    "norm_unbiased": False,
    "taps": ("stage5",),
    "pooling": "avg",
    "descriptors": (),
    "feature_norm": False,
    "feature_dropout": 0.0,
    "optimizer": "adamw",
    "optimizer_options": {},
    "schedule": "cosine",
    "schedule_options": {},
    "weight_decay": 0.0,
    "backbone_factor": 1.0,
    "epochs": 10,
    "batch_size": 32,
    "learning_rate": 0.001,
    "flip": False,
}
MATCHING_DEFAULTS: dict[str, Any] = {
    **RUN_DEFAULTS,
    "text_options": {},
    "text_dropout": 0.0,
    "tokens": "strip_punct",
    "dim": 512,
    "projection": "linear",
    "loss": "batch_classification",
}
DEFAULTS: dict[str, Any] = {
    **MATCHING_DEFAULTS,
    "composer": "tirg",
    "composer_options": {},
    "text_encoder": "swem",
    "word_dim": 256,
    "marks": False,
    "spelling": False,
    "legacy_markers": False,
    "caption_order": "shuffled",
    "glove_missing": "scaled_normal",
    "captions": "joined",
    "caption_style": "and",
    "loss_options": {},
    "scale": 4.0,
    "semantic_with": "target",
    "l2_penalty": 0.0,
    "legacy_triple_pass": False,
}

# Better starts than the originals', for presets that do not reproduce one. VAL's self-attention begins with weight 0 there, and
# its gates alone can only dampen a channel, so that it learns slowly; and its change is never negative, although our normalised maps
# take both signs.
COMPOSER_DEFAULTS: dict[str, dict[str, Any]] = {
    "val": {"attention": {"initial_weights": (1.0, 1.0), "signed_change": True, "gate_activation": False}}
}
# Composers on maps drop features after composing, and with them what the sentence said.
MAP_DROPOUT = 0.1

# A frozen pretrained backbone, whose features are computed once; and a small network from scratch. What presets of all models share.
_FROZEN: dict[str, Any] = {
    "backbone": "mobilenet_v2",
    "taps": ALL_STAGES,
    "descriptors": ("colour", "shape"),
    "feature_norm": True,
    "feature_dropout": 0.5,
    "weight_decay": 1e-4,
}
_SCRATCH: dict[str, Any] = {
    "backbone": "small_cnn",
    "image_size": 64,
    "taps": ("stage5", "stage4"),
    "pooling": "avg_max",
    "feature_norm": True,
    "learning_rate": 2e-3,
    "weight_decay": 1e-4,
}

# What a preset says is taken where the command line says nothing.
PRESETS: dict[str, dict[str, Any]] = {
    # Frozen pretrained backbone, features computed once: minutes on a CPU.
    "frozen": {
        **_FROZEN,
        "text_encoder": "gru",
        "word_dim": 128,
        "text_units": 160,
        "text_dropout": 0.3,
        "dim": 512,
        "batch_size": 128,
        "epochs": 12,
        "learning_rate": 1e-3,
    },
    # A small network from scratch on small pictures: minutes on a CPU, for pictures that are easy to read.
    "scratch": {
        **_SCRATCH,
        "descriptors": (),
        "text_encoder": "swem",
        "word_dim": 128,
        "text_dropout": 0.0,
        "dim": 256,
        "feature_dropout": 0.0,
        "batch_size": 64,
        "epochs": 4,
    },
    # A pretrained backbone trained along: for GPUs.
    "finetune": {
        "backbone": "resnet50_v2",
        "taps": ("stage5",),
        "descriptors": (),
        "text_encoder": "lstm_gru",
        "word_dim": 512,
        "text_dropout": 0.1,
        "dim": 1024,
        "feature_norm": False,
        "feature_dropout": 0.1,
        "batch_size": 64,
        "epochs": 40,
        "learning_rate": 2e-4,
        "weight_decay": 1e-2,
        "backbone_factor": 0.1,
        "augment": "fashion_iq_2020",
    },
}

# VAL as released: https://arxiv.org/abs/2003.11681 and its scripts. `train_steps` counts optimizer steps.
_VAL = {
    "composer": "val",
    "taps": ("low", "mid", "high"),
    "interpolation": "bilinear_tf1",
    "text_encoder": "lstm",
    "word_dim": 512,
    "text_units": 1024,
    "text_dropout": 0.1,
    "text_options": {"pooling": "max", "head": "dense_bn", "initialization": "glorot", "learned_initial_state": True},
    "captions": "single",
    "marks": True,
    "dim": 512,
    "projection": "none",
    "loss": "bidirectional_matching",
    "loss_options": {"margin": 0.2, "semi_hard": "column", "legacy_duplicate_negatives": True},
    "optimizer": "adam",
    "schedule": "constant",
    "learning_rate": 2e-4,
    "l2_penalty": 4e-5,
    "ema": 0.9999,
    "batch_size": 32,
    "augment": "val_mirror",
}
_VAL_RESNET = {
    "backbone": "slim_resnet_v2_50",
    "image_size": 256,
    "composer_options": {"attention": {"activation": "relu", "norm_momentum": 0.997, "norm_epsilon": 1e-5}},
    "norm_momentum": 0.997,
    "tokens": "treebank",
}
PRESETS |= {
    "val_fashion_iq": {**_VAL, **_VAL_RESNET, "augment": "val", "train_steps": 50_000, "protocol": "val-split"},
    "val_shoes": {**_VAL, **_VAL_RESNET, "train_steps": 30_000},
    "val_fashion200k": {
        **_VAL,
        "backbone": "slim_mobilenet_v1",
        "image_size": 224,
        "composer_options": {"attention": {"activation": "relu6", "norm_momentum": 0.9997, "norm_epsilon": 1e-3}},
        "norm_momentum": 0.9997,
        "schedule": "step",
        "train_steps": 160_000,
    },
}
for _preset in ("val_fashion_iq", "val_shoes", "val_fashion200k"):
    _attention = PRESETS[_preset]["composer_options"]["attention"]
    _norm = {key: _attention[key] for key in ("norm_momentum", "norm_epsilon")}
    PRESETS[_preset]["text_options"] = {**PRESETS[_preset]["text_options"], **_norm}

# The FashionIQ 2020 entry (M. Shin et al., second place): its four methods, with what it does by mistake put right. Text-only models
# meant to train the backbone at a tenth of the rate and did not.
_FIQ2020: dict[str, Any] = {
    "backbone": "torch_resnet152",
    "image_size": 224,
    "resize": "pad",
    "taps": ("stage5",),
    "pooling": "avg",
    "dim": 2048,
    "composer": "tirg_fiq2020",
    "text_encoder": "lstm_gru",
    "text_options": {"layers": 2, "dropout": 0.1, "head": "dense", "initialization": "torch"},
    "word_dim": 900,
    "spelling": True,
    "caption_style": "fiq2020",
    "protocol": "fiq2020",
    "loss": "batch_hard_triplet",
    "loss_options": {"margin": 1.0},
    "scale": 5.0,
    "optimizer": "adamw",
    "optimizer_options": {"beta_1": 0.55, "beta_2": 0.999, "epsilon": 1e-8},
    "weight_decay": 0.01,
    "schedule": "warmup_step",
    "learning_rate": 0.00011148,
    "backbone_factor": 0.48,
    "augment": "fashion_iq_2020",
    "batch_size": 32,
    "epochs": 100,
}
_FIQ2020_TEXT = {
    "composer": "text_only",
    "text_options": {**_FIQ2020["text_options"], "head": "bn_dense"},
    "backbone_factor": 0.1,
}
_MATCH = {"loss": "match_embedding", "loss_options": {}}
_FIQ2020_ORIGINAL: dict[str, Any] = {
    "interpolation": "nearest",
    "augment": "fashion_iq_2020_legacy",
    "legacy_markers": True,
    "caption_order": "legacy",
    "glove_missing": "legacy_normal",
    "optimizer_options": {**_FIQ2020["optimizer_options"], "decay_vectors": True},
}
PRESETS |= {
    "fiq2020_tirg": _FIQ2020,
    "fiq2020_text_only": {**_FIQ2020, **_FIQ2020_TEXT},
    "fiq2020_match_tirg": {**_FIQ2020, **_MATCH},
    "fiq2020_match_text_only": {**_FIQ2020, **_FIQ2020_TEXT, **_MATCH, "text_encoder": "lstm"},
    # As released, mistakes included.
    "fiq2020_tirg_original": {
        **_FIQ2020,
        **_FIQ2020_ORIGINAL,
        "composer_options": {"trainable_scalars": False},
        "legacy_triple_pass": True,
    },
    "fiq2020_text_only_original": {**_FIQ2020, **_FIQ2020_TEXT, **_FIQ2020_ORIGINAL, "backbone_factor": 1.0},
}

# Its successor RTIC with the settings that its authors call optimised: https://arxiv.org/abs/2104.03015 and their code.
PRESETS["rtic"] = {
    **_FIQ2020,
    "composer": "rtic",
    "composer_options": {"blocks": 1},
    "text_options": {"layers": 2, "dropout": 0.1, "head": "dense", "initialization": "torch", "pooling": "max"},
    "word_dim": 1100,
    "caption_style": "rtic",
    "protocol": "rtic",
    "image_size": 256,
    "scale": 4.82,
    "optimizer_options": {"beta_1": 0.624, "beta_2": 0.998, "epsilon": 1e-8},
    "schedule": "cosine",
    "schedule_options": {"warmup_ratio": 0.15},
    "learning_rate": 0.00010657,
    "backbone_factor": 0.652,
    "batch_size": 24,
}

# Dual encoders: what neither the command line nor the preset says.
DUAL_DEFAULTS: dict[str, Any] = {
    **MATCHING_DEFAULTS,
    "clip": None,
    "backbone": None,
    "image_size": None,
    "text_encoder": "gru",
    "word_dim": 128,
    "bpe_size": 4096,
    "context_length": None,
    "original_truncation": False,
    "loss_options": {"directions": "both", "share_targets": True},
    "scale": 1 / 0.07,
    "bias": None,
    "same_pairs": "phrases",
    "concept_loss": False,
    "concept_options": {},
    "concept_slots": 5,
    "concept_sources": "data",
    "concept_weighting": "adaptive",
    "concept_weight": 1.0,
    "concept_start": 0,
    "concept_candidates": 20,
    "concept_prototypes": 10,
    "concept_diversity": 0.8,
    "original_selection": False,
    "swap_father_maps": False,
    "protocol": "full",
}

# FashionKLIP as released (ACL 2023, Industry Track): ViT-B/32, its optimizer and schedule; with what it does by mistake put right.
_FASHION_KLIP: dict[str, Any] = {
    "clip": "ViT-B/32",
    "projection": "none",
    "batch_size": 32,
    "learning_rate": 1e-5,
    "weight_decay": 1e-3,
    "optimizer_options": {"beta_1": 0.9, "beta_2": 0.98, "epsilon": 1e-6},
    "schedule_options": {"warmup_steps": 500},
    "epochs": 20,
    "concept_loss": True,
}

DUAL_PRESETS: dict[str, dict[str, Any]] = {
    # Frozen pretrained backbone, features computed once: minutes on a CPU.
    "frozen": {
        **_FROZEN,
        "text_encoder": "bigru",
        "text_units": 160,
        "text_dropout": 0.3,
        "projection": "mlp",
        "batch_size": 256,
        "epochs": 30,
        "learning_rate": 2e-3,
    },
    # A small network from scratch on small pictures: minutes on a CPU, for pictures that are easy to read.
    "scratch": {
        **_SCRATCH,
        "text_encoder": "gru",
        "text_units": 128,
        "dim": 256,
        "batch_size": 128,
        "epochs": 8,
        "flip": True,
    },
    # A small CLIP from scratch.
    "tiny_clip": {
        "clip": "tiny",
        "projection": "none",
        "batch_size": 128,
        "epochs": 25,
        "learning_rate": 2e-3,
        "weight_decay": 0.05,
        "optimizer_options": {"beta_2": 0.98, "epsilon": 1e-6},
        "flip": True,
    },
    # A published CLIP trained along: for GPUs.
    "finetune": {**_FASHION_KLIP, "batch_size": 128, "concept_loss": False, "epochs": 10},
    "fashion_klip": _FASHION_KLIP,
    # As released, mistakes included. Pairs of one picture or text are each other's negatives there.
    "fashion_klip_original": {
        **_FASHION_KLIP,
        "loss_options": {"directions": "both", "mask_same_label": False},
        "same_pairs": "none",
        "concept_options": {"original_transposed": True, "original_padding": True, "keep_negative": True},
        "concept_weighting": "original",
        "original_selection": True,
        "swap_father_maps": True,
        "original_truncation": True,
    },
}
# SigLIP's loss and start (Zhai et al., ICCV 2023) with the frozen backbone.
DUAL_PRESETS["siglip"] = {
    **DUAL_PRESETS["frozen"],
    "loss": "sigmoid",
    "loss_options": {"same_label": "positive"},
    "scale": 10.0,
    "bias": -10.0,
}

# Attribute classifiers: what neither the command line nor the preset says.
ATTRIBUTE_DEFAULTS: dict[str, Any] = {
    **RUN_DEFAULTS,
    "hidden": (),
    "hidden_dropout": 0.0,
    "exclusive": "auto",
    "correlation": False,
    "correlation_options": {},
    "loss": "bce",
    "loss_options": {},
    "label_smoothing": 0.0,
    "balance": "none",
    "unlabelled": "absent",
    "start_at_prior": True,
    "tta": "none",
    "thresholds": "label",
    "objective": "micro",
    "folds": 5,
}

# The published iMaterialist predictor (github.com/malteprinzler/VisualFashionAttributePrediction): ResNet-50 on 512 pixels, no
# schedule, four passes; the random changes that it describes but never applies are applied.
_IMATERIALIST: dict[str, Any] = {
    "backbone": "torch_resnet50",
    "image_size": 512,
    "scaling": "imaterialist",
    "norm_unbiased": True,
    "norm_momentum": 0.9,
    "exclusive": "none",
    "start_at_prior": False,
    "optimizer": "adam",
    "schedule": "constant",
    "batch_size": 48,
    "epochs": 4,
    "augment": "imaterialist",
}

ATTRIBUTE_PRESETS: dict[str, dict[str, Any]] = {
    # Frozen pretrained backbone, features computed once: minutes on a CPU.
    "frozen": {
        **_FROZEN,
        "descriptors": ("colour", "shape", "colour_layout", "texture"),
        "feature_dropout": 0.2,
        "hidden": (1024,),
        "hidden_dropout": 0.6,
        "batch_size": 128,
        "epochs": 20,
        "learning_rate": 2e-3,
    },
    # A small network from scratch on small pictures: minutes on a CPU, for pictures that are easy to read.
    "scratch": {**_SCRATCH, "batch_size": 64, "epochs": 8, "flip": True},
    # A pretrained backbone trained along: for GPUs.
    "finetune": {
        "backbone": "resnet50_v2",
        "batch_size": 64,
        "epochs": 20,
        "learning_rate": 3e-4,
        "weight_decay": 1e-2,
        "backbone_factor": 0.1,
        "feature_dropout": 0.2,
        "augment": "imaterialist",
    },
    "imaterialist": _IMATERIALIST,
    "imaterialist_original": {**_IMATERIALIST, "augment": False},
}

# Street to shop: what neither the command line nor the preset says.
STREET_DEFAULTS: dict[str, Any] = {
    **RUN_DEFAULTS,
    "dim": None,
    "start": "torch",
    "standardize": False,
    "norm_features": False,
    "sampler": "pairs",
    "combination": "all",
    "draws": 1,
    "loss": "mined_triplet",
    "loss_options": {},
}

# The encoder of UDMA (Sharma et al., WACV 2021) that the adaptation starts from, DF-BL.
_DF_BL: dict[str, Any] = {
    "backbone": "torch_resnet101",
    "pooling": "gem",
    "batch_norm": "train",
    "norm_unbiased": True,
    "norm_momentum": 0.9,
    "loss_options": {"margin": 0.3},
    "optimizer_options": {"epsilon": 1e-8},
    "schedule": "thirds",
    "learning_rate": 1e-4,
    "batch_size": 128,
    "epochs": 60,
    "augment": "udma",
}

# Supervised contrast: on few products it finds more than triplets do.
_CONTRAST: dict[str, Any] = {"loss": "supervised_contrastive", "loss_options": {"temperature": 0.2}}

STREET_PRESETS: dict[str, dict[str, Any]] = {
    # Frozen pretrained backbone, features computed once: minutes on a CPU.
    "frozen": {
        **{key: value for key, value in _FROZEN.items() if key != "feature_norm"},
        **_CONTRAST,
        "descriptors": ("shape",),
        "resize": "crop",
        "standardize": True,
        "start": "components",
        "dim": 256,
        "feature_dropout": 0.3,
        "sampler": "products",
        "draws": 0,
        "batch_size": 128,
        "epochs": 10,
        "learning_rate": 3e-3,
    },
    # A small network from scratch on small pictures: minutes on a CPU, for pictures that are easy to read.
    "scratch": {
        **{key: value for key, value in _SCRATCH.items() if key != "feature_norm"},
        **_CONTRAST,
        "dim": 256,
        "batch_size": 64,
        "draws": 8,
        "epochs": 10,
        "augment": "udma",
    },
    # A pretrained backbone trained along: for GPUs.
    "finetune": {
        **_CONTRAST,
        "backbone": "resnet50_v2",
        "dim": 512,
        "batch_size": 64,
        "epochs": 30,
        "learning_rate": 2e-4,
        "weight_decay": 1e-2,
        "backbone_factor": 0.1,
        "augment": "udma",
    },
    "df_bl": _DF_BL,
    # As released: rows without a positive or negative take row 0 for one.
    "df_bl_original": {**_DF_BL, "loss_options": {"margin": 0.3, "original_fallback": True}},
}

# Adaptation to the target's shop: what neither the command line nor the preset says.
ADAPT_DEFAULTS: dict[str, Any] = {
    **RUN_DEFAULTS,
    "weighting": "ws5",
    "weighting_options": {},
    "partition": 0,
    "alignment": "single",
    "neighbours": "exact",
    "categories_per_batch": 1,
    "merge": True,
    "draws": 1,
    "loss": "mined_triplet",
    "loss_options": {},
}

_UDMA: dict[str, Any] = {
    "alignment": "deepfashion",
    "merge": False,
    "categories_per_batch": 12,
    "batch_size": 128,
    "loss_options": {"margin": 0.3},
    "optimizer_options": {"epsilon": 1e-8},
    "schedule": "thirds",
    "learning_rate": 1e-4,
    "epochs": 45,
    "steps_per_epoch": 1000,
}

ADAPT_PRESETS: dict[str, dict[str, Any]] = {
    # A short second stage: minutes on a CPU.
    "short": {
        **_CONTRAST,
        "draws": 0,
        "batch_size": 128,
        "epochs": 5,
        "steps_per_epoch": 20,
        "learning_rate": 3e-4,
        "weight_decay": 1e-4,
    },
    # UDMA-MLP: 45,000 steps, the rate at a tenth after each 15,000.
    "udma": _UDMA,
    "udma_original": {**_UDMA, "loss_options": {"margin": 0.3, "original_fallback": True}},
}
