"""`LightningCallback` inside Lightning's own Trainer."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.oracles import singular_values
from helpers.training import run_script
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.utils.data import DataLoader, TensorDataset

from inrank_monitor import LightningCallback, open_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    # Lightning's advice on speed and on a run as short as a test's, and its own use of what torch calls deprecated
    pytest.mark.filterwarnings(
        "ignore:.*does not have many workers",
        "ignore:The number of training batches",
        "ignore:.*LeafSpec.* is deprecated:FutureWarning",
        "ignore:Be aware that when using `ckpt_path`, callbacks",  # the one that saved it, which need not save again
    ),
]
ROOT = Path(__file__).parents[2]
BATCHES = 6  # an epoch


def batches() -> DataLoader[Any]:
    inputs = torch.randn(4 * BATCHES, 6, generator=torch.Generator().manual_seed(5))
    return DataLoader(TensorDataset(inputs), batch_size=4)


class Small(LightningModule):
    """Dropout, validation, and a metric of every kind."""

    def __init__(self, kind: type[Optimizer] = AdamW) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 5))
        self.kind = kind

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        loss = (self.net(batch[0]) - 1).square().mean()
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("pass", float(self.global_step + 1))
        return loss

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self.log("val_loss", self.net(batch[0]).square().mean())

    def on_train_epoch_end(self) -> None:
        self.log("epoch_number", float(self.current_epoch))

    def configure_optimizers(self) -> Optimizer:
        return self.kind(self.parameters(), lr=0.02)  # type: ignore[call-arg]


class Gan(LightningModule):
    """Two optimizers stepped by hand: the critic every time, then the generator every `rounds`-th time."""

    def __init__(self, rounds: int = 1) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.automatic_optimization = False
        self.critic, self.generator, self.rounds = nn.Linear(6, 4), nn.Linear(4, 6), rounds

    def training_step(self, batch: list[Tensor], index: int) -> None:
        critic, generator = self.optimizers()  # type: ignore[misc,attr-defined]
        for optimizer, sign in ((critic, 1), (generator, -1)):
            if optimizer is generator and (index + 1) % self.rounds:
                continue
            optimizer.zero_grad()
            made = self.generator(torch.randn(4, 4))
            self.manual_backward(sign * (self.critic(made) - self.critic(batch[0])).square().mean())
            optimizer.step()

    def configure_optimizers(self) -> list[Optimizer]:  # type: ignore[override]
        return [SGD(self.critic.parameters(), lr=0.05), AdamW(self.generator.parameters(), lr=0.01)]


def loaders(model: LightningModule) -> list[DataLoader[Any]]:
    """For training, and for validation if there is any."""
    return [batches()] * (2 if isinstance(model, Small) else 1)


class Recorder(Callback):
    """Keeps W_t of a parameter after every batch."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.weights: list[np.ndarray] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.on_train_batch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *batch: Any) -> None:
        self.weights.append(pl_module.get_parameter(self.name).detach().double().numpy().copy())


