"""CLIP's checkpoints, in the layouts that they are published in, into `encoders.clip`, and back.

Whatever the layout, weights go by OpenAI's names in between: `visual.conv1.weight`, `transformer.resblocks.0.attn.in_proj_weight`, ...
Known are OpenAI's own files (TorchScript archives, state dictionaries, training checkpoints with any prefix), open_clip's (the same
names; or `text.` before those of the text tower), HuggingFace's `CLIPModel`, and what `convert_weights` made of them. Nothing in a
file is executed.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_fashion.checkpoints.base import CONVERTERS, ConversionReport
from tf_fashion.checkpoints.torch_files import flatten, read_weights
from tf_fashion.checkpoints.torch_weights import Slot, fill
from tf_fashion.core.errors import UsageError, WeightsError
from tf_fashion.core.files import read_json
from tf_fashion.encoders.clip import EPSILON, HEAD_WIDTH, CLIPConfig, CLIPImageEncoder, CLIPTextEncoder

Arrays = dict[str, np.ndarray]

INITIAL_SCALE = math.log(1 / 0.07)
_MARK = "visual.conv1.weight"
_HUGGINGFACE_MARK = "vision_model.embeddings.patch_embedding.weight"
_HDF5 = b"\x89HDF\r\n\x1a\n"
# Entries of OpenAI's archives that are no weights.
_SETTINGS = ("input_resolution", "context_length", "vocab_size")

_BLOCK = (
    "ln_1.weight",
    "ln_1.bias",
    "attn.in_proj_weight",
    "attn.in_proj_bias",
    "attn.out_proj.weight",
    "attn.out_proj.bias",
    "ln_2.weight",
    "ln_2.bias",
    "mlp.c_fc.weight",
    "mlp.c_fc.bias",
    "mlp.c_proj.weight",
    "mlp.c_proj.bias",
)
_VISION = (
    "visual.class_embedding",
    "visual.positional_embedding",
    "visual.proj",
    _MARK,
    "visual.ln_pre.weight",
    "visual.ln_pre.bias",
    "visual.ln_post.weight",
    "visual.ln_post.bias",
)
_TEXT = ("positional_embedding", "text_projection", "token_embedding.weight", "ln_final.weight", "ln_final.bias")


def _block_names(tower: str, layers: int) -> list[str]:
    return [f"{tower}transformer.resblocks.{number}.{part}" for number in range(layers) for part in _BLOCK]


def _names(config: CLIPConfig) -> list[str]:
    """OpenAI's names of all weights of a model."""
    vision, text = _block_names("visual.", config.vision_layers), _block_names("", config.transformer_layers)
    return ["logit_scale", *_VISION, *vision, *_TEXT, *text]


# --- layouts of files ---------------------------------------------------------------------------------------------------


def _prefixes(names: Iterable[str], mark: str) -> list[str]:
    return sorted(name.removesuffix(mark) for name in names if name == mark or name.endswith(f".{mark}"))


