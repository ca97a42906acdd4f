"""A training that can be stopped at any step and goes on exactly where it was."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from .files import load, save

SAVE_EVERY = 180  # seconds


def learning_rate(step: int, steps: int, warm_up: int = 200, fall: float = 0.3) -> float:
    """As a share of the peak: short warm-up, constant, linear to zero over the last `fall` of the steps."""
    return min(1.0, (step + 1) / warm_up, (steps - step) / (fall * steps))


class Average:
    """Exponential moving average of a module's weights; it remembers less of the first steps."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.weights = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in module.state_dict().items():
            kept = self.weights[name]
            if value.is_floating_point():
                kept.lerp_(value, 1 - decay)
            else:
                kept.copy_(value)


class Log:
    """Writes lines to a file and to the screen. A resumed run appends to the earlier lines."""

    def __init__(self, path: Path):
        self.path = path

    def __call__(self, line: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


class Training:
    """Runs `loss_of(step, generator)` for `steps` steps: fixed seed, moving average, a checkpoint every few minutes."""

    def __init__(self, name: str, module: nn.Module, optimizer, folder: Path, seed: int, decay: float = 0.999):
        self.name, self.module, self.optimizer, self.folder = name, module, optimizer, folder
        self.generator = torch.Generator().manual_seed(seed)
        self.average = Average(module, decay)
        self.step, self.loss, self.seconds = 0, 0.0, 0.0
        self.say = Log(folder / f"{name}.log")
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def file(self) -> Path:
        return self.folder / f"{self.name}.pt"

    def resume(self) -> bool:
        """Go on from the last checkpoint, if there is one."""
        if not self.file.exists():
            return False
        state = load(self.file)
        self.module.load_state_dict(state["module"])
        self.optimizer.load(state["optimizer"])
        self.average.weights = state["average"]
        self.step, self.loss, self.seconds = state["step"], state["loss"], state["seconds"]
        self.generator.set_state(state["generator"])
        return True

    def save(self) -> None:
        state = {"module": self.module.state_dict(), "optimizer": self.optimizer.state()}
        state |= {"average": self.average.weights, "step": self.step, "loss": self.loss, "seconds": self.seconds}
        save(state | {"generator": self.generator.get_state()}, self.file)

    def run(
        self,
        steps: int,
        loss_of: Callable[[torch.Generator], Tensor],
        every: int = 250,
        keep: tuple[int, ...] = (),
        schedule: Callable[[int, int], float] = learning_rate,
    ) -> None:
        """Train to step `steps`, with a line in the log every `every` steps; checkpoints of the steps in `keep` are
        kept."""
        parameters = sum(p.numel() for p in self.module.parameters())
        begun = "resumed" if self.resume() else f"{parameters} parameters, torch {torch.__version__}"
        self.say(f"{self.name}: {begun} at step {self.step} of {steps}")
        saved = time.monotonic()
        while self.step < steps:
            start = time.perf_counter()
            self.module.zero_grad(set_to_none=True)
            loss = loss_of(self.generator)
            loss.backward()
            nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
            self.optimizer.step(schedule(self.step, steps))
            self.step += 1
            self.average.update(self.module, self.step)
            self.loss += (loss.item() - self.loss) * max(0.01, 1 / self.step)
            self.seconds += time.perf_counter() - start
            if self.step % every == 0 or self.step == steps:
                self.say(f"step {self.step:6d}  loss {self.loss:.5f}  {self.seconds:7.0f} s")
            if self.step in keep:
                save(self.average.weights, self.folder / f"{self.name}-{self.step}.pt")
            if time.monotonic() - saved > SAVE_EVERY or self.step == steps:
                self.save()
                saved = time.monotonic()
