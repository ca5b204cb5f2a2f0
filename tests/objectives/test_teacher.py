from __future__ import annotations

import copy

import torch
from torch import nn

from limbeck.objectives.teacher import fingerprint


def test_fingerprint_follows_every_byte_name_shape_and_dtype() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))  # a buffer and a tensor without dimensions too
    same = copy.deepcopy(model)
    assert fingerprint(model) == fingerprint(same)
    marks = {fingerprint(model), fingerprint(copy.deepcopy(model).bfloat16()), fingerprint(nn.Sequential(model))}
    with torch.no_grad():
        same[0].weight[1, 2] += 1e-6
    marks.add(fingerprint(same))
    turned = copy.deepcopy(model)
    turned[0].weight = nn.Parameter(model[0].weight.detach().reshape(3, 4))
    marks.add(fingerprint(turned))
    assert len(marks) == 5
