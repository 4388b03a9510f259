"""Hugging Face's Trainer for dual encoders; only the hooks stand here."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import nn
from transformers import EarlyStoppingCallback, PreTrainedModel, Trainer
from transformers.trainer_utils import EvalLoopOutput, rotate_checkpoints
from transformers.utils import logging

from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.losses import build_loss
from hf_clip_domain.models.dual_encoder import embedding_width, find_logit_bias
from hf_clip_domain.models.quick_gelu import use_lean_activations
from hf_clip_domain.similarity import build_similarity, wants_normalised
from hf_clip_domain.training import checkpoints
from hf_clip_domain.training.callbacks import ClampLogitScale, TemperatureSchedule, WeightAverage
from hf_clip_domain.training.callbacks.monitor import attach_monitor
from hf_clip_domain.training.callbacks.resolution import attach_curriculum, prepare_for_sizes
from hf_clip_domain.training.callbacks.temperature import temperature_callback
from hf_clip_domain.training.data_order import EpochCallback, EpochSampler
from hf_clip_domain.training.feature_cache import FeatureCache
from hf_clip_domain.training.loss_module import attach_loss, load_loss, save_loss, without_loss
from hf_clip_domain.training.memory_model import MemoryModel
from hf_clip_domain.training.micro_batching import install_embedding_forward
from hf_clip_domain.training.muon import MuonAdamW, train_matrices_by_muon
from hf_clip_domain.training.news import RunNews
from hf_clip_domain.training.objective import LoggedParts, whole_batch_loss
from hf_clip_domain.training.optimizer_step import install_step_replay, state_to_come
from hf_clip_domain.training.optimizers import naming_missing_packages
from hf_clip_domain.training.parameter_groups import decay_by_depth
from hf_clip_domain.training.probing import probe
from hf_clip_domain.training.steps import FittingSteps
from hf_clip_domain.types import Evaluator

logger = logging.get_logger(__name__)


class ClipTrainer(Trainer):
    """Trains any dual encoder whose output has `image_embeds` and `text_embeds` with a contrastive loss.

    The contrastive batch is `per_device_train_batch_size` times the number of processes; `micro_batch_size` bounds
    memory and changes nothing else; a step that runs out of memory is run again with a smaller one. Gradient
    accumulation keeps Hugging Face's meaning: it averages the gradients of several contrastive batches and does *not*
    widen one.

    Args (besides those of `transformers.Trainer`):
        loss: a loss module (see `hf_clip_domain.types.Loss`); `None` builds `args.loss` with `args.loss_settings`.
        evaluators: called at every evaluation; what they return is logged as `eval_...` and can be
            `metric_for_best_model`. Without any, evaluation reports the loss of `eval_dataset`.
        news: tells how the run goes; to be given where the run is more than `train()`, as the command's is.

    Batches are dictionaries of `pixel_values` (n, 3, h, w), `input_ids` (n, t), `attention_mask` (n, t) and
    optionally `targets`: `(n,)` integer ids, where rows of equal id are positives of one another, or a mapping of
    relations, see `hf_clip_domain.types.Loss`.

    Raises:
        ClipDomainError: several GPUs are visible to one process, the loss's settings do not fit each other, or
            `feature_cache` and `resolutions` do not fit model and data; `train()` also where the training split is smaller
            than a batch, or a checkpoint cannot be used.
    """

    # The loss is a mean over the batch, to be divided by the accumulation steps. Left unset, Trainer would take the
    # model's **kwargs as a sign that the model does so itself.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: nn.Module | None,
        args: ClipTrainingArguments,
        *,
        loss: nn.Module | None = None,
        evaluators: Sequence[Evaluator] = (),
        news: RunNews | None = None,
        **kwargs,
    ):
        self.evaluators = list(evaluators)
        self.parts = LoggedParts()
        super().__init__(model=model, args=args, **kwargs)
        self.steps = FittingSteps(args, self._fit_memory, lambda: state_to_come(self.optimizer), self._tell)
        if self.steps.sizing is not None:
            self.add_callback(self.steps.sizing)
        if self.args.n_gpu > 1:
            raise ClipDomainError(
                f"{self.args.n_gpu} GPUs are visible to one process. Start one process a GPU with "
                "`accelerate launch`, or choose one with CUDA_VISIBLE_DEVICES."
            )
        self.prepare_model(loss if loss is not None else build_loss(args.loss, **(args.loss_settings or {})))
        self.average = WeightAverage(args.ema_decay) if args.ema_decay is not None else None
        if self.average is not None:
            self.add_callback(self.average)
        self.curriculum = attach_curriculum(self)
        self.feature_cache = None
        if self.args.feature_cache is not None and self.train_dataset is not None:
            self.feature_cache = FeatureCache(self.args, self.model, self.train_dataset, self.accelerator)
            self.add_callback(self.feature_cache)
        if self.args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(self.args.early_stopping_patience))
        self.monitor = attach_monitor(self, lambda: self.steps.replay.plan.size) if args.monitor else None
        self.news = news or RunNews(args)
        self.add_callback(self.news)

    def use_loss(self, loss: nn.Module) -> None:
        """Train with `loss`; its own parameters, if any, train with the model and are kept in its checkpoints."""
        if find_logit_bias(self.model) is not None and hasattr(loss, "leave_bias_to_the_model"):
            loss.leave_bias_to_the_model()
        for module in loss.modules():
            if hasattr(module, "fit"):  # a learned similarity takes the model's width
                module.fit(embedding_width(self.model))
        sizes, weights = self.args.image_sizes or [None], getattr(loss, "resolution_weights", None)
        if weights is not None and len(weights) != len(sizes):
            raise ClipDomainError(f"resolution_weights {list(weights)} for --image_sizes {self.args.image_sizes}.")
        self.loss = loss.to(self.args.device)
        attach_loss(self.model, self.loss)
        similarity = getattr(loss, "similarity", "cosine")
        install_embedding_forward(self.model, normalise=wants_normalised(build_similarity(similarity)))

    def call_model_init(self, trial=None):
        model = super().call_model_init(trial)
        if hasattr(self, "loss"):  # not the first model, which the constructor prepares
            self.model = model
            self.prepare_model(self.loss)
        return model

    def prepare_model(self, loss: nn.Module) -> None:
        """Make the model ready to train with `loss` and at the temperature of the arguments."""
        self.use_loss(loss)
        use_lean_activations(self.model)
        prepare_for_sizes(self.model, self.args)
        for kind in (ClampLogitScale, TemperatureSchedule):
            self.pop_callback(kind)
        self.add_callback(temperature_callback(self.args, self.model, lambda: self.parts.latest.get("similarity_gap")))

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            with without_loss(self.model) as loss, naming_missing_packages(self.args):
                super().create_optimizer(model)
                if self.args.muon_ratio is not None:
                    train_matrices_by_muon(self.optimizer, self.model, self.args.muon_ratio)
                if self.args.layerwise_learning_rate_decay is not None:
                    decay_by_depth(self.optimizer, self.model, self.args.layerwise_learning_rate_decay)
            if loss is not None:  # a handful of numbers, to which the rate of a pretrained tower means standing still
                parameters = [parameter for parameter in loss.parameters() if parameter.requires_grad]
                group = {"params": parameters, "lr": self.args.loss_learning_rate, "weight_decay": 0.0}
                self.optimizer.add_param_group(group)
            install_step_replay(self.optimizer, functools.partial(self._tell, "out_of_memory"))
        return self.optimizer

    @staticmethod
    def get_optimizer_cls_and_kwargs(args, model=None):
        optimizer, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
        if getattr(args, "muon_ratio", None) is None:
            return optimizer, settings
        return MuonAdamW, {**settings, "dtype": torch.bfloat16 if args.bf16 else torch.float32}

    # One step

    def training_step(self, model, inputs, num_items_in_batch=None):
        inputs, fill = self._prepare_inputs(inputs), None
        if "pictures" in inputs:
            fill = functools.partial(self.feature_cache.fill, self.accelerator.unwrap_model(self.model))
        counted = len(self.parts)

        def step(inputs):
            self.parts.cut(counted)  # of a first try that did not fit
            return super(ClipTrainer, self).training_step(model, inputs, num_items_in_batch)

        average, number = self.accelerator.sync_gradients, self.state.global_step + 1
        return self.steps.run(model, inputs, step, fill=fill, number=number, average=average)

    def _tell(self, kind: str | None, sentence: str) -> None:
        logger.warning(f"Step {self.state.global_step + 1}: {sentence}")
        self.news.tell(kind, sentence)

    def _fit_memory(self, inputs: dict) -> MemoryModel:
        model = self.accelerator.unwrap_model(self.model)
        model.train()
        return probe(model, self.loss, inputs, self._views(model), self.compute_loss_context_manager)

    def _views(self, model: nn.Module) -> dict[str, list[int]]:
        return {"image_sizes": self.args.image_sizes} if self.args.image_sizes and model.training else {}

    def get_batch_samples(self, *args, **kwargs):
        if self.monitor:
            self.monitor.stopwatch.switch("data")
        batches, items = super().get_batch_samples(*args, **kwargs)
        if self.curriculum is not None:
            batches = [self.curriculum.shrink(batch) for batch in batches]
        if self.monitor:
            self.monitor.count(batches)
        return batches, items

    @contextmanager
    def compute_loss_context_manager(self):
        with self.monitor.stopwatch.forward() if self.monitor else nullcontext():
            with super().compute_loss_context_manager():
                yield

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        targets = inputs.pop("targets", None)
        plan = self.steps.replay.plan
        embeddings = model(**inputs, micro_batch_size=plan.size, kept=plan.kept, **self._views(self.model))
        output = whole_batch_loss(
            self.loss, embeddings, targets, process=self.args.process_index, processes=self.args.world_size
        )
        if self.model.training:
            self.parts.add({**output.parts, "logit_scale": embeddings["logit_scale"].detach()})
        return (output.loss, embeddings) if return_outputs else output.loss

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:  # a training log: join the parts collected since the last one
            logs = {**logs, **self.parts.means(), **(self.monitor.measure(self.model) if self.monitor else {})}
            if self.curriculum is not None:
                logs["resolution"] = self.curriculum.used
            self.parts.cut(0)
        super().log(logs, *args, **kwargs)

    # Data

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            super()._set_signature_columns_if_needed()
            # What the collator needs is not unused, although the model never sees it.
            self._signature_columns += ["targets", *getattr(self.data_collator, "columns", ())]

    def _get_train_sampler(self, train_dataset=None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if dataset is None or not hasattr(dataset, "__len__"):
            return None
        batch = self.args.train_batch_size * self.args.world_size
        if self.args.dataloader_drop_last and len(dataset) < batch:
            raise ClipDomainError(
                f"the training split has {len(dataset)} pairs, fewer than one contrastive batch of {batch}. Use "
                f"--per_device_train_batch_size {max(2, len(dataset) // self.args.world_size)} or less."
            )
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        sampler = EpochSampler(dataset, seed)
        self.callback_handler.pop_callback(EpochCallback)  # of an earlier call of train()
        self.add_callback(EpochCallback(sampler))
        return sampler

    def get_eval_dataloader(self, eval_dataset=None):
        # Dropping the last batch keeps the number of negatives constant in training; evaluation scores every row.
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = drop_last

    # Evaluation

    def evaluate(self, *args, **kwargs):
        with self.average.in_place(self.model) if self.average is not None else nullcontext():
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(self, dataloader, description, *args, metric_key_prefix: str = "eval", **kwargs):
        if not self.evaluators:
            return super().evaluation_loop(
                dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs
            )
        metrics = {}
        for evaluator in self.evaluators:
            scores = evaluator(self.accelerator.unwrap_model(self.model))
            metrics |= {f"{metric_key_prefix}_{name}": float(value) for name, value in scores.items()}
        return EvalLoopOutput(
            predictions=None, label_ids=None, metrics=metrics, num_samples=self.num_examples(dataloader)
        )

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None

    # Checkpoints

    def save_model(self, output_dir=None, _internal_call=False):
        """The model as its own class loads it; the parameters of the loss are kept in checkpoints alone."""
        if _internal_call:
            return super().save_model(output_dir, _internal_call=True)
        with without_loss(self.model):
            super().save_model(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_loss(self.model, Path(resume_from_checkpoint))
        if self.average is not None:
            self.average.load(Path(resume_from_checkpoint), self.model)

    def _load_optimizer_and_scheduler(self, checkpoint):
        with checkpoints.explaining_another_run(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_best_model(self):
        super()._load_best_model()
        load_loss(self.model, Path(self.state.best_model_checkpoint))
        if self.average is not None:  # what was best was measured with it
            self.average.load(Path(self.state.best_model_checkpoint), self.model)

    def train(self, resume_from_checkpoint=None, **kwargs):
        """Train; `resume_from_checkpoint` is `True` for the last whole checkpoint of the run, or a path."""
        chosen = checkpoints.choose_checkpoint(resume_from_checkpoint, Path(self.args.output_dir))
        if chosen is not None:
            logger.warning(f"Resuming from {chosen}.")
        self.parts.cut(0)
        with self.news:
            return super().train(resume_from_checkpoint=None if chosen is None else str(chosen), **kwargs)

    def _save_checkpoint(self, model, trial):
        run_dir = Path(self._get_output_dir(trial=trial))
        folder = run_dir / f"checkpoint-{self.state.global_step}"
        # The old checkpoints may only go once the new one is whole, so Trainer's own rotation waits.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with checkpoints.explaining_failures(folder):
                if self.args.should_save:
                    checkpoints.unseal(folder)
                super()._save_checkpoint(model, trial)
                if self.args.should_save and not isinstance(self.model, PreTrainedModel):  # PEFT saves its own alone
                    save_loss(self.model, folder)
                if self.args.should_save and self.average is not None:
                    self.average.save(folder)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    checkpoints.seal(folder)
        finally:
            self.args.save_total_limit = limit
        if self.args.should_save:
            rotate_checkpoints(str(run_dir), limit, self.state.best_model_checkpoint, use_mtime=True)
