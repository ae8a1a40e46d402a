"""One radeval metric in a process of its own: ``python -m amrg.evaluation.radeval_worker QUESTION ANSWER``.

QUESTION holds the metric, the references and the systems' reports; ANSWER gets ``scores``, or the ``reason`` why not:
empty where weights are not on this machine.
"""

import json
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

#: Of what is said about a failure: enough for a missing module or file, too little for a report.
_LONGEST = 160


class _NoNetworkError(OSError):
    pass


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise _NoNetworkError("nothing is downloaded during an evaluation")


def main(question: Path, answer: Path) -> None:
    """Score all systems with one metric that is loaded once."""
    asked = json.loads(question.read_text())
    # radeval downloads what it lacks, some of it on import; a machine without a network may wait for minutes.
    socket.getaddrinfo = _refuse
    socket.socket.connect = _refuse  # type: ignore[method-assign]
    found: dict[str, Any]
    try:
        found = {"scores": _scores(**asked)}
    except Exception as error:  # whatever a third-party metric raises is the reason why there is no number
        found = {"reason": _reason(error)}
    answer.write_text(json.dumps(found))


def _scores(metric: str, references: list[str], systems: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    import radeval

    # radeval 2.2 imports parts of itself by its former name
    sys.modules.setdefault("RadEval", radeval)
    if metric == "f1chexbert":
        return _labels(references, systems)
    evaluator = radeval.RadEval(metrics=[metric], per_sample=True, show_progress=False)
    found = {name: evaluator(refs=references, hyps=texts) for name, texts in systems.items()}
    return json.loads(json.dumps(found, default=float))


def _labels(references: list[str], systems: dict[str, list[str]]) -> dict[str, dict[str, Any]]:
    """What CheXbert reads in each report: radeval's own scores are over all reports, and cannot be drawn anew.

    Its class is asked itself because the front end of radeval 2.2.1 takes a GPU for granted.
    """
    import torch
    from radeval.metrics.f1chexbert import F1CheXbert

    labeler = F1CheXbert(device="cuda" if torch.cuda.is_available() else "cpu")
    common = {"labels": labeler.TARGET_NAMES, "reference": labeler.get_labels(references)}
    return {name: {**common, "generated": labeler.get_labels(texts)} for name, texts in systems.items()}


def _reason(error: BaseException) -> str:
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)
    names = {type(e).__name__ for e in chain}
    if names & {"_NoNetworkError", "LocalEntryNotFoundError", "OfflineModeIsEnabled"}:
        return ""
    if "binary incompatibility" in str(error):
        return "radeval failed: a compiled package it needs was built for another numpy"
    told = str(error) if isinstance(error, ImportError | OSError) else ""
    return f"radeval failed: {type(error).__name__} {' '.join(told.split())[:_LONGEST]}".rstrip()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
