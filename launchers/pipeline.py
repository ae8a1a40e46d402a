"""The whole chain on a Ray cluster: prepare, stage1, banks, stage2, generate, evaluate.

ray submit cluster.yaml launchers/pipeline.py [CONFIG] [--strict] [--section.key VALUE ...]
ray job submit --address http://HEAD:8265 -- python launchers/pipeline.py [CONFIG] [--strict] [--section.key VALUE ...]
python launchers/pipeline.py [CONFIG] [--strict] [--section.key VALUE ...]      a cluster of this machine alone
"""

import sys

from amrg.cli import parse_config_arguments, run_command_line


def main() -> None:
    """The same steps, configuration and artefacts as `amrg run`."""

    def action() -> None:
        from amrg.cluster.pipeline import run_on_ray

        arguments = [argument for argument in sys.argv[1:] if argument != "--strict"]
        run_on_ray(
            parse_config_arguments(arguments, "launchers/pipeline.py [CONFIG] [--strict]"), "--strict" in sys.argv[1:]
        )

    run_command_line(action)


if __name__ == "__main__":
    main()
