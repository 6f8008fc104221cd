"""The dilated ResNet of two-convolution blocks: the baseline of the paper's Table 6."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.resnet import BasicBlock, ResNet, build_resnet_backbone


class DilatedBasicBlock(BasicBlock):
    """Detectron2's basic block (ResNet-18 and 34) with dilated 3x3 convolutions."""

    def __init__(self, in_channels, out_channels, *, stride=1, norm="BN", dilation: int = 1):
        super().__init__(in_channels, out_channels, stride=stride, norm=norm)
        for conv in (self.conv1, self.conv2):
            conv.dilation = conv.padding = (dilation, dilation)


@BACKBONE_REGISTRY.register()
def build_dilated_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Detectron2's ResNet, also with ``RES5_DILATION`` 2 at depth 18 and 34, which its own builder
    refuses: the baseline of the paper's Table 6."""
    dilation = cfg.MODEL.RESNETS.RES5_DILATION
    if cfg.MODEL.RESNETS.DEPTH not in (18, 34) or dilation == 1:
        return build_resnet_backbone(cfg, input_shape)
    plain = cfg.clone()
    plain.defrost()
    plain.MODEL.RESNETS.RES5_DILATION = 1
    plain.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    net = build_resnet_backbone(plain, input_shape)
    stages = [list(getattr(net, name)) for name in net.stage_names]
    res5 = stages[-1]
    stages[-1] = ResNet.make_stage(
        DilatedBasicBlock,
        len(res5),
        in_channels=res5[0].in_channels,
        out_channels=res5[0].out_channels,
        norm=cfg.MODEL.RESNETS.NORM,
        stride=1,
        dilation=dilation,
    )
    return ResNet(
        net.stem,
        stages,
        out_features=cfg.MODEL.RESNETS.OUT_FEATURES,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )
