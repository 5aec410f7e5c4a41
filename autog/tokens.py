"""Tokenizers: tiktoken's, Hugging Face's, or our own; each is a tokenizer.json, and text becomes ids here."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autog.errors import AutogError, UsageError
from autog.recipe import TokenizerChoice
from autog.runs import to_json, write_durably

if TYPE_CHECKING:
    import tiktoken
    import tokenizers

END = "<|endoftext|>"
# GPT-2's pre-tokenizer as tiktoken spells it; the same language as tokenizers' ByteLevel(use_regex=True).
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
# tiktoken's work can grow with the square of a piece that its pattern does not split, so it never gets more at once.
PIECE_CHARS = 1 << 16


class Tokenizer:
    """A tokenizer.json with its end (and perhaps BOS) token, and the fastest exact way to encode with it."""

    def __init__(self, definition: str, end: str, bos: str | None = None, adds_bos: bool = False) -> None:
        """Takes the text of a tokenizer.json; UsageError if the end token is not in it."""
        self.definition = definition
        self.slow: tokenizers.Tokenizer = parse(definition)
        self.slow.encode_special_tokens = True
        self.end, self.bos, self.adds_bos = end, bos, adds_bos
        self.end_id = self._id(end)
        self.bos_id = None if bos is None else self._id(bos)
        self.vocab_size: int = max(self.slow.get_vocab(with_added_tokens=True).values()) + 1

    def _id(self, token: str) -> int:
        """The id of a special token; UsageError if there is none."""
        number = self.slow.token_to_id(token)
        if number is None:
            raise UsageError(f"the tokenizer has no token {token!r}: its tokenizer_config.json names a wrong one")
        return number

    @cached_property
    def fast(self) -> FastBPE | None:
        """The same merges in tiktoken (about five times faster), where the definition allows it."""
        return FastBPE.from_definition(json.loads(self.definition))

    @cached_property
    def cut_space(self) -> str | None:
        """What a piece of a long text keeps of the space before it: all of it, or nothing where the tokenizer adds one
        by itself (as SentencePiece's do); None if a text of this tokenizer cannot be cut."""
        if json.loads(self.definition).get("pre_tokenizer") is None and any(
            "\u2581" in token.strip("\u2581") for token in self.slow.get_vocab(with_added_tokens=False)
        ):
            return None  # it has tokens of several words
        whole, first = self._encode_piece("one two three").tolist(), self._encode_piece("one two").tolist()
        for kept in (" ", ""):
            if first + self._encode_piece(f"{kept}three").tolist() == whole:
                return kept
        return None

    @cached_property
    def sha256(self) -> str:
        """What the ids depend on: the definition, the end token, and whether documents begin with BOS."""
        content = json.dumps([json.loads(self.definition), self.end, self.bos if self.adds_bos else None])
        return hashlib.sha256(content.encode()).hexdigest()

    def encode(self, text: str) -> np.ndarray:
        """Ids of plain text, uint32; special tokens are never parsed out of it."""
        return np.concatenate(list(self.encode_pieces(text)))

    def encode_pieces(self, text: str) -> Iterator[np.ndarray]:
        """The same ids piece by piece."""
        if len(text) <= PIECE_CHARS or self.cut_space is None:
            yield self._encode_piece(text)
        else:
            for piece in pieces(text, self.cut_space):
                yield self._encode_piece(piece)

    def _encode_piece(self, text: str) -> np.ndarray:
        if self.fast is not None:
            return self.fast.encode(text)
        return np.array(self.slow.encode(text, add_special_tokens=False).ids, dtype=np.uint32)

    def document(self, text: str) -> np.ndarray:
        """Ids of a whole document: BOS if the recipe says so, the text, the end token; uint32."""
        return np.concatenate(list(self.document_parts(text)))

    def document_pieces(self, text: str) -> Iterator[np.ndarray]:
        """The same ids piece by piece, for a document that is too long to have them all at once."""
        if len(text) <= PIECE_CHARS:
            yield self.document(text)
        else:
            yield from self.document_parts(text)

    def document_parts(self, text: str) -> Iterator[np.ndarray]:
        """BOS, the pieces of the text, the end token."""
        if self.adds_bos:
            yield np.array([self.bos_id], dtype=np.uint32)
        yield from self.encode_pieces(text)
        yield np.array([self.end_id], dtype=np.uint32)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; special tokens show as they are written, ids beyond the vocabulary as nothing."""
        return self.slow.decode([int(number) for number in ids if number < self.vocab_size], skip_special_tokens=False)

    def check(self, texts: Iterable[str], origin: str) -> None:
        """AutogError unless the fast encoder gives exactly the ids of tokenizer.json on these texts."""
        if self.fast is None:
            return
        for text in texts:
            for piece in pieces(text[: 4 * PIECE_CHARS]):
                if self.slow.encode(piece, add_special_tokens=False).ids != self.fast.encode(piece).tolist():
                    raise AutogError(f"{origin}: tokenizer.json and the fast encoder disagree on {piece[:60]!r}")

    def bytes_per_token(self) -> np.ndarray:
        """How many bytes of text each id stands for, int64 (vocab_size,); special tokens stand for none."""
        added = {token["id"] for token in json.loads(self.definition).get("added_tokens", []) if token.get("special")}
        byte_level = "ByteLevel" in json.dumps(json.loads(self.definition).get("pre_tokenizer"))
        table = np.zeros(self.vocab_size, dtype=np.int64)
        for token, number in self.slow.get_vocab(with_added_tokens=True).items():
            if number in added:
                continue
            if byte_level:
                table[number] = len(token)  # one character per byte
            elif len(token) == 6 and token.startswith("<0x"):
                table[number] = 1  # byte fallback of SentencePiece models
            else:
                table[number] = len(token.replace("\u2581", " ").encode())
        return table

    def save(self, directory: Path) -> None:
        """Writes tokenizer.json and tokenizer_config.json so that transformers 4.57 and 5 load the same tokenizer."""
        config: dict[str, Any] = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self.end,
            "pad_token": self.end,
            "unk_token": None,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1_000_000_000,
            "add_bos_token": self.adds_bos,
        }
        if self.bos is not None:
            config["bos_token"] = self.bos
        write_durably(directory / "tokenizer.json", self.definition)
        write_durably(directory / "tokenizer_config.json", to_json(config))

    @classmethod
    def load(cls, directory: Path) -> Tokenizer:
        """Reads a folder that holds tokenizer.json and tokenizer_config.json, as it stands."""
        definition, config = read_tokenizer_files(directory / "tokenizer.json", directory / "tokenizer_config.json")
        end, bos = end_token(config, definition, directory), special(config.get("bos_token"))
        if end is None:
            raise UsageError(f"{directory}/tokenizer_config.json names no eos_token: add the one that ends a document")
        return cls(definition, end, bos, adds_bos=bool(config.get("add_bos_token", False)) and bos is not None)


class FastBPE:
    """A byte-level BPE run by tiktoken: merges as ranks, and a table from ranks to the tokenizer's ids."""

    def __init__(self, encoding: tiktoken.Encoding, ids: np.ndarray) -> None:
        self.encoding = encoding
        self.ids = ids
        self.same_ids = bool((ids == np.arange(len(ids))).all())

    def encode(self, text: str) -> np.ndarray:
        """Ids, uint32 (tokens,)."""
        ranks = self.encoding.encode_to_numpy(text, allowed_special=set(), disallowed_special=())
        return ranks if self.same_ids else self.ids[ranks]

    @classmethod
    def from_definition(cls, definition: dict[str, Any]) -> FastBPE | None:
        """Understands BPE with GPT-2's byte-level pre-tokenizer (or one Split pattern before it); None otherwise."""
        import tiktoken

        model, pattern = definition["model"], split_pattern(definition)
        if model.get("type") != "BPE" or pattern is None or model.get("byte_fallback"):
            return None
        to_byte = {char: byte for byte, char in byte_alphabet().items()}
        ranks: dict[bytes, int] = {bytes([byte]): byte for byte in range(256)}
        ids = [model["vocab"].get(byte_alphabet()[byte]) for byte in range(256)]
        for merge in model["merges"]:
            token = "".join(merge) if isinstance(merge, list) else merge.replace(" ", "")
            content = bytes(to_byte[char] for char in token)
            if token not in model["vocab"] or ranks.get(content, len(ids) - 1) != len(ids) - 1:
                return None
            if content in ranks:  # another way to make the token just made, as transformers' converter lists them
                continue
            ranks[content] = len(ids)
            ids.append(model["vocab"][token])
        if None in ids:
            return None
        encoding = tiktoken.Encoding("autog", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        return cls(encoding, np.array(ids, dtype=np.uint32))


def split_pattern(definition: dict[str, Any]) -> str | None:
    """The regular expression by which a definition cuts text before merging; None if it does more than that."""
    added = [token for token in definition.get("added_tokens", []) if not token.get("special")]
    before = definition.get("pre_tokenizer") or {}
    if definition.get("normalizer") is not None or added:
        return None
    if before.get("type") == "ByteLevel" and before.get("use_regex", True) and not before.get("add_prefix_space"):
        return GPT2_PATTERN
    steps = before.get("pretokenizers", []) if before.get("type") == "Sequence" else []
    if [step.get("type") for step in steps] != ["Split", "ByteLevel"] or steps[1].get("use_regex", True):
        return None
    split = steps[0]
    plain = split.get("behavior") == "Isolated" and not split.get("invert") and not steps[1].get("add_prefix_space")
    return split["pattern"].get("Regex") if plain else None


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable character for each byte (Radford et al., 2019, encoder.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable}
    return table | {byte: chr(256 + number) for number, byte in enumerate(others)}


def parse(definition: str) -> tokenizers.Tokenizer:
    """A tokenizer.json's text as the object that encodes; UsageError if it is none."""
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(definition)
    except Exception as error:  # tokenizers has no narrower class for it
        raise UsageError(f"tokenizer.json is not one that autog can read ({error}): fetch it again") from None


def pieces(text: str, cut_space: str = " ") -> Iterator[str]:
    """Cuts long text where no token can cross: at a space between two words; anywhere only if there is none."""
    start = 0
    while len(text) - start > PIECE_CHARS:
        stop = start + PIECE_CHARS
        cut = text.rfind(" ", start + 1, stop)
        while cut > start and (text[cut - 1].isspace() or text[cut + 1].isspace()):
            cut = text.rfind(" ", start + 1, cut)
        yield text[start : cut if cut > start else stop]
        start = cut + 1 - len(cut_space) if cut > start else stop
    yield text[start:]


def special(value: Any) -> str | None:
    """A special token's text from tokenizer_config.json, where it may be a string or a mapping."""
    return value["content"] if isinstance(value, dict) else value


def end_token(config: dict[str, Any], definition: str, directory: Path) -> str | None:
    """The end token: of tokenizer_config.json, special_tokens_map.json, or config.json's id (as gpt2's own files)."""
    if (end := special(config.get("eos_token"))) is not None:
        return end
    for name in ("special_tokens_map.json", "config.json"):
        path = directory / name
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            continue  # another file may say it
        if (end := special(content.get("eos_token"))) is not None:
            return end
        number, tokenizer = content.get("eos_token_id"), json.loads(definition)
        vocabulary = tokenizer["model"].get("vocab", {})  # a list of (token, score) in Unigram models
        names = dict(vocabulary) if isinstance(vocabulary, dict) else {it[0]: i for i, it in enumerate(vocabulary)}
        names |= {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}
        found = [token for token, each in names.items() if each == number]
        if found:
            return found[-1]
    return None


def read_tokenizer_files(definition: Path, config: Path) -> tuple[str, dict[str, Any]]:
    """The text of tokenizer.json and the content of tokenizer_config.json; UsageError if either is missing."""
    contents = {}
    for path, key in ((definition, "model"), (config, None)):
        try:
            text = path.read_text(encoding="utf-8")
            contents[path] = json.loads(text)
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error.strerror}): a tokenizer is two files") from None
        except ValueError as error:
            raise UsageError(f"{path} is not JSON ({error}): fetch it again") from None
        if not isinstance(contents[path], dict) or (key and key not in contents[path]):
            raise UsageError(f"{path} is not what its name says: fetch it again")
    return definition.read_text(encoding="utf-8"), contents[config]


