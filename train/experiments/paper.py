"""TSER's experiments (arXiv 2503.03144) by their names in the paper.

The short budget trains at T = 4 where the paper does not fix T, so that experiments share students.
"""

from dataclasses import replace

from train import recipe
from train.config import RECIPES, DistillConfig
from train.experiments.embedding import embedding
from train.experiments.experiment import Budget, Experiment, Variant, base, student
from train.experiments.table4 import row_of
from train.experiments.table4_students import MEASURES, energies
from train.methods import METHODS, Method
from train.methods.tser import TSER


PAPER = "TSER (arXiv 2503.03144)"
T_SHORT = 4
LAMBDAS = (0.0, 1e-4, 1e-3, 0.01, 0.05, 0.1, 0.2)
TEMPERATURES = (2.0, 3.0, 4.0, 5.0, 6.0)
COMPARED = {"skd": "Vanilla SNN KD", "kdsnn": "KDSNN", "lasnn": "LaSNN", "bkdsnn": "BKDSNN", "tser": "TSER"}


def table1(budget: Budget) -> list[Variant]:
    """The methods side by side; at full budget every cell of the paper, from its recipe."""
    if budget == "full":
        names = [name for name in recipe.known(RECIPES) if name.startswith("tser-table1/")]
        return [cell(recipe.find(name, RECIPES)) for name in names if not name.endswith("-teacher")]
    return [
        Variant(name=title, group=f"T={T}", config=student(budget, METHODS[name], T=T))
        for T in (2, 4)
        for name, title in COMPARED.items()
    ]


def cell(found: recipe.Recipe) -> Variant:
    """A cell of a table, from its recipe."""
    config = found.over(DistillConfig(), variants={"method": METHODS})
    printed = found.paper.accuracy
    taught = found.paper.teacher_accuracy
    return Variant(
        name=found.paper.row,
        group=f"{config.data.name} {config.net.name} T={config.net.T}",
        config=config,
        paper={"accuracy": printed / 100} if printed is not None else {},
        teacher_paper=taught / 100 if taught is not None else None,
    )


def table3(budget: Budget) -> list[Variant]:
    """Five settings of one loss: which of its two terms is taken at every step, and the entropy."""
    T = base(budget).net.T if budget == "full" else T_SHORT
    rows: list[tuple[str, Method, float]] = [
        ("neither", METHODS["skd"], 0.7715),
        ("CE separated", TSER(separate_kl=False, entropy_weight=0.0), 0.7741),
        ("KL separated", TSER(separate_ce=False, entropy_weight=0.0), 0.7764),
        ("both separated", TSER(entropy_weight=0.0), 0.7799),
        ("both and entropy", TSER(), 0.7813),
    ]
    return [Variant(name=n, config=student(budget, m, T=T), paper={"accuracy": printed}) for n, m, printed in rows]


def table4(budget: Budget) -> list[Variant]:
    """The methods whose energy is compared; at full budget both networks of the paper."""
    if budget != "full":
        return [Variant(name=title, config=student(budget, METHODS[n], T=T_SHORT)) for n, title in COMPARED.items()]
    return [priced(network, name) for network in ("resnet18", "vgg16") for name in COMPARED]


def priced(network: str, name: str) -> Variant:
    """A row of Table 4: the recipe of Table 1's cell, which for vanilla distillation is TSER's with another loss."""
    found = cell(recipe.find(f"tser-table1/cifar100-{network}-T4-{'tser' if name == 'skd' else name}", RECIPES))
    row = row_of(network, "Vanilla" if name == "skd" else COMPARED[name])
    energy = {"tser_compat_acs": float(row.acs.value), "tser_compat_macs": float(row.macs.value)}
    energy["tser_compat_J"] = float(row.energy.value)
    if name == "skd":
        config = replace(found.config, method=METHODS[name])
        return replace(found, name=COMPARED[name], config=config, paper=energy)
    return replace(found, paper=found.paper | energy)


def fig2(budget: Budget) -> list[Variant]:
    """Accuracy of every time step alone."""
    printed = {
        "skd": {"step_mean": 0.7467, "step_spread": 0.0098},
        "tser": {"step_mean": 0.7656, "step_spread": 0.0065},
    }
    return [
        Variant(name=COMPARED[name], config=student(budget, METHODS[name], T=4), paper=figures)
        for name, figures in printed.items()
    ]


def fig3(budget: Budget) -> list[Variant]:
    """Accuracy over lambda, the weight of the entropy, at T = 2."""
    return [Variant(name=f"lambda {x:g}", x=x, config=student(budget, TSER(entropy_weight=x), T=2)) for x in LAMBDAS]


def fig4(budget: Budget) -> list[Variant]:
    """Accuracy over the temperature of the KL term."""
    return [
        Variant(name=f"temperature {x:g}", x=x, config=student(budget, TSER(temperature=x), T=2)) for x in TEMPERATURES
    ]


def fig5(budget: Budget) -> list[Variant]:
    """What the methods' features look like."""
    T = base(budget).net.T if budget == "full" else T_SHORT
    return [Variant(name=title, config=student(budget, METHODS[name], T=T)) for name, title in COMPARED.items()]


EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            name="table1",
            title="Accuracy under the methods",
            source=f"{PAPER}, Table 1",
            variants=table1,
            baseline="TSER",
            notes=("7 of the 14 cells of LaSNN and BKDSNN are the same numbers: probably copied.",),
        ),
        Experiment(
            name="table3",
            title="Temporal separation and entropy regularisation, one by one",
            source=f"{PAPER}, Table 3 (CIFAR-100; network and T are not stated, ResNet-18 at T = 2 presumed)",
            variants=table3,
            baseline="neither",
            notes=("The paper's last row, 78.13, is not its Table 1's 78.30.",),
        ),
        Experiment(
            name="table4",
            title="Energy of an image",
            source=f"{PAPER}, Table 4 (CIFAR-100, T = 4)",
            variants=table4,
            baseline="Vanilla SNN KD",
            measures=("accuracy", "firing_rate", "feature_firing_rate", *MEASURES),
            notes=(
                "None of these is a measurement: each is a model with its own bookkeeping, see docs/energy.md.",
                "The paper's row Vanilla is presumed to be the student of vanilla distillation.",
                "The paper's column Firing rate is of the last layer alone (Eq. 12), so its ACs do not follow from it.",
            ),
            extra=energies,
        ),
        Experiment(
            name="fig2",
            title="Accuracy of every time step alone",
            source=f"{PAPER}, Fig. 2",
            variants=fig2,
            baseline="Vanilla SNN KD",
            measures=("step_mean", "step_spread", "accuracy"),
        ),
        Experiment(
            name="fig3",
            title="Accuracy over the weight lambda of the entropy",
            source=f"{PAPER}, Fig. 3 (a picture: no figures are printed; lambda 0.0001 to 0.2 is called stable)",
            variants=fig3,
            baseline="lambda 0",
        ),
        Experiment(
            name="fig4",
            title="Accuracy over the temperature",
            source=f"{PAPER}, Fig. 4 (a picture: no figures are printed; it is called stable)",
            variants=fig4,
            baseline="temperature 5",
        ),
        Experiment(
            name="fig5",
            title="Features of the methods, by t-SNE and in numbers",
            source=f"{PAPER}, Fig. 5 (a picture: no figures are printed)",
            variants=fig5,
            baseline="Vanilla SNN KD",
            measures=("silhouette", "neighbours", "accuracy"),
            extra=embedding,
        ),
    )
}
