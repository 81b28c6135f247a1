"""An export -> the files of a LoggedModel that MLflow's transformers flavour reads."""

import json
import tempfile
from importlib.metadata import version
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.models import Model
from mlflow.models.signature import ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from transformers import AutoTokenizer

from oneshot.export.card import base_model
from oneshot.export.source import TOKENIZER
from oneshot.export.write import Export

MLMODEL = "MLmodel"
WEIGHTS_PLACE, TOKENIZER_PLACE = "model", "components/tokenizer"  # where the flavour looks for them


def upload_files(client: MlflowClient, model: LoggedModel, export: Export) -> None:
    """Upload the folder, and the further files that the flavour needs, once; MLmodel comes last."""
    if any(file.path == MLMODEL for file in client.list_logged_model_artifacts(model.model_id)):
        return
    client.log_model_artifacts(model.model_id, str(export.folder), WEIGHTS_PLACE)
    for name in export.metadata["files"]:
        if any(Path(name).match(pattern) for pattern in TOKENIZER):
            place = Path(TOKENIZER_PLACE, name).parent
            client.log_model_artifact(model.model_id, str(export.folder / name), str(place))
    with tempfile.TemporaryDirectory() as local:
        requirements, description = Path(local, "requirements.txt"), Path(local, MLMODEL)
        requirements.write_text("".join(f"{name}=={version(name)}\n" for name in ("mlflow", "torch", "transformers")))
        _description(model, export).save(str(description))
        for path in (requirements, description):
            client.log_model_artifact(model.model_id, str(path))


def _description(model: LoggedModel, export: Export) -> Model:
    """Return the description that `mlflow.transformers.load_model` reads."""
    text: list[ColSpec | TensorSpec] = [ColSpec(DataType.string)]
    description = Model(
        model_id=model.model_id,
        run_id=model.source_run_id,
        signature=ModelSignature(inputs=Schema(text), outputs=Schema(text)),
    )
    config = json.loads((export.folder / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(
        export.folder, trust_remote_code=export.kept.config.model.trust_remote_code
    )
    description.add_flavor(
        "transformers",
        transformers_version=version("transformers"),
        code=None,
        task="text-generation",
        instance_type="TextGenerationPipeline",
        pipeline_model_type=config["architectures"][0],
        source_model_name=base_model(export.kept)["path"],
        model_binary=WEIGHTS_PLACE,
        torch_dtype=f"torch.{export.dtype}",
        components=["tokenizer"],
        tokenizer_type=type(tokenizer).__name__,
    )
    return description
