"""Training steps that are the same on every device."""

import contextlib

import torch
from benchmark import make_step, random_batch
from detectron2.utils.events import EventStorage
from support import PENALTY, small_cfg
from torch import nn

from isonet_det import ISONet, add_orthogonal_loss, build_model
from isonet_det.regularizer.penalty import full_precision

# Every proposal is sampled: devices draw differently.
ALL_SAMPLED = [
    *PENALTY, "SOLVER.BASE_LR", "0.0005", "MODEL.RPN.BATCH_SIZE_PER_IMAGE", "100000",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "100000", "MODEL.RPN.PRE_NMS_TOPK_TRAIN", "100",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN", "50",
]  # fmt: skip


@contextlib.contextmanager
def exact_products():
    """Float32 without TF32, in convolutions too."""
    cudnn = torch.backends.cudnn
    place, name, value = cudnn, "allow_tf32", False
    if hasattr(cudnn, "conv"):  # PyTorch 2.9 and later
        place, name, value = cudnn.conv, "fp32_precision", "ieee"
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        with full_precision():
            yield
    finally:
        setattr(place, name, before)


def relative(values, expected):
    values, expected = (t.detach().double().cpu() for t in (values, expected))
    return ((values - expected).norm() / expected.norm()).item()


def flat(tensors):
    return torch.cat([t.detach().double().cpu().flatten() for t in tensors])


def detector(cfg):
    """A Mask R-CNN away from Delta, the same on every device."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = build_model(cfg)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
            if "res_multiplier" in name:
                parameter.fill_(0.5)
            elif "fpn" in name or parameter.dim() != 4:
                parameter.add_(0.01 * noise)
            elif "srelu" not in name:
                parameter.add_(noise * parameter[0].numel() ** -0.5)
    return model


def three_steps(device, *options):
    """Gradient norms and losses of three training steps of a detector, (3, 1 + losses)."""
    cfg = small_cfg(*ALL_SAMPLED, "MODEL.DEVICE", str(device), *options)
    step = make_step(cfg, detector(cfg), random_batch(2, 96, 128, classes=4))
    with EventStorage() as storage:
        for step.iter in range(3):
            storage.iter = step.iter
            step.run_step()
        step.write_losses()
        histories = {
            name: [value for value, _ in history.values()]
            for name, history in storage.histories().items()
            if name == "grad_norm" or "loss" in name
        }
    return torch.tensor([histories[name] for name in sorted(histories)]).t()


class BackboneOnly(nn.Module):
    """A backbone whose loss is the mean square of its maps: a step without Detectron2's heads."""

    def __init__(self):
        super().__init__()
        self.backbone = ISONet(18, out_features=["res2", "res3"])
        for name, parameter in self.named_parameters():
            if "res_multiplier" in name:
                nn.init.constant_(parameter, 0.5)
        add_orthogonal_loss(self, 1e-2)

    def forward(self, images):
        x = torch.stack([d["image"] for d in images]) / 255
        maps = self.backbone(x.to(self.backbone.stem.conv.weight.device))
        return {"loss_maps": torch.stack([m.square().mean() for m in maps.values()]).sum()}


def backbone_step(device, batch):
    torch.manual_seed(0)
    return make_step(small_cfg("SOLVER.BASE_LR", "0.0005"), BackboneOnly().to(device), batch)
