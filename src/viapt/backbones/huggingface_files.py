"""Vision transformers of transformers out of a folder or the hub: configuration, safetensors, preprocessing.

Weights are read as safetensors alone, and only as many numbers are allocated as the files can hold.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from torch import nn

from viapt.backbones.base import Preprocessing
from viapt.backbones.huggingface import FAMILIES, SUPPORTED, pair
from viapt.backbones.timm_weights import CONFIG_LIMIT, check_hub, shortened
from viapt.errors import BackboneError
from viapt.tensorfile import CONVERT, PICKLES, check_header, refusing

PREFIX = "transformers:"
WANTED = ["config.json", "preprocessor_config.json", "model*.safetensors", "model.safetensors.index.json"]
TOWERS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}  # the vision part of what holds a text part too
FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
MOST_BLOCKS = 1000
WITHOUT_HUB = "connect to the hub, or give a folder with config.json and model.safetensors: transformers:PATH"


def load_transformers(spec: str) -> tuple[nn.Module, Preprocessing | None, str]:
    """The model behind "transformers:PATH" or "transformers:OWNER/NAME", in float32; its preprocessing; its full name.

    Raises:
        BackboneError: transformers is not installed; nothing there, or not reached; another kind of model; weights that
            are missing, do not fit or are no safetensors.
    """
    if find_spec("transformers") is None:
        raise BackboneError(f"{spec} needs transformers", remedy="pip install 'viapt[transformers]'")
    place = spec.removeprefix(PREFIX)
    local = Path(place).is_dir() or place.startswith(("/", ".", "~"))
    folder = Path(place).expanduser().absolute() if local else from_hub(place)
    kind = kind_of(folder)
    check_weights(folder)
    model = read_model(folder, kind)
    processor = folder / "preprocessor_config.json"
    preprocessing = read_preprocessing(processor, kind) if processor.is_file() else None
    return model, preprocessing, f"{PREFIX}{folder}" if local else spec


def from_hub(repository: str) -> Path:
    """A repository's files in the hub's cache; what is not there yet is downloaded, pickles never.

    Raises:
        BackboneError: no such name, or it is neither in the cache nor can be downloaded.
    """
    try:
        cached = Path(snapshot_download(repository, allow_patterns=WANTED, local_files_only=True))
        if (cached / "config.json").is_file() and any(cached.glob("*.safetensors")):
            return cached
    except HFValidationError as error:
        raise BackboneError(
            f"{repository!r} is neither a folder nor the name of a repository", expected=f"{PREFIX}PATH or OWNER/NAME"
        ) from error
    except Exception:  # it is not in the cache; the kinds differ between versions of the client
        cached = None
    check_hub(repository, WITHOUT_HUB)
    try:
        return Path(snapshot_download(repository, allow_patterns=WANTED))
    except Exception as error:  # of the hub's client, or of the disk
        raise BackboneError(
            f"{repository} cannot be loaded from the hub ({type(error).__name__}: {error})", remedy=WITHOUT_HUB
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file of bounded size.

    Raises:
        BackboneError: there is no such file, or something else in it.
    """
    if not path.is_file():
        raise BackboneError(f"There is no {path}", expected="a folder as transformers' save_pretrained writes it")
    if path.stat().st_size > CONFIG_LIMIT:
        raise BackboneError(f"{path} has {path.stat().st_size} bytes", expected=f"at most {CONFIG_LIMIT}")
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BackboneError(f"{path} is no JSON ({error!r})") from error
    if not isinstance(values, dict):
        raise BackboneError(f"{path} holds a {type(values).__name__}", expected="a JSON object")
    return values


def kind_of(folder: Path) -> str:
    """The name of the family of the model in a folder.

    Raises:
        BackboneError: none that is known.
    """
    found = read_json(folder / "config.json").get("model_type")
    kind = TOWERS.get(found, found) if isinstance(found, str) else None
    if kind not in FAMILIES:
        raise BackboneError(f"{folder} holds a model of the kind {found!r}", expected=SUPPORTED)
    return kind


def check_weights(folder: Path) -> None:
    """Find out whether there are safetensors, and bound what their parser will allocate.

    Raises:
        BackboneError: there are none, or one is damaged.
    """
    found = list(folder.glob("*.safetensors"))
    for path in found:
        with refusing(path, BackboneError), path.open("rb") as file:
            check_header(file.read(8), path.stat().st_size)
    if found:
        return
    pickles = [path.name for path in folder.glob("*") if path.suffix in PICKLES]
    raise BackboneError(
        f"There is no safetensors file in {folder}"
        + (f"; {', '.join(pickles)} may be pickles, which are never opened" * bool(pickles)),
        expected="model.safetensors",
        remedy=CONVERT if pickles else "",
    )


