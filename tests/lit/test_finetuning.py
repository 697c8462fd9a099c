"""Training that starts from weights: whose weights, which head, which bias."""

from __future__ import annotations

import pytest
import torch

import mmzoo
import mmzoo.lit.base
from mmzoo.errors import UsageError
from mmzoo.lit import LitCLIP, LitViT
from mmzoo.models.clip import CLIP
from mmzoo.models.vit import ViT


def test_own_classes_get_a_new_head_on_the_files_body(toys, tmp_path):
    torch.manual_seed(1)
    donor = ViT(toys.vit())
    torch.nn.init.normal_(donor.head.weight)
    mmzoo.save(donor, tmp_path)
    module = LitViT(toys.vit(), pretrained=str(tmp_path), classes=3)
    assert module.model.config.classes == 3
    assert module.model.head.weight.shape == (3, 16)
    assert not module.model.head.weight.any()
    assert torch.equal(module.model.vision.pos, donor.vision.pos)
    kept = LitViT(toys.vit(), pretrained=str(tmp_path), classes=4)
    assert torch.equal(kept.model.head.weight, donor.head.weight)


def test_a_tag_is_looked_up_for_the_name_that_was_asked_for(toys, monkeypatch):
    asked = []
    monkeypatch.setattr(
        mmzoo.lit.base, "create_model", lambda name, **rest: asked.append((name, rest)) or ViT(toys.vit())
    )
    LitViT("vit-b16-224", pretrained="augreg_in21k", classes=3)
    assert asked == [("vit-b16-224", {"pretrained": "augreg_in21k"})]
    with pytest.raises(UsageError, match="a tag belongs to a model's name"):
        LitViT(toys.vit(), pretrained="augreg_in21k")


def test_softmax_weights_go_on_with_the_sigmoid_loss(toys, tmp_path):
    torch.manual_seed(1)
    donor = CLIP(toys.clip())
    mmzoo.save(donor, tmp_path)
    module = LitCLIP(toys.clip(), pretrained=str(tmp_path), loss="sigmoid")
    assert module.model.logit_bias.item() == -10.0
    assert module.model.scale.item() == pytest.approx(10.0)
    assert torch.equal(module.model.vision_proj.weight, donor.vision_proj.weight)
    assert "logit_bias" in dict(module.model.named_parameters())
    again = CLIP(module.model.config)  # the config knows the bias, so what is saved loads again
    again.load_state_dict(module.model.state_dict(), strict=True)


def test_the_mean_over_processes_weighs_every_labelled_row_alike(toys, monkeypatch):
    """Three rows here, one there, one of them unlabelled: the average of both losses is the mean over all rows."""
    from mmzoo import dist

    module = LitViT(toys.vit(), label_smoothing=0.1)
    logits, labels = torch.randn(4, 4), torch.tensor([1, -1, 0, 3])
    whole = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-1, label_smoothing=0.1)
    monkeypatch.setattr(dist, "world", lambda: 2)
    monkeypatch.setattr(dist, "sum_over_ranks", lambda count: torch.tensor(3.0))
    parts = [module._entropy(logits[:3], labels[:3]), module._entropy(logits[3:], labels[3:])]
    torch.testing.assert_close(sum(parts) / 2, whole)
    alone = module._entropy(logits[1:2], labels[1:2])  # no labelled row: nothing, not NaN
    assert alone.item() == 0.0
