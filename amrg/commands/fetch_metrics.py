"""``amrg fetch-metrics [METRIC ...]``: download the weights of CheXbert, RadGraph and other learned metrics.

Lists the files of each metric, their folder, and whether they are there; then fetches missing ones from the
Hugging Face hub. Needs a network, and no radeval.
"""

import argparse
from collections.abc import Iterator, Sequence

from huggingface_hub import HfApi, constants, hf_hub_download

from amrg.errors import UserError
from amrg.evaluation.scorers import SCORERS, Weights, files_of_metrics, missing_metric_files
from amrg.model_files import find_hub_fault
from amrg.progress import print_on_rank_0


def main(arguments: list[str]) -> None:
    """Print the list and fetch what it lacks.

    Raises:
        UserError: an unknown metric; a line for each repository that cannot be fetched.
    """
    parser = argparse.ArgumentParser(
        prog="amrg fetch-metrics", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("metrics", nargs="*", metavar="METRIC", help=f"of {', '.join(SCORERS)} (default: all)")
    parser.add_argument("--dry-run", action="store_true", help="only tell what is there and what is missing")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.metrics if name not in SCORERS]:
        raise UserError(f"unknown metric {unknown[0]}: one of {', '.join(SCORERS)}")
    metrics = list(dict.fromkeys(options.metrics)) or list(SCORERS)
    for line in _listed(metrics):
        print(line)
    if options.dry_run:
        return
    faults = fetch_metric_weights(metrics)
    if faults:
        raise UserError("\n".join(faults))
    print_on_rank_0(
        "all of it is there; `amrg evaluate` makes no scores anew: delete the folder of those made without it"
    )


def _listed(metrics: Sequence[str]) -> Iterator[str]:
    for metric in metrics:
        yield f"{metric}: {SCORERS[metric].note}"
        for weights in files_of_metrics([metric]):
            details = (f"{weights.repository} ({weights.part})", weights.size, weights.license)
            yield f"  {'there  ' if weights.there else 'missing'} {', '.join(filter(None, details))}: {weights.folder}"


def fetch_metric_weights(metrics: Sequence[str]) -> list[str]:
    """Fetch missing files, archives before the encoders that they name; return a line per failure."""
    faults: dict[Weights, str] = {}
    while lacking := [weights for weights in missing_metric_files(metrics) if weights not in faults]:
        weights = lacking[0]
        fault = find_hub_fault(weights.repository) or _download(weights)
        if not fault and not weights.there:
            fault = "what the hub has is not whole"
        if fault:
            faults[weights] = f"{weights.repository} ({weights.part}) is missing in {weights.folder}: {fault}"
    return list(faults.values())


def _download(weights: Weights) -> str:
    """Fetch missing files, resuming interrupted ones; return the reason of a failure, or an empty string."""
    try:
        listed = HfApi(endpoint=constants.ENDPOINT).list_repo_files(weights.repository)
        for file in weights.wanted(listed):
            hf_hub_download(weights.repository, file, cache_dir=weights.folder)
    except Exception as error:  # whichever HTTP library the hub's client uses raises errors of its own
        details = next(iter(str(error).splitlines()), "")
        return f"{type(error).__name__} {details}; the same command goes on from here".replace("  ", " ")
    return ""
