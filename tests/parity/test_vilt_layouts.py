"""ViLT's files: transformers' own, written by its code, and the authors' names; strictly in, and back."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hand_copy import shake
from safetensors.torch import load_file

import mmzoo
from mmzoo.errors import ZooError
from mmzoo.models.vilt import VARIANTS
from mmzoo.spec import HALF, ImageSpec, TextSpec

pytestmark = pytest.mark.filterwarnings("ignore")

VOCAB, CONTEXT, WIDTH, PATCH, SIDE, ANSWERS = 50, 10, 24, 4, 16, 7


def _config(name: str, **changes):
    base = VARIANTS[name]
    eps = changes.pop("eps", 1e-12)
    vision = replace(
        base.vision, image_size=SIDE, patch=PATCH, width=WIDTH, depth=3, heads=3, hidden=60, norm_eps=eps
    )
    text = replace(base.text, vocab=VOCAB, context=CONTEXT, width=WIDTH, heads=3, hidden=60)
    image = ImageSpec(SIDE, HALF, HALF, fit="aspect", longest=26, multiple=PATCH)
    return replace(
        base, vision=vision, text=text, image=image, text_input=TextSpec("bert", CONTEXT, VOCAB), **changes
    )


def _theirs(kind: str, vocab: int = VOCAB, **changes):
    import transformers

    torch.manual_seed(0)
    config = transformers.ViltConfig(
        vocab_size=vocab, max_position_embeddings=CONTEXT, hidden_size=WIDTH, num_hidden_layers=3,
        num_attention_heads=3, intermediate_size=60, image_size=SIDE, patch_size=PATCH, tie_word_embeddings=False,
        **changes,
    )  # fmt: skip
    model = getattr(transformers, kind)(config).eval()
    if kind == "ViltForMaskedLM":  # untied, as the paper's and as the published files
        decoder = model.mlm_score.decoder
        decoder.weight = torch.nn.Parameter(decoder.weight.detach().clone())
    return shake(model)


def _inputs(pictures: int = 1):
    draw = torch.Generator().manual_seed(1)
    images = torch.randn(pictures, 3, 3, SIDE, SIDE, dtype=torch.float64, generator=draw)
    ids = torch.randint(1, VOCAB, (3, 6), generator=draw)
    keep = torch.arange(6) < torch.tensor([6, 3, 4])[:, None]
    return images, ids * keep, keep


CASES = {
    "ViltForMaskedLM": ("vilt-b32", {"match": False}, {}),
    "ViltForImageAndTextRetrieval": ("vilt-b32", {"match": False, "words": False, "rank": True}, {}),
    "ViltForQuestionAnswering": ("vilt-b32-vqa", {"answers": ANSWERS}, {"num_labels": ANSWERS}),
    "ViltForImagesAndTextClassification": (
        "vilt-b32-nlvr2",
        {},
        {"num_images": 2, "modality_type_vocab_size": 3, "num_labels": 2},
    ),
}


def _outputs(kind: str, ours, theirs):
    images, ids, keep = _inputs(2 if "Images" in kind else 1)
    inputs = {"input_ids": ids, "attention_mask": keep.long()}
    if "Images" in kind:
        pixels = images.transpose(0, 1)
        expected = theirs.double()(**inputs, pixel_values=pixels).logits
        return ours.compare(images[0], images[1], ids, keep), expected
    expected = theirs.double()(**inputs, pixel_values=images[0]).logits
    if kind == "ViltForMaskedLM":
        return ours.word_logits(images[0], ids, keep)[keep], expected[keep]
    if kind == "ViltForQuestionAnswering":
        return ours.answer_logits(images[0], ids, keep), expected
    return ours.match(images[0], ids, keep)[:, 1:], expected


@pytest.mark.parametrize("kind", CASES)
def test_transformers_and_back(kind, tmp_path):
    import transformers

    name, changes, theirs_changes = CASES[kind]
    hf = _theirs(kind, **theirs_changes)
    hf.save_pretrained(tmp_path / "hf")
    variant = _config(name, **changes)
    load = {"config": variant, "pretrained": tmp_path / "hf"}
    ours = mmzoo.create_model(name, **load, dtype=torch.float64)
    got, expected = _outputs(kind, ours, hf)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    mmzoo.save(mmzoo.create_model(name, **load), tmp_path / "own", processor=_processor(variant))
    mmzoo.convert(tmp_path / "own", tmp_path / "back", layout="vilt/transformers")
    back, report = getattr(transformers, kind).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    before, after = (
        load_file(tmp_path / "hf/model.safetensors"),
        load_file(tmp_path / "back/model.safetensors"),
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    torch.testing.assert_close(_outputs(kind, ours, back.eval())[1], expected, rtol=1e-9, atol=1e-9)


def test_the_words_of_answers_come_with_the_config_beside_them(tmp_path):
    """Hub files number their answers in `id2label`; a list that nobody has named is no list."""
    import transformers

    words = ("yes", "no", "2", "red", "blue", "left", "a dog")
    named = {"id2label": dict(enumerate(words)), "label2id": {word: i for i, word in enumerate(words)}}
    variant = _config("vilt-b32-vqa", answers=ANSWERS)
    for folder, told, expected in (("named", named, words), ("bare", {"num_labels": ANSWERS}, None)):
        hf = _theirs("ViltForQuestionAnswering", **told)
        hf.save_pretrained(tmp_path / folder)
        model = mmzoo.create_model("vilt-b32-vqa", config=variant, pretrained=tmp_path / folder)
        assert model.answers == mmzoo.create_processor(model).answers == expected
    other = _config("vilt-b32-vqa", answers=ANSWERS)
    assert (
        mmzoo.create_processor(mmzoo.create_model("vilt-b32-vqa", config=other, device="meta")).answers
        is None
    )
    # a list of another length than the head is somebody else's
    content = json.loads((tmp_path / "named/config.json").read_text())
    del content["id2label"]["6"]
    (tmp_path / "named/config.json").write_text(json.dumps(content))
    model = mmzoo.create_model("vilt-b32-vqa", config=variant, pretrained=tmp_path / "named")
    assert model.answers is None
    assert transformers.ViltConfig.from_pretrained(tmp_path / "bare").id2label[0] == "LABEL_0"


def test_conversion_keeps_the_words_of_answers(tmp_path):
    words = [f"answer {i}" for i in range(ANSWERS)]
    from transformers import (
        BertConfig,
    )  # a vocabulary of the published size, which a processor is written with

    hf = _theirs("ViltForQuestionAnswering", id2label=dict(enumerate(words)), vocab=BertConfig().vocab_size)
    hf.save_pretrained(tmp_path / "hf")
    mmzoo.convert(tmp_path / "hf", tmp_path / "own", layout="mmzoo")
    _, processor = mmzoo.load(tmp_path / "own")
    assert processor.answers == tuple(words)


def _processor(config):
    from tokenizers import Tokenizer as Core
    from tokenizers.models import WordPiece

    from mmzoo.processing.processor import Processor
    from mmzoo.processing.text import Tokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + [f"w{i}" for i in range(VOCAB - 5)]
    core = Core(WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    return Processor(config.image, tokenizer=Tokenizer(core, config.text_input))


def test_a_name_takes_the_heads_and_epsilon_of_the_file(tmp_path):
    """A file of transformers holds no matching head, and says 1e-12 where the authors' code has 1e-6."""
    import transformers

    torch.manual_seed(0)
    config = transformers.ViltConfig(num_hidden_layers=12, hidden_size=768)
    with torch.device("meta"):
        shapes = transformers.ViltForQuestionAnswering(config).state_dict()
    assert shapes["classifier.3.weight"].shape[0] == 2
    hf = _theirs("ViltForQuestionAnswering", num_labels=5)
    hf.save_pretrained(tmp_path / "hf")
    small = _config("vilt-b32-vqa", answers=ANSWERS)
    with pytest.raises(ZooError, match=r"answer_head|classifier"):
        mmzoo.create_model("vilt-b32-vqa", config=small, pretrained=tmp_path / "hf")
    with pytest.raises(
        ZooError, match=r"holds another model of the family \(ViLTVQA\) than vilt-b32 \(ViLT\)"
    ):
        mmzoo.create_model("vilt-b32", config=_config("vilt-b32"), pretrained=tmp_path / "hf")