class StopAt(Callback):
    """Raises after a batch, as a bug or Ctrl-C would."""

    def __init__(self, batch: int, error: BaseException) -> None:
        self.left, self.error = batch, error

    def on_train_batch_end(self, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error


def watch(directory: Path, **options: Any) -> LightningCallback:
    return LightningCallback(directory, **{"every": 1, "tensorboard": False, "buffer_rank": 3} | options)


def trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    defaults: dict[str, Any] = {
        "max_epochs": 2, "accelerator": "cpu", "devices": 1, "enable_checkpointing": False, "log_every_n_steps": 1,
        "limit_val_batches": 2, "default_root_dir": folder,
    }  # fmt: skip
    return Trainer(callbacks=list(callbacks), **quiet | defaults | options)


def fit(folder: Path, model: LightningModule, *callbacks: Callback, path: Path | None = None, **options: Any) -> None:
    seed_everything(7, verbose=False)
    trainer(folder, *callbacks, **options).fit(model, *loaders(model), ckpt_path=path)


def steps_of(directory: Path) -> list[int]:
    run = open_run(directory)
    assert not (run.events["kind"] == "error").any(), run.events["message"].iloc[0]
    return [int(step) for step in run.measurements["step"].unique()]


def updates(directory: Path, name: str) -> np.ndarray:
    return open_run(directory).singular_values(name).to_numpy()


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """Lightning ignores Ctrl-C for good once it has seen one."""
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_the_run_is_that_of_the_steps_between_which_the_weights_changed(tmp_path: Path) -> None:
    recorder = Recorder("net.0.weight")
    callback = watch(tmp_path / "run", every=3)
    fit(tmp_path, Small(), callback, recorder)
    assert steps_of(tmp_path / "run") == [3, 6, 9, 12]
    assert open_run(tmp_path / "run").status == "finished"
    expected = np.array([singular_values(recorder.weights[step] - recorder.weights[0]) for step in (3, 6, 9, 12)])
    found = updates(tmp_path / "run", "net.0.weight")
    np.testing.assert_allclose(found / expected[:, :1], expected / expected[:, :1], rtol=0, atol=2e-7)
    assert callback.tracker is not None
    assert "net.3.weight" in callback.tracker.summary()


def everything(model: LightningModule, made: Trainer) -> dict[str, Any]:
    """What training has, to the bit."""
    optimizers = [optimizer.state_dict() for optimizer in made.optimizers]
    flat: dict[str, Any] = dict(model.state_dict())
    for number, optimizer in enumerate(optimizers):
        for place, entry in optimizer["state"].items():
            flat |= {f"{number}.{place}.{name}": value for name, value in entry.items() if value is not None}
    metrics = {f"metric {name}": value for name, value in made.callback_metrics.items()}
    return flat | metrics | {"random": torch.get_rng_state(), "global step": torch.tensor(made.global_step)}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Small, {}),
        (Small, {"accumulate_grad_batches": 4, "gradient_clip_val": 0.1, "val_check_interval": 0.5}),
        (Small, {"precision": "bf16-mixed"}),
        (Small, {"precision": "bf16-true"}),
        (Gan, {}),
    ],
    ids=["plain", "accumulated", "bf16-mixed", "bf16-true", "two optimizers"],
)
def test_training_is_the_same_bit_for_bit(
    tmp_path: Path, kind: Callable[[], LightningModule], options: dict[str, Any]
) -> None:
    ends = []
    for watched in (False, True):
        seed_everything(7, verbose=False)
        model = kind()
        made = trainer(tmp_path, *([watch(tmp_path / "run", every=2)] if watched else []), **options)
        made.fit(model, *loaders(model))
        ends.append(everything(model, made))
    plain, watched_end = ends
    assert plain.keys() == watched_end.keys()
    assert [name for name in plain if not torch.equal(plain[name], watched_end[name])] == []
    assert (open_run(tmp_path / "run").measurements["frobenius_norm"] > 0).all()  # it did measure


def test_accumulated_batches_are_one_step_and_the_validation_before_training_is_none(tmp_path: Path) -> None:
    callback = watch(tmp_path / "run")
    fit(tmp_path, Small(), callback, accumulate_grad_batches=4, num_sanity_val_steps=2)
    assert steps_of(tmp_path / "run") == [1, 2, 3, 4]  # six batches an epoch: four, and the two that are left
    names = open_run(tmp_path / "run").scalars.groupby("name")["step"].agg(list)
    assert names["val_loss"] == [2, 4]


@pytest.mark.parametrize(("counts", "steps"), [(-1, 4), (1, 4), (0, 12)])
def test_of_several_optimizers_the_chosen_one_counts(tmp_path: Path, counts: int, steps: int) -> None:
    recorder = Recorder("critic.weight")
    fit(tmp_path, Gan(rounds=3), watch(tmp_path / "run", counts=counts), recorder)
    assert steps_of(tmp_path / "run") == list(range(1, steps + 1))
    if counts:  # three steps of the critic to one of the generator, and measured when both are done
        expected = [singular_values(weight - recorder.weights[0]) for weight in recorder.weights[3::3]]
        found = updates(tmp_path / "run", "critic.weight")
        np.testing.assert_allclose(found / found[:, :1], np.array(expected) / found[:, :1], rtol=0, atol=2e-7)


