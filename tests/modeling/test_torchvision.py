import re

import pytest
import torch
from support import REPOSITORY, authors_state, run_command

from isonet_det import ISONet

WITHOUT = "import sys\nsys.modules['detectron2'] = None\n"
USE = """
import torch
from isonet_det import ISONet, ISONetOptions, load_weights, split_param_groups
for norm in ("", "BN", "FrozenBN", "SyncBN", "GN"):
    options = ISONetOptions(norm=norm, has_res_multiplier=False)
    net = ISONet(18, options, out_features=["res2", "res3"], freeze_at=2).eval()
    assert set(net(torch.zeros(1, 3, 64, 64))) == {"res2", "res3"}
net = ISONet(18)
load_weights(net, "weights.pth")
optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=1e-4)
assert len(split_param_groups(optimizer, net).param_groups) == 3
assert not [n for n in sys.modules if n.startswith("detectron2.")]
for name in ("hotcoco", "gdown", "jinja2", "tensorboard", "matplotlib", "safetensors"):
    assert name not in sys.modules, name
"""
STEPS = """
import torch
model.transform.min_size, model.transform.max_size = (64,), 96
masks = torch.zeros(1, 64, 96, dtype=torch.uint8)
masks[:, 5:50, 5:40] = 1
target = {"boxes": torch.tensor([[5.0, 5, 40, 50]]), "labels": torch.tensor([3]), "masks": masks}
losses = model([torch.rand(3, 64, 96)], [target])
sum(losses.values()).backward()
frozen = {n.split(".")[2] for n, p in model.named_parameters() if p.grad is None}
assert frozen == {"stem", "res2"}, frozen
assert len(model.eval()([torch.rand(3, 64, 96)])) == 1
print(losses["loss_ortho"].item())
"""


def test_networks_and_weights_without_detectron2(tmp_path):
    torch.save(authors_state(ISONet(18)), tmp_path / "weights.pth")
    (tmp_path / "run.py").write_text(WITHOUT + USE)
    result = run_command("run.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]


@pytest.mark.slow
def test_torchvisions_mask_rcnn_of_the_docs(tmp_path):
    text = (REPOSITORY / "docs/detectors.md").read_text()
    (program,) = [
        block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "torchvision" in block
    ]
    assert len(program.splitlines()) <= 15
    torch.save(authors_state(ISONet(50, num_classes=10)), tmp_path / "R-ISONet-50-dropout.pth")
    (tmp_path / "run.py").write_text(WITHOUT + program + STEPS)
    result = run_command("run.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    assert float(result.stdout.split()[-1]) > 0
