"""A trained model as one safetensors file that describes itself."""

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from accm_core.errors import ModelError
from accm_core.learning.encoder import EncoderConfig, SnippetWindow, SpikeEncoder
from accm_core.learning.heads import Heads, HeadsConfig

FORMAT = 1
"""Of the card; a reader refuses what is newer."""
MAX_BYTES = 256 << 20
"""Larger files are refused unread."""
MAX_HEADER_BYTES = 8 << 20
"""Of the card and the list of arrays, as JSON: 800 for each of the most heads that a model may have."""
LIMITS = {"num_channels": (1, 64), "num_samples": (8, 4096), "num_dims": (2, 64), "width": (1, 1024)}
"""Of an encoder's architecture: a card must not make us build a giant."""
MAX_HEADS, MAX_NAME = 10_000, 200
"""Heads of a model; characters of a unit's name."""
RATES_HZ, MAX_DELAY_MS = (1_000, 200_000), 5.0
"""Sampling frequencies of recordings with spikes; time from a label to its spike's peak."""
UNITS = "units"
"""Kind of the files that hold units for a stream; see `accm_core.learning.unit_file`."""
CARD, TEMPLATES = "card", "templates"
"""Names of the card and of the units' waveforms in a file."""


@dataclass(frozen=True)
class Model:
    """An encoder, heads if it has any, and where they come from.

    Attributes
    ----------
    encoder : SpikeEncoder
    heads : Heads or None
    card : mapping of str to anything JSON holds
        ``kind`` ('encoder' or 'finetuned'), the training data, parameters, seed, package version,
        ``sampling_frequency`` (Hz) and window (``num_before`` of the encoder's ``num_samples``).
        The architecture is added when it is saved.
    templates : Tensor of shape (n_heads, n_channels, n_samples) or None
        What each head's unit looks like in a snippet, noise units; None without heads.
    sha256 : str
        Of the file; worked out when not given.
    """

    encoder: SpikeEncoder
    heads: Heads | None
    card: Mapping[str, Any] = field(default_factory=dict)
    templates: torch.Tensor | None = None
    sha256: str = ""

    def __post_init__(self) -> None:
        if not self.sha256:
            # a frozen dataclass fills in its defaults through object.__setattr__
            object.__setattr__(self, "sha256", hashlib.sha256(_to_bytes(self)).hexdigest())

    @property
    def window(self) -> SnippetWindow:
        """Of the snippets that the encoder was trained on."""
        num_before, rate = int(self.card["num_before"]), float(self.card["sampling_frequency"])
        return SnippetWindow(num_before, self.encoder.config.num_samples, rate)


def save_model(model: Model, file_path: str | Path) -> Path:
    """Write a model, whole or not at all; an existing file is replaced.

    Raises
    ------
    ModelError
        If the disk refuses.
    """
    return write_bytes(Path(file_path), _to_bytes(model))


def write_bytes(target: Path, content: bytes) -> Path:
    """Write a file, whole or not at all; an existing one is replaced.

    Raises
    ------
    ModelError
        If the disk refuses.
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise ModelError(
            f"Cannot write {target}: {error.strerror or error}. Check the folder, its space and permissions."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return target


def read_model(file_path: str | Path) -> Model:
    """Read a model that `save_model` wrote.

    Raises
    ------
    ModelError
        If it cannot be read, or is anything else.

    Notes
    -----
    Nothing in the file is run: it holds arrays and JSON. The card is checked before anything is built from
    it, and every array against the shape that the card calls for.
    """
    path = Path(file_path)
    return parse_model(read_bytes(path), path)


def parse_model(content: bytes, path: Path) -> Model:
    """Make a model of a file's content; as `read_model`."""
    card = read_card(content, path)
    if card.get("kind") == UNITS:
        raise ModelError(
            f"{path} holds units for a stream, and no encoder. Start a stream with it, or give a model that "
            "accm finetune or pretrain made."
        )
    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise foreign(path, str(error)) from error
    try:
        encoder_config = _encoder_config(card.get("architecture"))
        heads_config = _heads_config(card.get("heads"), encoder_config)
        _check_window(card, encoder_config)
        if heads_config is not None:
            _check_units(card, heads_config, encoder_config)
        elif card.get("units", []) != []:
            raise ValueError("its card describes units, but it has no heads")
        json.dumps(card, ensure_ascii=False, allow_nan=False).encode()  # so that it can be passed on
    except (TypeError, ValueError, KeyError, RecursionError) as error:
        raise foreign(path, str(error)) from error
    with torch.device("meta"):  # shapes alone, until the arrays are known to fit
        encoder = SpikeEncoder(encoder_config, 1.0)
        heads = None if heads_config is None else Heads(heads_config)
    wanted = {
        f"{n}.{key}": t.shape
        for n, m in _modules(encoder, heads).items()
        for key, t in m.state_dict().items()
    }
    if heads_config is not None:
        shape = (encoder_config.num_channels, encoder_config.num_samples)
        wanted[TEMPLATES] = torch.Size((len(heads_config.unit_names), *shape))
    check_tensors(wanted, tensors, path)
    for name, module in _modules(encoder, heads).items():
        own = {key.removeprefix(name + "."): t for key, t in tensors.items() if key.startswith(name + ".")}
        module.load_state_dict(own, assign=True)
        module.eval()
    return Model(encoder, heads, card, tensors.get(TEMPLATES), hashlib.sha256(content).hexdigest())