def test_what_the_module_logs_is_in_the_run_without_any_logger(tmp_path: Path) -> None:
    history: list[float] = []

    class Losses(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *batch: Any) -> None:
            history.append(float(outputs["loss"]))

    fit(tmp_path, Small(), watch(tmp_path / "run", every=4), Losses(), log_every_n_steps=2, val_check_interval=3)
    scalars = open_run(tmp_path / "run").scalars
    scalars = scalars[~scalars["name"].str.startswith("tracker_")]
    steps = scalars.groupby("name")["step"].agg(list).to_dict()
    assert steps == {
        "loss_step": [2, 4, 6, 8, 10, 12],
        "pass": [2, 4, 6, 8, 10, 12],
        "val_loss": [3, 6, 9, 12],
        "loss_epoch": [6, 12],
        "epoch_number": [6, 12],
    }
    values = {name: rows["value"].tolist() for name, rows in scalars.groupby("name")}
    np.testing.assert_allclose(values["loss_step"], history[1::2], rtol=1e-6)  # float32 both
    np.testing.assert_allclose(values["loss_epoch"], np.reshape(history, (2, 6)).mean(axis=1), rtol=1e-6)
    assert values["pass"] == steps["pass"]
    assert values["epoch_number"] == [0, 1]


@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_a_training_resumed_from_a_checkpoint_resumes_the_run_there(tmp_path: Path, kind: type[Optimizer]) -> None:
    fit(tmp_path, Small(kind), watch(tmp_path / "whole"))
    saving = ModelCheckpoint(tmp_path / "saved", filename="{step}", every_n_train_steps=6, save_top_k=-1)
    with pytest.raises(RuntimeError, match="a bug"):
        fit(
            tmp_path, Small(kind), watch(tmp_path / "run"), saving, StopAt(9, RuntimeError("a bug")),
            enable_checkpointing=True,
        )  # fmt: skip
    assert open_run(tmp_path / "run").status == "interrupted"
    assert open_run(tmp_path / "run").info["ended"]["reason"] == "RuntimeError"
    assert steps_of(tmp_path / "run") == list(range(1, 10))
    torch.manual_seed(99)  # another process, in which other things went before
    callback = watch(tmp_path / "run")
    trainer(tmp_path, callback).fit(Small(kind), batches(), batches(), ckpt_path=tmp_path / "saved/step=6.ckpt")
    run = open_run(tmp_path / "run")
    assert run.status == "finished"
    assert run.info["segments"][-1]["resume_step"] == 6
    assert steps_of(tmp_path / "run") == list(range(1, 13))
    whole = open_run(tmp_path / "whole")
    early = [table[table["step"] <= 6].drop(columns="time") for table in (run.measurements, whole.measurements)]
    assert early[0].equals(early[1])
    update = callback.tracker is not None and callback.tracker.step_count
    assert update == 12


def test_resumed_spectra_are_since_the_first_w0(tmp_path: Path) -> None:
    first = Small().net[0].weight.detach().double().numpy().copy()
    saving = ModelCheckpoint(tmp_path / "saved", filename="{step}", every_n_train_steps=6)
    fit(tmp_path, Small(), watch(tmp_path / "run"), saving, max_epochs=1, enable_checkpointing=True)
    model = Small()
    with torch.no_grad():
        model.net[0].weight.add_(1)  # a checkpoint replaces it
    fit(tmp_path, model, watch(tmp_path / "run"), path=tmp_path / "saved/step=6.ckpt", max_epochs=3)
    expected = singular_values(model.net[0].weight.detach().double().numpy() - first)
    np.testing.assert_allclose(updates(tmp_path / "run", "net.0.weight")[-1], expected, rtol=0, atol=2e-7 * expected[0])


