"""Targets of the association loss: the rows of the visual bank that each train study's regions should retrieve.

Shape legend: B studies, Q = 14 labels, N rows of the visual bank.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from amrg import distributed
from amrg.banks.bank import VISUAL, MemoryBank
from amrg.config import Config
from amrg.data.labels import FINDINGS, LABELS, POSITIVE
from amrg.data.shards import hash_study_key
from amrg.data.stream import load_split_studies
from amrg.data.text.statements import find_statements
from amrg.errors import UserError
from amrg.models.detail_heads import detail_values
from amrg.models.retrieval_loss import Wanted


class WantedRows:
    """Rows of the same finding and, if the report names a side or a kind of device, of reports that also name it.

    Args:
        data: a data artefact.
        bank: the visual bank.
        weight: weight of the association loss.
    """

    def __init__(self, data: Path, bank: MemoryBank, weight: float) -> None:
        self.weight, device = weight, distributed.local_device()
        origins = bank.provenance_rows(0, len(bank), ["findings", "source", "text"]).to_pylist()
        filed = [(o["findings"][0] if o["source"] == "region" else "", o["text"] or "") for o in origins]
        details = [_side_and_device(detail_values(find_statements(text), label)) for label, text in filed]
        sets: dict[tuple[str, tuple[str, ...]], int] = {}
        masks: list[list[bool]] = []
        self._set: dict[str, list[int]] = {}
        for study in load_split_studies(data, "train"):
            found, numbers = find_statements(study.report), [-1] * len(LABELS)
            for k, finding in enumerate(FINDINGS):
                if study.labels[finding] != POSITIVE:
                    continue
                key = finding, _side_and_device(detail_values(found, finding))
                if key not in sets:
                    own = [label == finding for label, _ in filed]
                    same = [matches and _same(key[1], detail) for matches, detail in zip(own, details, strict=True)]
                    sets[key] = len(masks) if any(own) else -1
                    masks += [same if any(same) else own] if any(own) else []
                numbers[k] = sets[key]
            self._set[hash_study_key(study.key)] = numbers
        self._rows_ND, self._group_N = bank.dequantized(0, len(bank)).to(device), bank.groups.to(device)
        self._sets_SN = torch.tensor(masks, dtype=torch.bool, device=device).view(-1, len(bank))

    def of(self, keys: Sequence[str]) -> Wanted:
        """Return the wanted rows of the studies with these hashed keys."""
        set_BQ = torch.tensor([self._set[key] for key in keys])
        return Wanted(self._rows_ND, self._group_N, self._sets_SN, set_BQ)


def _side_and_device(values: Mapping[str, str]) -> tuple[str, ...]:
    """Stated side and kind of device; empty strings if not stated."""
    return tuple(values.get(attribute, "") for attribute in ("side", "device"))


def _same(wanted: Sequence[str], stated: Sequence[str]) -> bool:
    return all(not want or want == value for want, value in zip(wanted, stated, strict=True))


def refuse_no_hopfield(config: Config) -> None:
    """Raise UserError if there is an association loss but the visual memory is not a Hopfield network."""
    has_loss = config.stage2.association_loss_weight and config.decoder.use_visual_memory
    if has_loss and config.memory.retrieval != "hopfield":
        raise UserError("stage2.association_loss_weight teaches a Hopfield memory: say memory.retrieval hopfield, or 0")


def wanted_rows_of(config: Config, data: Path, banks: Path) -> WantedRows | None:
    """Build the targets of a run's association loss; None without such a loss.

    Raises:
        UserError: the visual memory is not a Hopfield network.
    """
    weight = config.stage2.association_loss_weight
    if not weight or not config.decoder.use_visual_memory:
        return None
    refuse_no_hopfield(config)
    return WantedRows(data, MemoryBank.open(banks / VISUAL), weight)
