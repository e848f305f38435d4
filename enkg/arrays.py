"""Arrays as users give them, as tensors that nobody else holds."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from enkg.errors import InputError


def tensor(value: Any, dtype: torch.dtype | None = None) -> Tensor:
    """A copy, on the CPU, of a number, sequence, NumPy array (any layout) or tensor.

    dtype: None keeps float32 and float64 and makes float64 of all other numbers but bool.
    """
    if isinstance(value, Tensor):
        value = value.detach().cpu().resolve_conj().resolve_neg().numpy()
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise InputError(
            f"numbers of type {array.dtype} were given; expected real ones. Complex data go in as "
            "real and imaginary parts"
        )
    if array.dtype.kind == "f" and array.dtype.itemsize == 4:
        kind: type = np.float32
    else:
        kind = np.bool_ if array.dtype.kind == "b" else np.float64
    out = torch.from_numpy(np.array(array, dtype=kind))
    return out if dtype is None else out.to(dtype)


def rows(x: Tensor) -> Tensor:
    """Members as rows, (J, *X) to (J, d); a member may be a single number."""
    return x.reshape(len(x), math.prod(x.shape[1:]))  # -1 cannot be told where there are no members
