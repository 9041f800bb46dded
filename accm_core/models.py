"""The models on this machine: a folder of files, each under a name."""

import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_data_path

from accm_core.errors import ModelError
from accm_core.learning.checkpoint import (
    UNITS,
    Model,
    parse_model,
    read_bytes,
    read_card,
    read_model,
    save_model,
)
from accm_core.learning.lessons import SHIPPED
from accm_core.learning.unit_file import StoredUnits, parse_units, save_units
from accm_core.types import KnownUnits

SUFFIX = ".safetensors"
PRETRAINED = "pretrained"
"""Name of the model that comes with the package."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class ModelEntry:
    """A model in the list.

    Attributes
    ----------
    name : str
    path : Path
    num_bytes : int
    sha256 : str
        Empty for a file that is no model.
    card : mapping of str to anything JSON holds
    problem : str
        Why the file is no model; empty when it is one.
    """

    name: str
    path: Path
    num_bytes: int
    sha256: str
    card: Mapping[str, Any]
    problem: str

    def summary(self) -> dict[str, Any]:
        """What a list shows, as JSON holds it."""
        units = self.card.get("units")
        return {
            "name": self.name,
            "kind": self.card.get("kind"),
            "units": None if units is None else len(units),
            "bytes": self.num_bytes,
            "sha256": self.sha256,
            "problem": self.problem,
        }


def models_folder() -> Path:
    """``$ACCM_DATA/models`` where that is set, else a folder of the user's; it need not be there."""
    data = os.environ.get("ACCM_DATA")
    return (Path(data) if data else user_data_path("accm", appauthor=False)) / "models"


def load_model(name_or_path: str | Path) -> Model:
    """Load a model by its name in the registry, or from a file.

    Parameters
    ----------
    name_or_path : str or Path
        ``'pretrained'`` is the model that comes with the package. What ends in ``.safetensors``, or has a
        folder in it, is a file.

    Raises
    ------
    ModelError
        If there is none, or it is not a model.
    """
    return read_model(find_model(name_or_path))


def load_any(name_or_path: str | Path) -> Model | StoredUnits:
    """Load a model, or the units for a stream; otherwise as `load_model`."""
    return _read_any(find_model(name_or_path))


def find_model(name_or_path: str | Path) -> Path:
    """File of a model; see `load_model`."""
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(SUFFIX) or os.sep in text:
        return Path(name_or_path)
    path = locate_model(text)
    if not path.is_file():
        known = ", ".join(entry.name for entry in list_models()) or "none"
        raise ModelError(
            f"There is no model {text!r} in {models_folder()}; there are: {known}. "
            "Give one of these, or the path of a model file."
        )
    return path


def locate_model(name: str) -> Path:
    """Where a model of this name is or would be; a path is no name.

    Raises
    ------
    ModelError
        If it is no name.
    """
    return SHIPPED if name == PRETRAINED else _path_of(name)


def list_models() -> list[ModelEntry]:
    """List the shipped model, then the others by name; a file that is no model is listed with the reason."""
    found = [SHIPPED]
    folder = models_folder()
    if folder.is_dir():
        found += sorted(p for p in folder.glob(f"*{SUFFIX}") if _NAME.fullmatch(p.stem) and p.is_file())
    return [_describe(path) for path in found]


def describe_model(name: str) -> ModelEntry | None:
    """One model of that list; None where there is none of this name."""
    try:
        path = locate_model(name)
    except ModelError:
        return None
    return _describe(path) if path.is_file() else None


def store_model(model: Model, name: str, *, overwrite: bool = False) -> Path:
    """Put a model into the registry.

    Raises
    ------
    ModelError
        If the name is not one or is taken, or the disk refuses.
    """
    return save_model(model, prepare_place(name, overwrite=overwrite))


def store_units(units: KnownUnits, name: str, card: Mapping[str, Any], *, overwrite: bool = False) -> Path:
    """Put units for a stream into the registry; ``card`` says where they come from, as in `save_units`."""
    return save_units(units, prepare_place(name, overwrite=overwrite), card)


def import_model(file_path: str | Path, name: str, *, overwrite: bool = False) -> Path:
    """Copy a model file into the registry, after looking through it."""
    source = Path(file_path)
    model = _read_any(source)
    target = prepare_place(name, overwrite=overwrite)
    _copy(source, target, model.sha256)
    return target


def export_model(name: str, file_path: str | Path, *, overwrite: bool = False) -> Path:
    """Copy a model of the registry to a file."""
    source, target = find_model(name), Path(file_path)
    if target.suffix != SUFFIX:
        raise ModelError(f"The output {target} does not end in {SUFFIX}. Give a name that does.")
    if not target.parent.is_dir():
        raise ModelError(f"The folder {target.parent} does not exist. Make it, or choose another.")
    if target.exists() and not overwrite:
        raise ModelError(f"The output {target} exists. Choose another, or replace it with --overwrite.")
    _copy(source, target, _read_any(source).sha256)
    return target


def remove_model(name: str) -> Path:
    """Remove a model from the registry; the shipped one stays."""
    if name == PRETRAINED:
        raise ModelError(f"The model {PRETRAINED!r} comes with the package and cannot be removed.")
    locate_model(name)  # a path would be found as a file too
    path = find_model(name)
    try:
        path.unlink()
    except OSError as error:
        raise ModelError(f"Cannot remove {path}: {error.strerror or error}.") from error
    return path


def prepare_place(name: str, *, overwrite: bool = False) -> Path:
    """Where a model of this name is to be written; the folder is made.

    Raises
    ------
    ModelError
        If the name is not one or is taken, or the folder cannot be written to.
    """
    if name == PRETRAINED:
        raise ModelError(f"The name {PRETRAINED!r} is that of the model of the package. Choose another.")
    path = _path_of(name)
    if path.exists() and not overwrite:
        raise ModelError(f"There is a model {name!r} already ({path}). Choose another name, or --overwrite.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"Cannot make {path.parent}: {error.strerror or error}. Set ACCM_DATA.") from error
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise ModelError(f"The folder {path.parent} cannot be written to. Set ACCM_DATA to one that can.")
    return path


def _path_of(name: str) -> Path:
    if not _NAME.fullmatch(name) or name.endswith(SUFFIX):
        raise ModelError(
            f"{name!r} is not a name of a model: letters, digits, '.', '_' and '-', at most 100, "
            "a letter or digit first."
        )
    return models_folder() / f"{name}{SUFFIX}"


def _read_any(path: Path) -> Model | StoredUnits:
    """Read a file of either kind."""
    content = read_bytes(path)
    is_units = read_card(content, path).get("kind") == UNITS
    return parse_units(content, path) if is_units else parse_model(content, path)


def _describe(path: Path) -> ModelEntry:
    try:
        model = _read_any(path)
    except ModelError as error:
        return ModelEntry(path.stem, path, path.stat().st_size, "", {}, str(error))
    return ModelEntry(path.stem, path, path.stat().st_size, model.sha256, model.card, "")


def _copy(source: Path, target: Path, sha256: str) -> None:
    """Copy whole or not at all, and only what was looked through."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        shutil.copyfile(source, temporary)
        if _read_any(temporary).sha256 != sha256:
            raise ModelError(f"{source} changed while it was copied. Try again.")
        temporary.replace(target)
    except OSError as error:
        raise ModelError(f"Cannot write {target}: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)
