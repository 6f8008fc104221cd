"""Hugging Face transformers 5: the networks through AutoBackbone, and the penalty in ``loss``."""

from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput

from ..modeling.family import STAGE_NAMES
from ..modeling.isonet import ISONet
from ..regularizer.loss import orthogonality_penalty


class ISONetConfig(BackboneConfigMixin, PreTrainedConfig):
    """An R-ISONet; images are RGB of ImageNet's mean and standard deviation."""

    model_type = "isonet"
    depth: int = 50
    freeze_at: int = 0
    stage_names: list[str] | None = None
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.stage_names = ["stem", *STAGE_NAMES]
        features = kwargs.pop("out_features", None), kwargs.pop("out_indices", None)
        self.set_output_features_output_indices(*features)
        super().__post_init__(**kwargs)


class ISONetBackbone(BackboneMixin, PreTrainedModel):
    """An R-ISONet for any ``backbone_config``; ``isonet_det.load_backbone`` fills it."""

    config_class = ISONetConfig
    main_input_name = "pixel_values"

    def __init__(self, config: ISONetConfig) -> None:
        super().__init__(config)
        self.network = ISONet(
            config.depth, out_features=config.out_features, freeze_at=config.freeze_at
        )
        wide = 4 if config.depth >= 50 else 1
        self.num_features = [64] + [wide * 64 * 2**i for i in range(4)]
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Delta initialization stays."""

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BackboneOutput:
        """(N, 3, H, W) to the maps of ``out_features``."""
        return BackboneOutput(feature_maps=tuple(self.network(pixel_values).values()))


def add_penalty_to_loss(model: PreTrainedModel, coeff: float) -> RemovableHandle:
    """Add the penalty to a model's ``loss`` and ``loss_dict`` in training."""

    def add(module: nn.Module, inputs: Any, output: Any) -> None:
        if module.training and getattr(output, "loss", None) is not None:
            penalty = coeff * orthogonality_penalty(module)
            output["loss"] = output.loss + penalty
            if getattr(output, "loss_dict", None) is not None:
                output.loss_dict["loss_ortho"] = penalty

    return model.register_forward_hook(add)


AutoConfig.register("isonet", ISONetConfig)
AutoBackbone.register(ISONetConfig, ISONetBackbone)
