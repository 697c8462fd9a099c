"""One of two processes that evaluate together; run by test_evaluate_ranks.py with its rank, a folder and the data."""

import sys
from dataclasses import fields, replace
from pathlib import Path

import torch
from hand_copy import shake
from torch import distributed

import mmzoo
from mmzoo.apps.evaluate import evaluate
from mmzoo.errors import ZooError
from mmzoo.models.albef import ALBEFVQA, ALBEFVQAConfig
from mmzoo.processing.processor import Processor
from mmzoo.towers.reader import ReaderConfig


def tiny(name):
    torch.manual_seed(0)
    model = shake(mmzoo.create_model(name), seed=3)
    return model, mmzoo.create_processor(model)


def answerer():
    config = mmzoo.get_config("albef-tiny")
    parts = {f.name: getattr(config, f.name) for f in fields(ReaderConfig)}
    text = config.text
    decoder = replace(text, depth=2, cross_layers=(0, 1), cross_width=text.width, causal=True)
    torch.manual_seed(0)
    model = shake(ALBEFVQA(ALBEFVQAConfig(**parts, decoder=decoder)).eval(), seed=4)
    return model, Processor.of(model.config)


def reports(data: Path, out: Path):
    """Numbers of each task, and what is said where only one process meets a fault."""
    found = {
        "two stages": evaluate("retrieval", tiny("albef-tiny"), data, rerank=3, device="cpu"),
        "every pair": evaluate("retrieval", tiny("vilt-tiny"), data, limit=5, device="cpu"),
        "vqa": evaluate(
            "vqa", answerer(), "easy-vqa", split="val", limit=21, predictions=out, batch_size=4, device="cpu"
        ),
    }
    plain = {
        name: {
            "numbers": {key: tuple(measure) for key, measure in result.numbers.items()},
            "data": result.data,
            "protocol": result.protocol,
            "broken": [tuple(item) for item in result.broken],
        }
        for name, result in found.items()
    }
    model, processor = tiny("albef-tiny")
    images = processor.images

    def failing(pictures):
        if any(picture.size == (41, 40) for picture in pictures):  # the last picture: of the last process
            raise ZooError("the last picture is bad.")
        return images(pictures)

    processor.images = failing
    try:
        evaluate("retrieval", (model, processor), data, device="cpu")
    except ZooError as error:
        plain["said"] = str(error)
    return plain


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save(reports(Path(sys.argv[3]), folder / "answers.json"), folder / f"rank{rank}.pt")
    distributed.destroy_process_group()
