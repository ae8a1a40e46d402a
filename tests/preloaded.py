"""What processes of tests import, imported once: the server of ``tests.processes`` imports this module."""

import gc
import importlib

from amrg.training.deepspeed_internals import import_deepspeed

import_deepspeed()  # silently, before another package does
for name in (
    "amrg.cli", "amrg.pipeline", "amrg.commands.plan", "amrg.commands.write", "amrg.commands.doctor",
    "amrg.data.shards", "amrg.training.stage1", "amrg.mining.build_banks", "amrg.training.stage2",
    "amrg.inference.generate", "amrg.evaluation.evaluate",
    "torch._dynamo", "deepspeed.runtime.zero.muon.muon_optimizer",  # what each training imports when it starts
):  # fmt: skip
    importlib.import_module(name)
gc.freeze()  # no process looks through what was imported
