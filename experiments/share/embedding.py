"""Does a language model gain by using its input embedding as its output weight too?

Text, not images, whatever --data says: Python's own help texts (pydoc_data.topics), word by word.
"""

import functools
import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.networks import gradient_difference
from experiments.pictures import points
from experiments.results import Claim, Table, held
from experiments.share.common import (
    Tuned,
    count,
    each_rate,
    each_tuned,
    finite,
    normals,
    rates_note,
    ratio,
)
from experiments.statistics import Rows
from experiments.study import Setting
from experiments.training import train

PANELS = 1
CONTEXT = 4  # words
# what it is called, is it tied, how much narrower than Config.width
KINDS = {
    "untied": ("untied", False, 1),
    "tied": ("tied", True, 1),
    "untied half": ("untied, half as wide", False, 2),
}
SAME = 1.05  # perplexity over the untied one's: what counts as about equal


@dataclass(frozen=True)
class Config:
    learning_rates: tuple[float, ...] = (2.0, 4.0, 8.0)
    updates: int = 400
    batch: int = 64
    width: int = 32
    vocabulary: int = 500
    words: int = 20_000  # of the text, the last 15 % for testing


CONFIGS = {
    "smoke": Config(learning_rates=(1.0,), updates=60),
    "quick": Config(),
    "full": Config(
        learning_rates=(1.0, 2.0, 4.0, 8.0), updates=3000, width=64, vocabulary=2000, words=60_000
    ),
}


class Model(nn.Module):
    def __init__(self, ops: Any, words: int, width: int, tied: bool, normal: Any) -> None:
        super().__init__()
        self.ops = ops
        self.embedding = nn.Parameter(normal(words, width) * width**-0.5)
        self.weight = nn.Parameter(normal(width, CONTEXT * width) * CONTEXT**-0.5)
        self.bias = nn.Parameter(torch.zeros_like(self.weight[:, 0]))
        self.out_bias = nn.Parameter(torch.zeros_like(self.embedding[:, 0]))
        self.top = None if tied else nn.Parameter(normal(words, width) * width**-0.5)

    def forward(self, context: Tensor) -> Tensor:
        """The logits of the next word, (M, words)."""
        top = self.embedding if self.top is None else self.top
        x = F.embedding(context, self.embedding).flatten(1)
        activations = ["tanh", "identity"]
        return self.ops.mlp(x, [self.weight, top], [self.bias, self.out_bias], activations)


@functools.lru_cache(maxsize=2)
def text(words: int, vocabulary: int) -> Tensor:
    """The text as numbers of words; 0: a word that is not among the most frequent ones."""
    from pydoc_data.topics import topics

    whole = " ".join(topics[name] for name in sorted(topics)).lower()
    found = re.findall(r"[a-z_]+|[0-9]+|[^\sa-z0-9_]", whole)[:words]
    frequent = [word for word, _ in Counter(found).most_common(vocabulary - 1)]
    number = {word: i for i, word in enumerate(frequent, 1)}
    return torch.tensor([number.get(word, 0) for word in found])


def arms(config: Config) -> list[dict[str, Any]]:
    return each_rate(KINDS, config.learning_rates)


def work(arm: dict[str, Any], config: Config) -> float:
    return config.updates / 500 * config.vocabulary / 500


