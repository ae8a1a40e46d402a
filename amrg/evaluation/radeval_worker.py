"""Process for one radeval metric: ``python -m amrg.evaluation.radeval_worker QUESTION ANSWER``.

QUESTION holds the metric, the references and the systems' reports. ANSWER receives ``scores`` or the ``reason`` of a
failure, which is empty if weights are not on this machine.
"""

import json
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

#: Maximal characters of an error message: enough for a missing module or file, too few for a report.
_LONGEST = 160


class _NoNetworkError(OSError):
    pass


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise _NoNetworkError("nothing is downloaded during an evaluation")


def main(question: Path, answer: Path) -> None:
    """Load one metric and score all systems."""
    request = json.loads(question.read_text())
    # radeval downloads missing files, some on import; without a network it may wait for minutes.
    socket.getaddrinfo = _refuse
    socket.socket.connect = _refuse  # type: ignore[method-assign]
    found: dict[str, Any]
    try:
        found = {"scores": _scores(**request)}
    except Exception as error:  # a third-party metric may raise anything; the error is the reason
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
    """Label each report with CheXbert. radeval's own scores cover all reports, so they cannot be resampled.

    The class is called directly because the front end of radeval 2.2.1 requires a GPU.
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
    message = str(error) if isinstance(error, ImportError | OSError) else ""
    return f"radeval failed: {type(error).__name__} {' '.join(message.split())[:_LONGEST]}".rstrip()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