def read_model(folder: Path, kind: str) -> nn.Module:
    """The model, with every weight from the files.

    Raises:
        BackboneError: see `load_transformers`.
    """
    import transformers

    model_class = getattr(transformers, FAMILIES[kind].model)
    try:
        settings = model_class.config_class.from_pretrained(folder, local_files_only=True)
        choice = {"add_pooling_layer": FAMILIES[kind].feature == "pooled"}
        options: dict[str, bool] = choice if "add_pooling_layer" in signature(model_class).parameters else {}
        check_described(partial(model_class, settings, **options), settings.num_hidden_layers, folder)
        reading: Any = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
        with quiet():
            model, report = model_class.from_pretrained(folder, config=settings, **reading, **options)
    except BackboneError:
        raise
    except Exception as error:  # whatever transformers says of configurations and weights that do not fit
        raise BackboneError(f"transformers cannot load {folder} ({type(error).__name__}: {error})") from error
    if missing := sorted(report["missing_keys"]):
        raise BackboneError(
            f"The weights in {folder} do not fit its configuration (missing: {shortened(missing)})",
            expected=f"the weights of a {model_class.__name__}",
        )
    return model.float()


def check_described(build: Callable[[], nn.Module], depth: Any, folder: Path) -> None:
    """Refuse a configuration that describes more than the files hold, before memory is allocated.

    Raises:
        BackboneError: with both numbers.
    """
    if not isinstance(depth, int) or not 0 < depth <= MOST_BLOCKS:
        raise BackboneError(f"{folder} describes {depth!r} blocks", expected=f"1 to {MOST_BLOCKS}")
    with torch.device("meta"):
        described = sum(p.numel() for p in build().parameters())
    held = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if described > held:
        raise BackboneError(f"{folder} describes {described} weights", expected=f"no more than its {held} bytes hold")


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and its lists of weights that are not used (text parts, classifiers)."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def read_preprocessing(path: Path, kind: str) -> Preprocessing:
    """What an image processor of transformers does, in the terms of `Preprocessing`; what it leaves open is usual.

    Raises:
        BackboneError: it does something else.
    """
    values, usual = read_json(path), FAMILIES[kind].preprocessing
    try:
        resized, mode = resized_to(values["size"], values)
        shown = resized_to(values["crop_size"], values)[0] if values.get("do_center_crop") else resized
        if mode == "center" and not values.get("do_center_crop"):
            raise ValueError("the short side is set and nothing is cropped: images of several sizes")
        if shown[0] * resized[1] != shown[1] * resized[0]:
            raise ValueError(f"a crop of another shape ({shown}) than the image's ({resized})")
        if not values.get("do_rescale", True) or abs(values.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-3:
            raise ValueError("images are not scaled to [0, 1]")
        normalised = values.get("do_normalize", True)
        return Preprocessing(
            image_size=shown,
            mean=tuple(values.get("image_mean", usual.mean)) if normalised else (0.0, 0.0, 0.0),
            std=tuple(values.get("image_std", usual.std)) if normalised else (1.0, 1.0, 1.0),
            interpolation=FILTERS[values["resample"]] if "resample" in values else usual.interpolation,
            crop_pct=shown[0] / resized[0],
            crop_mode=mode,
        )
    except (KeyError, ValueError, TypeError, ZeroDivisionError, BackboneError) as error:
        raise BackboneError(
            f"{path} describes images that cannot be made here ({error!r})",
            expected="size, optionally a centre crop of the same shape, mean and standard deviation",
        ) from error


def resized_to(size: Any, values: dict[str, Any]) -> tuple[tuple[int, int], str]:
    """(height, width) of an image processor's size, and whether both sides are set ("squash") or the short one."""
    if isinstance(size, int):  # of an older version, in which CLIP alone meant the short side
        processor = values.get("image_processor_type") or values.get("feature_extractor_type") or ""
        return (size, size), "center" if processor.startswith("CLIP") else "squash"
    if "shortest_edge" in size:
        return pair(size["shortest_edge"]), "center"
    return (int(size["height"]), int(size["width"])), "squash"
