"""CLIP against open_clip and transformers, which share no code with mmzoo: float64, outputs and gradients."""

from __future__ import annotations

import pytest
import torch
from hand_copy import copy_hf_clip, copy_open_clip, shake
from torch.nn import functional as F

from mmzoo.models.clip import CLIP, VARIANTS, CLIPConfig
from mmzoo.spec import ImageSpec, TextSpec
from mmzoo.towers import VisionConfig
from mmzoo.towers.text import clip_text

pytestmark = pytest.mark.filterwarnings("ignore")

VOCAB, CONTEXT = 60, 12


def _config(act: str, width: int, text_width: int, depth: int, patch: int, size: int) -> CLIPConfig:
    return CLIPConfig(
        VisionConfig(
            image_size=size, patch=patch, width=width, depth=depth, heads=width // 16, hidden=4 * width, norm_eps=1e-5,
            act=act, init="clip", patch_bias=False, pre_norm=True,
        ),
        clip_text(
            vocab=VOCAB, context=CONTEXT, width=text_width, depth=depth, heads=text_width // 16, hidden=4 * text_width,
            act=act,
        ),
        20,
        ImageSpec(size),
        TextSpec("clip", CONTEXT, VOCAB),
    )  # fmt: skip


def _texts() -> torch.Tensor:
    """Rows of start (58), words, end (59, the highest id), zero padding."""
    ids = torch.zeros(4, CONTEXT, dtype=torch.long)
    for row, length in zip(ids, (3, 7, 12, 2), strict=True):
        row[:length] = torch.randint(1, 50, (length,), generator=torch.Generator().manual_seed(length))
        row[0], row[length - 1] = 58, 59
    return ids


def _open_clip(act: str, width: int, text_width: int, depth: int, patch: int, size: int):
    from open_clip.model import CLIP as OpenCLIP  # noqa: N811
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    return OpenCLIP(
        20,
        CLIPVisionCfg(layers=depth, width=width, head_width=16, patch_size=patch, image_size=size),
        CLIPTextCfg(
            context_length=CONTEXT, vocab_size=VOCAB, width=text_width, heads=text_width // 16, layers=depth
        ),
        quick_gelu=act == "quick_gelu",
    )


def _compare(ours: CLIP, image_b, text_b, images, ids, grads) -> None:
    image_a, text_a = ours(images, ids)
    torch.testing.assert_close(image_a, image_b, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(text_a, text_b, rtol=1e-9, atol=1e-9)
    for image, text in ((image_a, text_a), (image_b, text_b)):
        F.cross_entropy(9.0 * image @ text.T, torch.arange(4)).backward()
    for mine, other in grads:
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("shape", [(32, 48, 3, 4, 16), (768, 512, 2, 32, 64)])
def test_equals_open_clip(act, shape):
    torch.manual_seed(0)
    theirs = shake(_open_clip(act, *shape).double().eval())
    ours = CLIP(_config(act, *shape)).double().eval()
    copy_open_clip(ours, theirs)
    images, ids = torch.randn(4, 3, shape[-1], shape[-1], dtype=torch.float64), _texts()
    _compare(
        ours,
        theirs.encode_image(images, normalize=True),
        theirs.encode_text(ids, normalize=True),
        images,
        ids,
        [
            (ours.vision.pos, _Row(theirs)),
            (ours.text.embed.tok.weight, theirs.token_embedding.weight),
            (ours.text.blocks[0].attn.qkv.weight, theirs.transformer.resblocks[0].attn.in_proj_weight),
            (
                ours.vision.blocks[-1].mlp.fc2.weight,
                theirs.visual.transformer.resblocks[-1].mlp.c_proj.weight,
            ),
        ],
    )


class _Row:
    """open_clip's position table seen with a leading axis."""

    def __init__(self, model):
        self.model = model

    @property
    def grad(self):
        return self.model.visual.positional_embedding.grad[None]


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_equals_transformers(act):
    from transformers import CLIPConfig as HFConfig
    from transformers import CLIPModel

    torch.manual_seed(0)
    common = {"num_hidden_layers": 3, "hidden_act": act, "layer_norm_eps": 1e-5}
    hf = CLIPModel(
        HFConfig(
            text_config={
                "vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 192, "num_attention_heads": 3,
                "max_position_embeddings": CONTEXT, "projection_dim": 20, "bos_token_id": 58, "eos_token_id": 59,
                "pad_token_id": 0, **common,
            },
            vision_config={
                "hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 2, "image_size": 16,
                "patch_size": 4, "projection_dim": 20, **common,
            },
            projection_dim=20,
        )
    )  # fmt: skip
    hf = shake(hf.double().eval())
    ours = CLIP(_config(act, 32, 48, 3, 4, 16)).double().eval()
    copy_hf_clip(ours, hf)
    images, ids = torch.randn(4, 3, 16, 16, dtype=torch.float64), _texts()
    out = hf(input_ids=ids, pixel_values=images)
    _compare(
        ours,
        out.image_embeds,
        out.text_embeds,
        images,
        ids,
        [(ours.vision_proj.weight, hf.visual_projection.weight)],
    )


def test_published_b32_equals_open_clip_in_float32():
    import open_clip

    torch.manual_seed(0)
    theirs = open_clip.create_model("ViT-B-32-quickgelu").eval()
    ours = CLIP(VARIANTS["clip-vit-b32"]).eval()
    copy_open_clip(ours, theirs)
    images = torch.randn(2, 3, 224, 224)
    ids = open_clip.get_tokenizer("ViT-B-32")(["a photo of a cat", "two dogs on a beach at sunset"])
    with torch.inference_mode():
        torch.testing.assert_close(
            ours.encode_image(images), theirs.encode_image(images, normalize=True), rtol=0, atol=1e-5
        )
        torch.testing.assert_close(
            ours.encode_text(ids), theirs.encode_text(ids, normalize=True), rtol=0, atol=1e-5
        )


def test_wrong_activation_would_be_seen():
    """QuickGELU and GELU load the same weights; the tolerance above tells them apart."""
    a = shake(CLIP(_config("gelu", 32, 48, 3, 4, 16)).double().eval())
    b = CLIP(_config("quick_gelu", 32, 48, 3, 4, 16)).double().eval()
    b.load_state_dict(a.state_dict())
    assert (a.encode_text(_texts()) - b.encode_text(_texts())).abs().max() > 1e-5
