"""Weights between a decoder and a Hugging Face directory: safetensors only, every name accounted for."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from autog.errors import UsageError
from autog.models.parts import Decoder

# What older files carry beside the weights: causal masks and rotary frequencies, which every forward makes anew.
LEFTOVERS = re.compile(r"(^|\.)(h\.\d+\.attn\.(masked_)?bias|rotary_emb\.inv_freq)$")
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SHOWN_NAMES = 5


@torch.no_grad()
def load_weights(decoder: Decoder, directory: Path) -> None:
    """Fills the decoder from a Hugging Face directory's safetensors, cast to the decoder's dtype; all names must match.

    Read back are also hub files without the base prefix, with causal masks or rotary frequencies, or with a copy of
    the tied head; UsageError with the names for anything missing, extra or of another shape.
    """
    directory = Path(directory)
    wanted = dict(decoder.named_parameters())
    places: dict[str, tuple[Path, str]] = {}
    for path in weight_files(directory):
        with open_weights(path) as file:
            for name in list(file.keys()):  # the handle is no mapping
                ours = our_name(name, decoder)
                if ours in places:
                    raise UsageError(f"{path}: {name} stands twice in {directory}: fetch the model again")
                if not LEFTOVERS.search(name):
                    places[ours] = (path, name)
    tied = places.pop("lm_head.weight", None) if "lm_head.weight" not in wanted else None
    refuse_names(directory, "lacks", [name for name in wanted if name not in places])
    refuse_names(directory, "has unknown", [name for name in places if name not in wanted])
    for path in dict.fromkeys(path for path, _ in places.values()):
        with open_weights(path) as file:
            for name in (name for name, (where, _) in places.items() if where == path):
                copy_weight(wanted[name], file.get_tensor(places[name][1]), f"{path}: {places[name][1]}")
    if tied is not None:
        with open_weights(tied[0]) as file:
            embedding = wanted[embedding_name(decoder)]
            if not torch.equal(file.get_tensor(tied[1]).to(embedding), embedding):
                raise UsageError(f"{tied[0]}: lm_head.weight differs from the embedding that config.json ties it to")


def embedding_name(decoder: Decoder) -> str:
    """The name of the token embedding."""
    return next(name for name, _ in decoder.named_parameters())


def our_name(name: str, decoder: Decoder) -> str:
    """Adds the base prefix to names of files that were saved from the model without its head."""
    return name if name == "lm_head.weight" or name.startswith(f"{decoder.base}.") else f"{decoder.base}.{name}"


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a Hugging Face directory, whole or sharded."""
    whole, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise UsageError(f"{index} has no weight_map: fetch the model again")
        for shard in shards.values():
            # Only plain names: an index from elsewhere must not reach files outside its directory.
            if not isinstance(shard, str) or not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\.safetensors", shard):
                raise UsageError(f"{index} names {shard!r}, which is no safetensors file beside it: fetch it again")
        return [directory / shard for shard in sorted(set(shards.values()))]
    if any(directory.glob("*.bin")):
        raise UsageError(
            f"{directory} holds weights as .bin (pickle) only, which can run code when read: "
            "take the model's safetensors version, or convert it where you trust it"
        )
    raise UsageError(f"{directory} holds no model.safetensors: give the directory of a Hugging Face model")


def open_weights(path: Path) -> Any:
    """An open safetensors file; UsageError if it is missing or torn."""
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path} cannot be read as safetensors ({error}): fetch the model again") from None


def refuse_names(directory: Path, what: str, names: list[str]) -> None:
    """Refuses a list of names, if there is one."""
    if names:
        more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
        raise UsageError(f"{directory} {what} weights: {', '.join(names[:SHOWN_NAMES])}{more}: is it the right model?")


def copy_weight(weight: Tensor, stored: Tensor, where: str) -> None:
    """Copies with a cast; UsageError for another shape or a dtype that is no plain float."""
    if stored.shape != weight.shape:
        raise UsageError(
            f"{where} is {list(stored.shape)}, config.json says {list(weight.shape)}: one of them is wrong"
        )
    if stored.dtype not in FLOATS:
        raise UsageError(f"{where} is {stored.dtype}: take the model's fp32, bf16 or fp16 version")
    weight.copy_(stored)


def state_for_disk(decoder: Decoder) -> dict[str, Tensor]:
    """Hugging Face names and tensors, contiguous; a tied head is left out, as Hugging Face does."""
    return {name: weight.detach().contiguous() for name, weight in decoder.named_parameters()}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; UsageError if it is missing or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} is missing: give the directory of a Hugging Face model") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read as JSON ({error}): fetch the model again") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} is not a JSON object: fetch the model again")
    return content