# -- the three choices ------------------------------------------------------------------------------------------------


def choose(choice: TokenizerChoice, texts: Iterable[str] = ()) -> Tokenizer:
    """The tokenizer that a recipe asks for; `texts` are what `train` learns from."""
    if choice.tiktoken is not None:
        definition, end, bos = from_tiktoken(choice.tiktoken), END, None
    elif choice.hf is not None:
        definition, end, bos = from_hugging_face(choice.hf)
    else:
        assert choice.train is not None
        definition, end, bos = trained(texts, choice.train.vocab_size), END, None
    if choice.bos:
        bos = bos or end
    return Tokenizer(with_bos(definition, bos if choice.bos else None), end, bos, adds_bos=choice.bos)


def with_bos(definition: str, bos: str | None) -> str:
    """The definition with a post-processor that adds BOS and nothing else, or nothing at all."""
    from tokenizers import processors

    tokenizer = parse(definition)
    if bos is None:
        plain = json.loads(definition)
        if (plain.get("post_processor") or {}).get("type") in (None, "ByteLevel"):
            return definition
        plain["post_processor"] = None
        return json.dumps(plain, ensure_ascii=False)
    number = tokenizer.token_to_id(bos)
    if number is None:
        raise UsageError(f"tokenizer.bos: true, but the tokenizer has no token {bos!r}: leave bos out")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, number)]
    )
    return tokenizer.to_str()