def _official(model) -> dict[str, torch.Tensor]:
    """The authors' names for our model's tensors, written down by hand."""
    own = model.state_dict()
    names = {
        "vision.cls": "transformer.cls_token",
        "vision.pos": "transformer.pos_embed",
        "vision.patch.proj": "transformer.patch_embed.proj",
        "vision.norm": "transformer.norm",
        "text.embed.tok": "text_embeddings.word_embeddings",
        "text.embed.pos": "text_embeddings.position_embeddings",
        "text.embed.token_type": "text_embeddings.token_type_embeddings",
        "text.embed.norm": "text_embeddings.LayerNorm",
        "modality": "token_type_embeddings",
        "pooler.dense": "pooler.dense",
        "match_head": "itm_score.fc",
        "rank_head": "rank_output",
        "mlm.dense": "mlm_score.transform.dense",
        "mlm.norm": "mlm_score.transform.LayerNorm",
        "mlm.decoder": "mlm_score.decoder",
        "mlm.bias": "mlm_score.bias",
        "answer_head.fc1": "vqa_classifier.0",
        "answer_head.norm": "vqa_classifier.1",
        "answer_head.fc2": "vqa_classifier.3",
        "compare_head.fc1": "nlvr2_classifier.0",
        "compare_head.norm": "nlvr2_classifier.1",
        "compare_head.fc2": "nlvr2_classifier.3",
    }
    blocks = {
        "attn_norm": "norm1", "attn.qkv": "attn.qkv", "attn.out": "attn.proj", "mlp_norm": "norm2",
        "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
    }  # fmt: skip
    out = {}
    for name, tensor in own.items():
        if name.startswith("vision.blocks."):
            _, _, number, rest = name.split(".", 3)
            layer, kind = rest.rsplit(".", 1)
            out[f"transformer.blocks.{number}.{blocks[layer]}.{kind}"] = tensor
        elif name in names:
            out[names[name]] = tensor
        else:
            layer, kind = name.rsplit(".", 1)
            out[f"{names[layer]}.{kind}"] = tensor
    out["text_embeddings.position_ids"] = torch.arange(CONTEXT)[None]
    return out


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("vilt-b32", {}),
        ("vilt-b32", {"words": False, "rank": True}),
        ("vilt-b32-vqa", {"answers": ANSWERS}),
        ("vilt-b32-nlvr2", {}),
    ],
)
def test_the_authors_checkpoints_and_back(name, changes, tmp_path):
    config = _config(name, eps=1e-6, **changes)
    torch.manual_seed(0)
    model = shake(mmzoo.create_model(name, config=config))
    file = _official(model)
    # a Lightning 1.1 checkpoint: weights beside the run's settings
    torch.save(
        {"state_dict": file, "epoch": 3, "hyper_parameters": {"config": {"vit": "x"}}}, tmp_path / "w.ckpt"
    )
    again = mmzoo.create_model(name, config=config, pretrained=tmp_path / "w.ckpt")
    assert again.state_dict().keys() == model.state_dict().keys()
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    mmzoo.save(again, tmp_path / "own", processor=_processor(config))
    back = mmzoo.convert(tmp_path / "own", tmp_path / "back.pth", layout="vilt/official")
    loaded = torch.load(back, weights_only=True)
    file.pop("text_embeddings.position_ids")
    assert loaded.keys() == file.keys()
    assert all(torch.equal(loaded[k], file[k]) for k in file)
