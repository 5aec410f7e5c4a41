"""What the decoders promise: Hugging Face's numbers, names and files, in every way the loop runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.func import functional_call
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from autog import models
from autog.errors import UsageError
from autog.models import parts
from autog.models.parts import Decoder, loss_sum, plain_attention

LLAMA = {
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_theta": 500000.0,
}
GPT2 = {"model_type": "gpt2", "n_layer": 3, "n_embd": 48, "n_head": 4}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama-tied": LLAMA | {"tie_word_embeddings": True, "rms_norm_eps": 1e-5},
    "llama-head-dim": LLAMA | {"head_dim": 20, "num_key_value_heads": 1},
    "llama-no-groups": LLAMA | {"num_key_value_heads": 4, "vocab_size": 128},
    "gpt2": GPT2,
    "gpt2-untied": GPT2 | {"tie_word_embeddings": False, "layer_norm_epsilon": 1e-6},
    "gpt2-inner": GPT2 | {"n_inner": 100, "n_positions": 40, "vocab_size": 128},
}
VOCABULARY, LENGTH = 101, 24
every_shape = pytest.mark.parametrize("shape", SHAPES)
each_family = pytest.mark.parametrize("shape", ["llama", "gpt2"])


def make(shape: str, seed: int = 0, length: int = LENGTH, **more: Any) -> Decoder:
    decoder = models.build(models.make_config(SHAPES[shape] | more, VOCABULARY, length))
    models.initialise(decoder, seed)
    with torch.no_grad():  # norms and biases that a fresh model has at 1 and 0 would hide mistakes
        for name, weight in decoder.named_parameters():
            if weight.ndim == 1:
                weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name)))
            else:
                weight *= 4
    return decoder


def some_rows(length: int = LENGTH) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCABULARY, (3, length), generator=generator)
    labels = torch.randint(0, VOCABULARY, (3, length), generator=generator)
    labels[0, :9] = -100
    return ids, labels


def save(decoder: Decoder, directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    save_file(models.state_for_disk(decoder), directory / "model.safetensors", metadata={"format": "pt"})
    models.write_config(decoder.config, directory)
    return directory


def load(directory: Path) -> Decoder:
    decoder = models.build(models.read_config(directory))
    models.load_weights(decoder, directory)
    return decoder


def gradient(weight: Tensor) -> Tensor:
    assert weight.grad is not None
    return weight.grad.clone()


def gradients(decoder: torch.nn.Module, loss: Tensor) -> dict[str, Tensor]:
    decoder.zero_grad(set_to_none=True)
    loss.backward()
    return {name: gradient(weight) for name, weight in decoder.named_parameters()}


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert (value - theirs[name]).norm() <= tolerance * theirs[name].norm(), name


@every_shape
def test_what_we_write_is_what_transformers_reads_computes_and_differentiates(shape: str, tmp_path: Path) -> None:
    decoder = make(shape)
    theirs = AutoModelForCausalLM.from_pretrained(save(decoder, tmp_path))
    assert type(theirs).__name__ == decoder.architecture
    ids, labels = some_rows()
    logits = theirs(ids).logits
    assert (decoder(ids) - logits).abs().max() <= 1e-6 * logits.abs().max()
    shifted = F.pad(labels, (1, 0), value=-100)[:, :-1]  # theirs shifts by itself and then averages
    counted = (shifted[:, 1:] != -100).sum()
    shorter = torch.where(torch.arange(LENGTH) < LENGTH - 1, labels, -100)
    loss, their_loss = decoder(ids, shorter), theirs(ids, labels=shifted).loss * counted
    assert loss.dtype == torch.float32 and loss.shape == ()
    torch.testing.assert_close(loss, their_loss, rtol=1e-6, atol=0)
    assert_close(gradients(decoder, loss), gradients(theirs, their_loss), 2e-6)


@every_shape
def test_what_transformers_writes_is_what_we_read(shape: str, tmp_path: Path) -> None:
    theirs = AutoModelForCausalLM.from_config(make(shape).config)
    theirs.save_pretrained(tmp_path)
    decoder = load(tmp_path)
    assert set(models.state_for_disk(decoder)) == set(load_file(tmp_path / "model.safetensors"))
    ids, _ = some_rows()
    logits = theirs.eval()(ids).logits
    assert (decoder(ids) - logits).abs().max() <= 1e-6 * logits.abs().max()


@each_family
def test_a_sharded_directory_reads_like_a_whole_one(shape: str, tmp_path: Path) -> None:
    decoder = make(shape)
    theirs = AutoModelForCausalLM.from_pretrained(save(decoder, tmp_path / "whole"))
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="50kB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    ids, _ = some_rows()
    assert torch.equal(load(tmp_path / "shards")(ids), decoder(ids))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@each_family
def test_half_precision_files_are_cast_to_the_decoder_s_dtype(shape: str, dtype: torch.dtype, tmp_path: Path) -> None:
    decoder = make(shape)
    save(decoder, tmp_path)
    half = {name: weight.to(dtype) for name, weight in models.state_for_disk(decoder).items()}
    save_file(half, tmp_path / "model.safetensors")
    for name, weight in load(tmp_path).named_parameters():
        assert weight.dtype == torch.float32 and torch.equal(weight, half[name].float())


@each_family
def test_old_hub_files_without_prefix_and_with_leftovers_are_read(shape: str, tmp_path: Path) -> None:
    decoder = make(shape, tie_word_embeddings=True)
    state = models.state_for_disk(decoder)
    old = {name.removeprefix(f"{decoder.base}."): weight for name, weight in state.items()}
    old["lm_head.weight"] = state[next(iter(state))].clone()
    if shape == "gpt2":
        old |= {"h.0.attn.bias": torch.ones(1, 1, 4, 4), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    else:
        old["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save(decoder, tmp_path)
    save_file(old, tmp_path / "model.safetensors")
    ids, _ = some_rows()
    assert torch.equal(load(tmp_path)(ids), decoder(ids))


def test_names_shapes_and_dtypes_that_do_not_match_are_refused_by_name(tmp_path: Path) -> None:
    decoder = make("llama")
    state = models.state_for_disk(decoder)
    save(decoder, tmp_path)
    one = "model.layers.1.mlp.up_proj.weight"

    def refused(changed: dict[str, Tensor], message: str) -> None:
        save_file(changed, tmp_path / "model.safetensors")
        with pytest.raises(UsageError, match=message):
            load(tmp_path)

    refused({name: weight for name, weight in state.items() if name != one}, f"lacks weights: {one}")
    refused(
        state | {"model.layers.1.mlp.up_proj.bias": torch.ones(3)}, "unknown weights: model.layers.1.mlp.up_proj.bias"
    )
    refused(state | {"model.layers.3.mlp.up_proj.weight": state[one].clone()}, "unknown weights: model.layers.3")
    refused(state | {one: state[one].t().contiguous()}, rf"{one} is \[48, 80\], config.json says \[80, 48\]")
    refused(state | {one: state[one].to(torch.int8)}, f"{one} is torch.int8")
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(UsageError, match="cannot be read as safetensors"):
        load(tmp_path)


def test_a_head_that_differs_from_the_embedding_it_is_tied_to_is_refused(tmp_path: Path) -> None:
    decoder = make("llama-tied")
    save(decoder, tmp_path)
    head = {"lm_head.weight": torch.ones(VOCABULARY, 48)}
    save_file(models.state_for_disk(decoder) | head, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match="differs from the embedding"):
        load(tmp_path)


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "weights.bin", 3])
def test_an_index_reaches_no_file_outside_its_directory(shard: Any, tmp_path: Path) -> None:
    decoder = make("llama")
    models.write_config(decoder.config, tmp_path)
    index = {"weight_map": dict.fromkeys(models.state_for_disk(decoder), shard)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match="no safetensors file beside it"):
        load(tmp_path)


def test_a_missing_shard_or_pickled_weights_are_refused_with_the_remedy(tmp_path: Path) -> None:
    decoder = make("llama")
    models.write_config(decoder.config, tmp_path)
    with pytest.raises(UsageError, match=r"holds no model\.safetensors"):
        load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UsageError, match="safetensors version"):
        load(tmp_path)
    index = {"weight_map": dict.fromkeys(models.state_for_disk(decoder), "model-1.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError, match=r"model-1\.safetensors cannot be read"):
        load(tmp_path)


def test_only_our_families_are_read_and_no_code_that_a_model_brings(tmp_path: Path) -> None:
    def with_config(**changes: Any) -> None:
        fields = make("llama").config.to_dict() | changes
        (tmp_path / "config.json").write_text(json.dumps(fields))

    with_config(model_type="mistral")
    with pytest.raises(UsageError, match="'mistral' is not a family that autog trains; there are: llama, gpt2"):
        models.read_config(tmp_path)
    with_config(quantization_config={"bits": 4})
    with pytest.raises(UsageError, match="quantised"):
        models.read_config(tmp_path)
    with_config(auto_map={"AutoConfig": "evil.Config"})
    assert not hasattr(models.read_config(tmp_path), "auto_map")
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(UsageError, match="not a JSON object"):
        models.read_config(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UsageError, match="missing"):
        models.read_config(tmp_path)


def test_the_published_dropout_of_gpt2_is_set_to_0_and_said(tmp_path: Path) -> None:
    GPT2Config(n_layer=1, n_embd=8, n_head=2).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="without dropout"):
        config = models.read_config(tmp_path)
    assert config.resid_pdrop == config.embd_pdrop == config.attn_pdrop == 0


def test_config_json_speaks_to_transformers_4_and_5(tmp_path: Path) -> None:
    config = models.make_config(LLAMA, VOCABULARY, LENGTH)
    models.write_config(config, tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["rope_theta"] == fields["rope_parameters"]["rope_theta"] == 500000.0
    assert fields["torch_dtype"] == fields["dtype"] == "float32"
    assert fields["architectures"] == ["LlamaForCausalLM"] and fields["use_cache"] is True
    again = models.read_config(tmp_path)
    ours = config.to_dict()
    assert {name: again.to_dict()[name] for name in ours if name not in ("dtype", "architectures")} == {
        name: value for name, value in ours.items() if name not in ("dtype", "architectures")
    }


def test_the_model_section_gets_its_vocabulary_and_positions_from_the_run() -> None:
    config = models.make_config(LLAMA, VOCABULARY, LENGTH)
    assert (config.vocab_size, config.max_position_embeddings, config.head_dim) == (VOCABULARY, LENGTH, 12)
    assert models.make_config(LLAMA | {"vocab_size": 128}, VOCABULARY, LENGTH).vocab_size == 128
    config = models.make_config(GPT2 | {"n_positions": 40}, VOCABULARY, LENGTH)
    assert (config.n_positions, config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (40, 0, 0, 0)
    with_aliases = {"model_type": "gpt2", "num_hidden_layers": 3, "hidden_size": 48, "num_attention_heads": 4}
    aliased = models.make_config(with_aliases | {"max_position_embeddings": 40}, VOCABULARY, LENGTH)
    assert aliased.to_dict() == config.to_dict()


def test_depth_expands_per_family_and_given_fields_win() -> None:
    config = models.make_config({"model_type": "gpt2", "depth": 12}, 50257, 1024)
    assert (config.n_layer, config.n_embd, config.n_head) == (12, 768, 12)
    config = models.make_config({"model_type": "llama", "depth": 6}, 4096, 256)
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (6, 384, 6)
    assert (config.intermediate_size, config.num_key_value_heads) == (1024, 6)
    config = models.make_config({"model_type": "llama", "depth": 6, "hidden_size": 128}, 4096, 256)
    assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (128, 2, 384)


def test_rope_theta_is_taken_at_the_top_level_or_as_rope_parameters() -> None:
    without = {name: value for name, value in LLAMA.items() if name != "rope_theta"}
    nested = without | {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
    counted = without | {"rope_theta": "500k"}
    assert models.build(models.make_config(LLAMA, VOCABULARY, LENGTH)).theta == 500000.0
    assert models.build(models.make_config(nested, VOCABULARY, LENGTH)).theta == 500000.0
    assert models.build(models.make_config(counted, VOCABULARY, LENGTH)).theta == 500000.0
    assert models.build(models.make_config(without, VOCABULARY, LENGTH)).theta == 10000.0


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"model_type": "mamba"}, "'mamba' is not a family that autog trains; there are: llama, gpt2"),
        (LLAMA | {"hidden_sise": 3}, "hidden_sise.*did you mean 'hidden_size'"),
        (LLAMA | {"n_embd": 3}, "model.n_embd is no field that llama uses"),
        (LLAMA | {"use_cache": False}, "model.use_cache is no field"),
        ({"model_type": "llama", "hidden_size": 48}, "model.intermediate_size is missing"),
        ({"model_type": "gpt2"}, "model.n_embd is missing"),
        ({"model_type": "gpt2", "depth": 0}, "model.depth = 0"),
        ({"model_type": "gpt2", "depth": True}, "model.depth = True"),
        (LLAMA | {"vocab_size": 100}, "model.vocab_size = 100 is smaller than the tokenizer's 101"),
        (LLAMA | {"max_position_embeddings": 8}, "sequence_length = 24 is beyond model.max_position_embeddings = 8"),
        (GPT2 | {"n_positions": 8}, "sequence_length = 24 is beyond model.n_positions = 8"),
        (LLAMA | {"hidden_size": "wide"}, "hidden_size"),
        (LLAMA | {"num_hidden_layers": 0}, "num_hidden_layers = 0 must be"),
        (
            LLAMA | {"num_key_value_heads": 3},
            "num_attention_heads = 4 is not a multiple of model.num_key_value_heads = 3",
        ),
        (LLAMA | {"num_attention_heads": 5}, "not a multiple"),
        (LLAMA | {"head_dim": 3}, "model.head_dim = 3 must be even"),
        (LLAMA | {"hidden_act": "gelu"}, "model.hidden_act = 'gelu' is not built for llama: only 'silu' is"),
        (LLAMA | {"attention_dropout": 0.1}, "model.attention_dropout = 0.1"),
        (LLAMA | {"attention_bias": True}, "model.attention_bias = True"),
        (LLAMA | {"mlp_bias": True}, "model.mlp_bias = True"),
        (LLAMA | {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "only rope_type default"),
        (LLAMA | {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "rope_parameters"),
        (LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "model.rope_scaling is no field"),
        (LLAMA | {"rope_theta": 0}, "model.rope_theta = 0"),
        (GPT2 | {"n_head": 5}, "model.n_embd = 48 is not a multiple of model.n_head = 5"),
        (GPT2 | {"resid_pdrop": 0.1}, "model.resid_pdrop = 0.1"),
        (GPT2 | {"activation_function": "relu"}, "model.activation_function = 'relu'"),
        (GPT2 | {"scale_attn_weights": False}, "model.scale_attn_weights = False"),
        (GPT2 | {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        (GPT2 | {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn"),
        (GPT2 | {"add_cross_attention": True}, "add_cross_attention"),
    ],
)
def test_a_field_is_obeyed_or_refused_never_ignored(model: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        models.make_config(model, VOCABULARY, LENGTH)


def test_the_constructor_refuses_by_itself_what_it_does_not_implement() -> None:
    with pytest.raises(UsageError, match="attention_bias"):
        models.FAMILIES["llama"](LlamaConfig(hidden_size=8, num_attention_heads=2, attention_bias=True))
    with pytest.raises(UsageError, match="pdrop"):
        models.FAMILIES["gpt2"](GPT2Config(n_embd=8, n_head=2))


def test_a_row_beyond_the_positions_is_refused() -> None:
    with pytest.raises(UsageError, match="row of 25 tokens is longer than the model's 24 positions"):
        make("gpt2")(some_rows(25)[0])


@each_family
def test_weights_start_as_the_paper_says(shape: str) -> None:
    decoder = models.build(models.make_config(SHAPES[shape] | {"vocab_size": 4000}, VOCABULARY, LENGTH))
    models.initialise(decoder, 3)
    for name, weight in decoder.named_parameters():
        if weight.ndim == 1:
            assert torch.all(weight == (0.0 if name.endswith("bias") else 1.0)), name
            continue
        expected = 0.02 / 6**0.5 if "c_proj" in name or "o_proj" in name or "down_proj" in name else 0.02
        assert abs(weight.std().item() / expected - 1) < 4 / weight.numel() ** 0.5, name
        assert abs(weight.mean().item()) < 5 * expected / weight.numel() ** 0.5, name


def test_a_fresh_weight_depends_on_the_seed_and_its_name_alone() -> None:
    def fresh(seed: int, **more: Any) -> dict[str, Tensor]:
        decoder = models.build(models.make_config(LLAMA | more, VOCABULARY, LENGTH))
        torch.randn(7)  # the global generator has no say
        models.initialise(decoder, seed)
        return models.state_for_disk(decoder)

    first, tied, other = fresh(5), fresh(5, tie_word_embeddings=True), fresh(6)
    assert all(torch.equal(tied[name], first[name]) for name in tied)
    assert not any(torch.equal(other[name], first[name]) for name in first if first[name].ndim > 1)
    assert len({weight.flatten()[0].item() for weight in first.values() if weight.ndim > 1}) == 2 + 7 * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk_tokens", [7, 60, 1000])
@pytest.mark.parametrize("pad", [False, True])
def test_a_chunked_and_a_padded_head_give_the_same_loss_and_gradients(
    dtype: torch.dtype, chunk_tokens: int, pad: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 20, 16, generator=generator).to(dtype).requires_grad_()
    head = torch.randn(VOCABULARY, 16, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(0, VOCABULARY, (3, 20), generator=generator)
    labels[1, 4:] = -100
    expected = loss_sum(hidden, head, labels)
    expected_gradients = torch.autograd.grad(expected / 7, (hidden, head))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    for chunk in (chunk_tokens, None):
        loss = loss_sum(hidden, head, labels, chunk, pad)
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
        for ours, theirs in zip(torch.autograd.grad(loss / 7, (hidden, head)), expected_gradients):
            assert ours.dtype == dtype
            assert (ours - theirs).norm() <= tolerance * theirs.norm()
        with torch.no_grad():
            torch.testing.assert_close(loss_sum(hidden, head, labels, chunk, pad), expected, rtol=1e-6, atol=0)


def test_the_head_is_chunked_only_where_the_logits_would_be_large() -> None:
    assert parts.head_chunk(16384, 50304, limit=2**28) == 4096
    assert parts.head_chunk(2048, 50304, limit=2**28) == 0
    assert parts.head_chunk(4096, 200_000, limit=2**28) == 0
    assert parts.head_chunk(65536, 50304, limit=2**32) == 0


def test_a_row_without_counted_labels_has_loss_zero() -> None:
    decoder = make("llama")
    ids, labels = some_rows()
    for chunk_tokens in (0, 8):
        loss = decoder(ids, torch.full_like(labels, -100), chunk_tokens=chunk_tokens)
        assert loss.item() == 0
        assert all(torch.all(each == 0) for each in gradients(decoder, loss).values())


def test_ids_may_be_int32() -> None:
    decoder = make("gpt2")
    ids, labels = some_rows()
    assert torch.equal(decoder(ids.int(), labels.int()), decoder(ids, labels))


@pytest.mark.parametrize("key_heads", [1, 2, 6])
def test_plain_attention_equals_the_fused_kernel(key_heads: int) -> None:
    query, key, value = (torch.randn(2, 10, heads, 8) for heads in (6, key_heads, key_heads))
    ours = plain_attention(query, key, value)
    torch.testing.assert_close(ours, parts.causal_attention(query, key, value), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
@each_family
def test_bf16_copies_of_the_masters_give_nearly_the_same_step(shape: str, checkpointing: bool) -> None:
    decoder = make(shape)
    ids, labels = some_rows()
    loss = decoder(ids, labels)
    expected = gradients(decoder, loss)
    decoder.checkpointing = checkpointing
    copies = {name: weight.detach().bfloat16().requires_grad_() for name, weight in decoder.named_parameters()}
    half = functional_call(decoder, copies, (ids, labels))
    half.backward()
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, loss, rtol=2e-3, atol=0)
    assert_close({name: gradient(copy).float() for name, copy in copies.items()}, expected, 0.05)


@each_family
def test_checkpointing_changes_no_bit(shape: str) -> None:
    decoder = make(shape)
    ids, labels = some_rows()
    plain = gradients(decoder, decoder(ids, labels))
    decoder.checkpointing = True
    again = gradients(decoder, decoder(ids, labels))
    assert all(torch.equal(plain[name], again[name]) for name in plain)


@pytest.mark.slow
@pytest.mark.parametrize("chunk_tokens", [0, 16])
@each_family
def test_a_decoder_with_its_loss_compiles_as_one_graph(shape: str, chunk_tokens: int) -> None:
    torch._dynamo.reset()
    decoder = make(shape, num_hidden_layers=1) if shape == "llama" else make(shape, n_layer=1)
    ids, labels = some_rows()
    compiled = torch.compile(decoder, fullgraph=True, dynamic=False)
    expected = decoder(ids, labels)
    expected_gradients = gradients(decoder, expected)
    loss = compiled(ids, labels, chunk_tokens=chunk_tokens)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    assert_close(gradients(decoder, loss), expected_gradients, 1e-5)
    with torch.no_grad():
        torch.testing.assert_close(compiled(ids, labels, chunk_tokens=chunk_tokens), expected, rtol=1e-6, atol=0)


@each_family
def test_a_sharded_decoder_gives_the_same_loss(shape: str) -> None:
    from torch import distributed
    from torch.distributed.fsdp import fully_shard

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        decoder = make(shape)
        ids, labels = some_rows()
        expected = decoder(ids, labels)
        expected_gradients = gradients(decoder, expected)
        mesh = distributed.init_device_mesh("cpu", (1,))
        for block in decoder.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(decoder, mesh=mesh)
        decoder.checkpointing = True
        loss = decoder(ids, labels)
        torch.testing.assert_close(loss, expected)
        sharded: dict[str, Any] = gradients(decoder, loss)
        sharded = {name: part.full_tensor() for name, part in sharded.items()}
        assert_close(sharded, expected_gradients, 1e-6)
    finally:
        distributed.destroy_process_group()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@each_family
def test_a_compiled_step_in_bf16_on_cuda_is_near_the_plain_one(shape: str) -> None:
    decoder = make(shape).cuda()
    ids, labels = (rows.cuda() for rows in some_rows())
    expected = decoder(ids, labels)
    expected_gradients = gradients(decoder, expected)
    for chunk_tokens in (0, 16):

        def step(ids: Tensor, labels: Tensor, chunk_tokens: int = chunk_tokens) -> Tensor:
            with torch.autocast("cuda", torch.bfloat16):
                return decoder(ids, labels, chunk_tokens=chunk_tokens)

        loss = torch.compile(step, fullgraph=True, dynamic=False)(ids, labels)
        torch.testing.assert_close(loss, expected, rtol=2e-3, atol=0)
        assert_close(gradients(decoder, loss), expected_gradients, 0.05)