def test_a_checkpoint_of_two_optimizers_resumes_at_the_trackers_step(tmp_path: Path) -> None:
    """Lightning's own step counts every optimizer."""
    saving = ModelCheckpoint(tmp_path / "saved", filename="last", every_n_epochs=1)
    fit(tmp_path, Gan(), watch(tmp_path / "run", counts=0), saving, max_epochs=1, enable_checkpointing=True)
    callback = watch(tmp_path / "run", counts=0)
    fit(tmp_path, Gan(), callback, path=tmp_path / "saved/last.ckpt")
    assert open_run(tmp_path / "run").info["segments"][-1]["resume_step"] == BATCHES
    assert steps_of(tmp_path / "run") == list(range(1, 2 * BATCHES + 1))


def test_a_checkpoint_that_knows_nothing_of_the_run_resumes_by_the_optimizers_own_counter(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path / "saved", filename="last")
    fit(tmp_path, Small(), saving, max_epochs=1, enable_checkpointing=True)  # made without the callback
    fit(tmp_path, Small(), watch(tmp_path / "run"))
    fit(tmp_path, Small(), watch(tmp_path / "run"), path=tmp_path / "saved/last.ckpt")
    assert open_run(tmp_path / "run").info["segments"][-1]["resume_step"] == BATCHES


def test_a_checkpoint_saved_after_training_knows_its_step(tmp_path: Path) -> None:
    model, callback = Small(SGD), watch(tmp_path / "run")
    made = trainer(tmp_path, callback, max_epochs=1)
    made.fit(model, batches(), batches())
    made.save_checkpoint(tmp_path / "last.ckpt")
    made.fit_loop.max_epochs = 2
    made.fit(model, batches(), batches())
    fit(tmp_path, Small(SGD), watch(tmp_path / "run"), path=tmp_path / "last.ckpt", max_epochs=3)
    assert open_run(tmp_path / "run").info["segments"][-1]["resume_step"] == BATCHES


def test_what_a_checkpoint_will_not_repeat_is_on_disk_with_it(tmp_path: Path) -> None:
    found: list[list[int]] = []

    class Reader(Callback):
        def on_save_checkpoint(self, *_: Any) -> None:
            scalars = open_run(tmp_path / "run").scalars
            found.append(scalars[scalars["name"] == "pass"]["step"].tolist())

    saving = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=4)
    fit(tmp_path, Small(), watch(tmp_path / "run", every=100), Reader(), saving, enable_checkpointing=True)
    assert found == [list(range(1, last + 1)) for last in (4, 8, 12)]


def test_a_run_that_a_resumed_training_begins_has_its_steps(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path / "saved", filename="last")
    fit(tmp_path, Small(), saving, max_epochs=1, enable_checkpointing=True)  # made without the callback
    fit(tmp_path, Small(), watch(tmp_path / "run"), path=tmp_path / "saved/last.ckpt")
    assert steps_of(tmp_path / "run") == [7, 8, 9, 10, 11, 12]
    run = open_run(tmp_path / "run")
    assert run.events["kind"].tolist() == ["began_late"]
    assert "at Lightning's step 6: W0 is the weights of that step" in run.events["message"][0]
    assert run.measurements["relative_norm"].iloc[0] < 0.1


def test_fitting_on_continues_the_run(tmp_path: Path) -> None:
    model, callback = Small(SGD), watch(tmp_path / "run")
    made = trainer(tmp_path, callback)
    made.fit(model, batches(), batches())
    made.validate(model, batches())
    made.fit(model, batches(), batches())  # nothing is left to do
    assert steps_of(tmp_path / "run") == list(range(1, 13))
    made.fit_loop.max_epochs = 3
    made.fit(model, batches(), batches())
    assert steps_of(tmp_path / "run") == list(range(1, 19))
    assert open_run(tmp_path / "run").status == "finished"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a bug"), SystemExit(3)])
