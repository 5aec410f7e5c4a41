"""What tokenizers promise: one and the same ids in training, in tokenizer.json and in transformers, for any text."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tiny import ROOT, autog, corpus, recipe_dict, texts, train_tokenizer, write_recipe
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from autog.data.store import token_type
from autog.errors import AutogError, UsageError
from autog.recipe import TokenizerChoice
from autog.tokens import END, PIECE_CHARS, Tokenizer, choose, pieces

CACHE = Path(os.environ.get("AUTOG_TIKTOKEN_CACHE", ROOT.parent / "shared" / "data" / "tiktoken-cache"))
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
HARD_TEXTS = [
    "",
    " ",
    "\n",
    "a",
    END,
    f"before {END} after{END}{END}",
    "<|endoftext| > <|endoftext|",
    "  leading and trailing  ",
    "tabs\t\tand\r\nlines\n\n\n",
    "I'll don't we've IT'S",
    "naïve café — 雨が降る 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 👩‍👩‍👧 e\u0301 \u200b\ufeff\x00\x7f",
    "1234567890 3.14159 1e-4",
    " a   b    c ",
    "\u00a0\u2003x\u3000y\u2028z",
]


def choice(**content: Any) -> TokenizerChoice:
    return TokenizerChoice.model_validate(content)


def train_another(directory: Path, kind: str) -> Path:
    """A tokenizer folder as others publish them: `split` has a pattern of its own, `normalizer` changes the text."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "normalizer")
    if kind == "split":
        pattern = Regex(
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+"
        )
        split = pre_tokenizers.Split(pattern, behavior="isolated", invert=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    else:
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(1, 200), trainer)
    directory.mkdir(parents=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": {"content": "</s>"}}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


KINDS = ["trained", "with bos", "split", "normalizer"]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def tokenizer(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Each kind of tokenizer, as a recipe would choose it."""
    place = tmp_path_factory.mktemp("tokenizers") / "one"
    if kind == "trained":
        return Tokenizer.load(train_tokenizer(place))
    if kind == "with bos":
        return Tokenizer.load(train_tokenizer(place, bos=True))
    return choose(choice(hf=str(train_another(place, kind))))


@pytest.fixture(scope="module")
def in_transformers(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same tokenizer as transformers loads it from the saved files."""
    from transformers import AutoTokenizer

    directory = tmp_path_factory.mktemp("saved")
    tokenizer.save(directory)
    return AutoTokenizer.from_pretrained(directory)


def check_ids(text: str, tokenizer: Tokenizer, in_transformers: Any) -> None:
    ids = tokenizer.encode(text).tolist()
    assert ids == tokenizer.slow.encode(text, add_special_tokens=False).ids
    assert ids == in_transformers.encode(text, add_special_tokens=False, split_special_tokens=True)
    first = [tokenizer.bos_id] if tokenizer.adds_bos else []
    assert tokenizer.document(text).tolist() == [*first, *ids, tokenizer.end_id]
    assert in_transformers(text, split_special_tokens=True)["input_ids"] == [*first, *ids]
    assert tokenizer.end_id not in ids and tokenizer.bos_id not in ids


@given(text=ANY_TEXT)
def test_ids_are_the_same_in_training_in_the_file_and_in_transformers(
    text: str, tokenizer: Tokenizer, in_transformers: Any
) -> None:
    check_ids(text, tokenizer, in_transformers)


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_special_tokens_in_a_text_are_text(text: str, tokenizer: Tokenizer, in_transformers: Any) -> None:
    check_ids(text, tokenizer, in_transformers)
    check_ids(f"{tokenizer.end}{text}{tokenizer.bos}", tokenizer, in_transformers)


def test_the_fast_encoder_is_used_where_it_is_exact(kind: str, tokenizer: Tokenizer) -> None:
    assert (tokenizer.fast is None) == (kind == "normalizer")
    tokenizer.check([*HARD_TEXTS, *texts(9, 50)], "here")


@given(text=ANY_TEXT)
def test_bytes_per_token_sum_to_the_bytes_of_the_text(text: str, kind: str, tokenizer: Tokenizer) -> None:
    if kind == "normalizer":
        text = tokenizer.decode(tokenizer.encode(text))  # what is left of it
    table = tokenizer.bytes_per_token()
    assert table[tokenizer.document(text)].sum() == len(text.encode())
    assert table[tokenizer.end_id] == 0 and len(table) == tokenizer.vocab_size


@given(text=ANY_TEXT)
def test_decoding_gives_the_text_back(text: str, kind: str, tokenizer: Tokenizer) -> None:
    if kind != "normalizer":
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode([tokenizer.end_id, tokenizer.vocab_size + 5]) == tokenizer.end


def test_a_saved_tokenizer_loads_as_itself(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.sha256 == tokenizer.sha256 and again.adds_bos == tokenizer.adds_bos
    assert again.document("ka lo").tolist() == tokenizer.document("ka lo").tolist()
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"  # transformers 4.57 knows no other fast class
    assert config["eos_token"] == config["pad_token"] == tokenizer.end


def test_transformers_knows_the_special_tokens(tokenizer: Tokenizer, in_transformers: Any) -> None:
    assert in_transformers.eos_token_id == in_transformers.pad_token_id == tokenizer.end_id
    assert in_transformers.bos_token_id == tokenizer.bos_id
    assert len(in_transformers) == tokenizer.vocab_size
    assert in_transformers.decode(in_transformers.encode("ka lo mi", add_special_tokens=False)) == "ka lo mi"


# -- bos --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("published", ["trained", "split"])
@pytest.mark.parametrize("wanted", [True, False])
def test_bos_stands_once_before_each_document_or_never(published: str, wanted: bool, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    if published == "trained":
        tokenizer = choose(choice(train={"vocab_size": 300}, bos=wanted), texts(0, 50))
    else:
        directory = train_another(tmp_path / "published", "split")
        # a published tokenizer that adds BOS by itself must not add a second one, nor one that is not wanted
        definition = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
        definition.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
        definition.save(str(directory / "tokenizer.json"))
        tokenizer = choose(choice(hf=str(directory), bos=wanted))
    ids = tokenizer.document("ka lo mi").tolist()
    bos = tokenizer.bos_id
    assert (ids[0] == bos) == wanted
    assert ids[1:-1].count(bos) == 0 and ids[-1] == tokenizer.end_id
    tokenizer.save(tmp_path)
    in_transformers: Any = AutoTokenizer.from_pretrained(tmp_path)
    assert in_transformers("ka lo mi")["input_ids"] == ids[:-1]
    batch = in_transformers(["ka", "lo mi"])["input_ids"]
    assert [line[0] == bos for line in batch] == [wanted, wanted]


def test_bos_is_part_of_what_identifies_a_tokenizer() -> None:
    with_bos = choose(choice(train={"vocab_size": 300}, bos=True), texts(0, 50))
    without = choose(choice(train={"vocab_size": 300}), texts(0, 50))
    assert with_bos.sha256 != without.sha256


# -- training one -----------------------------------------------------------------------------------------------------


def test_a_trained_tokenizer_depends_only_on_its_texts() -> None:
    made = {choose(choice(train={"vocab_size": 350}), iter(texts(2, 150))).definition for _ in range(3)}
    assert len(made) == 1
    tokenizer = choose(choice(train={"vocab_size": 350}), texts(2, 150))
    assert tokenizer.vocab_size == 350 and tokenizer.end == END and tokenizer.fast is not None


def test_too_little_text_for_a_vocabulary_names_the_size_that_works() -> None:
    with pytest.raises(UsageError, match="vocab_size = 5000") as caught:
        choose(choice(train={"vocab_size": 5000}), ["ka lo ka lo mi"])
    size = int(str(caught.value).split("a vocab_size of ")[1].split()[0])
    assert choose(choice(train={"vocab_size": size}), ["ka lo ka lo mi"]).vocab_size == size


# -- long texts -------------------------------------------------------------------------------------------------------


def long_text(seed: int, length: int) -> str:
    """Words, lines, runs of spaces and unbroken stretches."""
    pick = random.Random(seed)
    parts: list[str] = []
    for _ in range(length // 6):
        parts.append(pick.choice([" ", "  ", "\n", " \n ", "\t", ". ", "", " "]))
        parts.append("".join(pick.choices("abcdeé雨'19", k=pick.choice([1, 3, 8, 30]))))
    return "".join(parts)


@pytest.mark.parametrize("seed", range(4))
def test_a_long_text_is_cut_only_where_no_token_crosses(seed: int, tokenizer: Tokenizer) -> None:
    text = long_text(seed, 3 * PIECE_CHARS)
    assert tokenizer.cut_space == " "
    cut = list(pieces(text))
    assert len(cut) > 2 and "".join(cut) == text and max(map(len, cut)) <= PIECE_CHARS
    assert tokenizer.encode(text).tolist() == tokenizer.slow.encode(text, add_special_tokens=False).ids


def test_a_long_text_of_a_tokenizer_that_adds_spaces_itself_is_cut_without_them() -> None:
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=["<unk>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(["one two three", "three two one"], trainer)
    definition = json.loads(tokenizer.to_str())
    prepend, replace = {"type": "Prepend", "prepend": "\u2581"}, {"type": "Replace", "pattern": {"String": " "}}
    definition["normalizer"] = {"type": "Sequence", "normalizers": [prepend, replace | {"content": "\u2581"}]}
    definition["pre_tokenizer"] = None  # as Llama 2's and Mistral's are written
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(definition))
    ours = Tokenizer(tokenizer.to_str(), "</s>")
    assert ours.fast is None and ours.cut_space == ""
    text = "one two three  two\n" * (3 * PIECE_CHARS // 19)
    assert ours.encode(text).tolist() == ours.slow.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("text", ["a" * 10_000_000, " " * 3_000_000, "ab1 \n" * 1_000_000, "\n" * 2_000_000])
@pytest.mark.timeout(60)
def test_ten_megabytes_without_a_space_take_seconds(text: str, tokenizer_folder: Path) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder)
    ids = tokenizer.encode(text)
    assert tokenizer.bytes_per_token()[ids].sum() == len(text)
    assert tokenizer.decode(ids[:1000]) == text[: len(tokenizer.decode(ids[:1000]))]


# -- what is refused --------------------------------------------------------------------------------------------------


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path: Path) -> None:
    directory = train_another(tmp_path / "one", "split")
    for content, expected in (
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, "names no eos_token"),
        ({"eos_token": "<|nowhere|>"}, "no token '<|nowhere|>'"),
    ):
        (directory / "tokenizer_config.json").write_text(json.dumps(content))
        with pytest.raises(UsageError) as caught:
            choose(choice(hf=str(directory)))
        assert expected in str(caught.value)
        with pytest.raises(UsageError):
            Tokenizer.load(directory)


@pytest.mark.parametrize("bos", [None, "<|nowhere|>"])
def test_bos_needs_a_token(bos: str | None, tmp_path: Path) -> None:
    directory = train_another(tmp_path / "one", "split")
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "bos_token": bos}))
    if bos is None:
        assert choose(choice(hf=str(directory), bos=True)).bos == "</s>"  # as GPT-2 does it
    else:
        with pytest.raises(UsageError, match="nowhere"):
            choose(choice(hf=str(directory), bos=True))


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [None, b"", b"{", b"[]", b'"x"', b"\xff\xfe", b"{}"])
def test_a_damaged_tokenizer_folder_is_named(file: str, content: bytes | None, tmp_path: Path) -> None:
    directory = train_another(tmp_path / "one", "split")
    if content is None:
        (directory / file).unlink()
    else:
        (directory / file).write_bytes(content)
    with pytest.raises(UsageError) as caught:
        choose(choice(hf=str(directory)))
    assert file in str(caught.value) and "\n" not in str(caught.value)


