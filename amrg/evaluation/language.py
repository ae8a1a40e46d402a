"""BLEU-1 to 4, ROUGE-L, CIDEr and METEOR against full references, once per study, over the corpus.

The scores are those of ``pycocoevalcap``. Only the tokenizer differs from its COCO pipeline, which needs Java.
"""

import importlib.util
import os
import shutil
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE

import numpy as np

from amrg.data.text.repetition import tokenize_words
from amrg.errors import UserError

#: Stored with every score: scores are comparable only under the same tokenizer.
TOKENIZER = (
    "amrg-2: lower case, plain quotes, hyphens and letters; words and numbers with inner - ' / or decimal point; "
    "all other characters separate"
)


NO_JAVA = "no Java on this machine"
#: METEOR's jar reads numbers with a decimal point and writes them as the country does.
_ENGLISH = ("-Duser.language=en", "-Duser.country=US", "-Duser.language.format=en", "-Duser.country.format=US")

#: Why CIDEr has no value.
NO_CIDER = "undefined: it weighs words by how few references have them, and here all references are equal"


def language_faults() -> list[str]:
    """Return one line per missing requirement of the language metrics."""
    if importlib.util.find_spec("pycocoevalcap"):
        return []
    return ["language metrics need pycocoevalcap: pip install 'amrg[eval]'"]


def meteor_warning() -> str:
    """Return why METEOR will be unavailable; empty if it is available. The other metrics do not need Java."""
    return "" if shutil.which("java") else f"METEOR will be unavailable: {NO_JAVA}"


