"""Converting and saving hold about one checkpoint and no more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).resolve().parents[2] / "tools" / "bench_convert_memory.py"


def test_converting_holds_little_more_than_the_checkpoint():
    # at 80 MB the allocator's own slack is a few percent
    done = subprocess.run(
        [sys.executable, TOOL, "--gigabytes", "0.1", "--bar", "1.2"],
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "to mmzoo .safetensors" in done.stdout
    assert "to clip/open_clip .pt" in done.stdout


SAVE = """
import resource, sys
import mmzoo

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

mmzoo.save(mmzoo.create_model("vit-tiny"), sys.argv[1] + "/warm")
model = mmzoo.create_model("vit-s16-224")
before = peak()
mmzoo.save(model, sys.argv[1] + "/own")
print(peak() - before, sum(4 * p.numel() for p in model.parameters()))
"""


def test_saving_holds_no_second_copy_of_the_weights(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SAVE, str(tmp_path)], capture_output=True, text=True, timeout=250, check=True
    )
    more, whole = map(int, done.stdout.split())
    assert whole > 80e6
    assert more < 0.2 * whole
