"""Makes one sample with PolNet: a script for the Python that PolNet is installed in.

It takes the name of a JSON file and imports nothing of etsam, which need not be installed there; PolNet wants pandas
before 3 and may have an environment of its own. Started by `etsam.sources.polnet.run`.
"""

import json
import logging
import os
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

_PARENT_CHECK_SECONDS = 2.0


def main(job_file: str) -> None:
    """Make the sample that a JSON file describes, and PolNet's acquisition if it names a `.tem` file."""
    # Python put this folder first, and its polnet.py is not PolNet
    here = Path(__file__).resolve().parent
    sys.path = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
    job: dict[str, Any] = json.loads(Path(job_file).read_text(encoding="utf-8"))
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)

    import numpy as np
    import polnet  # type: ignore[import-not-found]

    random.seed(job["seed"])
    np.random.seed(job["seed"])  # the generator that PolNet uses
    if "torch" in sys.modules:  # curvatubes
        sys.modules["torch"].manual_seed(job["seed"])
    sample = job["sample"]
    tomogram = polnet.SynthTomo(
        index=job["number"],
        mbs_file_list=sample["membranes"],
        flms_file_list=sample["filaments"],
        pns_file_list=sample["pns"],
        pms_file_list=sample["pms"],
        tem_file_path=None if job["tem_file"] is None else Path(job["tem_file"]),
        data_path=Path(job["models"]),
        tomo_dir=Path(job["folder"]),
        shape=sample["shape"],
        v_size=sample["v_size"],
        offset=sample["offset"],
    )
    tomogram.generate_sample()
    if job["tem_file"] is not None:
        tomogram.simulate_tem()
    tomogram.save()


def _end_with_parent(parent: int) -> None:
    """A program that was killed cannot end its children; without it nobody wants the sample."""
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
