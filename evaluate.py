"""python evaluate.py run=<run folder>, or model=<family> data=<set> [adapter=<PEFT folder>]"""

from pathlib import Path

from vidtune.entry import run_task
from vidtune.run import evaluate

if __name__ == "__main__":
    run_task(evaluate, config_path=str(Path(__file__).parent / "conf"), config_name="evaluate")
