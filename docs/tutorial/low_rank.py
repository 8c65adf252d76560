# ---
# jupyter:
#   jupytext:
#     formats: py:percent
# ---
# %% [markdown]
# # A tutorial: how much of a weight matrix does a training use?
#
# Twenty minutes' reading. At the end you know what an explained ratio, a buffer rank and a null rank are, you have seen
# them on a training of your own, and you have chosen ranks for a LoRA by them, and checked the choice against the loss.
#
# You need to know what a matrix product is and what a training step does. You need not know the paper.
#
# Everything on this page was computed when the page was built, by the script that you read here
# (`docs/tutorial/low_rank.py`). Numbers are printed by the code above them; none is typed in. The figures are live:
# point at a line, drag to zoom, double-click to come back.

# %%
import copy

import numpy as np
import torch
from inrank_monitor import attach, figures, open_run
from inrank_monitor.ranks import (
    explained_ratio_curve,
    intrinsic_rank,
    null_rank,
    null_singular_values,
)
from torch.nn.functional import cross_entropy

torch.manual_seed(0)
torch.set_num_threads(
    1
)  # small matrices: more threads would wait for each other

# %% [markdown]
# ## 1. A matrix that moves
#
# A training moves a weight matrix from its first value W0 to W. What it has learned is in the difference, the
# **cumulative update** ΔW = W − W0. How complicated is that difference?
#
# Two made-up updates of the same shape and the same size. The first is a sum of three *directions*: each is a column
# times a row, u vᵀ, and takes one pattern of the input to one pattern of the output. The second is noise: every entry
# drawn by itself.

# %%
rows, cols = 128, 512
generator = np.random.default_rng(0)
noise = generator.standard_normal((rows, cols))
three = 0.3 * noise  # no training is without it
for strength in (3, 2.5, 2.2):
    u, v = generator.standard_normal(rows), generator.standard_normal(cols)
    three = three + strength * np.outer(u, v)
noise *= np.linalg.norm(three) / np.linalg.norm(noise)

# %% [markdown]
# Any matrix can be written as a sum of such directions, σ₁ u₁v₁ᵀ + σ₂ u₂v₂ᵀ + …, orthogonal to each other, strongest
# first. That is its singular value decomposition, and the strengths σ₁ ≥ σ₂ ≥ … are its **singular values**, all of
# them together its **spectrum**. A matrix of 128 × 512 has 128 of them.

# %%
spectra = {
    "three": np.linalg.svd(three, compute_uv=False),
    "noise": np.linalg.svd(noise, compute_uv=False),
}
for name, values in spectra.items():
    print(
        f"{name}: σ₁..σ₆ = {np.round(values[:6]).astype(int)}, σ₁₂₈ = {values[-1]:.0f}"
    )

# %%
figure = figures.new_figure(
    "Two updates of the same size", "place in the spectrum", "singular value"
)
for name, values in spectra.items():
    figure.add_scatter(
        y=values,
        x=np.arange(1, rows + 1),
        name=name,
        mode="lines+markers",
        marker_size=4,
    )
figure.update_xaxes(type="log", tickvals=[1, 2, 3, 5, 10, 20, 50, 100])

# %% [markdown]
# Three values stand out of the first spectrum; behind them is a floor. The second has no value that stands out: it falls
# gently from the first to the last. We want a number that says "three" of the first one, without our looking.
#
# ## 2. Explained ratio, and the buffer rank
#
# The paper's number looks at how *unequal* the strengths are. Take the r + b strongest of them. Their variance is what
# there is to explain. Now drop the first r and look at the b that are left. If these are nearly equal, nothing stands
# out among them any more, and the first r have explained the spectrum:
#
# > **explained ratio** g(r) = 1 − var(σ of the b after the first r) / var(σ of the first r + b)
#
# b is the **buffer rank**: how far behind r one looks. g = 1 is fully explained. The **intrinsic rank** is the least
# r whose g(r) reaches a threshold α, 0.9 by default.

# %%
b = 16
for name, values in spectra.items():
    curve = explained_ratio_curve(values, buffer_rank=b)
    rank = intrinsic_rank(values, threshold=0.9, buffer_rank=b)
    print(f"{name}: g(1..4) = {np.round(curve[:4], 3)}, intrinsic rank {rank}")

# %% [markdown]
# The rule counts the directions that stand out. But look at the second line: **it gives noise a rank too**, and not the full
# 128. Where nothing stands out, the rule ends somewhere all the same, and where it ends depends on b:

