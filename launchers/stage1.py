"""The chain up to `stage1` on as many ranks as a launcher starts: deepspeed, torchrun or plain python.

deepspeed launchers/stage1.py [CONFIG] [--ds_config zero3.json] [--section.key VALUE ...]
"""

import argparse

from amrg.cli import parse, run_cli
from amrg.pipeline import run_all


def main() -> None:
    """The same step, configuration and artefact as `amrg stage1`; what it needs is made first where it is missing."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--local_rank", "--local-rank", help="given by launchers; LOCAL_RANK says the same")
    parser.add_argument("--ds_config", "--ds-config")
    ours, arguments = parser.parse_known_args()
    if ours.ds_config:
        arguments += ["--stage1.ds_config", ours.ds_config]

    def action() -> None:
        run_all(parse(arguments, "launchers/stage1.py"), "stage1")

    run_cli(action)


if __name__ == "__main__":
    main()
