import math

import torch

from lmtrain.training.finite import nonfinite_names


def test_only_tensors_with_a_nan_or_an_infinity_are_named():
    tensors = {
        "fine": torch.ones(3),
        "nan": torch.tensor([1.0, math.nan]),
        "inf": torch.tensor([-math.inf], dtype=torch.float64),
        "low": torch.tensor([math.inf], dtype=torch.bfloat16),
        "ids": torch.tensor([1]),
        "empty": torch.empty(0),
    }
    assert nonfinite_names(tensors) == ["nan", "inf", "low"]
