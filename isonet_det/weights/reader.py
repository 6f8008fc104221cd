"""Bytes of a weight file to its content, safely: tensors only. Torch only."""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import ISONetError

# Detectron2's .pkl files hold numpy arrays in plain containers; nothing else is built.
_ALLOWED = (
    "numpy.ndarray",
    "numpy.dtype",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "_codecs.encode",
    "collections.OrderedDict",
)
# How a pickle that torch wrote begins in its legacy format: with its magic number.
_LEGACY = b"\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"


class _TensorsOnlyUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core", "numpy.core")  # numpy 2's name
        if f"{module}.{name}" not in _ALLOWED:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        if module == "numpy.core.multiarray":
            module = np.zeros(0).__reduce__()[0].__module__
        return super().find_class(module, name)


def read_head(path: Path) -> bytes:
    """The first bytes of what can be a weight file."""
    if not path.is_file():
        raise ISONetError(f"weight file {path} not found")
    with open(path, "rb") as f:
        head = f.read(512)
    if not head:
        raise ISONetError(f"weight file {path} is empty; fetch it again")
    if head.startswith(b"version https://git-lfs"):
        raise ISONetError(f"{path} is a pointer of Git LFS, not the file; run git lfs pull")
    if head.lstrip()[:1] == b"<":
        raise ISONetError(f"{path} is a web page (a refused download?); fetch it by hand")
    return head


def read_file(path: str | Path) -> Any:
    """The content of a weight file, told by its bytes; with more than tensors in it, refused."""
    path = Path(path)
    head = read_head(path)
    try:
        if head[8:9] == b"{":
            from safetensors.torch import load_file

            return load_file(path)
        if zipfile.is_zipfile(path):
            names = zipfile.ZipFile(path).namelist()
            if any("/code/" in name for name in names):
                raise ISONetError(f"{path} is a TorchScript program; take its state dict")
            if not any(name.endswith("/data.pkl") and name.count("/") == 1 for name in names):
                raise ISONetError(f"{path} is an archive of other files; unpack it")
        if zipfile.is_zipfile(path) or head[:2] == b"PK" or _LEGACY in head[:32]:
            return torch.load(path, map_location="cpu", weights_only=True)
        if head[:1] == b"\x80":
            with open(path, "rb") as f:
                return _TensorsOnlyUnpickler(f, encoding="latin1").load()
    except (ImportError, ISONetError):
        raise
    except Exception as error:  # a broken file raises nearly anything
        raise _refused_or_broken(path, error) from error
    raise ISONetError(f"{path} is no weight file of safetensors, torch, or Detectron2 (.pkl)")


def _refused_or_broken(path: Path, error: Exception) -> ISONetError:
    match = re.search(r"(?:GLOBAL|Unsupported (?:class|global)) \W?([\w.]+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and (match or "weights_only" in str(error)):
        return ISONetError(
            f"{path} holds more than tensors ({match[1] if match else 'an object'}) and could run "
            "code when read; nothing of it was run. Take a file of plain weights"
        )
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    size = path.stat().st_size
    return ISONetError(f"{path} ({size} bytes) is broken or cut short: {reason}; fetch it again")
