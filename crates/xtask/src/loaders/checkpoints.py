"""Writes small checkpoints, and what transformers makes of each: a mean loss, or the reason why it raises.

argv: a folder, and the length of a window in tokens. Each case becomes a folder in it; cases.json lists them. The text
`select.txt` is scored as the evaluator does: disjoint windows, every position but a window's first.
"""

import json
import pathlib
import sys

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

OUT, WINDOW = pathlib.Path(sys.argv[1]), int(sys.argv[2])
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ABSENT = object()
END = "<|endoftext|>"
LLAMA = dict(
    architectures=["LlamaForCausalLM"], model_type="llama", hidden_act="silu", vocab_size=272, hidden_size=64,
    intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5,
    rope_theta=500000.0, rope_scaling=None, max_position_embeddings=256, tie_word_embeddings=True,
    attention_bias=False, mlp_bias=False)
QWEN3 = {**LLAMA, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 32,
         "use_sliding_window": False, "sliding_window": None, "max_window_layers": 2, "rope_theta": 1e6}
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)
# Harmless: these must be loaded, all others may be refused.
LOADED = ("tied", "untied", "llama3 in rope_scaling", "llama3 in rope_parameters", "theta in rope_parameters", "by default", ", the same", "swish", "eps absent",
          "the same head", "buffers", "bare decoder", "harmless keys", "key heads null", "of its own",
          "which a Llama has not", "sliding window off", "beyond the last layer", "all full")
cases = []


def tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({END: 0, **{c: i + 1 for i, c in enumerate(alphabet)}}, []))
    made.add_special_tokens([END])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def weights(config, dtype=torch.float32):
    """Random tensors by name, of the shapes that the untouched configuration has."""
    generator = torch.Generator().manual_seed(0)
    d, f = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or d // config["num_attention_heads"]
    q = config["num_attention_heads"] * head
    kv = (config.get("num_key_value_heads") or config["num_attention_heads"]) * head
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], d), "model.norm.weight": (d,)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        shapes |= {at + f"self_attn.{n}_proj.weight": s for n, s in dict(q=(q, d), k=(kv, d), v=(kv, d), o=(d, q)).items()}
        shapes |= {at + f"mlp.{n}_proj.weight": s for n, s in dict(gate=(f, d), up=(f, d), down=(d, f)).items()}
        shapes |= {at + f"{n}_layernorm.weight": (d,) for n in ("input", "post_attention")}
        if config["model_type"] == "qwen3":
            shapes |= {at + f"self_attn.{n}_norm.weight": (head,) for n in "qk"}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], d)
    draw = lambda shape: torch.randn(shape, generator=generator) * 0.2 + (1.0 if len(shape) == 1 else 0.0)
    return {name: draw(shape).to(dtype) for name, shape in shapes.items()}


def shard(folder, tensors, index=None):
    """Two shards by layer and the index, which `index` may change."""
    found = {}
    for number, first in ((1, True), (2, False)):
        file = f"model-0000{number}-of-00002.safetensors"
        part = {n: t for n, t in tensors.items() if ("layers.0." in n) == first}
        save_file(part, folder / file, metadata={"format": "pt"})
        found |= dict.fromkeys(part, file)
    if index:
        index(found)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": found}))


def case(name, base=LLAMA, change=None, edit=None, sharded=False, dtype=torch.float32, fill=None, **shape):
    """`shape` changes configuration and weights, `change` the configuration alone, `edit` the tensors alone."""
    config = {**base, **shape}
    tensors = weights(config, dtype)
    if edit:
        edit(tensors)
    config = {k: v for k, v in {**config, **(change or {})}.items() if v is not ABSENT}
    folder = OUT / f"{len(cases):03}"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer().save(str(folder / "tokenizer.json"))
    if fill:
        fill(folder, tensors)
    elif sharded:
        shard(folder, tensors)
    else:
        save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    cases.append({"name": f"{base['model_type']}: {name}", "folder": folder.name, "loaded": name.endswith(LOADED)})


