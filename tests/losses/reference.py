"""Every loss written out once more, dense, with loops and plain formulas; slow, in float64, and shared by the tests."""

import math

import torch


def pair_weights(targets, n, m, weights):
    """The (n, m) matrix of positives from any form of targets."""
    if targets is None:
        return torch.eye(n, dtype=torch.float64)
    if torch.is_tensor(targets) and targets.ndim == 1:
        targets, weights = {"caption": targets}, {"caption": 1.0}
    if torch.is_tensor(targets):
        return targets.double()
    found = torch.eye(n, dtype=torch.float64)
    for name, weight in weights.items():
        values = targets[name]
        for i in range(n):
            for j in range(n):
                if name == "terms":
                    common = int((values[i] & values[j]).sum())
                    share = common / max(1, int((values[i] | values[j]).sum()))
                else:
                    share = float(values[i] == values[j])
                found[i, j] = max(found[i, j].item(), weight * share)
    return found


def negative_factors(logits, positive, scale, kind="all", ratio=0.25, weight=1.0, easy_weight=0.0, margin=0.2, beta=0.5,
                     decoupled=False):  # fmt: skip
    """The factor of every negative of every row, by sorting lists."""
    factors = torch.ones_like(logits)
    for i, row in enumerate(logits.detach().tolist()):
        own = [j for j in range(len(row)) if not positive[i, j]]
        if kind == "hard" and own:
            least = sorted((row[j] for j in own), reverse=True)[math.ceil(ratio * len(own)) - 1]
            for j in own:
                factors[i, j] = weight if row[j] >= least else easy_weight
        if kind == "semi_hard" and own:
            best = max((row[j] for j in range(len(row)) if positive[i, j]), default=-math.inf)
            inside = {j for j in own if best - margin * float(scale.detach()) < row[j] < best} or set(own)
            for j in own:
                factors[i, j] = weight if j in inside else easy_weight
        if kind == "weighted" and own:
            total = sum(math.exp(beta * row[j]) for j in own)
            for j in own:
                factors[i, j] = math.exp(beta * row[j]) / total * len(own)
    return factors


def info_nce(scores, scale, positives, smoothing=0.0, image_share=0.5, **negatives):
    """scores: (n, m) similarities."""
    values = []
    for logits, weights in ((scale * scores, positives), (scale * scores.T, positives.T)):
        factors = negative_factors(logits, weights > 0, scale, **negatives)
        rows = []
        for i in range(len(logits)):
            if weights[i].sum() == 0:
                continue
            target = (1 - smoothing) * weights[i] / weights[i].sum() + smoothing / logits.shape[1]
            members = []
            for j in range(logits.shape[1]):
                if weights[i, j] > 0:
                    if not negatives.get("decoupled"):
                        members.append(logits[i, j].exp())
                elif factors[i, j] > 0:
                    members.append(factors[i, j] * logits[i, j].exp())
            log_denominator = torch.stack(members).sum().log() if members else 0.0
            rows.append(-(target * (logits[i] - log_denominator)).sum())
        values.append(torch.stack(rows).sum() / len(rows) if rows else logits.sum() * 0)
    return image_share * values[0] + (1 - image_share) * values[1]


def siglip(scores, scale, positives, bias, smoothing=0.0, **negatives):
    logits = scale * scores + bias
    factors = negative_factors(logits, positives > 0, scale, **negatives)
    total = 0.0
    for i in range(logits.shape[0]):
        for j in range(logits.shape[1]):
            target = positives[i, j] * (1 - smoothing) + smoothing / 2
            factor = 1.0 if positives[i, j] > 0 else factors[i, j]
            probability = 1 / (1 + (-logits[i, j]).exp())
            total = total - target * probability.log() - (1 - target) * factor * (1 - probability).log()
    return total / int((positives > 0).any(1).sum())
