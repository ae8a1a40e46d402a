"""The metrics with learned weights, as radeval 2.2.1 computes them: their names there, and the files that each loads.

Repositories, files and folders were read from the sources of radeval 2.2.1 (``metrics/*/adapter.py``,
``metrics/f1chexbert/f1chexbert.py``, ``metrics/radgraph/_vendor/core.py``, ``metrics/RadCliQv1/radcliq.py``); sizes and
licences from the repositories' pages on the hub.
"""

import json
import os
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache

from amrg.model_files import folder_faults, tokenizer_faults

#: What is loaded of a repository, where it is no single file.
MODEL, TOKENIZER = "model", "configuration and tokenizer"

#: Files of the top folder that transformers loads; GREEN's hold code for its tokenizer, which radeval lets run.
_SMALL = ("*.json", "*.txt", "*.model", "*.py")
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class Weights:
    """What is loaded from a repository of the Hugging Face hub.

    Attributes:
        repository: as radeval spells it, for so its folder in the cache is called.
        part: a file, ``MODEL`` or ``TOKENIZER``.
        size, licence: of the part, of the repository; empty where they are not known.
        own_cache: the folder in the user's cache folder where radeval looks; None: it looks in the hub's cache.
    """

    repository: str
    part: str = MODEL
    size: str = ""
    licence: str = ""
    own_cache: str | None = None

    @property
    def place(self) -> str:
        """Where radeval looks, whatever the machine."""
        return "HF_HOME/hub" if self.own_cache is None else f"~/.cache/{self.own_cache}"

    @property
    def folder(self) -> Path:
        """Where radeval looks on this machine."""
        if self.own_cache is None:
            return Path(constants.HF_HUB_CACHE)
        # as appdirs.user_cache_dir has it on Linux
        return Path(os.getenv("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))) / self.own_cache

    @property
    def there(self) -> bool:
        """Whether all of it is on this machine."""
        found = self._cached("config.json" if self.part in (MODEL, TOKENIZER) else self.part)
        if found is None or self.part not in (MODEL, TOKENIZER):
            return found is not None
        if self.part == TOKENIZER:
            return not tokenizer_faults(found.parent, self.repository)
        return not folder_faults(found.parent, self.repository, pickles=True)

    def wanted(self, listed: Iterable[str]) -> list[str]:
        """Which of the repository's files make it, those with weights last: while they lack, it is not there."""
        if self.part not in (MODEL, TOKENIZER):
            return [self.part]
        top = [name for name in listed if "/" not in name]
        chosen = [name for name in top if any(fnmatch(name, pattern) for pattern in _SMALL)]
        if self.part == MODEL:
            kinds = ([name for name in top if fnmatch(name, pattern)] for pattern in _WEIGHTS)
            chosen += next((names for names in kinds if names), [])
        return chosen

    def encoders(self) -> "list[Weights]":
        """What a RadGraph archive that is there names: the encoders, whose weights it holds itself."""
        found = self._cached(self.part) if self.part.endswith(".tar.gz") else None
        return [] if found is None else [Weights(name, TOKENIZER) for name in _encoders(found)]

    def _cached(self, file: str) -> Path | None:
        found = try_to_load_from_cache(self.repository, file, cache_dir=self.folder)
        return Path(found) if isinstance(found, str) else None


@cache
def _encoders(archive: Path) -> list[str]:
    try:
        with tarfile.open(archive) as opened:
            member = next((member for member in opened if os.path.normpath(member.name) == "config.json"), None)
            file = member and opened.extractfile(member)
            config = json.load(file) if file else {}
        reader, embedder = config["dataset_reader"]["token_indexers"], config["model"]["embedder"]["token_embedders"]
        return list(dict.fromkeys([reader["bert"]["model_name"], embedder["bert"]["model_name"]]))
    except (tarfile.TarError, OSError, EOFError, ValueError, KeyError, TypeError):
        return []  # radeval will say that it cannot be read


@dataclass(frozen=True)
class Scorer:
    """A metric of radeval.

    Attributes:
        name: radeval's.
        weights: what it loads.
        scores: radeval's name of a score that is a mean over studies → ours.
        note: what its number is.
    """

    name: str
    weights: tuple[Weights, ...]
    scores: dict[str, str] = field(default_factory=dict)
    note: str = ""


def _archive(name: str, size: str) -> Weights:
    return Weights(_RRG, name, size, "MIT", own_cache="radgraph/0.1.18")


_RRG = "StanfordAIMI/RRG_scorers"
_CHEXBERT = (
    Weights(_RRG, "chexbert.pth", "1.31 GB", "MIT", own_cache="chexbert"),
    Weights("bert-base-uncased", TOKENIZER, "0.7 MB", "Apache-2.0"),
)

#: Our name of a metric → what it is.
SCORERS = {
    "BERTScore": Scorer(
        "bertscore",
        (Weights("distilbert-base-uncased", MODEL, "268 MB", "Apache-2.0"),),
        {"bertscore": "BERTScore (distilbert-base-uncased, layer 5)"},
        "F1 of distilbert-base-uncased, layer 5, without idf, rescaled with bert-score's baseline",
    ),
    "CheXbert": Scorer(
        "f1chexbert",
        _CHEXBERT,
        note="F1 of 14 labels and of the five of CheXpert; uncertain counts as present, macro is over all labels",
    ),
    "RadGraph": Scorer(
        "radgraph",
        (_archive("radgraph-xl.tar.gz", "416 MB"),),
        {
            "radgraph_simple": "RadGraph F1 simple",
            "radgraph_partial": "RadGraph F1 partial",
            "radgraph_complete": "RadGraph F1 complete",
        },
        "RadGraph-XL, three levels of reward",
    ),
    "RadCliQ": Scorer(
        "radcliq",
        (
            _archive("radgraph.tar.gz", "432 MB"),
            *_CHEXBERT,
            Weights("distilroberta-base", MODEL, "331 MB", "Apache-2.0"),
        ),
        {"radcliq_v1": "RadCliQ-v1 (lower is better)"},
        "mean of the composite; radeval itself prints one over it",
    ),
    "RaTEScore": Scorer(
        "ratescore",
        (
            Weights("Angelakeke/RaTE-NER-Deberta", MODEL, "735 MB", "MIT"),
            Weights("FremyCompany/BioLORD-2023-C"),
        ),
        {"ratescore": "RaTEScore"},
        "affinity matrix “long”",
    ),
    "GREEN": Scorer(
        "green",
        (Weights("StanfordAIMI/GREEN-radllama2-7b", MODEL, "13.5 GB", "Llama 2"),),
        {"green": "GREEN"},
        "a language model of 7 billion weights: wants a GPU",
    ),
}


def needed(metrics: Iterable[str]) -> list[Weights]:
    """What metrics load, once each, with what the RadGraph archives that are there name."""
    direct = [weights for metric in metrics for weights in SCORERS[metric].weights]
    return list(dict.fromkeys(one for weights in direct for one in (weights, *weights.encoders())))


def missing(metrics: Sequence[str]) -> list[Weights]:
    """What of it is not on this machine."""
    return [weights for weights in needed(metrics) if not weights.there]


def weights_table() -> list[list[str]]:
    """The table of the documentation: metric, repository, part, where it is looked for, size, licence."""
    rows = []
    for metric, scorer in SCORERS.items():
        for weights in scorer.weights:
            rows.append([metric, weights.repository, weights.part, weights.place, weights.size, weights.licence])
            if weights.part.endswith(".tar.gz"):
                rows.append([metric, "the encoder that the archive names", TOKENIZER, "HF_HOME/hub", "", ""])
    return rows