def _to_bytes(model: Model) -> bytes:
    card = {
        **model.card,
        "format": FORMAT,
        "architecture": asdict(model.encoder.config),
        "heads": None if model.heads is None else asdict(model.heads.config),
    }
    tensors = {
        f"{name}.{key}": tensor.detach().cpu().contiguous()
        for name, module in _modules(model.encoder, model.heads).items()
        for key, tensor in module.state_dict().items()
    }
    if model.templates is not None:
        tensors[TEMPLATES] = model.templates.detach().cpu().contiguous()
    return save(tensors, {CARD: json.dumps(card, sort_keys=True, allow_nan=False)})


def _modules(encoder: SpikeEncoder, heads: Heads | None) -> dict[str, nn.Module]:
    return {"encoder": encoder} if heads is None else {"encoder": encoder, "heads": heads}


def read_bytes(path: Path) -> bytes:
    """All of a model's file; see `read_model` for what it raises."""
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise ModelError(f"{path} {what}. Give a model file, or the name of one that accm models list shows.")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ModelError(f"Cannot read {path}: {error.strerror or error}.") from error
    if len(content) > MAX_BYTES:
        raise ModelError(
            f"{path} is {path.stat().st_size / 1e6:.0f} MB; models have at most {MAX_BYTES / 1e6:.0f} MB. "
            "Give a file that accm wrote."
        )
    return content


def read_card(content: bytes, path: Path) -> dict[str, Any]:
    """The card in a model's file: JSON of a format that is known, not looked into yet."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > len(content) - 8:
        raise foreign(path, "its header is cut short or is none")
    if length > MAX_HEADER_BYTES:
        raise foreign(path, f"its header has {length} bytes, more than the {MAX_HEADER_BYTES} of any model")
    try:
        header = json.loads(content[8 : 8 + length])
        card = json.loads(header["__metadata__"][CARD])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise foreign(path, "it has no card of accm") from error
    if not isinstance(card, dict) or not isinstance(card.get("format"), int):
        raise foreign(path, "its card has no format")
    if card["format"] > FORMAT:
        raise ModelError(
            f"{path} has format {card['format']}; this accm reads up to {FORMAT}. Install a newer accm."
        )
    return card


def _encoder_config(value: Any) -> EncoderConfig:
    config = EncoderConfig(**value)
    for name, size in asdict(config).items():
        low, high = LIMITS[name]
        if type(size) is not int or not low <= size <= high:
            raise ValueError(f"{name} = {size!r} of its encoder is not within {low} to {high}")
    return config


def _heads_config(value: Any, encoder: EncoderConfig) -> HeadsConfig | None:
    if value is None:
        return None
    config = HeadsConfig(**{**value, "unit_names": tuple(value["unit_names"])})
    names = config.unit_names
    if config.kind not in ("binary", "softmax"):
        raise ValueError(f"its heads are of the unknown kind {config.kind!r}")
    if not 1 <= len(names) <= MAX_HEADS or len(set(names)) < len(names):
        raise ValueError(f"its {len(names)} heads must be 1 to {MAX_HEADS}, each with a name of its own")
    if not all(isinstance(name, str) and 0 < len(name) <= MAX_NAME for name in names):
        raise ValueError(f"names of its heads must be text of 1 to {MAX_NAME} characters")
    if config.num_features != encoder.num_features:
        raise ValueError(f"its heads take {config.num_features!r} features of {encoder.num_features}")
    return config


def _check_window(card: Mapping[str, Any], encoder: EncoderConfig) -> None:
    """Refuse a card that does not say which snippets the encoder takes."""
    num_before, rate = card.get("num_before"), card.get("sampling_frequency")
    if type(num_before) is not int or not 0 <= num_before < encoder.num_samples:
        raise ValueError(f"num_before = {num_before!r} is not within its snippets of {encoder.num_samples}")
    if not isinstance(rate, int | float) or not RATES_HZ[0] <= rate <= RATES_HZ[1]:
        raise ValueError(f"sampling_frequency = {rate!r} is not within {RATES_HZ[0]} to {RATES_HZ[1]} Hz")


def _check_units(card: Mapping[str, Any], heads: HeadsConfig, encoder: EncoderConfig) -> None:
    """Refuse a card that does not say where each head looks."""
    units = card.get("units")
    if not isinstance(units, list) or [unit["name"] for unit in units] != list(heads.unit_names):
        raise ValueError("its card does not describe the unit of each head")
    for unit in units:
        channels, delay = unit["channels"], unit["peak_delay_ms"]
        if not isinstance(channels, list) or not 1 <= len(channels) <= encoder.num_channels:
            raise ValueError(f"unit {unit['name']!r} does not have 1 to {encoder.num_channels} channels")
        if not all(channel is None or isinstance(channel, str) for channel in channels):
            raise ValueError(f"channels of unit {unit['name']!r} must be named by text")
        if not isinstance(delay, int | float) or not abs(delay) <= MAX_DELAY_MS:
            raise ValueError(f"peak_delay_ms = {delay!r} of unit {unit['name']!r} is above {MAX_DELAY_MS}")


def check_tensors(wanted: Mapping[str, torch.Size], tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Refuse arrays that are not those wanted, of these shapes, float32 and finite."""
    if wanted.keys() != tensors.keys():
        odd = sorted(wanted.keys() ^ tensors.keys())
        raise foreign(path, f"{len(odd)} arrays are missing or too many, such as {odd[0]}")
    for key, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tensor.shape != wanted[key]:
            raise foreign(
                path,
                f"{key} is {tensor.dtype} of shape {tuple(tensor.shape)}; its card calls for float32 of "
                f"{tuple(wanted[key])}",
            )
        if not torch.isfinite(tensor).all():
            raise foreign(path, f"{key} holds values that are not finite")


def foreign(path: Path, why: str) -> ModelError:
    """What is raised for a file that is no model."""
    return ModelError(f"{path} is no model of accm: {why}. Give a file that accm finetune or export wrote.")
