"""The training step of speed.rs in PyTorch, for comparison: prints tokens per second, or why it cannot.

What a PyTorch user would write: straight-through ternary weights in groups (TWN), one product a projection, bf16
autocast, scaled_dot_product_attention, fused AdamW, gradient clipping. argv: a JSON object with the shape and batch.
"""

import json
import sys
import time

try:
    import torch
    import torch.nn.functional as F
except ImportError as error:
    sys.exit(f"PyTorch is not installed ({error})")


class TernaryLinear(torch.nn.Module):
    """x @ Q(w).T with Q by TWN in groups along the rows; the gradient passes straight through."""

    def __init__(self, inputs, outputs, group):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(outputs, inputs) * 0.02)
        self.group = group

    def forward(self, x):
        w = self.weight
        with torch.no_grad():
            groups = w.view(w.shape[0], -1, self.group)
            size = groups.abs()
            keep = size > 0.75 * size.mean(-1, keepdim=True)
            scale = (size * keep).sum(-1, keepdim=True) / keep.sum(-1, keepdim=True).clamp_min(1)
            quantized = (torch.sign(groups) * keep * scale).view_as(w)
        return F.linear(x, w + (quantized - w).detach())


class Norm(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(width))

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, 1e-6)


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Block(torch.nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, self.kv, self.dim = c["heads"], c["kv_heads"], c["head_dim"]
        linear = lambda i, o: TernaryLinear(i, o, c["group"])
        self.q, self.o = linear(c["hidden"], self.heads * self.dim), linear(self.heads * self.dim, c["hidden"])
        self.k, self.v = (linear(c["hidden"], self.kv * self.dim) for _ in range(2))
        self.gate, self.up = (linear(c["hidden"], c["intermediate"]) for _ in range(2))
        self.down = linear(c["intermediate"], c["hidden"])
        self.before, self.after = Norm(c["hidden"]), Norm(c["hidden"])
        self.head_norms = torch.nn.ModuleList(Norm(self.dim) for _ in range(2)) if c["qk_norm"] else None

    def forward(self, x, cos, sin):
        split = lambda y, n: y.view(*y.shape[:2], n, self.dim).transpose(1, 2)
        h = self.before(x)
        q, k, v = split(self.q(h), self.heads), split(self.k(h), self.kv), split(self.v(h), self.kv)
        if self.head_norms is not None:
            q, k = self.head_norms[0](q), self.head_norms[1](k)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, v.to(q.dtype), is_causal=True, enable_gqa=self.heads != self.kv)
        x = x + self.o(mixed.transpose(1, 2).flatten(2))
        h = self.after(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Model(torch.nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embedding = torch.nn.Embedding(c["vocabulary"], c["hidden"])
        self.blocks = torch.nn.ModuleList(Block(c) for _ in range(c["layers"]))
        self.norm = Norm(c["hidden"])
        angles = torch.outer(torch.arange(c["length"]), 1e4 ** (-torch.arange(0, c["head_dim"], 2) / c["head_dim"]))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, ids, targets):
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return F.cross_entropy(F.linear(self.norm(x), self.embedding.weight).flatten(0, 1).float(), targets.flatten())


def main():
    c = json.loads(sys.argv[1])
    torch.manual_seed(0)
    torch.set_num_threads(c["threads"])
    model = Model(c)
    if not c["dense"]:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.dim() == 2 and not name.startswith("embedding"))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, fused=True)
    ids = torch.randint(c["vocabulary"], (c["rows"], c["length"] + 1))
    best = float("inf")
    for _ in range(c["times"]):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=c["bf16"]):
            loss = model(ids[:, :-1], ids[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        best = min(best, time.perf_counter() - start)
    print(c["rows"] * c["length"] / best)


main()
