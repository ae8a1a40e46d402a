"""Private names of torch that the package uses, as read in torch 2.14.1."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data._utils.pin_memory import pin_memory

#: Attention on CPUs, which torch's FLOP counter does not know.
CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
CPU_ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

__all__ = [
    "CPU_ATTENTION", "CPU_ATTENTION_BACKWARD", "FakeTensorMode", "TorchDispatchMode", "pin_memory", "tree_leaves",
]  # fmt: skip
