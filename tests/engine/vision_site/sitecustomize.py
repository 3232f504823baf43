"""Found by every Python process with this folder on PYTHONPATH: lets torchvision be imported beside a PyTorch build
that its compiled half does not match. Image processors need its Python half alone, which wants two operators."""

from __future__ import annotations

import sys
from typing import Any


class _Before:
    """Defines the operators when torchvision is about to be imported, and finds nothing."""

    library: Any = None

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "torchvision" and self.library is None:
            import torch

            self.library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                self.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


sys.meta_path.insert(0, _Before())
