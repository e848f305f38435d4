"""Checkpoints: where a run stands, on the disk, whole or not at all.

    000012/              after step 12
        rank-0003.zarr   rows of rank 3's members: one array for each name
        ours.zarr        arrays that are the same for all ranks
        meta.json        all else, and the checksums; written last

Each rank writes its own rows, and any number of ranks can read them. The folder is made under
another name and renamed once everything is in it, so a run may be killed at any moment. The last
two are kept: where the newest is damaged, the one before it is used.
"""

import dataclasses
import json
import logging
import os
import re
import shutil
import typing
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import zarr
from numpy import ndarray
from torch import Tensor
from zarr.codecs import Crc32cCodec

from enkg.comm import Comm, once, share, together
from enkg.errors import InputError, StoreError
from enkg.guidance import State

log = logging.getLogger("enkg")

FORMAT = 1
"""Version of what is written here."""
KEPT = 2
"""Checkpoints that stay."""
CHUNK = 1 << 26
"""Bytes of an array in one file, about."""
META, OURS, PARTIAL = "meta.json", "ours.zarr", ".partial"
NAME = re.compile(r"\d{6,}")

S = TypeVar("S", bound=State)


class DamagedError(Exception):
    """A checkpoint cannot be used; says why."""


class Checkpoints:
    """The checkpoints of a run, for all its ranks. Both methods are collective.

    folder: made with the first checkpoint. Cost: one write of what is given.
    """

    def __init__(self, folder: Path, comm: Comm) -> None:
        self.folder, self.comm = folder, comm

    def save(self, number: int, mine: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
        """Keeps what a run needs to go on after step `number`.

        mine: tensors or arrays with a row for each member of this rank. ours: what is the same on
        all ranks: tensors, arrays, numbers, text, None, and lists, tuples and mappings of these;
        rank 0 writes it. Returns False on all ranks, with a warning in the log, if the disk refused
        it; then nothing is left of it. Raises InputError for what cannot be kept.
        """
        comm, partial = self.comm, self.folder / f"{number:06d}{PARTIAL}"
        held = together(comm, lambda: _Held(mine, ours if comm.rank == 0 else {}))
        trouble = comm.broadcast(_tried(lambda: _clear(partial)) if comm.rank == 0 else None)
        if trouble is None:
            trouble = _tried(lambda: _write(partial / _part(comm.rank), held.mine))
        parts = comm.gather((trouble, held.rows, _about(held.mine)))
        trouble = next((found for found, _, _ in parts if found), None)
        if trouble is None and comm.rank == 0:
            meta = {
                "number": number,
                "rows": [rows for _, rows, _ in parts],
                "mine": [about for _, _, about in parts],
                "arrays": _about(held.arrays),
                "ours": held.ours,
            }
            trouble = _tried(lambda: self._commit(number, partial, held.arrays, meta))
        trouble = comm.broadcast(trouble)
        if comm.rank == 0:
            if trouble is None:
                self._prune(number)
            else:
                log.warning("checkpoint %d cannot be written: %s; going on", number, trouble)
                shutil.rmtree(partial, ignore_errors=True)
        return trouble is None

    def load(self) -> tuple[int, dict[str, Any], dict[str, Any]] | None:
        """Number, `mine` and `ours` of the newest checkpoint that is whole; None where none is.

        Tensors and arrays come back bit for bit, on the CPU. The members are shared anew by
        `enkg.comm.share`, whatever number of ranks wrote them. One that is damaged is left out,
        with a warning in the log. Raises StoreError for one of a later version of enkg.
        """
        for number in once(self.comm, self._numbers):
            try:
                meta = once(self.comm, lambda number=number: self._meta(number))
            except DamagedError as error:
                self._leave_out(number, str(error))
                continue
            mine, ours, trouble = {}, {}, None
            try:
                mine, ours = self._read(number, meta)
            except DamagedError as error:
                trouble = str(error)
            troubles = [found for found in self.comm.gather(trouble) if found]
            if not troubles:
                return number, mine, ours
            self._leave_out(number, troubles[0])
        return None

    def _leave_out(self, number: int, why: str) -> None:
        if self.comm.rank == 0:
            log.warning("checkpoint %d is damaged and left out: %s", number, why)

    def _numbers(self) -> list[int]:
        """Newest first."""
        if not self.folder.is_dir():
            return []
        names = [path.name for path in self.folder.iterdir() if NAME.fullmatch(path.name)]
        return sorted(map(int, names), reverse=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}"

    def _commit(
        self, number: int, partial: Path, arrays: Mapping[str, "_Array"], meta: dict[str, Any]
    ) -> None:
        _write(partial / OURS, arrays)
        text = json.dumps(meta)
        check = zlib.crc32(text.encode())
        with (partial / META).open("w") as file:
            file.write(f'{{"format": {FORMAT}, "crc32": {check}, "content":\n{text}\n}}\n')
            file.flush()
            os.fsync(file.fileno())
        _sync(partial)
        path = self._path(number)
        if path.exists():  # left out as damaged, or of a run that went on from an older one
            shutil.rmtree(path)
        os.replace(partial, path)
        _sync(self.folder)

    def _prune(self, number: int) -> None:
        keep = [n for n in self._numbers() if n <= number][:KEPT]
        for path in self.folder.iterdir():
            if path.name.endswith(PARTIAL) or (
                NAME.fullmatch(path.name) and int(path.name) not in keep
            ):
                shutil.rmtree(path, ignore_errors=True)

    def _meta(self, number: int) -> dict[str, Any]:
        path = self._path(number) / META
        try:
            text = path.read_text()
            frame = json.loads(text)
            version, check, content = frame["format"], frame["crc32"], frame["content"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DamagedError(f"{path} cannot be read ({type(error).__name__}: {error})") from None
        if version > FORMAT:
            raise StoreError(
                f"{path} has format {version}, and this version of enkg reads up to {FORMAT}; go "
                "on with the version of enkg that wrote it"
            )
        if zlib.crc32(text.split("\n")[1].encode()) != check:
            raise DamagedError(f"the checksum of {path} is wrong")
        return content

    def _read(self, number: int, meta: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """What this rank needs."""
        path, counts = self._path(number), meta["rows"]
        own = share(sum(counts), self.comm.size, self.comm.rank)
        parts: list[dict[str, ndarray]] = []
        first = 0
        for rank, count in enumerate(counts):
            low, high = max(own.start - first, 0), min(own.stop - first, count)
            if low < high or (not own and rank == 0):
                part = _load(path / _part(rank), meta["mine"][rank])
                parts.append({name: array[low : max(low, high)] for name, array in part.items()})
            first += count
        mine = {
            name: _given(np.concatenate([part[name] for part in parts]), tag)
            for name, (tag, _) in meta["mine"][0].items()
        }
        shared = _load(path / OURS, meta["arrays"])
        arrays = {name: _given(shared[name], tag) for name, (tag, _) in meta["arrays"].items()}
        return mine, {name: _decoded(value, arrays) for name, value in meta["ours"].items()}


@dataclasses.dataclass(frozen=True)
class _Array:
    """Numbers as they are written, and what they were: an array, or a tensor of some dtype."""

    values: ndarray
    tag: str

    def about(self) -> tuple[str, int]:
        return self.tag, _checksum(self.values)


class _Held:
    """What a rank writes, on the host. Raises InputError for what cannot be kept."""

    def __init__(self, mine: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
        self.mine = {name: _array(value) for name, value in mine.items()}
        rows = {array.values.shape[:1] for array in self.mine.values()}
        if len(rows) > 1 or () in rows:
            raise InputError(
                f"fields of a rank's members have {sorted(rows)} rows; expected one for each member"
            )
        self.rows = rows.pop()[0] if rows else 0
        self.arrays: dict[str, _Array] = {}
        self.ours = {name: self._encoded(value) for name, value in ours.items()}

    def _encoded(self, value: Any) -> Any:
        """As JSON, in which a list is [kind, content]."""
        if isinstance(value, np.generic):
            return value.item()
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Tensor | ndarray):
            name = f"a{len(self.arrays)}"
            self.arrays[name] = _array(value)
            return ["array", name]
        if isinstance(value, list | tuple):
            kind = "list" if isinstance(value, list) else "tuple"
            return [kind, [self._encoded(v) for v in value]]
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return ["dict", {str(key): self._encoded(v) for key, v in value.items()}]
        raise InputError(
            f"a checkpoint cannot keep {value!r}, a {type(value).__name__}; expected tensors, "
            "arrays, numbers, text, None, or lists, tuples and mappings by text of these"
        )


def _decoded(value: Any, arrays: Mapping[str, Any]) -> Any:
    if not isinstance(value, list):
        return value
    kind, content = value
    if kind == "array":
        return arrays[content]
    if kind == "dict":
        return {key: _decoded(v, arrays) for key, v in content.items()}
    found = [_decoded(v, arrays) for v in content]
    return tuple(found) if kind == "tuple" else found


def _array(value: Tensor | ndarray) -> _Array:
    tag = "array"
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        tag = "tensor"
        if value.dtype is torch.bfloat16:  # NumPy has none
            value, tag = value.view(torch.int16), "bfloat16"
        value = value.numpy()
    if value.dtype.kind not in "biufc":
        raise InputError(f"a checkpoint keeps numbers; got an array of {value.dtype}")
    return _Array(value, tag)


def _given(values: ndarray, tag: str) -> Tensor | ndarray:
    if tag == "array":
        return values
    tensor = torch.from_numpy(values)
    return tensor.view(torch.bfloat16) if tag == "bfloat16" else tensor


def _part(rank: int) -> str:
    return f"rank-{rank:04d}.zarr"


def _about(arrays: Mapping[str, _Array]) -> dict[str, tuple[str, int]]:
    return {name: array.about() for name, array in arrays.items()}


def _checksum(values: ndarray) -> int:
    head = f"{values.dtype.str} {values.shape}".encode()
    flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return zlib.crc32(flat.data, zlib.crc32(head))


def _tried(f: Callable[[], None]) -> str | None:
    """What the disk said, if it refused."""
    try:
        f()
    except OSError as error:
        return str(error)
    return None


def _clear(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)


def _write(path: Path, arrays: Mapping[str, _Array]) -> None:
    group = zarr.create_group(path)
    for name, array in arrays.items():
        values = array.values
        rows = max(1, CHUNK // max(1, values.nbytes // max(1, len(np.atleast_1d(values)))))
        chunks = tuple(max(1, n) for n in values.shape)
        target = group.create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=(min(rows, chunks[0]), *chunks[1:]) if chunks else (),
            compressors=[Crc32cCodec()],
            fill_value=0,
            config={"write_empty_chunks": True},  # some versions take -0.0 for 0.0, the empty
        )
        target[...] = values
    for file in path.rglob("*"):
        _sync(file)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _load(path: Path, about: Mapping[str, tuple[str, int]]) -> dict[str, ndarray]:
    found = {}
    for name, (_, check) in about.items():
        try:
            values = np.asarray(zarr.open_array(path / name, mode="r")[...])
        except Exception as error:  # zarr raises anything on a damaged store
            raise DamagedError(f"{path / name}: {type(error).__name__}: {error}") from None
        if _checksum(values) != check:
            raise DamagedError(f"{path / name} is not what was written")
        found[name] = values
    return found


def pack(state: State) -> tuple[dict[str, Any], dict[str, Any]]:
    """A state as `mine` and `ours` of a checkpoint; `comm` is left out."""
    mine, ours = {}, {}
    for field in dataclasses.fields(state):
        value = getattr(state, field.name)
        if field.name in state.sharded:
            mine[field.name] = np.array(value, np.int64) if isinstance(value, tuple) else value
        elif field.name != "comm":
            ours[field.name] = _as_mapping(value)
    return mine, ours


def unpack(kind: type[S], mine: Mapping[str, Any], ours: Mapping[str, Any], comm: Comm) -> S:
    """The state that was packed, its tensors on the CPU. Raises StoreError if its fields are not
    those of this kind of state."""
    values: dict[str, Any] = dict(ours)
    for name, value in mine.items():
        values[name] = tuple(value.tolist()) if isinstance(value, ndarray) else value
    return _made(kind, values | {"comm": comm})


def _as_mapping(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _as_mapping(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value


def _made(kind: type, values: Mapping[str, Any]) -> Any:
    fields = {field.name for field in dataclasses.fields(kind)}
    if fields != set(values):
        raise StoreError(
            f"the checkpoint has the fields {sorted(values)}, but {kind.__name__} has "
            f"{sorted(fields)}; go on with the version of enkg that wrote it, or begin anew"
        )
    hints = typing.get_type_hints(kind)
    made = {}
    for name, value in values.items():
        kinds = [k for k in (hints[name], *typing.get_args(hints[name])) if isinstance(k, type)]
        nested = [k for k in kinds if dataclasses.is_dataclass(k)]
        if typing.get_origin(hints[name]) is tuple and isinstance(value, list):
            value = tuple(value)  # noqa: PLW2901
        made[name] = _made(nested[0], value) if nested and isinstance(value, Mapping) else value
    return kind(**made)
