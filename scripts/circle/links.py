"""Each link of the circle found in MLflow from the one before: alias, version, run, dataset, base."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mlflow import MlflowClient


def check_links(name: str, datasets: Mapping[str, str], *, say: Callable[[str], None]) -> list[str]:
    """Follow the champion back to the first dataset; gives what is not as it must be.

    Args:
        name: of the registered model.
        datasets: the dataset's revision by version, the newest last.
    """
    client, broken = MlflowClient(), []
    versions = list(datasets)
    for number in reversed(versions):
        before = versions[versions.index(number) - 1] if number != versions[0] else None
        if number == versions[-1]:
            version = client.get_model_version_by_alias(name, "champion")
        else:
            version = client.get_model_version(name, number)  # the base that the later run names
        run = client.get_run(version.run_id)
        found = {
            "version": version.version,
            "decision": version.tags.get("promotion.decision"),
            "dataset": run.data.tags.get("dataset_revision"),
            "base": run.data.tags.get("base_model"),
        }
        expected = {
            "version": number,
            "decision": "promoted",
            "dataset": datasets[number],
            "base": f"models:/{name}/{before}" if before else "starter",
        }
        recall = {when: run.data.metrics.get(f"{when}/text_to_image/recall_at_10") for when in ("before", "after")}
        say(
            f"models:/{name}/{found['version']} ({found['decision']}) <- run {run.info.run_id[:8]}, text-to-image R@10 "
            f"{recall['before']:.1%} -> {recall['after']:.1%} <- base {found['base']}, dataset {found['dataset']}"
        )
        broken += [
            f"version {number}: {key} is {found[key]}, not {value}"
            for key, value in expected.items()
            if str(found[key]) != value
        ]
    return broken