def test_a_tokenizer_that_is_nowhere_is_named() -> None:
    for name in ("no/such-tokenizer-here", "./nothing", "not a name"):
        with pytest.raises(UsageError) as caught:
            choose(choice(hf=name))
        assert f"tokenizer.hf = {name}" in str(caught.value)


def test_an_unknown_tiktoken_name_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"tokenizer\.tiktoken = gpt5: tiktoken knows .*gpt2"):
        choose(choice(tiktoken="gpt5"))


def test_tiktoken_without_files_and_network_names_the_variable_that_helps(tmp_path: Path) -> None:
    recipe = recipe_dict(corpus(tmp_path / "a.jsonl"), tokenizer={"tiktoken": "gpt2"})
    nowhere = "http://127.0.0.1:9"  # the discard port: refused at once
    variables = {
        "TIKTOKEN_CACHE_DIR": str(tmp_path / "empty"),
        "HTTPS_PROXY": nowhere,
        "https_proxy": nowhere,
        "NO_PROXY": None,
        "no_proxy": None,
    }
    path = write_recipe(tmp_path / "mine.yaml", recipe)
    code, _, errors = autog("data", "build", path, env=variables, cwd=tmp_path)
    assert code == 2 and "Traceback" not in errors
    assert "tokenizer.tiktoken = gpt2" in errors and "TIKTOKEN_CACHE_DIR" in errors