def spoil(name, value):
    def edit(tensors):
        tensors[name].view(-1)[3] = value
    return edit


def head(change):
    return lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone() * change})


def buffers(tensors):
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    tensors["model.layers.0.self_attn.masked_bias"] = torch.tensor(-1e4)
    tensors["model.layers.1.self_attn.bias"] = torch.ones(1, 1, 8, 8)


def bare(tensors):
    for name in [n for n in tensors if n.startswith("model.")]:
        tensors[name.removeprefix("model.")] = tensors.pop(name)


def both(change):
    def fill(folder, tensors):
        save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
        shard(folder, {n: t * change if "up_proj" in n else t for n, t in tensors.items()})
    return fill


for base in (LLAMA, QWEN3):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        case(f"{dtype}, single, tied", base, dtype=dtype)
        case(f"{dtype}, sharded, untied", base, dtype=dtype, sharded=True, tie_word_embeddings=False)
    case("llama3 in rope_scaling", base, dict(rope_scaling=LLAMA3))
    case("llama3 in rope_parameters", base, dict(rope_theta=ABSENT, rope_scaling=ABSENT,
                                                 rope_parameters={**LLAMA3, "rope_theta": 500000.0}))
    case("theta in rope_parameters", base, dict(rope_theta=ABSENT, rope_parameters=dict(rope_type="default", rope_theta=3e4)))
    case("theta of 10000 by default", base, dict(rope_theta=ABSENT))
    case("theta twice, the same", base, dict(rope_parameters=dict(rope_type="default", rope_theta=base["rope_theta"])))
    case("theta twice, another", base, dict(rope_parameters=dict(rope_type="default", rope_theta=100.0)))
    case("rope_scaling and rope_parameters, the same", base, dict(rope_scaling=LLAMA3, rope_parameters=LLAMA3))
    case("rope_scaling and rope_parameters, another", base,
         dict(rope_scaling=LLAMA3, rope_parameters=dict(rope_type="default")))
    case("theta in rope_parameters beside rope_scaling", base, dict(
        rope_theta=ABSENT, rope_scaling=dict(rope_type="default"), rope_parameters=dict(rope_type="default", rope_theta=3e4)))
    case("theta is a string", base, dict(rope_theta="500000.0"))
    case("theta is null", base, dict(rope_theta=None))
    case("theta is 0", base, dict(rope_theta=0.0))
    case("theta is negative", base, dict(rope_theta=-500000.0))
    case("factor is a string", base, dict(rope_scaling={**LLAMA3, "factor": "8.0"}))
    case("frequency factors the wrong way round", base, dict(rope_scaling={**LLAMA3, "high_freq_factor": 0.5}))
    case("original length twice, another", base, dict(rope_scaling=LLAMA3, original_max_position_embeddings=32))
    case("linear scaling", base, dict(rope_scaling=dict(type="linear", factor=2.0)))
    case("yarn", base, dict(rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)))
    case("unknown key in rope parameters", base, dict(rope_scaling={**LLAMA3, "beta_fast": 32}))
    case("rope parameters by layer type", base, dict(rope_theta=ABSENT, rope_parameters={
        "full_attention": dict(rope_type="default", rope_theta=3e4)}, layer_types=["full_attention"] * 2))
    case("half of a head rotated", base, dict(partial_rotary_factor=0.5, rope_scaling=LLAMA3))
    case("rope type twice, another", base, dict(rope_scaling={**LLAMA3, "type": "default"}))
    case("swish", base, dict(hidden_act="swish"))
    case("gelu", base, dict(hidden_act="gelu"))
    case("eps is a string", base, dict(rms_norm_eps="1e-5"))
    case("eps absent", base, dict(rms_norm_eps=ABSENT))
    case("head count is a string", base, dict(num_attention_heads="4"))
    case("tie is a string", base, dict(tie_word_embeddings="true"))
    case("tie absent, no head", base, dict(tie_word_embeddings=ABSENT))
    case("tied, the same head", base, edit=head(1.0))
    case("tied, another head", base, edit=head(-1.0))
    case("attention_bias", base, dict(attention_bias=True))
    case("buffers", base, edit=buffers)
    case("bare decoder", base, edit=bare)
    case("NaN in a weight", base, edit=spoil("model.layers.1.mlp.up_proj.weight", float("nan")))
    case("infinity in a weight", base, edit=spoil("model.norm.weight", float("inf")), dtype=torch.float16)
    case("a layer more in the weights", base, dict(num_hidden_layers=1))
    case("single beside index, the same", base, fill=both(1.0))
    case("single beside index, another", base, fill=both(-1.0))
    case("index names the wrong shard", base, fill=lambda folder, tensors: shard(
        folder, tensors, lambda index: index.update({"model.norm.weight": "model-00001-of-00002.safetensors"})))
    case("a shard is missing", base, fill=lambda folder, tensors: (
        shard(folder, tensors), (folder / "model-00002-of-00002.safetensors").unlink()))
    case("not causal", base, dict(is_causal=False))
    case("key heads null", base, dict(num_key_value_heads=None), num_key_value_heads=4)
    case("harmless keys", base, dict(pretraining_tp=1, partial_rotary_factor=1.0, use_cache=False, logits_scaling=1.0,
                                     attention_dropout=0.1, initializer_range=0.02, quantization_config=None))
    case("architecture of another family", base, dict(architectures=["MistralForCausalLM"]))