# %%
for b in (4, 8, 16, 32):
    ranks = {
        name: int(intrinsic_rank(values, 0.9, b))
        for name, values in spectra.items()
    }
    print(
        f"b = {b:>2}: three directions {ranks['three']:>3}, noise {ranks['noise']:>3}"
    )

# %% [markdown]
# ## 3. Null rank: what noise would have had
#
# So a rank by itself says nothing. A rank of 25 is low where noise has 53, and it is noise where noise has 25.
# The rank that the same rule gives a matrix without any structure, of the same shape and with the same α and b, is
# its **null rank**. No matrix has to be drawn for it: the singular values that noise is expected to have are known (the
# law of Marchenko and Pastur).

# %%
b = 16
expected = null_singular_values(rows, cols)
drawn = spectra["noise"] / spectra["noise"][0]
distance = np.abs(drawn - expected / expected[0]).max()
print(f"the noise above lies within {distance:.3f} σ₁ of what is expected\n")
for b in (4, 8, 16, 32):
    nulls = [
        null_rank(*shape, buffer_rank=b)
        for shape in ((128, 128), (128, 512), (768, 3072))
    ]
    print(f"b = {b:>2}: null rank {nulls} of 128×128, 128×512, 768×3072")

# %% [markdown]
# The null rank follows b and hardly the shape: about 1.6 b, at α = 0.9, as long as b is small beside the sides of the
# matrix. From here on a rank is only ever read **over its null rank**: near 1 nothing stands out; far below 1 a few
# directions do.
#
# ## 4. A real training, watched
#
# A small GPT-2, trained from scratch on Python's own help texts (English prose and code that every Python installation
# holds). The tracker is one line before the loop and one inside it. `every=10` measures at each tenth step; the
# default would choose the steps by itself, at most 1 % of the time over ten minutes and more.

# %%
from inrank_monitor.demo.text import read_text, tokenize
from transformers import GPT2Config, GPT2LMHeadModel

CONTEXT, BATCH, STEPS = 32, 16, 150
tokens = tokenize(read_text(None), vocabulary=512, context=CONTEXT)
torch.manual_seed(0)
sizes = {"n_positions": CONTEXT, "n_embd": 96, "n_layer": 2, "n_head": 4}
without = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
without |= {"use_cache": False, "bos_token_id": None, "eos_token_id": None}
config = GPT2Config(vocab_size=tokens.vocabulary, **sizes, **without)
model = GPT2LMHeadModel(config)
held_out = [part[:96] for part in tokens.validation_windows(CONTEXT)]


def loss_of(model, inputs, targets):
    return cross_entropy(
        model(input_ids=inputs).logits.flatten(0, 1), targets.flatten()
    )


@torch.no_grad()
def validation(model):
    return float(loss_of(model, *held_out))


def fit(model, draw, steps, learning_rate=2e-3, after=lambda loss: None):
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate)
    order = torch.Generator().manual_seed(0)
    yield optimizer
    for _ in range(steps):
        loss = loss_of(model, *draw(BATCH, CONTEXT, order))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        after(loss)


# %% [markdown]
# `fit` hands out its optimizer first, so that a tracker can be attached before the first step; `list(...)` below runs the
# rest of it.

# %%
before = copy.deepcopy(model)
training = fit(
    model, tokens.batch, STEPS, after=lambda loss: tracker.log(loss=loss)
)
tracker = attach(
    model, next(training), "runs/tutorial", every=10, buffer_rank=12
)
list(training)
tracker.close()
print(
    f"held-out loss: {validation(before):.2f} before, {validation(model):.2f} after {STEPS} steps"
)
tracker

# %% [markdown]
# (`every=10` is obeyed whatever it costs; without it the tracker takes at most 1 % of the time over ten minutes and more.)
#
# What was watched? Every parameter is accounted for. GPT-2 stores q, k and v of attention as one weight; they are three
# maps, so they are watched as three matrices.

# %%
tracker.coverage

# %% [markdown]
# ## 5. The spectra of the training
#
# A run on disk is a folder of tables; here it shows itself. In each row: the rank of this matrix's update after the last
# step, the rank of noise, and two numbers that use neither α nor b: the stable rank ‖ΔW‖² / σ₁², and how far the
# matrix has moved at all.

# %%
run = open_run("runs/tutorial")
run

