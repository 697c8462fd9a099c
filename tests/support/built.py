"""What a command line builds, up to the moment of running, in no memory and without weights that are not here."""

import functools

import mmzoo
from mmzoo.cli.zoo_cli import ZooCLI
from mmzoo.interchange import meta_model
from mmzoo.lit import base, tasks
from mmzoo.paths import find_weights
from mmzoo.start import start_parts
from mmzoo.zoo import FAMILIES, family_of


def build(monkeypatch, *words):
    """Model, data and trainer of `mmzoo fit` with these words.

    Parameters are on the meta device; a start from files that do not exist, as recipes have it, is left out.
    """
    built = {}

    class Look(ZooCLI):
        def _run_subcommand(self, subcommand):
            built.update(model=self.model, data=self.datamodule, trainer=self.trainer)

    def there(start):
        return {part: path for part, path in start.items() if find_weights(path).exists()}

    monkeypatch.setattr(base, "create_model", functools.partial(mmzoo.create_model, device="meta"))
    monkeypatch.setattr(base, "start_parts", lambda model, start: start_parts(model, there(start)))
    # nothing can be compared on the meta device, as growing does
    monkeypatch.setattr(
        tasks, "grown", lambda model, config: meta_model(FAMILIES[family_of(config)], config).eval()
    )
    Look(["fit", *words])
    return built
