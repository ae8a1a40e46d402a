"""Metrics with learned weights as radeval 2.2.1 computes them: their names there, and the files that each loads.

Repositories, files and folders were read from the sources of radeval 2.2.1 (``metrics/*/adapter.py``,
``metrics/f1chexbert/f1chexbert.py``, ``metrics/radgraph/_vendor/core.py``, ``metrics/RadCliQv1/radcliq.py``); sizes and
licenses from the repositories' pages on the hub.
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

#: Parts of a repository that consist of several files.
MODEL, TOKENIZER = "model", "configuration and tokenizer"

#: Files of the top folder that transformers loads. GREEN's include code for its tokenizer, which radeval executes.
_SMALL = ("*.json", "*.txt", "*.model", "*.py")
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True)
class Weights:
    """Files to load from one repository of the Hugging Face hub.

    Attributes:
        repository: its name in radeval's spelling, which is also that of its cache folder.
        part: a file name, ``MODEL`` or ``TOKENIZER``.
        size: size of the part; empty if unknown.
        license: license of the repository; empty if unknown.
        own_cache: radeval's folder in the user's cache folder; None for the hub's cache.
    """

    repository: str
    part: str = MODEL
    size: str = ""
    license: str = ""
    own_cache: str | None = None

    @property
    def place(self) -> str:
        """Folder that radeval reads, as text for any machine."""
        return "HF_HOME/hub" if self.own_cache is None else f"~/.cache/{self.own_cache}"

    @property
    def folder(self) -> Path:
        """Folder that radeval reads on this machine."""
        if self.own_cache is None:
            return Path(constants.HF_HUB_CACHE)
        # the same folder as appdirs.user_cache_dir on Linux
        return Path(os.getenv("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))) / self.own_cache

    @property
    def there(self) -> bool:
        """Whether all files of the part are on this machine."""
        found = self._cached("config.json" if self.part in (MODEL, TOKENIZER) else self.part)
        if found is None or self.part not in (MODEL, TOKENIZER):
            return found is not None
        if self.part == TOKENIZER:
            return not tokenizer_faults(found.parent, self.repository)
        return not folder_faults(found.parent, self.repository, pickles=True)

    def wanted(self, listed: Iterable[str]) -> list[str]:
        """Select the part's files from a listing. Weights come last, so that an incomplete download stays missing."""
        if self.part not in (MODEL, TOKENIZER):
            return [self.part]
        top = [name for name in listed if "/" not in name]
        chosen = [name for name in top if any(fnmatch(name, pattern) for pattern in _SMALL)]
        if self.part == MODEL:
            kinds = ([name for name in top if fnmatch(name, pattern)] for pattern in _WEIGHTS)
            chosen += next((names for names in kinds if names), [])
        return chosen

    def encoders(self) -> "list[Weights]":
        """Encoders that a downloaded RadGraph archive names; the archive holds their weights itself."""
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
        return []  # radeval reports the unreadable archive


@dataclass(frozen=True)
class Scorer:
    """A metric of radeval.

    Attributes:
        name: its name in radeval.
        weights: files that it loads.
        scores: radeval's name → our name, for scores that are means over studies.
        note: definition of the number, for the reader.
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

#: Metrics by our name.
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


def files_of_metrics(metrics: Iterable[str]) -> list[Weights]:
    """Files that the metrics load, once each, with the encoders that downloaded RadGraph archives name."""
    direct = [weights for metric in metrics for weights in SCORERS[metric].weights]
    return list(dict.fromkeys(one for weights in direct for one in (weights, *weights.encoders())))


def missing_metric_files(metrics: Sequence[str]) -> list[Weights]:
    """Files of ``files_of_metrics`` that are not on this machine."""
    return [weights for weights in files_of_metrics(metrics) if not weights.there]


def weights_table() -> list[list[str]]:
    """Rows of the documentation's table: metric, repository, part, cache folder, size, license."""
    rows = []
    for metric, scorer in SCORERS.items():
        for weights in scorer.weights:
            rows.append([metric, weights.repository, weights.part, weights.place, weights.size, weights.license])
            if weights.part.endswith(".tar.gz"):
                rows.append([metric, "the encoder that the archive names", TOKENIZER, "HF_HOME/hub", "", ""])
    return rows
