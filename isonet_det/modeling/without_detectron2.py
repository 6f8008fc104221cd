"""The few layers that a network takes from Detectron2, for where it is not installed: the same
names, arguments and parameters."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d as _FrozenBatchNorm2d

_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "GN": lambda channels: nn.GroupNorm(32, channels),
}


class Backbone(nn.Module):
    """A network whose maps have names."""

    size_divisibility = 0


class CNNBlockBase(nn.Module):
    """A part of a network, with what it does to the shape."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride


class Conv2d(nn.Conv2d):
    """A convolution and its norm."""

    def __init__(self, *args, norm: nn.Module | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x if self.norm is None else self.norm(x)


class FrozenBatchNorm2d(_FrozenBatchNorm2d):
    """torchvision's, and the conversion of what is to be frozen."""

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps)
        self.running_var -= eps  # Detectron2's starts as the identity

    @classmethod
    def convert_frozen_batchnorm(cls, module: nn.Module) -> nn.Module:
        """Replace every BatchNorm inside ``module``, in place."""
        for name, child in module.named_children():
            if isinstance(child, (nn.BatchNorm2d, nn.SyncBatchNorm)):
                frozen = cls(child.num_features, child.eps)
                frozen.load_state_dict(child.state_dict(), strict=False)
                setattr(module, name, frozen)
            else:
                cls.convert_frozen_batchnorm(child)
        return module


@dataclass
class ShapeSpec:
    """Channels and stride of a map."""

    channels: int | None = None
    height: int | None = None
    width: int | None = None
    stride: int | None = None


def get_norm(norm: str, out_channels: int) -> nn.Module | None:
    """The norm of that name; None for ""."""
    if not norm:
        return None
    return FrozenBatchNorm2d(out_channels) if norm == "FrozenBN" else _NORMS[norm](out_channels)