def measure(arm: dict[str, Any], config: Config, setting: Setting) -> list[dict[str, Any]]:
    numbers = text(config.words, config.vocabulary).to(setting.device)
    contexts, following = numbers.unfold(0, CONTEXT, 1)[:-1], numbers[CONTEXT:]
    train_size = len(following) * 85 // 100
    x, y = contexts[:train_size], following[:train_size]
    _, tied, narrower = KINDS[arm["kind"]]
    width = config.width // narrower
    net = Model(setting.ops, config.vocabulary, width, tied, normals(setting))
    train(
        net,
        x,
        y,
        batch=config.batch,
        learning_rate=arm["learning_rate"],
        updates=config.updates,
        seed=setting.seed,
        schedule=lambda done: 1 - 0.9 * done,
    )
    loss = mean_loss(net, x[: len(x) // 4], y[: len(x) // 4])
    return [
        {
            "parameters": sum(p.numel() for p in net.parameters()),
            "train_loss": loss,
            "train_perplexity": finite(math.exp(min(loss, 700.0))),
            "perplexity": finite(
                math.exp(min(mean_loss(net, contexts[train_size:], following[train_size:]), 700.0))
            ),
            "gradient_difference": gradient_difference(net, "cross_entropy", x[:64], y[:64]),
        }
    ]


@torch.no_grad()
def mean_loss(net: Model, x: Tensor, y: Tensor) -> float:
    pieces = zip(x.split(2048), y.split(2048), strict=True)
    sums = [net.ops.cross_entropy(net(a), b, reduction="sum").item() for a, b in pieces]
    return finite(sum(sums) / len(y))


def tables(rows: Rows) -> list[Table]:
    body = []
    for kind, best in each_tuned(rows, list(KINDS)):
        perplexities = [best.of(name).text(1) for name in ("train_perplexity", "perplexity")]
        body.append([KINDS[kind][0], count(best.rows), best.rate_text, *perplexities])
    headers = ["embeddings", "P", "rate", "training perplexity", "test perplexity"]
    note = (
        f"Python's help texts, not --data. The text and its split are the same for all seeds. "
        f"{rates_note(rows)}"
    )
    return [Table("A language model of four words' context", headers, body, note)]


def claims(rows: Rows) -> list[Claim]:
    best = dict(each_tuned(rows, list(KINDS)))
    if set(best) != set(KINDS):
        return []
    times = ratio(best["tied"], best["untied"], "perplexity")
    sizes = rows.groupby("kind")["parameters"].first()
    fewer = 100 * (1 - sizes["tied"] / sizes["untied"])
    measured = f"{times.text(3)} times the untied one's perplexity, {fewer:.0f} % fewer parameters"
    paper = "78.4 to 74.3, 66M to 51M parameters; 114.5 to 112.4, 4.65M to 2.65M (test, PTB)"
    whose = "Press and Wolf 2017, tables 5 and 6"
    return [
        Claim(
            "tied embeddings improve the test perplexity",
            whose,
            measured,
            "the whole interval of the ratio is below 1; opposite if it is above",
            held(times.high < 1, times.low > 1),
            paper,
        ),
        Claim(
            f"tied embeddings cost at most {100 * (SAME - 1):.0f} % of the test perplexity",
            "ours",
            measured,
            f"the whole interval of the ratio is below {SAME:g}; opposite if it is above",
            held(times.high < SAME, times.low > SAME),
        ),
        _training(best),
        _equal_parameters(best),
    ]


def _training(best: dict[str, Tuned]) -> Claim:
    times = ratio(best["tied"], best["untied"], "train_perplexity")
    return Claim(
        "tied embeddings fit the training text less well",
        "Press and Wolf 2017, table 5",
        f"{times.text(3)} times the untied one's training perplexity",
        "the whole interval of the ratio is above 1",
        held(times.low > 1, times.high < 1),
        "37.8 to 48.5 (large model), but 38.0 to 36.4 (small)",
    )


def _equal_parameters(best: dict[str, Tuned]) -> Claim:
    times = ratio(best["untied half"], best["tied"], "perplexity")
    return Claim(
        "at about equal parameters tying is better than narrower embeddings",
        "ours, the control",
        f"the narrower one's test perplexity is {times.text(3)} times the tied one's, "
        f"{count(best['untied half'].rows)} and {count(best['tied'].rows)} parameters",
        "the whole interval of the ratio is above 1",
        held(times.low > 1, times.high < 1),
    )


def draw(rows: Rows, axes: list[Any]) -> None:
    (axis,) = axes
    found = list(each_tuned(rows, list(KINDS)))
    columns = {"train_perplexity": "training text", "perplexity": "test text"}
    for number, (column, label) in enumerate(columns.items()):
        values = [best.of(column) for _, best in found]
        points(axis, range(len(found)), values, number, capsize=3, linestyle="", label=label)
    axis.set(
        xticks=range(len(found)),
        xticklabels=[f"{KINDS[kind][0]}\n{count(best.rows)}" for kind, best in found],
        xlim=(-0.5, len(found) - 0.5),
        xlabel="embeddings, and parameters",
        ylabel="perplexity (smaller is better)",
        title="A language model's embeddings",
    )
    axis.legend()
