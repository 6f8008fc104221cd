"""Bytes of a weight file to its content, safely: tensors only. Torch only."""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import ISONetError


class _TensorsOnlyUnpickler(pickle.Unpickler):
    """Detectron2's .pkl files hold numpy arrays in plain containers; nothing else is built."""

    _ALLOWED = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy.core.multiarray", "scalar"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "scalar"),
            ("_codecs", "encode"),
            ("collections", "OrderedDict"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name}")
        if module.startswith("numpy._core") and not hasattr(np, "_core"):
            module = module.replace("numpy._core", "numpy.core")  # written by numpy 2
        elif module.startswith("numpy.core") and int(np.__version__.split(".")[0]) >= 2:
            module = module.replace("numpy.core", "numpy._core")
        return super().find_class(module, name)


def _refused(path: Path, what: str) -> ISONetError:
    return ISONetError(
        f"{path} holds more than tensors ({what}) and could run code when read; nothing of it was "
        "run. Take a file of plain weights"
    )


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        match = re.search(r"(?:GLOBAL|Unsupported (?:class|global)) \W?([\w.]+)", str(error))
        if match or "weights_only" in str(error):
            raise _refused(path, match[1] if match else "an object") from error
        raise _broken(path, error) from error
    except Exception as error:  # a broken file raises nearly anything
        raise _broken(path, error) from error


def _broken(path: Path, error: BaseException) -> ISONetError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return ISONetError(
        f"{path} ({path.stat().st_size} bytes) is broken or cut short: {reason}; fetch it again"
    )


def _read_pickle(path: Path) -> Any:
    try:
        with open(path, "rb") as f:
            return _TensorsOnlyUnpickler(f, encoding="latin1").load()
    except pickle.UnpicklingError as error:
        name = str(error)
        if re.fullmatch(r"[\w.]+\.[\w.]+", name):
            raise _refused(path, name) from error
        raise _broken(path, error) from error
    except Exception as error:  # a broken pickle raises nearly anything
        raise _broken(path, error) from error


def read_file(path: str | Path) -> Any:
    """The content of a weight file, whose kind is told by its bytes and never by its name:
    safetensors, torch (zip or legacy) or Detectron2's .pkl.

    Raises:
        ISONetError: missing, empty, a web page, cut short, of another kind, or with anything but
            tensors in it.
    """
    path = Path(path)
    if not path.is_file():
        raise ISONetError(f"weight file {path} not found")
    try:
        with open(path, "rb") as f:
            head = f.read(512)
    except OSError as error:
        raise ISONetError(f"weight file {path} cannot be read: {error.strerror}") from error
    if not head:
        raise ISONetError(f"weight file {path} is empty; fetch it again")
    if head.lstrip()[:1] == b"<":
        raise ISONetError(
            f"{path} is a web page, not a weight file: a download was refused; fetch it by hand"
        )
    if head[8:9] == b"{":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise _broken(path, error) from error
    # torch's legacy format starts with its magic number as a pickle.
    legacy = b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19" in head[:32]
    if zipfile.is_zipfile(path) or head[:2] == b"PK" or legacy:
        return _read_torch(path)
    if head[:1] == b"\x80":
        return _read_pickle(path)
    raise ISONetError(
        f"{path} is no weight file that is known (safetensors, torch, or Detectron2's .pkl)"
    )
