"""Opening of the banks of an artefact for retrieval on this rank."""

from pathlib import Path

from amrg import distributed
from amrg.banks.bank import REPORTS, VISUAL, MemoryBank
from amrg.config import Config
from amrg.data.labels import LABELS
from amrg.errors import UserError
from amrg.models.memory_layer import AnyBank, LocalBank
from amrg.retrieval.indexed_bank import IndexedBank, IndexKind
from amrg.retrieval.layout import ShardLayout, hybrid_replica_group
from amrg.retrieval.sharded_bank import ShardedBank

#: Folder of saved indexes, beside the artefacts of a run: an artefact does not change once it is made.
INDEXES = ".indexes"


def open_memory_banks(config: Config, folder: Path, batch_size: int) -> tuple[AnyBank, AnyBank]:
    """Open the visual and the report bank of a banks artefact, complete or sharded according to ``sharding``.

    Args:
        config: ``sharding`` and ``memory`` are read.
        folder: a banks artefact.
        batch_size: studies per retrieval of a rank.
    """
    visual, reports = (MemoryBank.open(folder / name) for name in (VISUAL, REPORTS))
    sharding, kind = config.sharding, config.memory.index
    saved = {bank: folder.parent / INDEXES / f"{folder.name}-{bank.folder.name}-{kind}" for bank in (visual, reports)}
    shards_index = sharding.strategy == "gather" and distributed.world_size() > 1
    if kind != "exact":
        refuse_ring_of_indexes(config)
        if not shards_index:
            return _indexed(visual, kind, saved[visual]), _indexed(reports, kind, saved[reports])
    if distributed.world_size() == 1:
        return _local(visual), _local(reports)
    layout = ShardLayout(
        None if sharding.ranks_per_replica is None else hybrid_replica_group(sharding.ranks_per_replica),
        sharding.ranks_per_node,
    )
    queries = batch_size * len(LABELS) * config.memory.heads
    sharded = (
        ShardedBank.open(
            bank,
            layout,
            device=distributed.local_device(),
            strategy=sharding.strategy,
            replicate_below_bytes=sharding.replicate_below_bytes,
            queries=queries,
            kind=None if kind == "exact" else kind,
            saved=saved[bank],
        )
        for bank in (visual, reports)
    )
    return next(sharded), next(sharded)


def _indexed(bank: MemoryBank, kind: IndexKind, saved: Path) -> IndexedBank:
    """Open a bank with its index; the first rank builds and saves the index if it is not there yet."""
    if distributed.global_rank():
        distributed.barrier()
    device, scale = distributed.local_device(), bank.scale(0, len(bank))
    opened = IndexedBank(
        bank.load().to(device), scale=None if scale is None else scale.to(device), group=bank.groups.to(device),
        kind=kind, saved=saved, content_hash=bank.content_hash,
    )  # fmt: skip
    if not distributed.global_rank():
        distributed.barrier()
    return opened


def _local(bank: MemoryBank) -> LocalBank:
    return LocalBank(bank.load(), bank.scale(0, len(bank)), bank.groups)


def refuse_ring_of_indexes(config: Config) -> None:
    """Raise UserError if rows are to be passed round that are found by an index."""
    kind, strategy = config.memory.index, config.sharding.strategy
    if kind != "exact" and strategy == "ring":
        raise UserError(f"memory.index {kind} stays where its rows are: sharding.strategy gather or replicate")
