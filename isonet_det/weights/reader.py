"""Reading the authors', torchvision's and our own weight files. Torch only, tensors only."""

import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import IsonetError

StateDict = dict[str, Tensor]

# Each table turns another program's names into ours, one substitution after the other. The
# first pattern of a table tells whose names they are.
_AUTHORS = (
    (r"^s(\d)\.b(\d+)\.", lambda m: f"res{int(m[1]) + 1}.{int(m[2]) - 1}."),
    (r"(^|\.)proj\.", r"\1shortcut."),
    (r"\.f\.shared_scalar\.scale$", ".res_multiplier"),
    (r"\.f\.([abc])_relu\.", lambda m: f".activation{' abc'.index(m[1])}."),
    (r"\.f\.([abc])\.", lambda m: f".conv{' abc'.index(m[1])}."),
    (r"(^stem|\.\d+)\.relu\.", r"\1.activation."),
    (r"^head\.fc\.", "linear."),
)
_TORCHVISION = (
    (r"^layer(\d)\.", lambda m: f"res{int(m[1]) + 1}."),
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"^fc\.", "linear."),
)
_DEPTHS = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
}
_IN_HEAD = re.compile(r".*roi_heads\.(res5\..*)")
_IGNORED = "num_batches_tracked"  # what a BatchNorm counts


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a weight file, under Detectron2's names.

    Attributes:
        state: name to tensor; backbone names start with "stem." and "res2." in an ImageNet file
            and have a prefix such as "backbone.bottom_up." in a detector's.
        source: whose names the file had: "authors", "torchvision" or "detectron2".
        classes: id and name of each that a detector predicts, where the file says.
    """

    state: StateDict
    source: str
    classes: list[dict[str, Any]] | None = None

    @property
    def prefix(self) -> str | None:
        """What stands before "stem." in the backbone's names; None without a backbone."""
        return _backbone_prefix(self.state)

    @property
    def network(self) -> str:
        """Such as "R-ISONet-50", "ResNet-34" or "no ISONet or ResNet"."""
        return describe_network(self.state)

    @property
    def num_classes(self) -> int | None:
        """Of its classifier; None without one."""
        bias = self.state.get(f"{self.prefix}linear.bias")
        return None if bias is None else len(bias)

    def without_classifier(self) -> "Checkpoint":
        """The same tensors but the classifier's."""
        linear = f"{self.prefix}linear."
        state = {n: t for n, t in self.state.items() if not n.startswith(linear)}
        return Checkpoint(state, self.source)


def _backbone_prefix(names: Mapping[str, Any]) -> str | None:
    for name in names:
        match = re.match(r"((?:.*\.)?)stem\.conv1?\.weight$", name)
        if match:
            return match[1]
    return None


def describe_network(state: Mapping[str, Any]) -> str:
    """Name the backbone whose parameters are in ``state``, under Detectron2's names, with the parts
    that set it apart from R-ISONet, ISONet and ResNet."""
    prefix = _backbone_prefix(state)
    if prefix is None:
        return "no ISONet or ResNet"
    names = [name[len(prefix) :] for name in state if name.startswith(prefix)]
    blocks = []
    for stage in range(2, 6):
        indices = {m[1] for n in names if (m := re.match(rf"res{stage}\.(\d+)\.", n))}
        blocks.append(len(indices))
    bottleneck = any(".conv3." in n for n in names)
    candidates = [
        depth
        for (wide, full), depth in _DEPTHS.items()
        if wide == bottleneck and all(b in (0, f) for b, f in zip(blocks, full, strict=True))
    ]
    depth = "-" + "/".join(map(str, candidates)) if candidates else f" with blocks {blocks}"
    norm = any(".norm." in n for n in names)
    scalars = any(n.endswith("res_multiplier") for n in names)
    skips = scalars or any(".shortcut." in n for n in names)
    srelu = any(n.endswith("srelu_bias") for n in names)
    if skips and not scalars:
        parts = [" with SReLU"] * srelu + [" without BatchNorm"] * (not norm)
        return f"ResNet{depth}{''.join(parts)}"
    parts = [" without SReLU"] * (not srelu) + [" with BatchNorm"] * norm
    return f"{'R-' if scalars else ''}ISONet{depth}{''.join(parts)}"


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


def _refused(path: Path, what: str) -> IsonetError:
    return IsonetError(
        f"{path} holds more than tensors ({what}) and could run code when read; nothing of it was "
        "run. Take a file of plain weights"
    )


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|Unsupported (?:class|global)) \W?([\w.]+)", str(error))
        if found or "weights_only" in str(error):
            raise _refused(path, found[1] if found else "an object") from error
        raise _broken(path, error) from error
    except Exception as error:  # a broken file raises nearly anything
        raise _broken(path, error) from error