def test_an_encoder_that_disagrees_with_its_file_is_found(tokenizer_folder: Path) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder)
    assert tokenizer.fast is not None
    tokenizer.fast.ids, tokenizer.fast.same_ids = tokenizer.fast.ids[::-1].copy(), False
    with pytest.raises(AutogError, match=r"corpus: .*disagree"):
        tokenizer.check(["ka lo"], "corpus")


# -- tiktoken's own ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    if not CACHE.is_dir():
        pytest.skip("tiktoken's files are not here (AUTOG_TIKTOKEN_CACHE names a folder that has them)")
    before = os.environ.get("TIKTOKEN_CACHE_DIR")
    os.environ["TIKTOKEN_CACHE_DIR"] = str(CACHE)
    try:
        return choose(choice(tiktoken="gpt2"))
    finally:
        if before is None:
            del os.environ["TIKTOKEN_CACHE_DIR"]
        else:
            os.environ["TIKTOKEN_CACHE_DIR"] = before


@given(text=ANY_TEXT)
def test_gpt2_gives_the_ids_of_tiktoken(text: str, gpt2: Tokenizer) -> None:
    import tiktoken

    theirs = tiktoken.get_encoding("gpt2")
    for example in (text, f"{END}{text}", *HARD_TEXTS):
        ids = theirs.encode_ordinary(example)
        assert gpt2.encode(example).tolist() == ids == gpt2.slow.encode(example, add_special_tokens=False).ids
    assert (gpt2.vocab_size, gpt2.end_id, gpt2.bos) == (50_257, 50_256, None)


