"""The families of decoders: made from a recipe or a Hugging Face directory, and written back as one."""

from __future__ import annotations

import difflib
import hashlib
import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import GPT2Config, LlamaConfig, PretrainedConfig

from autog.errors import UsageError
from autog.models.files import load_weights, read_json, state_for_disk
from autog.models.gpt2 import GPT2
from autog.models.llama import Llama
from autog.models.parts import Decoder
from autog.recipe import parse_count


def make_config(model: dict[str, Any], vocab_size: int, sequence_length: int) -> PretrainedConfig:
    """The Hugging Face config that a recipe's model section stands for, complete; UsageError names the wrong field.

    `vocab_size` is the tokenizer's: the model's may be larger (padded tables), never smaller. Positions are
    `sequence_length` unless given.
    """
    model = dict(model)
    family, config_class = find_family(model.pop("model_type", None), "model.model_type")
    aliases = config_class.attribute_map
    given = {aliases.get(name, name): as_number(name, value) for name, value in model.items() if name != "depth"}
    refuse_unknown(given, family, config_class)
    if "depth" in model:
        depth = as_number("depth", model["depth"])
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
            raise UsageError(f"model.depth = {depth!r} must be a whole number above 0")
        given = family.at_depth(depth, given) | given
    missing = [name for name in family.shape if name not in given]
    if missing:
        raise UsageError(f"model.{missing[0]} is missing: give it, or `depth: N`, which sets the whole shape")
    positions = aliases.get("max_position_embeddings", "max_position_embeddings")
    given = {"vocab_size": vocab_size, positions: sequence_length} | given
    given |= {name: allowed[0] for name, allowed in family.fixed.items() if name not in given}
    config = checked(config_class, given, "model")
    if config.vocab_size < vocab_size:
        raise UsageError(
            f"model.vocab_size = {config.vocab_size} is smaller than the tokenizer's {vocab_size}: "
            f"give at least {vocab_size} or leave it out"
        )
    if config.max_position_embeddings < sequence_length:
        raise UsageError(
            f"data.sequence_length = {sequence_length} is beyond model.{positions} = {config.max_position_embeddings}: "
            "shorten it or give the model more positions"
        )
    with torch.device("meta"):
        family(config)  # what the family does not implement is refused here, before data are touched
    return config


def as_number(name: str, value: Any) -> Any:
    """Reads `500k` in a field that takes numbers."""
    if not isinstance(value, str) or not value[:1].isdigit():
        return value
    try:
        return parse_count(value)
    except ValueError as error:
        raise UsageError(f"model.{name} = {value!r}: {error}") from None


def refuse_unknown(given: Iterable[str], family: type[Decoder], config_class: type[PretrainedConfig]) -> None:
    """Refuses fields that would change nothing, with the nearest that would."""
    known = family.fields | set(family.fixed)
    for name in given:
        if name in known:
            continue
        close = difflib.get_close_matches(name, [*sorted(known), *config_class.attribute_map, "depth"], n=1)
        remedy = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(sorted(family.fields))}, depth"
        raise UsageError(f"model.{name} is no field that {config_class.model_type} uses; {remedy}")


def find_family(model_type: Any, where: str) -> tuple[type[Decoder], type[PretrainedConfig]]:
    """The decoder and its config class; UsageError lists what there is."""
    if model_type not in FAMILIES:
        raise UsageError(
            f"{where} = {model_type!r} is not a family that autog trains; there are: {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type], CONFIGS[model_type]


def checked(config_class: type[PretrainedConfig], fields: dict[str, Any], where: str) -> PretrainedConfig:
    """The config object; transformers' own complaints as one UsageError."""
    try:
        # Their default ids may lie outside our vocabulary; the caller sets the tokenizer's.
        complete: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, **fields}
        return config_class(**complete)
    except (StrictDataclassError, TypeError, ValueError, KeyError, AttributeError) as error:
        told = " ".join(str(error).split())
        raise UsageError(f"{where}: {told}: correct that field") from None


def build(config: PretrainedConfig) -> Decoder:
    """A decoder on the default device with room for its weights: fill it with `initialise` or `load_weights`."""
    device = torch.get_default_device()
    with torch.device("meta"):
        decoder = find_family(config.model_type, "model_type")[0](config)
    return decoder.to_empty(device=device)


@torch.no_grad()
def initialise(decoder: Decoder, seed: int) -> None:
    """Weights as GPT-2's paper starts them: N(0, initializer_range), into the residual stream by 1/sqrt(2 layers) less.

    Biases 0, norms 1. Every parameter has its own generator, keyed by the seed and its name, so that neither order,
    nor device, nor the number of processes changes a value.
    """
    spread = decoder.config.initializer_range
    for name, weight in decoder.named_parameters():
        if weight.ndim == 1:
            weight.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        key = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(key[:8], "little", signed=True))
        scale = (2 * len(decoder.blocks)) ** -0.5 if name.endswith(decoder.residual) else 1.0
        weight.copy_(torch.randn(weight.shape, generator=generator, device="cpu") * (spread * scale))


def read_config(directory: Path) -> PretrainedConfig:
    """The config of a Hugging Face directory of one of our families; code it may carry is never executed."""
    path = Path(directory) / "config.json"
    fields = read_json(path)
    _, config_class = find_family(fields.pop("model_type", None), f"{path}: model_type")
    if fields.get("quantization_config"):
        raise UsageError(f"{path}: the weights are quantised, which cannot be trained on: take the unquantised model")
    for name in ("auto_map", "_name_or_path", "architectures"):
        fields.pop(name, None)
    dropped = {name: fields[name] for name in fields if name.endswith(DROPOUTS) and fields[name]}
    if dropped:
        warnings.warn(f"{path}: trained with {dropped}; autog trains without dropout, so these are 0 now", stacklevel=2)
    config = checked(config_class, fields | dict.fromkeys(dropped, 0.0), str(path))
    with torch.device("meta"):
        find_family(config.model_type, str(path))[0](config)
    return config


def write_config(config: PretrainedConfig, directory: Path) -> None:
    """Writes config.json so that transformers 5 and 4 both read the same model from it.

    Version 4 takes `rope_theta` and `torch_dtype` at the top level, and 10,000 without a word where they are not.
    """
    fields = config.to_diff_dict()
    rope = getattr(config, "rope_parameters", None)
    if rope:
        fields["rope_theta"] = rope["rope_theta"]
    fields |= {"architectures": [FAMILIES[config.model_type].architecture], "use_cache": True}
    fields |= {"dtype": "float32", "torch_dtype": "float32"}
    text = json.dumps(fields, indent=2, sort_keys=True) + "\n"
    (Path(directory) / "config.json").write_text(text, encoding="utf-8")


__all__ = [
    "CONFIGS",
    "FAMILIES",
    "Decoder",
    "build",
    "initialise",
    "load_weights",
    "make_config",
    "read_config",
    "state_for_disk",
    "write_config",
]
DROPOUTS = ("_pdrop", "attention_dropout")
CONFIGS: dict[str, type[PretrainedConfig]] = {"llama": LlamaConfig, "gpt2": GPT2Config}
FAMILIES: dict[str, type[Decoder]] = {"llama": Llama, "gpt2": GPT2}
