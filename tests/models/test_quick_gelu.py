"""The lean activation: the same function and gradient, less kept for the backward pass."""

import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import CLIPConfig, CLIPModel
from transformers.activations import QuickGELUActivation

from hf_clip_domain.models.quick_gelu import LeanQuickGELU, use_lean_activations


def run(activation, x, gradient):
    """Value, gradient, and bytes that autograd keeps."""
    x, kept = x.clone().requires_grad_(), {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        value = activation(x * 1)
    value.backward(gradient)
    return value.detach(), x.grad, sum(kept.values())


def test_value_and_gradient_are_those_of_transformers_and_less_is_kept():
    torch.manual_seed(0)
    x, gradient = 4 * torch.randn(50, 40, dtype=torch.float64), torch.randn(50, 40, dtype=torch.float64)
    value, slope, kept = run(LeanQuickGELU(), x, gradient)
    plain_value, plain_slope, plain_kept = run(QuickGELUActivation(), x, gradient)
    torch.testing.assert_close(value, plain_value, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(slope, plain_slope, rtol=1e-12, atol=1e-14)
    assert kept == x.nbytes < plain_kept


def test_without_gradients_nothing_differs_by_a_bit():
    x = torch.randn(7, 9)
    with torch.no_grad():
        assert torch.equal(LeanQuickGELU()(x), QuickGELUActivation()(x))


def test_every_layer_of_a_model_takes_it_and_its_weights_keep_their_names():
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = CLIPModel(CLIPConfig(text_config={**small, "vocab_size": 50}, vision_config={**small, "image_size": 32}))
    names = list(model.state_dict())
    use_lean_activations(model)
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(LeanQuickGELU) == 4 and QuickGELUActivation not in kinds
    assert list(model.state_dict()) == names