def from_tiktoken(name: str) -> str:
    """tokenizer.json of one of tiktoken's encodings, by transformers' converter (exact, checked by the caller)."""
    import tiktoken
    from requests.exceptions import RequestException

    if name not in tiktoken.list_encoding_names():
        raise UsageError(f"tokenizer.tiktoken = {name}: tiktoken knows {', '.join(tiktoken.list_encoding_names())}")
    try:
        encoding = tiktoken.get_encoding(name)
    except (RequestException, OSError) as error:
        raise UsageError(
            f"tokenizer.tiktoken = {name}: its files are neither in the cache "
            f"({os.environ.get('TIKTOKEN_CACHE_DIR', 'TIKTOKEN_CACHE_DIR is not set')}) nor can they be downloaded "
            f"({type(error).__name__}): connect once, or set TIKTOKEN_CACHE_DIR to a folder that holds them"
        ) from None
    from transformers.convert_slow_tokenizer import TikTokenConverter

    with tempfile.NamedTemporaryFile("wb", suffix=".tiktoken") as file:
        for token, rank in sorted(encoding._mergeable_ranks.items(), key=lambda item: item[1]):
            file.write(base64.b64encode(token) + f" {rank}\n".encode())
        file.flush()
        specials = sorted(encoding._special_tokens, key=lambda token: encoding._special_tokens[token])
        converter = TikTokenConverter(file.name, pattern=encoding._pat_str, extra_special_tokens=specials)
        tokenizer = converter.converted()
    if name in ("gpt2", "r50k_base"):
        from tokenizers import pre_tokenizers

        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    for token, number in encoding._special_tokens.items():
        if tokenizer.token_to_id(token) != number:
            raise AutogError(f"tokenizer.tiktoken = {name} cannot be written as a tokenizer.json: use hf: instead")
    return tokenizer.to_str()


