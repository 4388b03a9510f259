"""The resolved precision is the one that the towers compute in; the loss stays fp32."""

import pytest
import torch

from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.training import ClipTrainer


@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_bf16_is_computed_where_it_is_asked_for(tmp_path, clip, pairs, micro_batch_size):
    seen, losses = {}, {}
    for precision in ("fp32", "bf16"):
        arguments = ClipTrainingArguments(
            str(tmp_path / precision),
            precision=precision,
            per_device_train_batch_size=8,
            micro_batch_size=micro_batch_size,
            max_steps=4,
            logging_steps=1,
            disable_tqdm=True,
            report_to=[],
            save_strategy="no",
        )
        collate = torch.utils.data.default_collate
        trainer = ClipTrainer(clip(), arguments, train_dataset=pairs(40), data_collator=collate)
        layer = trainer.model.vision_model.encoder.layers[0].mlp.fc1
        layer.register_forward_hook(lambda _, inputs, output, name=precision: seen.update({name: output.dtype}))
        trainer.train()
        assert all(value.dtype == torch.float32 for value in trainer.model.parameters())
        losses[precision] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert seen == {"fp32": torch.float32, "bf16": torch.bfloat16}
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02) and losses["bf16"] != losses["fp32"]
