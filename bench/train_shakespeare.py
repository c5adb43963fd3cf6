"""Trains the small language model that ships in the wheel: byte-level, Llama-type, on the Shakespeare text.

    python bench/train_shakespeare.py TEXT OUT [--steps N]

First 90 % of the bytes train, the next 5 % are for calibration, the last 5 % for evaluation. Writes OUT/model.safetensors
(float16), config.json, tokenizer.json, calibration.txt, evaluation.txt and training.json. Needs torch; about 10 minutes on
two cores.
"""
import argparse, json, math, pathlib, time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import save_file

CONFIG = dict(architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=256, hidden_size=192, num_hidden_layers=4,
              num_attention_heads=6, num_key_value_heads=3, head_dim=32, intermediate_size=512, hidden_act="silu",
              max_position_embeddings=256, rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=True,
              attention_bias=False, mlp_bias=False, torch_dtype="float16")
CONTEXT = 256  # bytes seen at once in training and in evaluation


class RMSNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], self.weight, CONFIG["rms_norm_eps"])


def linear(n_in, n_out):
    return nn.Linear(n_in, n_out, bias=False)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, self.kv, self.dim = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
        self.q_proj = linear(c["hidden_size"], self.heads * self.dim)
        self.k_proj = linear(c["hidden_size"], self.kv * self.dim)
        self.v_proj = linear(c["hidden_size"], self.kv * self.dim)
        self.o_proj = linear(self.heads * self.dim, c["hidden_size"])

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        split = lambda y, h: y.view(b, t, h, self.dim).transpose(1, 2)
        q, k, v = split(self.q_proj(x), self.heads), split(self.k_proj(x), self.kv), split(self.v_proj(x), self.kv)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (y.repeat_interleave(self.heads // self.kv, 1) for y in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return (x.float() * cos + torch.cat((-b, a), -1).float() * sin).to(x.dtype)


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_proj = linear(c["hidden_size"], c["intermediate_size"])
        self.up_proj = linear(c["hidden_size"], c["intermediate_size"])
        self.down_proj = linear(c["intermediate_size"], c["hidden_size"])

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_layernorm, self.self_attn = RMSNorm(c["hidden_size"]), Attention(c)
        self.post_attention_layernorm, self.mlp = RMSNorm(c["hidden_size"]), MLP(c)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["num_hidden_layers"]))
        self.norm = RMSNorm(c["hidden_size"])
        freq = 1.0 / c["rope_theta"] ** (torch.arange(0, c["head_dim"], 2) / c["head_dim"])
        angle = torch.outer(torch.arange(CONTEXT), freq).repeat(1, 2)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                deep = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, std=0.04 / (math.sqrt(2 * c["num_hidden_layers"]) if deep else 1.0))

    def forward(self, ids):
        x, t = self.embed_tokens(ids), ids.shape[1]
        for layer in self.layers:
            x = layer(x, self.cos[:t], self.sin[:t])
        return self.norm(x) @ self.embed_tokens.weight.T


def bits_per_byte(model, data):
    """Mean -log2 p over windows of CONTEXT bytes without overlap; the first byte of a window is not scored."""
    n = len(data) // CONTEXT * CONTEXT
    windows = torch.from_numpy(data[:n].astype(np.int64)).view(-1, CONTEXT)
    with torch.no_grad():
        losses = [F.cross_entropy(model(w)[:, :-1].flatten(0, 1), w[:, 1:].flatten(), reduction="sum") for w in windows.split(16)]
    return sum(map(float, losses)) / (len(windows) * (CONTEXT - 1)) / math.log(2)


def byte_tokenizer():
    """A tokenizer.json whose ids are the bytes themselves (byte-level BPE without merges)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = (c for c in range(256, 512))
    vocab = {chr(b if b in printable else next(spare)): b for b in range(256)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    assert tokenizer.encode("Thou né\n\0").ids == list("Thou né\n\0".encode())
    return tokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--lr", type=float, default=3e-3)
    args = parser.parse_args()
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    data = np.frombuffer(args.text.read_bytes(), np.uint8)
    n = len(data)
    train, calibration, evaluation = data[:n * 90 // 100], data[n * 90 // 100:n * 95 // 100], data[n * 95 // 100:]
    model = Llama(CONFIG)
    parameters = sum(p.numel() for p in model.parameters())
    decay = [p for p in model.parameters() if p.ndim == 2]
    plain = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW([dict(params=decay, weight_decay=0.1), dict(params=plain, weight_decay=0.0)],
                                  lr=args.lr, betas=(0.9, 0.95), fused=True)
    print(f"{parameters:,} parameters", flush=True)
    start = time.perf_counter()
    for step in range(args.steps):
        warm = min(1.0, (step + 1) / 100)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / args.steps)))
        at = rng.integers(0, len(train) - CONTEXT, args.batch)
        batch = torch.from_numpy(np.stack([train[i:i + CONTEXT + 1] for i in at]).astype(np.int64))
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 500 == 0 or step == args.steps - 1:
            print(f"step {step:5d}  train {float(loss.detach()) / math.log(2):.3f} bits  calibration "
                  f"{bits_per_byte(model, calibration):.3f} bits  {time.perf_counter() - start:.0f} s", flush=True)
    seconds = time.perf_counter() - start
    model = model.half().float()
    args.out.mkdir(parents=True, exist_ok=True)
    save_file({f"model.{k}": v.half().contiguous() for k, v in model.state_dict().items()}, args.out / "model.safetensors",
              metadata={"format": "pt"})
    (args.out / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    byte_tokenizer().save(str(args.out / "tokenizer.json"))
    (args.out / "calibration.txt").write_bytes(calibration.tobytes())
    (args.out / "evaluation.txt").write_bytes(evaluation.tobytes())
    record = dict(parameters=parameters, context=CONTEXT, steps=args.steps, batch=args.batch, lr=args.lr, seconds=round(seconds),
                  calibration_bits_per_byte=round(bits_per_byte(model, calibration), 4),
                  evaluation_bits_per_byte=round(bits_per_byte(model, evaluation), 4), torch=torch.__version__)
    (args.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    print(record)


if __name__ == "__main__":
    main()
