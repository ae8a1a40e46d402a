"""Settings under the names of 0.1: read for one release, each with a line that gives the new name."""

from collections.abc import Sequence
from typing import Any

from amrg.errors import UserError
from amrg.progress import print_on_rank_0

#: Old path of a setting → its path now.
KEYS = {
    "data.max_bad_fraction": "data.max_corrupt_fraction",
    "data.readers": "data.loader_workers",
    "stage1.uncertain": "stage1.uncertain_policy",
    "stage1.blank": "stage1.unmentioned_policy",
    "stage1.clip": "stage1.max_grad_norm",
    "stage2.clip": "stage2.max_grad_norm",
    "banks.mining.films": "banks.mining.max_studies",
    "banks.reports.unit": "banks.reports.granularity",
    "memory.search": "memory.index",
    "memory.hide_own_patient": "memory.mask_same_patient",
    "sharding.way": "sharding.strategy",
    "sharding.copy_bytes": "sharding.replicate_below_bytes",
    "sharding.ranks_per_copy": "sharding.ranks_per_replica",
    "sharding.node_ranks": "sharding.ranks_per_node",
    "decoder.stream_dropout": "decoder.prefix_dropout",
    "decoder.word_dropout": "decoder.token_dropout",
    "decoder.visual_tokens": "decoder.max_visual_tokens",
    "decoder.use_visual": "decoder.use_visual_tokens",
    "decoder.outline": "decoder.predict_outline",
    "stage2.retrieval_loss": "stage2.retrieval_loss_weight",
    "stage2.association_loss": "stage2.association_loss_weight",
    "stage2.watch_reports": "stage2.num_sample_reports",
    "stage2.accept_banks_with_held_out_rows": "stage2.allow_held_out_bank_rows",
    "safety.checkpoint_steps": "checkpoint.interval",
    "safety.keep": "checkpoint.keep_last",
    "safety.explosion": "checkpoint.loss_spike_factor",
    "telemetry.every": "telemetry.profile_interval",
    "generate.outline": "generate.outline_source",
    "evaluate.learned": "evaluate.model_based_metrics",
    "evaluate.learned_timeout": "evaluate.model_based_timeout",
    "evaluate.page_studies": "evaluate.num_page_studies",
    "evaluate.bootstrap": "evaluate.bootstrap_samples",
}

#: Values that have another name now, by the path of their setting.
VALUES = {
    "generate.memory": {"mismatched": "shuffled"},
    "generate.outline_source": {"written": "decoder", "decided": "classifier", "recalled": "retrieved"},
}


def rename_old_keys(content: Any, where: str | None = None, section: str = "") -> Any:
    """Return a configuration, or one ``section`` of it, with the names of now; other content is left as it is.

    Args:
        content: mapping as YAML or JSON gives it.
        where: origin of the content, for the line that names the new key; None prints nothing.
        section: path of the content in the configuration, such as ``banks``.
    """
    found: dict[str, Any] = {}
    _collect(content, section, where, found)
    return _nest(found, section) if isinstance(content, dict) else content


def rename_old_flags(arguments: Sequence[str]) -> list[str]:
    """Return command-line arguments with the names of now, also of their values."""
    renamed: list[str] = []
    for number, argument in enumerate(arguments):
        before = renamed[-1].removeprefix("--").replace("-", "_") if renamed else ""
        flag, equals, value = argument.partition("=")
        old = flag.removeprefix("--").replace("-", "_")
        if argument.startswith("--") and old in KEYS:
            print_on_rank_0(f"command line: {old} is now {KEYS[old]}")
            flag, old = f"--{KEYS[old]}", KEYS[old]
        if equals:
            value = VALUES.get(old, {}).get(value, value)
        elif number and not argument.startswith("--"):
            flag = VALUES.get(before, {}).get(flag, flag)
        renamed.append(f"{flag}{equals}{value}")
    return renamed


def _collect(content: Any, path: str, where: str | None, found: dict[str, Any]) -> None:
    """Fill ``found`` with the leaves of ``content`` by their path of now."""
    new = KEYS.get(path, path)
    if new != path and where is not None:
        print_on_rank_0(f"{where}: {path} is now {new}")
    if isinstance(content, dict) and content:
        for key, value in content.items():
            _collect(value, f"{path}.{key}" if path else str(key), where, found)
    elif path:
        if new in found:
            raise UserError(f"{where or 'settings'}: `{new}` is given twice, once as `{path}`: leave one of them")
        known = VALUES.get(new, {})
        found[new] = known.get(content, content) if isinstance(content, str) else content


def _nest(found: dict[str, Any], section: str) -> dict[str, Any]:
    """Leaves by their path → a nested mapping below ``section``."""
    nested: dict[str, Any] = {}
    for path, value in found.items():
        *parents, name = path.removeprefix(f"{section}.").split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    return nested
