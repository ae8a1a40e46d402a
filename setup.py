"""Packages ``amrg`` and, as ``amrg.kernels``, the top-level folder ``kernels``."""

from setuptools import find_packages, setup

EXTRAS = {
    "demo": ["nibabel>=5.2,<6"],  # reads the CT that the embedded data set is rendered from
    "eval": ["pycocoevalcap>=1.2,<2"],  # reference BLEU, ROUGE-L, METEOR and CIDEr
    "viewer": [  # the HTML page, the plots of benchmarks, the web application
        "jinja2>=3.1,<4",
        "matplotlib>=3.9,<4",
        "starlette>=1,<2",
        "uvicorn>=0.40,<1",
    ],
    "clinical": ["radeval>=2.2,<3"],  # metrics with learned weights: BERTScore, CheXbert, RadGraph, RadCliQ, GREEN
    "search": ["faiss-cpu>=1.10,<2"],  # indexes of banks too large to be read for every query
    "search-gpu": ["faiss-gpu-cu12>=1.10,<2"],  # the same on a GPU, instead of `search`
    "s3": ["s3fs>=2024.6"],  # shards in S3 and what speaks its protocol
    "gs": ["gcsfs>=2024.6"],  # shards in Google Cloud Storage
    "gguf": ["gguf>=0.10,<1"],  # decoders in GGUF files
    "quantized": ["bitsandbytes>=0.46,<1"],  # frozen base weights in 8 or 4 bits (QLoRA)
    "wandb": ["wandb>=0.18,<1"],  # Weights & Biases beside TensorBoard
    "dicom": ["pydicom>=3,<4"],  # radiographs as hospitals store them
    "ray": ["ray[default,train]>=2.60,<3", "psutil>=5.9,<8"],  # many machines: launchers/pipeline.py
    "gpu": ["triton>=3.4,<4"],  # fused kernels (also brought by torch's CUDA build)
    "browser": ["selenium>=4.30,<5"],  # the web application in a real browser (make test-browser)
    "dev": [
        "pytest>=8,<10",
        "pytest-xdist>=3.6,<4",  # two tests at a time: many wait for processes that start
        "hypothesis>=6.100,<7",
        "ruff>=0.9,<1",
        "mypy>=1.13,<3",
        "types-PyYAML",
        "moto[server]>=5,<6",
        "scikit-learn>=1.5,<2",
        "httpx2>=2,<3",
    ],
}

setup(
    name="amrg",
    version="0.1.0",
    description="Chest X-ray report generation with an associative memory, at cluster scale",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["amrg", "amrg.*"]), "amrg.kernels", "amrg.kernels.hopfield"],
    package_data={"amrg.pages": ["*.j2"], "amrg.webapp": ["*.j2", "static/*"]},
    package_dir={"amrg": "amrg", "amrg.kernels": "kernels"},
    install_requires=[
        "torch>=2.9,<3",
        "torchvision>=0.24,<1",
        "timm>=1.0.20,<2",
        "transformers>=5.24,<6",
        "peft>=0.18,<1",
        "deepspeed>=0.18,<1",
        "webdataset>=1.0,<2",
        "safetensors>=0.5,<1",
        "fsspec>=2024.6",
        "sentencepiece>=0.2,<1",
        "pyarrow>=18",
        "pydantic>=2.10,<3",
        "pyyaml>=6,<7",
        "tyro>=1.0,<2",
        "rich>=14,<16",
        "tensorboard>=2.18,<3",
        "scipy>=1.14,<2",
        "pillow>=11",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["amrg = amrg.cli:main"]},
)
