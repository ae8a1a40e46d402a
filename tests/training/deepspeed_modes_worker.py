"""The toy training under DeepSpeed JSONs; arguments: FOLDER NAME:DTYPE..., for FOLDER/NAME.json."""

import sys
from pathlib import Path

from tests.training.toy_training_worker import run

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for name, dtype in (argument.split(":") for argument in sys.argv[2:]):
        run(folder / name, str(folder / f"{name}.json"), dropout=0.0, dtype=dtype)  # type: ignore[arg-type]