case("mlp_bias", LLAMA, dict(mlp_bias=True))
case("head_dim null", LLAMA, dict(head_dim=None))
case("head_dim of its own", LLAMA, head_dim=32)
case("width no multiple of the heads", LLAMA, hidden_size=66, head_dim=16)
case("sliding_window, which a Llama has not", LLAMA, dict(sliding_window=8))
case("head_dim null", QWEN3, dict(head_dim=None))
case("key heads absent", QWEN3, dict(num_key_value_heads=ABSENT))
case("sliding window off", QWEN3, dict(sliding_window=8))
case("sliding window in force", QWEN3, dict(use_sliding_window=True, sliding_window=8, max_window_layers=1))
case("sliding window from beyond the last layer", QWEN3, dict(use_sliding_window=True, sliding_window=8))
case("layer_types slide", QWEN3, dict(use_sliding_window=True, sliding_window=8,
                                      layer_types=["full_attention", "sliding_attention"]))
case("layer_types all full", QWEN3, dict(layer_types=["full_attention"] * 2))

words = "the river runs over cold stones and under old trees while a heron waits for fish near the mill".split()
for seed, part in enumerate(["train", "dev", "select", "report"]):
    text = " ".join(words[(i * i + 5 * i * seed + 3 * seed + i // 7) % len(words)] + str((i * 37 + seed) % 90) for i in range(120))
    (OUT / f"{part}.txt").write_text(text)
    if part == "select":
        encoder = tokenizer()
        ids = encoder.encode(text).ids + [0]


@torch.no_grad()
def loss(model):
    total, count = 0.0, 0
    for start in range(0, len(ids) - 1, WINDOW):
        window = torch.tensor([ids[start:start + WINDOW]])
        if window.shape[1] < 2:
            break
        logits = model(window).logits[0, :-1].double()
        total += torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum").item()
        count += window.shape[1] - 1
    return total / count


transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
for entry in cases:
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(OUT / entry["folder"], dtype=torch.float32)
        value = loss(model.eval())
        if value != value or value in (float("inf"), float("-inf")):
            raise ValueError("the loss is no number")
        entry["loss"] = value
    except Exception as error:
        entry["raises"] = f"{type(error).__name__}: {error}".splitlines()[0][:160]
versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
(OUT / "cases.json").write_text(json.dumps({"versions": versions, "cases": cases}))