def _broken(path: Path, error: BaseException) -> IsonetError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return IsonetError(
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
        IsonetError: missing, empty, a web page, cut short, of another kind, or with anything but
            tensors in it.
    """
    path = Path(path)
    if not path.is_file():
        raise IsonetError(f"weight file {path} is not there")
    try:
        with open(path, "rb") as f:
            head = f.read(512)
    except OSError as error:
        raise IsonetError(f"weight file {path} cannot be read: {error.strerror}") from error
    if not head:
        raise IsonetError(f"weight file {path} is empty; fetch it again")
    if head.lstrip()[:1] == b"<":
        raise IsonetError(
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
    raise IsonetError(
        f"{path} is no weight file that is known (safetensors, torch, or Detectron2's .pkl)"
    )


def _tensors(content: Any, path: str) -> StateDict:
    for key in ("net", "model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise IsonetError(f"{path} holds a {type(content).__name__}, not names and tensors")
    state: StateDict = {}
    for name, value in content.items():
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value)
        if isinstance(name, str) and isinstance(value, Tensor):
            state[name] = value
    if not state:
        raise IsonetError(f"{path} holds no named tensors")
    return state


def _rename(state: StateDict, table) -> StateDict:
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in table:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def parse_checkpoint(content: Any, path: str = "the checkpoint") -> Checkpoint:
    """Bring the content of a weight file (:func:`read_file`) or a state dict to our names.

    Takes the authors' flat state dict and their training snapshot (under "net"), torchvision's
    ResNets, and Detectron2's or our own checkpoints (under "model" or flat).

    Raises:
        IsonetError: there are no named tensors in it.
    """
    state = _tensors(content, path)
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    state = {name: t for name, t in state.items() if not name.endswith(_IGNORED)}
    for source, table in (("authors", _AUTHORS), ("torchvision", _TORCHVISION)):
        if any(re.match(table[0][0], name) for name in state):
            return Checkpoint(_rename(state, table), source)
    return Checkpoint(state, "detectron2")


def read_checkpoint(path: str | Path) -> Checkpoint:
    """:func:`read_file` and :func:`parse_checkpoint`."""
    return parse_checkpoint(read_file(path), str(path))


def _some(names: list[str]) -> str:
    return f"{len(names)}, first {names[0]}" if names else "none"


def _backbone_names(names: Iterable[str], prefix: str) -> dict[str, str]:
    """Names of a backbone's parameters, without the prefix, to the full names. An FPN's own
    layers, which may have the same prefix, are not among them. A ResNet of ours and of
    Detectron2's differ in the name of the stem's convolution."""
    part = re.compile(r"(stem|res[2-5]|linear)\.")
    return {
        re.sub(r"^stem\.conv1\.", "stem.conv.", n.removeprefix(prefix)): n
        for n in names
        if n.startswith(prefix) and part.match(n, len(prefix)) and not n.endswith(_IGNORED)
    }


def _backbone_and_head_names(names: Iterable[str], prefix: str) -> dict[str, str]:
    """The same, with the res5 that a C4 detector has in its head."""
    names = list(names)
    in_head = {match[1]: n for n in names if (match := _IN_HEAD.match(n))}
    return {**in_head, **_backbone_names(names, prefix)}


def load_backbone(
    module: nn.Module, source: str | Path | Mapping[str, Any] | Checkpoint
) -> list[str]:
    """Fill the backbone in ``module`` (plain, inside an FPN or inside a detector), strictly.

    Every parameter and buffer of the backbone must be in the checkpoint with its shape, and
    nothing else of a backbone may be in it, save stages that the module does not build. A
    classifier may be absent, or extra. Nothing is changed when an error is raised.

    Args:
        module: has one ISONet or Detectron2 ResNet in it.
        source: a weight file, a state dict under anybody's names, or a parsed checkpoint.

    Returns:
        the names, in ``module``, of what was filled.

    Raises:
        IsonetError: the checkpoint does not fit; the message says how.
    """
    where = str(source) if isinstance(source, (str, Path)) else "the checkpoint"
    if isinstance(source, (str, Path)):
        source = read_checkpoint(source)
    elif not isinstance(source, Checkpoint):
        source = parse_checkpoint(source)
    own = module.state_dict()
    prefix = _backbone_prefix(own)
    if prefix is None:
        raise IsonetError(f"{type(module).__name__} holds no ISONet or ResNet to be filled")
    if source.prefix is None:
        first = next(iter(source.state))
        raise IsonetError(f"{where} holds no ISONet or ResNet: its first name is {first}")
    wanted = _backbone_and_head_names(own, prefix)
    stages = {name.split(".")[0] for name in wanted}
    there = _backbone_and_head_names(source.state, source.prefix)
    found = {name: full for name, full in there.items() if name.split(".")[0] in stages}
    missing = [n for n in wanted if n not in found and not n.startswith("linear.")]
    extra = [n for n in found if n not in wanted]
    have, want = source.network, describe_network(own)
    reason = f"the checkpoint is {have}, the config asks for {want}; " if have != want else ""
    if missing or extra:
        raise IsonetError(
            f"{where} does not fit: {reason}missing names: {_some(missing)}; unexpected names: "
            f"{_some(extra)}"
        )
    pairs = {n: (own[full], source.state[found[n]]) for n, full in wanted.items() if n in found}
    wrong = [n for n, (mine, theirs) in pairs.items() if mine.shape != theirs.shape]
    if wrong:
        mine, theirs = pairs[wrong[0]]
        raise IsonetError(
            f"{where} does not fit: {reason}{wrong[0]} has shape {tuple(theirs.shape)}, expected "
            f"{tuple(mine.shape)} ({len(wrong)} of {len(pairs)} differ)"
        )
    with torch.no_grad():
        for mine, theirs in pairs.values():
            mine.copy_(theirs)
    return [wanted[n] for n in pairs]
