"""Muon on the matrices of the layers: what it computes, what it trains, and what a shortage of memory leaves."""

import copy

import pytest
import torch
from transformers import CLIPModel

from hf_clip_domain.arguments import ClipTrainingArguments
from hf_clip_domain.arguments.muon import check_muon
from hf_clip_domain.cli.options import parse_options
from hf_clip_domain.errors import ClipDomainError
from hf_clip_domain.training import ClipTrainer
from hf_clip_domain.training.muon import MuonAdamW, orthogonal
from hf_clip_domain.training.optimizer_step import install_step_replay, state_to_come

pytestmark = pytest.mark.usefixtures("one_thread")


def random(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def test_matrices_come_out_nearly_orthogonal_with_their_own_directions():
    matrices = random((6, 20), (20, 6), (6, 6), (6, 20), (1, 5))
    for matrix, found in zip(matrices, orthogonal(matrices), strict=True):
        assert found.shape == matrix.shape
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        turned = u.mT @ found @ v.mT  # diagonal, where the directions are the matrix's own
        assert 0.6 < turned.diagonal().min() and turned.diagonal().max() < 1.3
        assert (turned - turned.diagonal().diag()).abs().max() < 1e-5


def test_neither_scale_nor_company_changes_the_direction():
    matrices = random((4, 9), (9, 4), (4, 9))
    together = orthogonal([matrix * 1e-12 for matrix in matrices])
    for matrix, found in zip(matrices, together, strict=True):
        torch.testing.assert_close(orthogonal([matrix])[0], found, rtol=1e-4, atol=1e-5)
    assert not orthogonal([torch.zeros(3, 5)])[0].any()


def stepped(optimizer, parameters, gradients):
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    return parameters


def test_its_steps_are_torchs_own_and_other_groups_take_adamws():
    shapes = [(8, 32), (32, 8), (8, 8)]
    gradients = [random(*shapes, seed=seed) for seed in range(1, 5)]
    ours, theirs, adamws = ([torch.nn.Parameter(p) for p in random(*shapes)] for _ in range(3))
    groups = [{"params": ours[:2], "muon": True, "weight_decay": 0.1}, {"params": ours[2:]}]
    settings = {"lr": 0.01, "weight_decay": 0.05}
    stepped(MuonAdamW(groups, dtype=torch.bfloat16, betas=(0.9, 0.99), **settings), ours, gradients)
    muon = torch.optim.Muon(theirs[:2], lr=0.01, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    stepped(muon, theirs[:2], [step[:2] for step in gradients])
    stepped(torch.optim.AdamW(adamws[2:], betas=(0.9, 0.99), **settings), adamws[2:], [step[2:] for step in gradients])
    for one, other in zip(ours[:2], theirs[:2], strict=True):
        torch.testing.assert_close(
            one, other, rtol=0.02, atol=4e-3
        )  # the rounding of bfloat16; a step is 0.01 a number
    assert torch.equal(ours[2], adamws[2])


def trainer_of(model, folder, data=None, **settings):
    settings = {"per_device_train_batch_size": 8, "learning_rate": 1e-3, "use_cpu": True, "max_steps": 6, **settings}
    arguments = ClipTrainingArguments(str(folder), disable_tqdm=True, **{"save_strategy": "no", **settings})
    return ClipTrainer(model, arguments, train_dataset=data)


def test_it_trains_the_matrices_of_the_layers_and_nothing_else(tmp_path, clip):
    clip = clip()
    trainer = trainer_of(clip, tmp_path, muon_ratio=16, weight_decay=0.1)
    optimizer = trainer.create_optimizer()
    names = {parameter: name for name, parameter in clip.named_parameters()}
    of = {names[p]: group for group in optimizer.param_groups for p in group["params"]}
    assert of.keys() == set(names.values())
    for name, group in of.items():
        matrix = ".layers." in name and name.endswith("weight") and "norm" not in name
        assert bool(group.get("muon")) == matrix, name
        assert group["lr"] == pytest.approx(16e-3 if matrix else 1e-3), name
        assert group["weight_decay"] == (0.0 if "norm" in name or name.endswith("bias") else 0.1), name
    assert optimizer.param_groups[0]["lr"] == 1e-3  # which Trainer logs
    matrices = sum(p.nbytes for name, p in clip.named_parameters() if of[name].get("muon"))
    assert state_to_come(optimizer) == 2 * sum(p.nbytes for p in clip.parameters()) - matrices


def test_micro_batches_train_the_same_model(tmp_path, clip, pairs):
    clip = clip()
    models = {}
    for micro in (None, 3):
        model = copy.deepcopy(clip)
        trainer = trainer_of(model, tmp_path / str(micro), pairs(24), muon_ratio=4, micro_batch_size=micro)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        trainer.train()
        models[micro] = model.state_dict()
        assert all(not torch.equal(before[n], t) for n, t in models[micro].items() if n.endswith("fc1.weight"))
    for name, tensor in models[None].items():
        torch.testing.assert_close(tensor, models[3][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("function", ["zeros_like", "stack", "baddbmm"])
def test_a_shortage_anywhere_in_a_step_changes_nothing(monkeypatch, function):
    shapes = [(3, 5), (5, 3), (4, 4)]

    def run(fail_at):
        parameters = [torch.nn.Parameter(p) for p in random(*shapes)]
        optimizer = MuonAdamW([{"params": parameters, "muon": True}], lr=0.1)
        told, calls, plain = [], [0], getattr(torch, function)
        install_step_replay(optimizer, told.append)

        def limited(*args, **kwargs):
            calls[0] += 1
            if calls[0] == fail_at:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return plain(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(torch, function, limited)
            stepped(optimizer, parameters, [random(*shapes, seed=seed) for seed in (1, 2, 3)])
        return parameters, told, calls[0]

    wanted, _, calls = run(None)
    assert calls >= 3
    for fail_at in range(1, calls + 1):
        found, told, _ = run(fail_at)
        assert len(told) == 1
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_it_is_an_option_of_the_command_and_of_a_domain(tmp_path):
    def ratio(*argv):
        return parse_options(["--output_dir", str(tmp_path), *argv]).training.muon_ratio

    assert ratio("--domain", "medical") is None
    assert ratio("--domain", "medical", "--muon_ratio", "16") == 16
    (tmp_path / "own.yaml").write_text("extends: general\nname: own\ntraining_starter: {muon_ratio: 4}\n")
    assert ratio("--domain", str(tmp_path / "own.yaml")) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"muon_ratio": 0}, "muon_ratio 0: expected a number above 0"),
        ({"muon_ratio": 16, "optim": "adafactor"}, "not with --optim adafactor"),
    ],
)
def test_what_it_does_not_go_with_is_refused(tmp_path, settings, message):
    with pytest.raises(ClipDomainError, match=message):
        ClipTrainingArguments(str(tmp_path), use_cpu=True, **settings)


def test_weights_divided_among_processes_are_refused(tmp_path, monkeypatch):
    arguments = ClipTrainingArguments(str(tmp_path), use_cpu=True, muon_ratio=16)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ClipDomainError, match="whole matrices"):
        check_muon(arguments)


def test_a_run_by_adamw_is_not_gone_on_with_by_muon(tmp_path, clip, pairs):
    settings = {"save_strategy": "steps", "save_steps": 2}
    trainer_of(clip(), tmp_path, pairs(24), max_steps=2, **settings).train()
    with pytest.raises(ClipDomainError, match="--muon_ratio of that run"):
        trainer_of(clip(), tmp_path, pairs(24), muon_ratio=4, **settings).train(resume_from_checkpoint=True)


def test_the_model_it_trains_is_a_plain_one(tmp_path, clip, pairs):
    clip = clip()
    trainer = trainer_of(clip, tmp_path, pairs(24), muon_ratio=16)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    found = CLIPModel.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in clip.state_dict().items() if name in found)
