"""Run the pipeline up to `stage2` on the ranks that a launcher starts: deepspeed, torchrun or plain python.

deepspeed launchers/stage2.py [CONFIG] [--ds_config zero3.json] [--section.key VALUE ...]
"""

from amrg.cli import launch_training_stage

if __name__ == "__main__":
    launch_training_stage("stage2")