def from_hugging_face(name: str) -> tuple[str, str, str | None]:
    """(tokenizer.json, end token, BOS token) of a local folder or a hub repository."""
    directory = Path(name).expanduser()
    if directory.is_dir():
        definition, config = read_tokenizer_files(directory / "tokenizer.json", directory / "tokenizer_config.json")
    else:
        files = [download(name, file) for file in ("tokenizer.json", "tokenizer_config.json")]
        definition, config = read_tokenizer_files(*files)
        directory = files[0].parent
        if special(config.get("eos_token")) is None:
            download(name, "config.json")  # older repositories say it only there
    end = end_token(config, definition, directory)
    if end is None:
        raise UsageError(f"tokenizer.hf = {name}: its tokenizer_config.json names no eos_token to end documents with")
    return definition, end, special(config.get("bos_token"))


def download(repository: str, file: str) -> Path:
    """A file of a hub repository in the local cache; UsageError says what to do if it is not to be had."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        return Path(hf_hub_download(repository, file))
    except GatedRepoError:
        remedy = f"it is gated: accept its terms at https://huggingface.co/{repository} and set HF_TOKEN"
    except (RepositoryNotFoundError, HfHubHTTPError) as error:
        missing = isinstance(error, RepositoryNotFoundError)
        remedy = (
            "there is no such folder or repository" if missing else f"the hub answered {error.response.status_code}"
        )
    except EntryNotFoundError:
        remedy = f"it has no {file}"
    except (OSError, ValueError) as error:
        remedy = f"neither a local folder nor reachable on the hub ({type(error).__name__})"
    raise UsageError(f"tokenizer.hf = {repository}: {remedy}")


def trained(texts: Iterable[str], vocab_size: int) -> str:
    """tokenizer.json of a byte-level BPE with GPT-2's pre-tokenizer, learned from the texts."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=sorted(byte_alphabet().values()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    size = tokenizer.get_vocab_size()
    if size < vocab_size:
        raise UsageError(
            f"tokenizer.train.vocab_size = {vocab_size}: the texts hold only {size} distinct tokens; "
            f"give a vocab_size of {size} at most, or more text"
        )
    return tokenizer.to_str()