def _from_openai(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """open_clip keeps the text tower of some models below `text.`, with the projection as a dense layer or as a matrix."""
    found = dict(arrays)
    if "text.token_embedding.weight" not in found:
        return found
    for name in [name for name in found if name.startswith("text.")]:
        found[name.removeprefix("text.")] = found.pop(name)
    if "text_projection.weight" in found:
        found["text_projection"] = np.transpose(found.pop("text_projection.weight"))
    return found


_HUGGINGFACE = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    _HUGGINGFACE_MARK: _MARK,
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "logit_scale": "logit_scale",
    # The first spelling is what the published files have.
    **{f"vision_model.pre_layrnorm.{part}": f"visual.ln_pre.{part}" for part in ("weight", "bias")},
    **{f"vision_model.pre_layernorm.{part}": f"visual.ln_pre.{part}" for part in ("weight", "bias")},
    **{f"vision_model.post_layernorm.{part}": f"visual.ln_post.{part}" for part in ("weight", "bias")},
    **{f"text_model.final_layer_norm.{part}": f"ln_final.{part}" for part in ("weight", "bias")},
}
_HUGGINGFACE_LAYER = re.compile(r"(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_HUGGINGFACE_PARTS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def _from_huggingface(arrays: Mapping[str, np.ndarray]) -> Arrays:
    found: Arrays = {}
    thirds: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        layer = _HUGGINGFACE_LAYER.fullmatch(name)
        if name in ("visual_projection.weight", "text_projection.weight"):
            found["visual.proj" if name.startswith("visual") else "text_projection"] = np.transpose(array)
        elif layer is None:
            found[_HUGGINGFACE.get(name, name)] = array
        else:
            tower, number, part, kind = layer.groups()
            prefix = f"{'visual.' if tower == 'vision' else ''}transformer.resblocks.{number}."
            if part in _HUGGINGFACE_PARTS:
                found[f"{prefix}{_HUGGINGFACE_PARTS[part]}.{kind}"] = array
            elif part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
                thirds.setdefault(f"{prefix}attn.in_proj_{kind}", {})[part[-6]] = array
            else:
                found[name] = array
    for name, parts in thirds.items():
        if sorted(parts) == ["k", "q", "v"]:
            found[name] = np.concatenate([parts["q"], parts["k"], parts["v"]])
    return found


def _why_unused(name: str) -> str:
    if name in _SETTINGS:
        return "size of the model"
    if re.search(r"(^|\.)(attn_mask|position_ids)$", name):
        return "made anew from the sizes"
    if name.startswith("optimizer"):
        return "state of an optimizer"
    return "not part of the network"


def _is_converted(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_HDF5)) == _HDF5


def _read(path: str | Path) -> tuple[Arrays, dict[str, str]]:
    """`read_clip`, and why other arrays of the file were left aside."""
    path = Path(path)
    if path.is_file() and _is_converted(path):
        towers = _load_converted(path)
        return clip_weights(towers.image_encoder, towers.text_encoder, float(towers.logit_scale)), {}
    every = flatten(read_weights(path, strict=True))
    layouts = {_MARK: _from_openai, _HUGGINGFACE_MARK: _from_huggingface}
    found = [(prefix, translate) for mark, translate in layouts.items() for prefix in _prefixes(every, mark)]
    if not found:
        shown = f" ({', '.join(sorted(every)[:3])}, ...)" if every else ""
        raise WeightsError(
            f"{path}: expected the weights of a CLIP model with a vision transformer ({_MARK}, or {_HUGGINGFACE_MARK}, whatever "
            f"precedes these names); found {len(every)} arrays{shown}."
        )
    if len(found) > 1:
        below = ", ".join(repr(prefix) for prefix, _ in found)
        raise WeightsError(f"{path}: expected one CLIP model in the file, found {len(found)}, below {below}.")
    prefix, translate = found[0]
    if any(name.startswith(f"{prefix}visual.attnpool.") for name in every):
        raise WeightsError(f"{path}: the vision tower is one of CLIP's ResNets; only vision transformers (ViT-...) are known.")
    inside = {name.removeprefix(prefix): array for name, array in every.items() if name.startswith(prefix)}
    outside = [name for name in every if not name.startswith(prefix)]
    named = translate(inside)
    config = infer_config(named, path)
    wanted = set(_names(config))
    absent = sorted(wanted - set(named) - {"logit_scale"})
    if absent:
        raise WeightsError(
            f"{path}: {len(absent)} of {len(wanted)} weights of a CLIP model are not in the file: {', '.join(absent[:4])}"
            + (", ..." if len(absent) > 4 else ".")
        )
    weights = {name: np.asarray(named[name], np.float32) for name in _names(config) if name in named}
    unused = {name: _why_unused(name) for name in sorted([*outside, *(set(named) - wanted)])}
    return weights, unused


def read_clip(path: str | Path) -> Arrays:
    """Reads the weights of a CLIP model with a vision transformer, whatever the layout of the file (see the module).

    Args:
        path: `.pt`, `.pth`, `.bin`, `.safetensors`, or what `convert_weights` wrote (`.weights.h5`).

    Returns:
        OpenAI's name -> float32 array in OpenAI's layout (dense layers: (out, in); projections: (width, embed)). Without
        `logit_scale` if the file has none.

    Raises:
        WeightsError: no such file, or no such weights in it, or not all.
        DataError: the file is damaged, or asks for more than tensors; nothing in it is executed.
        MissingExtraError: a .safetensors file without the package `safetensors`.
    """
    return _read(path)[0]