# %%
last = run.measurements[run.measurements["step"] == STEPS]
ratios = last["rank_over_null_rank"].to_numpy()
low, middle, high = np.quantile(ratios, (0, 0.5, 1))
print(
    f"rank over null rank: lowest {low:.2f}, median {middle:.2f}, highest {high:.2f}"
)
figures.rank_heatmap(run.measurements, "intrinsic_rank", relative_to_null=True)

# %% [markdown]
# Each row is a matrix, each column a measured step; 1 would be noise. Read the right end: the first steps under Adam move
# every entry by about the same amount, so an early rank says more of the optimizer than of the text.
#
# One matrix over the steps, each line a singular value. If a training had no preferred directions, all lines would rise
# together.

# %%
name = "transformer.h.1.mlp.c_fc.weight"
values = run.singular_values(name)
figures.spectrum_evolution(values, name)

# %% [markdown]
# The same matrix at its first and last measured steps, beside noise (dotted): how many of its directions have which
# strength. What reaches to the right of the dots stands out.

# %%
shape = tuple(run.matrices.loc[name, ["rows", "cols"]])
rule = {"threshold": run.threshold, "buffer_rank": run.buffer_rank}
expected = null_singular_values(*shape)
figures.spectrum_density(
    values, [10, STEPS], log=True, null=expected, name=name, **rule
)

# %% [markdown]
# And the explained ratio against r, with a ring where it reaches α. The distance of the two rings is the statement that
# this page is about.

# %%
figures.explained_ratio_curve(values, STEPS, null=expected, **rule)

# %% [markdown]
# ## 6. Is that rank enough? Ask the loss
#
# The explained ratio looks at a matrix, and not at what the matrix is for. The loss is at hand, so ask it: put
# W0 + (the r strongest directions of ΔW) into the model, for every matrix at once, and measure.

# %%
from inrank_monitor import find_matrices


def weights(model):
    """Every watched matrix by name, as a view of the model's own weight."""
    return {
        matrix.name: matrix.view(matrix.read())
        for matrix in find_matrices(model)[0]
    }


start = weights(before)


@torch.no_grad()
def truncated(ranks):
    """The trained model with each matrix's update cut to its leading directions."""
    cut = copy.deepcopy(model)
    for name, weight in weights(cut).items():
        u, s, v = torch.linalg.svd(weight - start[name], full_matrices=False)
        rank = ranks[name]
        weight.copy_(start[name] + u[:, :rank] * s[:rank] @ v[:rank])
    return cut


whole, nothing = (
    validation(model),
    validation(truncated(dict.fromkeys(start, 0))),
)
uniform = {
    r: validation(truncated(dict.fromkeys(start, r)))
    for r in (1, 2, 4, 8, 16, 32, 64)
}
by_rule = (
    last.set_index(last["matrix"].astype(str))["intrinsic_rank"]
    .astype(int)
    .to_dict()
)
ruled = validation(truncated(by_rule))
mean_rank = np.mean(list(by_rule.values()))
print(f"{'directions of each update':<28} loss")
print(
    f"{'none, other parameters alone':<28} {nothing:.3f}  {nothing - whole:+.3f}"
)
for r, loss in uniform.items():
    print(f"{f'the {r} strongest':<28} {loss:.3f}  {loss - whole:+.3f}")
print(
    f"{f'the rule, {mean_rank:.1f} on average':<28} {ruled:.3f}  {ruled - whole:+.3f}"
)
print(f"{f'all {min(shape)}':<28} {whole:.3f}")

# %%
figure = figures.new_figure(
    "Loss with the r strongest directions of every update", "r", "held-out loss"
)
x, y = list(uniform), list(uniform.values())
figure.add_scatter(x=x, y=y, name="the same r everywhere", mode="lines+markers")
rule_name = "the rule's ranks (at their mean)"
figure.add_scatter(
    x=[mean_rank], y=[ruled], name=rule_name, mode="markers", marker_size=12
)
figure.add_hline(
    whole,
    line_dash="dot",
    line_color=figures.NEUTRAL,
    annotation_text="all of ΔW",
    annotation_position="top right",
)
figure.update_xaxes(type="log", tickvals=list(uniform))

# %% [markdown]
# What an intrinsic rank keeps is what *stands out*, and that need not be all that the loss wants: how far the marker lies
# above the dotted line is the price. Very few directions can even be worse than none, for the embeddings and the
# biases were trained together with the whole update, and not with a stump of it. So take a spectral rank for an
# estimate, good for comparing matrices, and measure before you rely on it.
#
# ## 7. Ranks for a LoRA
#
# Now a task: fine-tune the model on something else, Python source code, by LoRA: the weights stay as they are, and each
# matrix gets a correction U V of its own of a rank that *you* have to choose. Choose it from a short watched
# fine-tuning of the whole matrices.