@dataclass(frozen=True)
class LanguageScores:
    """Per-study terms of the corpus scores, which determine the scores of any resample.

    Attributes:
        bleu_counts: int64 [S, 10]: clipped matches of 1- to 4-grams, generated 1- to 4-grams, generated length,
            reference length.
        rouge_l, cider: float64 [S] per study; the corpus score is the mean. CIDEr is NaN if all references are equal,
            as a single one is: then no word has a weight, and every text would score 0.
        words: mean number of tokens per generated and per reference report.
        empty: number of studies whose generated report has no token; they score 0.
    """

    bleu_counts: np.ndarray
    rouge_l: np.ndarray
    cider: np.ndarray
    words: tuple[float, float]
    empty: int

    def corpus(self, weights_BS: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Return the scores by name, one per row of ``weights_BS`` (counts of the studies; default: 1 each)."""
        weights = np.ones((1, len(self.rouge_l))) if weights_BS is None else weights_BS
        total = weights.sum(1)
        bleu = corpus_bleu_scores(weights @ self.bleu_counts)
        return {
            **{f"BLEU-{n + 1}": bleu[:, n] for n in range(4)},
            "ROUGE-L": weights @ self.rouge_l / total,
            "CIDEr": weights @ self.cider / total,
        }

    def concat(self, other: "LanguageScores") -> "LanguageScores":
        """Concatenate the studies of both; ``words`` and ``empty`` cover both."""
        one, two = len(self.rouge_l), len(other.rouge_l)
        words = [(one * a + two * b) / (one + two) for a, b in zip(self.words, other.words, strict=True)]
        return LanguageScores(
            np.concatenate([self.bleu_counts, other.bleu_counts]),
            np.concatenate([self.rouge_l, other.rouge_l]),
            np.concatenate([self.cider, other.cider]),
            (words[0], words[1]),
            self.empty + other.empty,
        )


def score_language(references: Mapping[str, str], generated: Mapping[str, str]) -> LanguageScores:
    """Score generated reports against the full references.

    Args:
        references, generated: text by study key; the keys must be the same set.

    Raises:
        UserError: the keys differ, there is no study, a reference has no words, or ``pycocoevalcap`` is not installed.
    """
    if not references or references.keys() != generated.keys():
        raise UserError(f"{len(generated)} generated reports for {len(references)} references: one for each is needed")
    try:
        from pycocoevalcap.bleu.bleu_scorer import BleuScorer
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError as error:
        raise UserError(f"language metrics need pycocoevalcap ({error}): pip install 'amrg[eval]'") from None
    keys = sorted(references)
    truth = {k: [" ".join(tokenize_words(references[k]))] for k in keys}
    hypotheses = {k: [" ".join(tokenize_words(generated[k]))] for k in keys}
    if wordless := sum(not truth[k][0] for k in keys):
        raise UserError(f"{wordless} reference reports have no words: leave those studies out when preparing the data")
    bleu = BleuScorer(n=4)
    for k in keys:
        bleu += (hypotheses[k][0], truth[k])
    counts = [(*c["correct"], *c["guess"], c["testlen"], c["reflen"][0]) for c in bleu.ctest]
    return LanguageScores(
        bleu_counts=np.array(counts, dtype=np.int64),
        rouge_l=np.asarray(Rouge().compute_score(truth, hypotheses)[1], dtype=np.float64),
        cider=(
            np.asarray(Cider().compute_score(truth, hypotheses)[1], dtype=np.float64)
            if len({reference for (reference,) in truth.values()}) > 1
            else np.full(len(keys), np.nan)
        ),
        words=(_mean_words(hypotheses), _mean_words(truth)),
        empty=sum(not hypotheses[k][0] for k in keys),
    )


def corpus_bleu_scores(counts_B10: np.ndarray) -> np.ndarray:
    """Return BLEU-1 to 4, [B, 4], from summed counts (Papineni et al., 2002), with the guards of ``pycocoevalcap``."""
    small, tiny = 1e-9, 1e-15
    correct, guess = counts_B10[:, :4], counts_B10[:, 4:8]
    logs = np.log((correct + tiny) / (guess + small)).cumsum(1) / np.arange(1, 5)
    ratio = (counts_B10[:, 8] + tiny) / (counts_B10[:, 9] + small)
    penalty = np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)
    return np.exp(logs) * penalty[:, None]


def run_meteor_jar(
    references: Sequence[str], systems: Mapping[str, Sequence[str]], timeout: float
) -> dict[str, float] | str:
    """Run the METEOR 1.5 jar; returns the corpus score per system, or ``"unavailable: <reason>"``.

    Args:
        references: full reference reports.
        systems: generated reports per system, in the references' order.
        timeout: seconds for all systems, after which Java is stopped. Its start takes about ten.
    """
    spec = importlib.util.find_spec("pycocoevalcap")
    java = shutil.which("java")
    if spec is None or not spec.submodule_search_locations:
        return "unavailable: pycocoevalcap is not installed"
    if java is None:
        return f"unavailable: {NO_JAVA}"
    jar = Path(spec.submodule_search_locations[0]) / "meteor" / "meteor-1.5.jar"
    command = [java, *_ENGLISH, "-Xmx1G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    options = os.environ.get("_JAVA_OPTIONS")  # the only variable that wins over the command line
    environment = os.environ | ({"_JAVA_OPTIONS": " ".join((options, *_ENGLISH))} if options else {})
    try:
        process = subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, text=True, env=environment)
    except OSError as error:
        return f"unavailable: Java did not start ({error.strerror})"
    timer = threading.Timer(timeout, process.kill)
    timer.start()
    try:
        return {name: _meteor(process, references, texts) for name, texts in systems.items()}
    except (OSError, ValueError):  # the process closed the pipe
        late = not timer.is_alive()
        return f"unavailable: METEOR took longer than {timeout:g} s" if late else "unavailable: METEOR ended early"
    finally:
        timer.cancel()
        process.kill()
        process.communicate()


def _meteor(process: "subprocess.Popen[str]", references: Sequence[str], generated: Sequence[str]) -> float:
    """Score one corpus by the jar's line protocol: statistics of every pair, then their evaluation."""
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None

    def query(line: str) -> str:
        print(line, file=stdin, flush=True)
        return stdout.readline().strip()

    pairs = [
        (" ".join(tokenize_words(r)), " ".join(tokenize_words(g))) for r, g in zip(references, generated, strict=True)
    ]
    statistics = {pair: query(" ||| ".join(("SCORE", *pair))) for pair in dict.fromkeys(pairs)}
    query(" ||| ".join(("EVAL", *(statistics[pair] for pair in pairs))))  # answers with the score of every pair ...
    for _ in pairs[1:]:
        stdout.readline()
    return float(stdout.readline())  # ... and then the corpus score


def _mean_words(texts: Mapping[str, list[str]]) -> float:
    return float(np.mean([len(t[0].split()) for t in texts.values()]))
