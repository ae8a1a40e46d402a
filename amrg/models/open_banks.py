"""Opening of the banks of an artefact for retrieval on this rank."""

from pathlib import Path

from amrg import distributed
from amrg.banks.bank import REPORTS, VISUAL, MemoryBank
from amrg.config import Config
from amrg.data.labels import LABELS
from amrg.errors import UserError
from amrg.models.memory_layer import AnyBank, LocalBank
from amrg.retrieval.indexed_bank import IndexedBank, IndexKind
from amrg.retrieval.layout import ShardLayout, hybrid_group
from amrg.retrieval.sharded_bank import ShardedBank

#: Folder of saved indexes, beside the artefacts of a run: an artefact does not change once it is made.
INDEXES = ".indexes"


def open_banks(config: Config, folder: Path, batch_size: int) -> tuple[AnyBank, AnyBank]:
    """Open the visual and the report bank of a banks artefact, complete or sharded according to ``sharding``.

    Args:
        config: ``sharding`` and ``memory`` are read.
        folder: a banks artefact.
        batch_size: studies per retrieval of a rank.
    """
    visual, reports = (MemoryBank.open(folder / name) for name in (VISUAL, REPORTS))
    sharding, kind = config.sharding, config.memory.index
    if kind != "exact":
        refuse_sharded_index(config)
        saved = folder.parent / INDEXES
        first, second = (_indexed(b, kind, saved / f"{folder.name}-{b.folder.name}-{kind}") for b in (visual, reports))
        return first, second
    if distributed.world_size() == 1:
        return _local(visual), _local(reports)
    layout = ShardLayout(
        None if sharding.ranks_per_replica is None else hybrid_group(sharding.ranks_per_replica),
        sharding.ranks_per_node,
    )
    queries = batch_size * len(LABELS) * config.memory.heads
    sharded = (
        ShardedBank.open(
            bank,
            layout,
            device=distributed.device(),
            strategy=sharding.strategy,
            replicate_below_bytes=sharding.replicate_below_bytes,
            queries=queries,
        )
        for bank in (visual, reports)
    )
    return next(sharded), next(sharded)


def _indexed(bank: MemoryBank, kind: IndexKind, saved: Path) -> IndexedBank:
    """Open a bank with its index; the first rank builds and saves the index if it is not there yet."""
    if distributed.rank():
        distributed.barrier()
    opened = IndexedBank(
        bank.load(), scale=bank.scale(0, len(bank)), group=bank.groups, kind=kind,
        saved=saved, content_hash=bank.content_hash,
    )  # fmt: skip
    if not distributed.rank():
        distributed.barrier()
    return opened


def _local(bank: MemoryBank) -> LocalBank:
    return LocalBank(bank.load(), bank.scale(0, len(bank)), bank.groups)


def refuse_sharded_index(config: Config) -> None:
    """Raise UserError if a bank with an index is to be sharded."""
    kind, strategy = config.memory.index, config.sharding.strategy
    if kind != "exact" and strategy in ("gather", "ring"):
        raise UserError(f"memory.index {kind} reads a bank that each rank holds whole: sharding.strategy replicate")
