import pytest
import torch

pytest.importorskip("transformers", minversion="5.0")
from support import authors_state
from transformers import DetrConfig, DetrForObjectDetection

from isonet_det import ISONet, load_backbone, orthogonality_penalty
from isonet_det.integrations.huggingface import ISONetConfig, add_penalty_to_loss


def test_it_takes_the_authors_file_has_the_penalty_and_comes_back_from_a_folder(tmp_path):
    backbone = ISONetConfig(depth=18, out_features=["res2", "res3", "res4", "res5"])
    detr = DetrForObjectDetection(DetrConfig(
        backbone_config=backbone, use_timm_backbone=False, d_model=64, encoder_layers=1,
        decoder_layers=1, encoder_ffn_dim=64, decoder_ffn_dim=64, encoder_attention_heads=4,
        decoder_attention_heads=4, num_queries=8, num_labels=4, dropout=0.0,
    ))  # fmt: skip
    labels = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.3, 0.3]])}
    data = {"pixel_values": torch.rand(2, 3, 64, 64), "labels": [labels] * 2}
    assert orthogonality_penalty(detr) == 0
    state = authors_state(ISONet(18))
    assert len(load_backbone(detr, state)) == len([n for n in state if not n.startswith("fc")])
    for p in detr.parameters():
        p.data += 0.01 * torch.randn_like(p)
    plain = detr.train()(**data).loss
    add_penalty_to_loss(detr, 1e-2)
    output = detr(**data)
    expected = 1e-2 * orthogonality_penalty(detr)
    torch.testing.assert_close(output.loss - plain, expected, rtol=1e-3, atol=1e-4)
    assert output.loss_dict["loss_ortho"] == expected and expected > 1e-3
    output.loss.backward()
    assert detr.model.backbone.model.network.res2[0].conv1.weight.grad.abs().sum() > 0
    assert torch.isclose(detr.eval()(**data).loss, plain, rtol=1e-3)
    detr.save_pretrained(tmp_path)
    other = DetrForObjectDetection.from_pretrained(tmp_path)
    for name, value in detr.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
