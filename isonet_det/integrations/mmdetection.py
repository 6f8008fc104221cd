"""mmdetection 3: the networks as a backbone, their weights, and the penalty of a run."""

from collections.abc import Sequence
from typing import Any

from mmdet.registry import MODELS
from mmengine.hooks import Hook
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import HOOKS, OPTIM_WRAPPER_CONSTRUCTORS
from torch import Tensor

from ..modeling.isonet import ISONet
from ..regularizer.loss import add_orthogonal_loss
from ..solver.param_groups import split_param_groups
from ..weights.loader import load_backbone


@MODELS.register_module()
class RISONet(ISONet):
    """R-ISONet with mmdetection's arguments; ``checkpoint`` is loaded strictly."""

    def __init__(
        self,
        depth: int,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        checkpoint: str = "",
        init_cfg: Any = None,
    ) -> None:
        features = [f"res{i + 2}" for i in out_indices]
        super().__init__(depth, out_features=features, freeze_at=frozen_stages + 1)
        self.checkpoint = checkpoint

    def init_weights(self) -> None:
        if self.checkpoint:
            load_backbone(self, self.checkpoint)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(super().forward(x).values())


@HOOKS.register_module()
class OrthogonalLossHook(Hook):
    """``custom_hooks = [dict(type="OrthogonalLossHook", coeff=1e-4)]`` adds ``loss_ortho``."""

    def __init__(self, coeff: float) -> None:
        self.coeff = coeff

    def before_train(self, runner: Any) -> None:
        add_orthogonal_loss(runner.model, self.coeff)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ISONetOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's groups, split by the authors' rules."""

    def __call__(self, model: Any) -> Any:
        wrapper = super().__call__(model)
        split_param_groups(wrapper.optimizer, getattr(model, "module", model))
        return wrapper
