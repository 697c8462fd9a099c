import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def unit():
    """Make (n, width) unit-length float64 rows from a seed."""

    def make(n, width=24, seed=0, dtype=torch.float64):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(n, width, dtype=torch.float64, generator=generator)
        return torch.nn.functional.normalize(rows, dim=1).to(dtype)

    return make


@pytest.fixture
def dense():
    """Give the untiled oracles: whole matrices, boolean positives, the defining formulas and nothing else."""
    return Dense


class Dense:
    @staticmethod
    def positive(image_ids, text_ids):
        rows = [set(ids) - {-1} for ids in image_ids.reshape(len(image_ids), -1).tolist()]
        return torch.tensor([[text in row for text in text_ids.tolist()] for row in rows])

    @staticmethod
    def softmax(image, text, scale, positive):
        z = scale * image @ text.T
        total = 0
        for logits, mask in ((z, positive), (z.T, positive.T)):
            with_any = mask.any(1)
            target = mask[with_any].double() / mask[with_any].sum(1, keepdim=True)
            if with_any.any():
                total = total - (target * logits[with_any].log_softmax(1)).sum(1).mean() / 2
        return total

    @staticmethod
    def sigmoid(image, text, scale, bias, positive):
        z = scale * image @ text.T + bias
        return -torch.nn.functional.logsigmoid(torch.where(positive, z, -z)).sum() / len(image)

    @staticmethod
    def accuracies(image, text, positive):
        z = image @ text.T
        right = positive[torch.arange(len(z)), z.argmax(1)], positive[z.argmax(0), torch.arange(z.shape[1])]
        return right[0][positive.any(1)].double().mean(), right[1][positive.any(0)].double().mean()
