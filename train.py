"""python train.py model=<family> data=<set> tuning=<policy> strategy=<strategy> hardware=<machine> ..."""

from pathlib import Path

from vidtune.entry import run_task
from vidtune.run import train

if __name__ == "__main__":
    run_task(train, config_path=str(Path(__file__).parent / "conf"), config_name="train")
