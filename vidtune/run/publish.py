"""An exported folder onto the hub, with a model card made from the run."""

from __future__ import annotations

import json
import re
from pathlib import Path

from huggingface_hub import HfApi
from omegaconf import OmegaConf

from vidtune.contracts import UserError

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def publish(folder: Path, name: str, run: str, form: str) -> str:
    """Write ``README.md`` and upload.

    Args:
        folder: from ``export``.
        name: ``user/name`` on the hub.
        run: run folder it came from.
        form: ``--to`` of the export.

    Returns:
        Its address.

    Raises:
        UserError: a name without a user, or a refused upload.
    """
    if name.count("/") != 1 or not all(name.split("/")):
        raise UserError(f"--push {name}: expected user/name.")
    (folder / "README.md").write_text(model_card(Path(run), name, form), encoding="utf-8")
    api = HfApi()
    try:
        address = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=str(folder))
    except Exception as error:
        raise UserError(f"--push {name}: the upload failed ({error}). The export itself is in {folder}.") from error
    return str(address)


def model_card(run: Path, name: str, form: str) -> str:
    """Data, recipe and metrics of a run as markdown, with the front matter that the hub reads."""
    cfg = OmegaConf.load(run / "config.resolved.yaml")
    rows = "\n".join(f"| {key} | {value:.4g} |" for key, value in _metrics(run).items())
    tuning = OmegaConf.to_yaml(cfg.tuning).rstrip()
    # A folder of this machine means nothing elsewhere, and the hub refuses it.
    path = str(cfg.model.path)
    base = f"base_model: {path}\n" if _HUB_ID.fullmatch(path) and not Path(path).exists() else ""
    return (
        f"---\n{base}library_name: {'peft' if form == 'adapter' else 'vidtune'}\n"
        f"tags: [video, vidtune, {cfg.model.name}]\n---\n\n# {name.split('/')[1]}\n\n"
        f"`{cfg.model.name}` tuned on `{cfg.data.name}` (split `{cfg.data.train_split}`) with "
        f"`tuning={cfg.tuning.name}`; form: {form}.\n\n"
        f"## Recipe\n\nLearning rate {cfg.optim.lr:g}, {cfg.optim.name}, global batch {cfg.global_batch_size}, "
        f"{cfg.data.num_frames} frames per video, seed {cfg.seed}.\n\n```yaml\n{tuning}\n```\n\n"
        f"## Metrics\n\n| metric | value |\n| --- | --- |\n{rows}\n"
    )


def _metrics(run: Path) -> dict[str, float]:
    """Of training, and of every evaluation of the run under the name of its folder."""
    files = {"": run / "summary.json"}
    files |= {f"{file.parent.name}: ": file for file in sorted(run.glob("evaluation/*/metrics.json"))}
    return {
        prefix + name: value
        for prefix, file in files.items()
        if file.is_file()
        for name, value in json.loads(file.read_text()).items()
        if isinstance(value, int | float)
    }