def test_a_training_that_is_cut_short_leaves_an_interrupted_run(tmp_path: Path, error: BaseException) -> None:
    ends = SystemExit if isinstance(error, KeyboardInterrupt) else type(error)
    with pytest.raises(ends):
        fit(tmp_path, Small(), watch(tmp_path / "run", every=100), StopAt(5, error))
    run = open_run(tmp_path / "run")
    assert (run.status, run.info["ended"]["reason"]) == ("interrupted", type(error).__name__)
    assert steps_of(tmp_path / "run") == [5]  # the weights as they were left


def test_a_stopped_training_is_a_finished_one(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = trainer.global_step == 4

    fit(tmp_path, Small(), watch(tmp_path / "run"), Stop())
    assert open_run(tmp_path / "run").status == "finished"
    assert steps_of(tmp_path / "run") == [1, 2, 3, 4]


def test_fast_dev_run_measures_and_leaves_nothing(tmp_path: Path) -> None:
    callback = LightningCallback(tmp_path / "run", every=1)
    fit(tmp_path, Small(), callback, fast_dev_run=2)
    assert list(tmp_path.iterdir()) == []
    assert callback.tracker is not None
    assert callback.tracker.finished_steps == [1, 2]
    folder = callback.tracker.path
    assert "net.0.weight" in callback.tracker.summary()  # as a script's last line has it
    del callback
    gc.collect()  # Lightning's objects hold one another
    assert not folder.exists()
    with pytest.raises(ValueError, match=r"include pattern 'nett\.\*' matches no matrix"):
        fit(tmp_path, Small(), watch(tmp_path / "run", include="nett.*"), fast_dev_run=True)
    assert list(tmp_path.iterdir()) == []


def test_fast_dev_run_leaves_an_earlier_run_alone(tmp_path: Path) -> None:
    fit(tmp_path, Small(), watch(tmp_path / "run"))
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    fit(tmp_path, Small(), watch(tmp_path / "run"), fast_dev_run=True)
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def test_a_new_training_refuses_a_directory_that_holds_a_run(tmp_path: Path) -> None:
    fit(tmp_path, Small(), watch(tmp_path / "run"))
    before = (tmp_path / "run/run.json").read_bytes()
    with pytest.raises(FileExistsError, match="holds a run already"):
        fit(tmp_path, Small(), watch(tmp_path / "run"))
    assert (tmp_path / "run/run.json").read_bytes() == before


def test_two_runs_of_one_training(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path / "saved", filename="last")
    both = [watch(tmp_path / "all"), watch(tmp_path / "some", include="net.3.*", every=4)]
    fit(tmp_path, Small(), *both, saving, max_epochs=1, enable_checkpointing=True)
    both = [watch(tmp_path / "all"), watch(tmp_path / "some", include="net.3.*", every=4)]
    fit(tmp_path, Small(), *both, path=tmp_path / "saved/last.ckpt")
    assert steps_of(tmp_path / "all") == list(range(1, 13))
    assert steps_of(tmp_path / "some") == [4, 6, 8, 12]


def test_wrong_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'evry'"):
        LightningCallback(tmp_path / "run", evry=50)
    with pytest.raises(TypeError, match="counts must be the place of an optimizer, got 'critic'"):
        LightningCallback(tmp_path / "run", counts="critic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="counts must be the place of one of 2 optimizers, got 2"):
        fit(tmp_path, Gan(), watch(tmp_path / "run", counts=2))
    with pytest.raises(ValueError, match="every must be an integer of at least 1, got 0"):
        fit(tmp_path, Small(), watch(tmp_path / "run", every=0))
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:.*configure_optimizers.* returned `None`")
def test_a_module_without_an_optimizer_is_refused(tmp_path: Path) -> None:
    class Frozen(Small):
        def configure_optimizers(self) -> None:  # type: ignore[override]
            return None

    with pytest.raises(ValueError, match=r"Frozen\.configure_optimizers gives no optimizer that could count the steps"):
        fit(tmp_path, Frozen(), watch(tmp_path / "run"))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own, as it traces
@pytest.mark.parametrize("whole", [True, False])
def test_a_compiled_module_keeps_its_names(tmp_path: Path, whole: bool) -> None:
    class Silent(Small):
        def training_step(self, batch: list[Tensor], index: int) -> Tensor:  # `log` cannot be compiled
            return self.net(batch[0]).square().mean()  # type: ignore[no-any-return]

    seed_everything(7, verbose=False)
    model: Any = Silent()
    if whole:
        model = torch.compile(model, backend="eager")
    else:
        model.net.compile(backend="eager")
    trainer(tmp_path, watch(tmp_path / "run"), max_epochs=1).fit(model, batches(), batches())
    assert steps_of(tmp_path / "run") == list(range(1, 7))
    assert set(open_run(tmp_path / "run").matrices.index) == {"net.0.weight", "net.3.weight"}


def test_finding_a_learning_rate_first_leaves_no_run(tmp_path: Path) -> None:
    from lightning.pytorch.tuner import Tuner

    class Tunable(Small):
        lr = 0.01

    made = trainer(tmp_path, watch(tmp_path / "run"), max_epochs=1)
    Tuner(made).lr_find(Tunable(), batches(), batches(), num_training=4)
    assert not (tmp_path / "run").exists()
    made.fit(Tunable(), batches(), batches())
    assert steps_of(tmp_path / "run") == list(range(1, 7))


OTHER_NAME = """
import sys
import warnings
warnings.simplefilter("ignore")
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from inrank_monitor import LightningCallback, open_run
assert issubclass(LightningCallback, Callback)
assert "lightning.pytorch" not in sys.modules
class Small(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(6, 5)
    def training_step(self, batch, index):
        return self.net(batch).square().mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
watch = LightningCallback(sys.argv[1], every=1)
Trainer(max_steps=3, callbacks=[watch], logger=False, enable_checkpointing=False, accelerator="cpu").fit(
    Small(), torch.utils.data.DataLoader(torch.randn(12, 6), batch_size=4))
print(open_run(sys.argv[1]).measurements["step"].tolist())
"""


def test_the_older_name_of_the_package_works_too(tmp_path: Path) -> None:
    done = run_script(OTHER_NAME, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[1, 2, 3]"


TWO_PROCESSES = """
import sys
import warnings
warnings.simplefilter("ignore")
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from inrank_monitor import LightningCallback
class Small(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(6, 5)
    def training_step(self, batch, index):
        loss = (self.net(batch) - 1).square().mean()
        self.log("loss", loss, on_step=True, on_epoch=True, sync_dist=True)
        return loss
    def validation_step(self, batch, index):
        self.log("val_loss", self.net(batch).square().mean(), sync_dist=True)
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
torch.set_num_threads(1)
seed_everything(1, verbose=False)
data = torch.utils.data.DataLoader(torch.randn(24, 6), batch_size=4)
for name, trial in (("tried", True), ("run", False)):
    Trainer(
        max_epochs=2, accelerator="cpu", devices=2, strategy="ddp_fork", logger=False, enable_checkpointing=False,
        callbacks=[LightningCallback(f"{sys.argv[1]}/{name}", every=1)], log_every_n_steps=1, fast_dev_run=trial,
    ).fit(Small(), data, data)
"""


def test_two_processes_write_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = run_script(TWO_PROCESSES, tmp_path)
    assert done.returncode == 0, done.stderr
    assert steps_of(tmp_path / "run") == [1, 2, 3, 4, 5, 6]  # twelve batches in two processes
    run = open_run(tmp_path / "run")
    assert run.status == "finished"
    assert not run.measurements.duplicated(["step", "matrix"]).any()
    steps = run.scalars.groupby("name")["step"].agg(list)
    assert (steps["loss_step"], steps["loss_epoch"], steps["val_loss"]) == ([1, 2, 3, 4, 5, 6], [3, 6], [3, 6])
    assert not list(tmp_path.glob("tried*"))  # of the trial nothing is left
    assert not list(tmp_path.glob("inrank-monitor-*"))


def test_the_script_of_the_page_runs(tmp_path: Path) -> None:
    script = ROOT / "docs/trainers/scripts/lightning_trainer.py"
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert open_run(tmp_path / "run").status == "finished"
    assert "null" in done.stdout