# %%
import argparse
import inspect
import logging

from inrank_monitor import ranks_by_loss
from inrank_monitor.advice import advise, rank_pattern
from inrank_monitor.demo.text import Tokens
from tokenizers import Tokenizer

code = inspect.getsource(argparse) + inspect.getsource(logging)
ids = torch.tensor(Tokenizer.from_str(tokens.tokenizer).encode(code).ids)
cut = int(0.9 * len(ids))
source = Tokens(ids[:cut], ids[cut:], tokens.vocabulary, tokens.tokenizer)
held_out = [part[:96] for part in source.validation_windows(CONTEXT)]
SHORT = 60

tuned = copy.deepcopy(model)
training = fit(tuned, source.batch, SHORT, 1e-3)
with attach(tuned, next(training), "runs/tuned", every=5, buffer_rank=12):
    list(training)
tuned.eval()
ranks_by_loss(tuned, "runs/tuned", lambda: validation(tuned))

table = advise(open_run("runs/tuned"))
shown = [
    "rank",
    "rank_from",
    "energy_share",
    "energy_rank",
    "intrinsic_rank",
    "signal_rank",
    "null_rank",
    "break_even_rank",
    "advice",
]
table[shown].round(2)

# %% [markdown]
# A row a matrix. `rank` is the one that is enough: here by the loss, which `ranks_by_loss` has just asked, with all
# matrices cut at once; without it 90 % of the update's energy would count. Beside it stand the ranks of the other rules, and
# `break_even_rank`, above which two factors have more to train than the matrix. A matrix that the loss does without gets no
# adapter. `rank_pattern` turns the table into what PEFT takes, one rank a module:

# %%
pattern = rank_pattern(table)
mean = round(np.mean(list(pattern.values())))
pattern

# %% [markdown]
# The test: LoRA at those ranks, and LoRA at one and the same rank everywhere, of about the same number of parameters,
# trained for the same steps as the whole matrices were.

# %%
from peft import LoraConfig, get_peft_model


def lora(ranks, steps=SHORT):
    options = (
        {"rank_pattern": ranks} if isinstance(ranks, dict) else {"r": ranks}
    )
    options |= {"use_rslora": True, "lora_alpha": 8, "fan_in_fan_out": True}
    config = LoraConfig(target_modules=list(pattern), **options)
    torch.manual_seed(0)
    adapted = get_peft_model(copy.deepcopy(model), config)
    training = fit(adapted, source.batch, steps, 4e-3)
    next(training)
    list(training)
    return validation(adapted), sum(
        p.numel() for p in adapted.parameters() if p.requires_grad
    )


def line(label, loss, count):
    print(f"{label:<28} loss {loss:.3f}, {count:>7,} trained parameters")


line("as it was", validation(model), 0)
line(
    "all weights trained",
    validation(tuned),
    sum(p.numel() for p in tuned.parameters()),
)
line("LoRA, ranks from the advice", *lora(pattern))
line(f"LoRA, rank {mean} everywhere", *lora(mean))
line("LoRA, rank 1 everywhere", *lora(1))

# %% [markdown]
# Read the table for what it is: one seed, a few seconds of training, a very small model. The full training also moved
# embeddings, biases and norms, which a LoRA leaves as they were; how much of the distance that makes, this table does not
# say. It shows the way and not a law. The way is: watch a short full training, ask the loss for its ranks, and *measure the
# choice*; `inrank reproduce advice` does it with three seeds.
#
# ## What you know now
#
# - **Cumulative update** ΔW = W − W0: what a training has done to a matrix. **Spectrum**: the strengths of its directions.
# - **Explained ratio** g(r): whether anything still stands out behind the first r directions. **Buffer rank** b: how far
#   behind them it looks. **Intrinsic rank**: the least r at which g reaches α.
# - **Null rank**: what the same rule says of noise. It follows b. Without it a rank means nothing.
# - A rank from a spectrum is an estimate; the loss decides.
#
# Next: [what every number means](numbers.md), [your trainer](trainers/index.md), [the dashboard](dashboard.md),
# [advice for LoRA](lora.md), or [training at a rank that grows](growing-rank.md).
