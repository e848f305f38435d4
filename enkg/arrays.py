"""Arrays as users give them, as tensors that nobody else holds."""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def tensor(value: Any, dtype: torch.dtype | None = None) -> Tensor:
    """A copy of a number, sequence, NumPy array (any strides, any byte order) or tensor.

    dtype: None keeps float32 and float64 and makes float64 of all other numbers but bool.
    """
    if isinstance(value, Tensor):
        out = value.detach().clone()
    else:
        array = np.asarray(value)
        if array.dtype.kind == "f" and array.dtype.itemsize == 4:
            out = torch.from_numpy(np.array(array, dtype=np.float32))
        else:
            kind = np.bool_ if array.dtype.kind == "b" else np.float64
            out = torch.from_numpy(np.array(array, dtype=kind))
    if dtype is None and out.dtype not in (torch.float32, torch.bool):
        dtype = torch.float64
    return out if dtype is None else out.to(dtype)


def rows(x: Tensor) -> Tensor:
    """Members as rows, (J, *X) to (J, d); a member may be a single number."""
    return x.reshape(len(x), -1)
