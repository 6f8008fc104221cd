"""What a network is made of, declared once: the config's keys, the reading and the README's table
come from here. Plain Python, so that a config needs no torch."""

from dataclasses import dataclass, field
from typing import Any

from .errors import ISONetError

# Residual blocks of res2 to res5, by depth.
BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
BOTTLENECK_DEPTHS = (50, 101)
STAGE_NAMES = ("res2", "res3", "res4", "res5")
_CHOICES = {
    "activation": ("srelu", "relu"),
    "init": ("delta", "kaiming"),
    "norm": ("", "BN", "FrozenBN", "SyncBN", "GN"),
}


def _option(default: Any, meaning: str) -> Any:
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True)
class ISONetOptions:
    """What the paper varies between its networks; the defaults are R-ISONet.

    Every field is a config key, ``MODEL.ISONET`` and the name in capitals, with its meaning in the
    README's table.

    * Convolutions have a bias with "relu" and no norm only, as in the authors' code: SReLU's b
      takes the bias' place.
    * ``init`` "delta" leaves the stem at PyTorch's default, "kaiming" is for all convolutions.
    * With "BN", ReLU, "kaiming" and no scalars this is the ResNet that the paper compares with;
      where there are skip connections the last scale of a branch starts at 0, as in the authors'
      code.

    Raises:
        ISONetError: an unknown choice, or a norm together with residual scalars.
    """

    residual: bool = _option(True, "R-ISONet; False: ISONet, without skip connections")
    activation: str = _option("srelu", 'or "relu"')
    srelu_bias: float = _option(-1.0, "initial value of SReLU's b")
    srelu_learnable: bool = _option(True, "whether b is trained")
    init: str = _option("delta", 'or "kaiming"; matters only for what no checkpoint fills')
    res_multiplier: float = _option(0.0, "initial value of the residual scalars")
    has_res_multiplier: bool = _option(True, "whether residual branches have a scalar")
    norm: str = _option(
        "",
        'after every convolution: none, or "BN", "FrozenBN", "SyncBN", "GN" (the paper\'s ResNets)',
    )

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                names = ", ".join(f'"{choice}"' for choice in choices)
                raise ISONetError(f"{name} is one of {names}, not {value!r}")
        if self.norm and self.residual and self.has_res_multiplier:
            raise ISONetError(
                f"norm {self.norm} and a scalar per branch exclude each other: its scale is one "
                "already; set has_res_multiplier False"
            )

    @property
    def conv_bias(self) -> bool:
        """Whether convolutions have a bias."""
        return self.activation == "relu" and not self.norm
