"""One radeval metric in a process of its own: ``python -m amrg.evaluation.learned_worker QUESTION ANSWER``.

QUESTION holds the metric, the references and the systems' reports; ANSWER gets ``scores``, or the ``reason`` why not.
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
        found = {"scores": _scores(asked)}
    except Exception as error:  # whatever a third-party metric raises is the reason why there is no number
        found = {"reason": _reason(error)}
    answer.write_text(json.dumps(found))


def _scores(asked: dict[str, Any]) -> dict[str, dict[str, Any]]:
    import radeval

    # radeval 2.2 imports parts of itself by its former name
    sys.modules.setdefault("RadEval", radeval)
    metric = asked["metric"]
    each_study = metric != "f1chexbert"  # an F1 over the corpus
    evaluator = radeval.RadEval(metrics=[metric], per_sample=each_study, show_progress=False)
    found = {name: evaluator(refs=asked["references"], hyps=texts) for name, texts in asked["systems"].items()}
    return json.loads(json.dumps(found, default=float))


def _reason(error: BaseException) -> str:
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)
    names = {type(e).__name__ for e in chain}
    if names & {"_NoNetworkError", "LocalEntryNotFoundError", "OfflineModeIsEnabled"}:
        return "its weights are not on this machine (radeval looks in the Hugging Face cache, HF_HOME)"
    if "binary incompatibility" in str(error):
        return "radeval failed: a compiled package it needs was built for another numpy"
    told = str(error) if isinstance(error, ImportError | OSError) else ""
    return f"radeval failed: {type(error).__name__} {' '.join(told.split())[:_LONGEST]}".rstrip()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
