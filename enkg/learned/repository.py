"""Where diffusers' models are: a folder, or a name on the hub."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from enkg.errors import InputError
from enkg.learned.weights import PICKLES, first_line, refused


@dataclass(frozen=True)
class Repository:
    """A folder of models, or the name of one on the hub."""

    source: str | Path

    @property
    def folder(self) -> Path | None:
        folder = Path(self.source).expanduser()
        if folder.is_dir():
            return folder
        name = str(self.source)
        if isinstance(self.source, Path) or name[:1] in "/.~" or name.count("/") != 1:
            raise InputError(
                f"there is no folder {self.source}, and it is no name on the hub (owner/model)"
            )
        return None

    def find(self, kind: Any, places: Sequence[str]) -> tuple[str, dict[str, Any]]:
        """The first of these sub-folders ("" is the top) that holds a configuration of this kind,
        and what it says."""
        looked = " or ".join(f"{where}/{kind.config_name}".lstrip("/") for where in places)
        if self.folder is not None:
            for where in places:
                path = self.folder / where / kind.config_name
                if path.is_file():
                    return where, _configuration(path)
            raise InputError(f"the folder {self.source} has no {looked}.")
        errors: list[Exception] = []
        for where in places:
            try:
                return where, kind.load_config(str(self.source), subfolder=where or None)
            except Exception as error:
                errors.append(error)
        raise InputError(
            f"{self.source} is no folder here, and {looked} could not be had from the hub: is the "
            f"name right, and the network up? ({first_line(errors[-1])})"
        ) from errors[-1]

    def model(self, kind: Any, where: str, allow_pickle: bool) -> nn.Module:
        """The network in this sub-folder, all its weights loaded, in evaluation mode."""
        place: dict[str, Any] = {}
        if self.folder is None:
            path, safe = str(self.source), None if allow_pickle else True
            place["subfolder"] = where or None
        else:
            path = str(self.folder / where)
            safe = _is_safe(Path(path), allow_pickle)
        try:
            model, told = kind.from_pretrained(
                path,
                use_safetensors=safe,
                low_cpu_mem_usage=False,
                output_loading_info=True,
                **place,
            )
        except Exception as error:
            advice = "" if self.folder else " (a pickle on the hub needs allow_pickle=True)"
            raise InputError(
                f"diffusers could not load {path}{advice}: {first_line(error)}"
            ) from error
        absent = [*told["missing_keys"], *told["mismatched_keys"]]
        if absent:
            raise InputError(
                f"the weights of {path} lack {len(absent)} of the network's tensors, {absent[0]} "
                "among them; are weights and config.json of the same network?"
            )
        return model.eval()


def _configuration(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is no JSON file: {error}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} holds a {type(config).__name__}; expected a configuration")
    return config


def _is_safe(folder: Path, allow_pickle: bool) -> bool:
    """Whether the weights in the folder are of safetensors."""
    names = sorted(path for path in folder.iterdir() if path.is_file())
    if any(".safetensors" in path.suffixes for path in names):
        return True
    pickles = [path for path in names if path.suffix in PICKLES]
    if not pickles:
        raise InputError(f"{folder} holds no weights (diffusion_pytorch_model.safetensors)")
    if not allow_pickle:
        raise InputError(refused(pickles[0]))
    return False