@given(text=ANY_TEXT)
def test_our_spelling_of_gpt2s_pattern_cuts_as_tiktokens_does(text: str, tokenizer_folder: Path) -> None:
    from tiktoken import Encoding
    from tiktoken_ext import openai_public

    fast = Tokenizer.load(tokenizer_folder).fast
    assert fast is not None
    ranks = fast.encoding._mergeable_ranks
    theirs = Encoding("theirs", pat_str=openai_public.r50k_pat_str, mergeable_ranks=ranks, special_tokens={})
    for example in (text, *HARD_TEXTS):
        assert fast.encode(example).tolist() == fast.ids[theirs.encode_ordinary(example)].tolist()


# -- on disk ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("vocabulary", "bytes_each"), [(50_257, 2), (65_535, 2), (65_536, 4), (128_256, 4)])
def test_ids_take_two_bytes_below_65536_entries_and_four_from_there(vocabulary: int, bytes_each: int) -> None:
    kind = token_type(vocabulary)
    assert kind.itemsize == bytes_each and kind.str.startswith("<")
    largest = np.array([vocabulary - 1])
    assert largest.astype(kind)[0] == vocabulary - 1


def test_an_end_token_named_only_by_the_models_config_is_found(tokenizer_folder: Path, tmp_path: Path) -> None:
    definition = (tokenizer_folder / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(definition)
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 1024}')
    (tmp_path / "config.json").write_text('{"eos_token_id": 0}')
    assert Tokenizer.load(tmp_path).end == Tokenizer.load(tokenizer_folder).end
