"""Texts written by the model in training: a short loop of full forwards, in step on all processes."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from autog.recipe import Samples
from autog.tokens import Tokenizer


def keyed_generator(*purpose: object) -> torch.Generator:
    """A random stream of its own for each purpose and counter, on the CPU."""
    digest = hashlib.blake2b(repr(purpose).encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def pick(logits: Tensor, temperature: float, top_k: int, generator: torch.Generator) -> int:
    """One id from the last position's logits (vocab,): greedy at temperature 0, else among the top_k (0: all)."""
    logits = logits.float().cpu()
    if temperature == 0:
        return int(logits.argmax())
    if 0 < top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -torch.inf)
    probabilities = torch.softmax(logits / temperature, dim=-1)
    if not torch.isfinite(probabilities).all():
        return 0
    return int(torch.multinomial(probabilities, 1, generator=generator))


@torch.no_grad()
def write_samples(
    decoder: nn.Module, tokenizer: Tokenizer, settings: Samples, seed: int, step: int, length: int, device: torch.device
) -> list[dict[str, Any]]:
    """One text per prompt, up to the end token or max_new_tokens; the same for the same weights, seed and step."""
    was_training = decoder.training
    decoder.eval()
    rows = []
    for number, prompt in enumerate(settings.prompts):
        generator = keyed_generator("samples", seed, step, number)
        start = tokenizer.encode(prompt).tolist() or [tokenizer.end_id]
        if tokenizer.adds_bos and tokenizer.bos_id is not None:
            start = [tokenizer.bos_id, *start]
        ids = list(start)
        for _ in range(settings.max_new_tokens):
            window = torch.tensor([ids[-length:]], device=device)
            chosen = pick(decoder(window)[0, -1], settings.temperature, settings.top_k, generator)
            if chosen == tokenizer.end_id:
                break
            ids.append(chosen)
        text = tokenizer.decode(ids[len(start) :])
        rows.append({"step": step, "prompt": prompt, "text": text, "tokens": len(ids) - len(start)})
    decoder.train(was_training)
    return rows