def infer_config(weights: Mapping[str, np.ndarray], source: str | Path = "weights") -> CLIPConfig:
    """The sizes of a model from its weights under OpenAI's names. Text heads are 64 wide, as OpenAI's loader has it.

    Args:
        weights: OpenAI's name -> array.
        source: Where they come from, for messages.

    Raises:
        WeightsError: weights that tell the sizes are missing or have other ranks.
    """
    telling = {
        _MARK: 4,
        "visual.positional_embedding": 2,
        "text_projection": 2,
        "positional_embedding": 2,
        "token_embedding.weight": 2,
        "ln_final.weight": 1,
    }
    bad = [name for name, rank in telling.items() if name not in weights or np.ndim(weights[name]) != rank]
    if bad:
        raise WeightsError(f"{source}: expected the weights of a CLIP model; missing or of another rank: {', '.join(bad)}.")
    shapes = {name: np.shape(weights[name]) for name in telling}
    width, patch = shapes[_MARK][0], shapes[_MARK][-1]
    grid = round(math.sqrt(shapes["visual.positional_embedding"][0] - 1))
    text_width = shapes["ln_final.weight"][0]

    def layers(pattern: str) -> int:
        return len({match[1] for name in weights if (match := re.match(pattern, name))})

    try:
        return CLIPConfig(
            embed_dim=shapes["text_projection"][1],
            image_resolution=patch * grid,
            vision_layers=layers(r"visual\.transformer\.resblocks\.(\d+)\.attn\.in_proj_weight$"),
            vision_width=width,
            vision_patch_size=patch,
            context_length=shapes["positional_embedding"][0],
            vocab_size=shapes["token_embedding.weight"][0],
            transformer_width=text_width,
            transformer_heads=max(text_width // HEAD_WIDTH, 1),
            transformer_layers=layers(r"transformer\.resblocks\.(\d+)\."),
        )
    except UsageError as error:
        raise WeightsError(f"{source}: the weights make no CLIP model. {error}") from None


def _told_beside(path: Path) -> dict[str, Any]:
    """What HuggingFace's `config.json` or open_clip's `open_clip_config.json` beside the weights say and the weights do not."""
    told: dict[str, Any] = {}
    for name in ("config.json", "open_clip_config.json"):
        if not (path.parent / name).is_file():
            continue
        config = read_json(path.parent / name)
        if not isinstance(config, dict):
            continue
        if "model_cfg" in config:
            model = config["model_cfg"]
            told["activation"] = "quick_gelu" if model.get("quick_gelu") else "gelu"
            told["transformer_heads"] = model.get("text_cfg", {}).get("heads")
            told["head_width"] = model.get("vision_cfg", {}).get("head_width")
        elif "vision_config" in config:
            vision, text = config["vision_config"] or {}, config.get("text_config") or {}
            told["activation"] = vision.get("hidden_act", "quick_gelu")
            told["transformer_heads"] = text.get("num_attention_heads")
            if vision.get("hidden_size") and vision.get("num_attention_heads"):
                told["head_width"] = vision["hidden_size"] // vision["num_attention_heads"]
    if told.get("head_width") not in (None, HEAD_WIDTH):
        raise WeightsError(f"{path}: the vision tower has heads of width {told['head_width']}; only {HEAD_WIDTH} is known.")
    return {key: value for key, value in told.items() if value is not None and key != "head_width"}


def read_config(path: str | Path, weights: Mapping[str, np.ndarray] | None = None) -> CLIPConfig:
    """The configuration of a checkpoint: from its weights, and what HuggingFace's or open_clip's configuration beside it adds.

    Args:
        path: See `read_clip`.
        weights: What `read_clip` gave, if it was read already.

    Raises:
        WeightsError, DataError, MissingExtraError: as `read_clip`; or the configuration does not fit.
    """
    path = Path(path)
    if path.is_file() and _is_converted(path):
        return CLIPConfig.of(read_json(_config_path(path)))
    config = infer_config(read_clip(path) if weights is None else weights, path)
    try:
        return dataclasses.replace(config, **_told_beside(path))
    except UsageError as error:
        raise WeightsError(f"{path}: the configuration beside the weights does not fit them. {error}") from None


# --- weights and variables ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    """One weight under OpenAI's name and the variables that it fills; `take` and `give` change between the layouts."""

    name: str
    variables: tuple[Any, ...]
    take: Callable[[np.ndarray], Sequence[np.ndarray]]
    give: Callable[[Sequence[np.ndarray]], np.ndarray]


def _plain(name: str, variable: Any) -> _Entry:
    return _Entry(name, (variable,), lambda x: [x], lambda values: values[0])


def _matrix(name: str, variable: Any) -> _Entry:
    """A dense layer's (out, in); ours may have an axis for the heads."""
    shape = tuple(variable.shape)
    return _Entry(
        name,
        (variable,),
        lambda x: [np.reshape(np.transpose(x), shape)],
        lambda values: np.transpose(np.reshape(values[0], (-1, shape[-1]))),
    )


def _thirds(name: str, layers: Sequence[Any], part: str) -> _Entry:
    variables = tuple(getattr(layer, part) for layer in layers)
    shape = tuple(variables[0].shape)

    def take(x: np.ndarray) -> list[np.ndarray]:
        return [np.reshape(third.T, shape) for third in np.split(x, 3)]

    def give(values: Sequence[np.ndarray]) -> np.ndarray:
        flat = (-1,) if part == "bias" else (shape[0], -1)
        return np.concatenate([np.reshape(value, flat).T for value in values])

    return _Entry(name, variables, take, give)


def _norm_entries(name: str, layer: Any) -> list[_Entry]:
    return [_plain(f"{name}.weight", layer.gamma), _plain(f"{name}.bias", layer.beta)]


def _block_entries(prefix: str, layer: Any) -> list[_Entry]:
    attention = layer.attention
    inputs = (attention.query_dense, attention.key_dense, attention.value_dense)
    return [
        *_norm_entries(f"{prefix}ln_1", layer.layer_norm_1),
        _thirds(f"{prefix}attn.in_proj_weight", inputs, "kernel"),
        _thirds(f"{prefix}attn.in_proj_bias", inputs, "bias"),
        _matrix(f"{prefix}attn.out_proj.weight", attention.output_dense.kernel),
        _plain(f"{prefix}attn.out_proj.bias", attention.output_dense.bias),
        *_norm_entries(f"{prefix}ln_2", layer.layer_norm_2),
        _matrix(f"{prefix}mlp.c_fc.weight", layer.dense_1.kernel),
        _plain(f"{prefix}mlp.c_fc.bias", layer.dense_1.bias),
        _matrix(f"{prefix}mlp.c_proj.weight", layer.dense_2.kernel),
        _plain(f"{prefix}mlp.c_proj.bias", layer.dense_2.bias),
    ]


def _vision_entries(encoder: CLIPImageEncoder) -> list[_Entry]:
    tower, embedding = encoder.tower, encoder.tower.embedding
    entries = [
        _plain("visual.class_embedding", embedding.class_embedding),
        _plain("visual.positional_embedding", embedding.position_embedding.embeddings),
        _plain("visual.proj", encoder.projection),
        _Entry(
            _MARK,
            (embedding.patch_embedding.kernel,),
            lambda x: [np.transpose(x, (2, 3, 1, 0))],
            lambda values: np.transpose(values[0], (3, 2, 0, 1)),
        ),
        *_norm_entries("visual.ln_pre", tower.pre_layer_norm),
        *_norm_entries("visual.ln_post", tower.layer_norm),
    ]
    for number, layer in enumerate(tower.encoder_layers):
        entries += _block_entries(f"visual.transformer.resblocks.{number}.", layer)
    return entries


def _text_entries(encoder: CLIPTextEncoder) -> list[_Entry]:
    tower, embedding = encoder.tower, encoder.tower.embedding
    entries = [
        _plain("positional_embedding", embedding.position_embedding.position_embeddings),
        _plain("text_projection", encoder.projection),
        _plain("token_embedding.weight", embedding.token_embedding.embeddings),
        *_norm_entries("ln_final", tower.layer_norm),
    ]
    for number, layer in enumerate(tower.encoder_layers):
        entries += _block_entries(f"transformer.resblocks.{number}.", layer)
    return entries


def _entries(image_encoder: CLIPImageEncoder | None, text_encoder: CLIPTextEncoder | None) -> list[_Entry]:
    vision = [] if image_encoder is None else _vision_entries(image_encoder)
    return vision + ([] if text_encoder is None else _text_entries(text_encoder))


def clip_variables(
    image_encoder: CLIPImageEncoder | None, text_encoder: CLIPTextEncoder | None
) -> dict[str, tuple[tuple[Any, ...], Callable[[Sequence[np.ndarray]], np.ndarray]]]:
    """OpenAI's name of each weight -> our variables that hold it, and the function from arrays of their shapes to OpenAI's layout."""
    return {entry.name: (entry.variables, entry.give) for entry in _entries(image_encoder, text_encoder)}


def clip_weights(
    image_encoder: CLIPImageEncoder | None, text_encoder: CLIPTextEncoder | None, logit_scale: float | None = None
) -> Arrays:
    """The weights of our encoders under OpenAI's names and in OpenAI's layout: what `read_clip` gives.

    Args:
        image_encoder, text_encoder: Either may be None.
        logit_scale: Logarithm of the factor of the cosines, to be added under its name.
    """
    found = {} if logit_scale is None else {"logit_scale": np.asarray(logit_scale, np.float32)}
    for name, (variables, give) in clip_variables(image_encoder, text_encoder).items():
        found[name] = np.ascontiguousarray(give([np.asarray(variable, np.float32) for variable in variables]))
    return found


# --- other sizes --------------------------------------------------------------------------------------------------------


def resize_image_positions(table: np.ndarray, grid: int) -> np.ndarray:
    """Position embeddings of a vision tower for pictures of another size, by open_clip's rule.

    The class token's row stays; the others are a square picture that is resized (bicubic, antialiased, half-pixel centres).

    Args:
        table: `(1 + n * n, width)`.
        grid: Patches along a side.

    Returns:
        float32 `(1 + grid * grid, width)`.
    """
    old = math.isqrt(len(table) - 1)
    square = tf.reshape(tf.constant(table[1:], tf.float32), (old, old, -1))
    resized = tf.image.resize(square, (grid, grid), method="bicubic", antialias=True)
    return np.concatenate([table[:1], np.reshape(resized, (grid * grid, -1))]).astype(np.float32)


def resize_text_positions(table: np.ndarray, length: int) -> np.ndarray:
    """Position embeddings of a text tower for another length, by linear interpolation between half-pixel centres.

    Args:
        table: `(old, width)`.
        length: The new length.

    Returns:
        float32 `(length, width)`.
    """
    old = len(table)
    place = np.clip((np.arange(length) + 0.5) * old / length - 0.5, 0, old - 1)
    low = np.floor(place).astype(int)
    share = (place - low)[:, None]
    return (table[low] * (1 - share) + table[np.minimum(low + 1, old - 1)] * share).astype(np.float32)


def _fitted(weights: Arrays, image_encoder: CLIPImageEncoder | None, text_encoder: CLIPTextEncoder | None) -> tuple[Arrays, list[str]]:
    """Weights with positions of the encoders' sizes, and what was changed."""
    weights, notes = dict(weights), []
    if image_encoder is not None:
        table, grid = weights["visual.positional_embedding"], image_encoder.config.grid
        if len(table) != grid * grid + 1 and math.isqrt(len(table) - 1) ** 2 == len(table) - 1:
            old = math.isqrt(len(table) - 1)
            weights["visual.positional_embedding"] = resize_image_positions(table, grid)
            notes.append(f"the positions of {old} x {old} patches were interpolated to {grid} x {grid}")
    if text_encoder is not None:
        table, length = weights["positional_embedding"], text_encoder.config.context_length
        if len(table) != length:
            weights["positional_embedding"] = resize_text_positions(table, length)
            notes.append(f"the positions of {len(table)} tokens were interpolated to {length}")
    return weights, notes


# --- loading ------------------------------------------------------------------------------------------------------------


def fill_clip(
    weights: Mapping[str, np.ndarray],
    image_encoder: CLIPImageEncoder | None,
    text_encoder: CLIPTextEncoder | None,
    source: str | Path = "weights",
) -> ConversionReport:
    """Puts weights under OpenAI's names into our encoders. Nothing is changed if something does not fit.

    Positions are interpolated where the encoders' pictures or captions have another size.

    Args:
        weights: OpenAI's name -> array in OpenAI's layout.
        image_encoder, text_encoder: Either may be None.
        source: Where the weights come from, for messages and the report.

    Raises:
        WeightsError: weights are missing, have other shapes, or values that are not finite.
    """
    entries = _entries(image_encoder, text_encoder)
    absent = [entry.name for entry in entries if entry.name not in weights]
    if absent:
        raise WeightsError(f"{source}: {len(absent)} weights of a CLIP model are missing: {', '.join(absent[:4])}, ...")
    arrays, notes = _fitted({name: np.asarray(value) for name, value in weights.items()}, image_encoder, text_encoder)
    slots = [
        Slot((entry.name,), variable, lambda x, entry=entry, place=place: entry.take(x)[place])
        for entry in entries
        for place, variable in enumerate(entry.variables)
    ]
    known = {entry.name for entry in entries}
    report = fill(slots, {name: value for name, value in arrays.items() if name in known}, source, "this CLIP model")
    report.used = list(dict.fromkeys(report.used))
    report.notes += notes
    return report


def load_clip(
    path: str | Path, image_encoder: CLIPImageEncoder | None, text_encoder: CLIPTextEncoder | None
) -> tuple[ConversionReport, float]:
    """Puts the weights of a checkpoint into our encoders. Nothing is changed if something does not fit.

    Args:
        path: See `read_clip`.
        image_encoder, text_encoder: Either may be None. Pictures and captions may have another size than the checkpoint's; positions
            are then interpolated.

    Returns:
        The report, and the logarithm of the factor of the cosines (CLIP's initial one if the file has none).

    Raises:
        WeightsError, DataError, MissingExtraError: as `read_clip`; or the weights do not fit the encoders; or the configuration
            beside the file names another activation or number of heads than theirs.
    """
    weights, unused = _read(path)
    config = read_config(path, weights)
    _check_unseen(path, config, image_encoder, text_encoder)
    report = fill_clip(weights, image_encoder, text_encoder, path)
    used = set(report.used)
    report.unused = {**unused, **{name: "of the other tower" for name in weights if name not in used and name != "logit_scale"}}
    if "logit_scale" in weights:
        report.used.append("logit_scale")
        return report, float(np.reshape(weights["logit_scale"], ()))
    report.missing["logit_scale"] = f"stays {INITIAL_SCALE:.4f}"
    return report, INITIAL_SCALE


def _check_unseen(
    path: str | Path, config: CLIPConfig, image_encoder: CLIPImageEncoder | None, text_encoder: CLIPTextEncoder | None
) -> None:
    """What the shapes of weights do not show, but a configuration beside them tells, must be as in the encoders."""
    path = Path(path)
    told = config.to_config() if _is_converted(path) else _told_beside(path)
    for encoder, names in ((image_encoder, ("activation",)), (text_encoder, ("activation", "transformer_heads"))):
        for name in names:
            if encoder is not None and name in told and getattr(encoder.config, name) != told[name]:
                raise WeightsError(
                    f"{path}: the configuration beside the weights says {name} {told[name]!r}, the encoder has "
                    f"{getattr(encoder.config, name)!r}. Build it with CLIPConfig({name}={told[name]!r}, ...), or as "
                    "checkpoints.clip.read_config reads it."
                )


def build_clip(path: str | Path, **changes: Any) -> tuple[CLIPImageEncoder, CLIPTextEncoder, float, ConversionReport]:
    """Both encoders of a checkpoint, in its own sizes.

    Args:
        path: See `read_clip`.
        **changes: Fields of `CLIPConfig` that shall differ (`image_resolution`, `context_length`, `activation`, `transformer_heads`).

    Returns:
        Image encoder, text encoder, logarithm of the factor of the cosines, report.

    Raises:
        WeightsError, DataError, MissingExtraError: as `load_clip`.
        UsageError: unknown fields, or values that make no model.
    """
    weights, unused = _read(path)
    config = CLIPConfig.of({**read_config(path, weights).to_config(), **changes})
    towers = CLIPTowers(config)
    report = fill_clip(weights, towers.image_encoder, towers.text_encoder, path)
    report.unused = unused
    scale = INITIAL_SCALE
    if "logit_scale" in weights:
        report.used.append("logit_scale")
        scale = float(np.reshape(weights["logit_scale"], ()))
    else:
        report.missing["logit_scale"] = f"stays {INITIAL_SCALE:.4f}"
    return towers.image_encoder, towers.text_encoder, scale, report


# --- a check in NumPy ---------------------------------------------------------------------------------------------------


def _numpy_norm(weights: Mapping[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    unit = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + EPSILON)
    return unit * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _numpy_blocks(
    weights: Mapping[str, np.ndarray], tower: str, x: np.ndarray, layers: int, heads: int, activation: str, causal: bool
) -> np.ndarray:
    number, length, width = x.shape
    mask = np.triu(np.full((length, length), -np.inf, x.dtype), 1) if causal else 0.0
    for layer in range(layers):
        name = f"{tower}transformer.resblocks.{layer}."
        stacked = _numpy_norm(weights, f"{name}ln_1", x) @ weights[f"{name}attn.in_proj_weight"].T + weights[f"{name}attn.in_proj_bias"]
        q, k, v = np.reshape(stacked, (number, length, 3, heads, width // heads)).transpose(2, 0, 3, 1, 4)
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(width // heads) + mask
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(number, length, width)
        x = x + mixed @ weights[f"{name}attn.out_proj.weight"].T + weights[f"{name}attn.out_proj.bias"]
        z = _numpy_norm(weights, f"{name}ln_2", x) @ weights[f"{name}mlp.c_fc.weight"].T + weights[f"{name}mlp.c_fc.bias"]
        z = z / (1 + np.exp(-1.702 * z)) if activation == "quick_gelu" else 0.5 * z * (1 + np.asarray(tf.math.erf(z / math.sqrt(2))))
        x = x + z @ weights[f"{name}mlp.c_proj.weight"].T + weights[f"{name}mlp.c_proj.bias"]
    return x


def numpy_forward(
    weights: Mapping[str, np.ndarray], config: CLIPConfig, pixels: np.ndarray, token_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """CLIP's forward pass straight from its definition, in NumPy, to check another one with.

    Args:
        weights: OpenAI's name -> array.
        config: The sizes.
        pixels: `(n, 3, size, size)`, scaled as CLIP does.
        token_ids: Integers `(m, steps)`.

    Returns:
        Features `(n, embed_dim)` and `(m, embed_dim)`, not normalised, in the precision of the arguments.
    """
    patch, grid = config.vision_patch_size, config.grid
    cells = pixels.reshape(-1, 3, grid, patch, grid, patch).transpose(0, 2, 4, 1, 3, 5).reshape(-1, grid * grid, 3 * patch * patch)
    x = cells @ weights[_MARK].reshape(config.vision_width, -1).T
    x = np.concatenate([np.broadcast_to(weights["visual.class_embedding"], (len(x), 1, config.vision_width)), x], 1)
    x = _numpy_norm(weights, "visual.ln_pre", x + weights["visual.positional_embedding"])
    x = _numpy_blocks(weights, "visual.", x, config.vision_layers, config.vision_heads, config.activation, causal=False)
    image = _numpy_norm(weights, "visual.ln_post", x[:, 0]) @ weights["visual.proj"]
    x = weights["token_embedding.weight"][token_ids] + weights["positional_embedding"][: token_ids.shape[1]]
    x = _numpy_blocks(weights, "", x, config.transformer_layers, config.transformer_heads, config.activation, causal=True)
    end = x[np.arange(len(x)), np.argmax(token_ids, 1)]
    return image, _numpy_norm(weights, "ln_final", end) @ weights["text_projection"]


def check_clip(
    weights: Mapping[str, np.ndarray], image_encoder: CLIPImageEncoder, text_encoder: CLIPTextEncoder, seed: int = 0
) -> tuple[float, float]:
    """Compares our encoders with `numpy_forward` on a random picture and a random caption.

    Args:
        weights: OpenAI's name -> array: what the encoders were filled with, in their sizes.
        image_encoder, text_encoder: The encoders.
        seed: Of the random input.

    Returns:
        Largest absolute difference of image features and of text features, each divided by the largest feature.
    """
    config = dataclasses.replace(text_encoder.config, activation=image_encoder.config.activation)
    random = np.random.default_rng(seed)
    size, steps = config.image_resolution, min(config.context_length, 16)
    images = np.round(random.uniform(0, 255, (1, size, size, 3))).astype(np.float32)
    token_ids = random.integers(1, config.vocab_size - 1, (1, steps)).astype(np.int32)
    token_ids[:, -3] = config.vocab_size - 1
    token_ids[:, -2:] = 0
    mean = np.array((0.48145466, 0.4578275, 0.40821073))
    deviation = np.array((0.26862954, 0.26130258, 0.27577711))
    pixels = ((images / 255 - mean) / deviation).astype(np.float32).transpose(0, 3, 1, 2)
    wanted = numpy_forward(weights, config, pixels, token_ids)
    found = np.asarray(image_encoder.encode(images)), np.asarray(text_encoder(token_ids))
    first, second = (float(np.abs(f - w).max() / np.abs(w).max()) for f, w in zip(found, wanted, strict=True))
    return first, second


# --- `tf-fashion weights convert` ---------------------------------------------------------------------------------------


class CLIPTowers(keras.Model):
    """Both encoders and the scale, as a model whose weights can be saved. Training takes `models.DualEncoder`."""

    def __init__(self, config: CLIPConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config
        self.image_encoder = CLIPImageEncoder(config, name="image_encoder")
        self.text_encoder = CLIPTextEncoder(config, name="text_encoder")
        self.logit_scale = self.add_weight(
            name="logit_scale", shape=(), dtype="float32", initializer=keras.initializers.Constant(INITIAL_SCALE)
        )
        self.built = True

    @property
    def record(self) -> dict[str, Any]:
        """What has to be known to load the weights: written beside them."""
        return self.config.to_config()


def _config_path(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".weights.h5") + ".json")


def _load_converted(path: Path) -> CLIPTowers:
    config = _config_path(path)
    if not config.is_file():
        raise WeightsError(f"{path}: expected the file {config.name} beside it, which `tf-fashion weights convert` wrote together.")
    towers = CLIPTowers(CLIPConfig.of(read_json(config)))
    try:
        towers.load_weights(path)
    except Exception as error:
        raise WeightsError(
            f"{path}: not the weights of the CLIP model that {config.name} describes ({str(error).splitlines()[0][:200]})."
        ) from None
    return towers


def _convert(path: str | Path, ema: bool = False) -> tuple[keras.Model, ConversionReport]:
    if ema:
        raise UsageError("CLIP's checkpoints hold no moving averages beside the weights. Leave out the option for them (ema, --ema).")
    weights, unused = _read(path)
    towers = CLIPTowers(read_config(path, weights))
    report = fill_clip(weights, towers.image_encoder, towers.text_encoder, path)
    report.unused = unused
    if "logit_scale" in weights:
        towers.logit_scale.assign(np.reshape(weights["logit_scale"], ()))
        report.used.append("logit_scale")
    else:
        report.missing["logit_scale"] = f"stays {INITIAL_SCALE:.4f}"
    image, text = check_clip(weights, towers.image_encoder, towers.text_encoder)
    report.notes.append(f"check against NumPy on random input: image features differ by {image:.1e}, text features by {text:.1e}")
    if max(image, text) > 1e-3:
        raise WeightsError(f"{path}: the loaded towers differ from a plain forward pass ({image:.1e}, {text:.1e}). Please report this.")
    return towers, report


CONVERTERS.register("clip")(_convert)
