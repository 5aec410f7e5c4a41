"""The loop that `accelerate launch` runs: rows in, checkpoints out."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from autog.data.fillers import Fillers
from autog.data.mixture import Mixture
from autog.data.pin import evaluation_rows, fill_jobs, open_mixture, open_stores, proportional_quotas
from autog.data.store import TokenStore
from autog.errors import AutogError, UsageError
from autog.hooks import pause
from autog.models import Decoder, build, initialise, load_weights
from autog.plan import memory_bytes, micro_batch_for, parameters
from autog.recipe import Recipe, flatten
from autog.runs import Run, checkpoints, read_json, read_jsonl
from autog.training.checkpoint import restore_optimizer, retain, save_checkpoint
from autog.training.display import Display, short_count
from autog.training.feeder import Feeder
from autog.training.optim import AdamW, build_optimizer, learning_rate
from autog.training.precision import (
    Loss,
    choose_compile,
    choose_precision,
    keep_freed_memory,
    refuse_unseen_card,
)
from autog.training.samples import write_samples
from autog.training.session import Session, discard_after, open_session
from autog.training.summary import closing_lines, summarise
from autog.training.telemetry import Telemetry, Totals, describe_device, energy_joules, environment
from autog.training.validation import Validation, validation_for
from autog.training.world import Signals, World, start_world

SAVE_SECONDS = 30 * 60
SKIPS_IN_A_ROW = 5
WAIT_SECONDS = 0.05
POLLS_BEFORE_WORD = 100  # about five seconds


@dataclass(frozen=True)
class Options:
    """What the command line says about this call, not about the run."""

    fresh: bool = False
    stop_after: int | None = None
    cpu: bool = False
    trackers: tuple[str, ...] = ()


def pretrain(recipe: Recipe, run: Run, options: Options) -> int:
    """Trains from wherever the run stands to its last step; 0 when done, 130 when stopped by a signal."""
    refuse_unseen_card(recipe, options.cpu)
    world = start_world(options.cpu, options.trackers, run.directory)
    keep_freed_memory(world.device)
    display = Display(recipe.steps, active=world.main)
    session: Session | None = None
    try:
        with Signals() as signals, display:
            wanted = recipe.train.micro_batch
            recipe.accumulation(1 if wanted == "auto" else wanted, world.size)  # refuses before anything is written
            session = open_session(recipe, run, options.fresh, world, display.say)
            if already_done(session, run, world):
                display.say(f"{run.directory} is finished: all {session.recipe.steps:,} steps are made")
                return 0
            trainer = Trainer(session, run, options, world, display, signals)
            try:
                trainer.set_up()
                trainer.train()
            except torch.OutOfMemoryError:
                raise AutogError(
                    f"out of memory with micro-batches of {trainer.micro_batch} rows: set train.micro_batch lower "
                    "(the training is the same), or train.checkpointing=true; the last checkpoint is kept"
                ) from None
            finally:
                trainer.close()
        return trainer.finish()
    except UsageError:
        if session is not None and session.begun and not checkpoints(run.directory) and world.main:
            (run.directory / "recipe.yaml").unlink(missing_ok=True)  # the mended recipe can begin the run
        raise
    finally:
        run.unlock()
        world.close()


def already_done(session: Session, run: Run, world: World) -> bool:
    """Whether a run was brought to its last step and its summary, by the same recipe in every field."""
    if session.checkpoint is None or session.checkpoint.step < session.recipe.steps:
        return False
    summary = run.directory / "summary.json"
    return world.share(world.main and summary.exists() and read_json(summary)["step"] == session.recipe.steps)


def scalars(values: dict[str, Any]) -> dict[str, Any]:
    """What every tracker takes as hyperparameters: numbers and words, lists as words."""
    return {key: value if isinstance(value, int | float | str | bool) else str(value) for key, value in values.items()}


class Stopped(Exception):
    """A wait was given up: a signal came, or a source failed and the trainer's `failure` says how."""


class Trainer:
    """One process's part in a run, from the first step of this call to its last."""

    def __init__(
        self, session: Session, run: Run, options: Options, world: World, display: Display, signals: Signals
    ) -> None:
        self.session, self.run, self.options = session, run, options
        self.world, self.display, self.signals = world, display, signals
        self.recipe, self.tokenizer = session.recipe, session.tokenizer
        self.state = session.checkpoint.state if session.checkpoint else {}
        self.step: int = self.state.get("step", 0)
        best = run.directory / "best_validation.json"
        self.best: dict[str, Any] | None = world.share(read_json(best) if world.main and best.exists() else None)
        self.begun_at = self.saved_at = time.monotonic()
        self.failure: AutogError | None = None
        self.pinned = session.pinned
        self.micro_batch = 0
        self.fillers = Fillers([], self.hear)

    # -- setting up -------------------------------------------------------------------------------------------------

    def set_up(self) -> None:
        """Data on their way, model in place, validation chosen."""
        try:
            self.stores = self.start_filling()
        except Stopped:
            raise self.failure or KeyboardInterrupt from None
        self.mixture: Mixture = open_mixture(self.recipe, self.pinned, self.stores)
        self.build_model()
        self.validation: Validation = validation_for(
            self.mixture,
            open_stores(self.recipe, self.pinned),  # its own: the feeder's thread reads the others
            evaluation_rows(self.recipe, self.mixture),
            self.tokenizer,
        )

    def start_filling(self) -> dict[str, TokenStore]:
        """Starts the fillers of this machine; waits for whole sources if the shares depend on their sizes."""
        stores = open_stores(self.recipe, self.pinned)
        if self.pinned["quotas"] is None:
            self.run_fillers(None)
            names = [source.name for source in self.recipe.data.sources]
            while self.check_sources([] if self.fillers.finished else names):
                time.sleep(WAIT_SECONDS)
            self.fillers.stop()
            for store in stores.values():
                store.refresh()
            with self.world.main_first() as main:
                if main:
                    self.pinned = {**self.pinned, "quotas": proportional_quotas(self.recipe, stores)}
                    self.run.write("sources.json", self.pinned)
            self.pinned = self.world.share(self.pinned)
        self.run_fillers(open_mixture(self.recipe, self.pinned, stores))
        return stores

    def run_fillers(self, mixture: Mixture | None) -> None:
        """One background process per source, on the first process of each machine."""
        if self.world.local_main:
            tokenizer = (self.run.directory / "tokenizer").resolve()
            self.fillers = Fillers(fill_jobs(self.recipe, self.pinned, tokenizer, mixture), self.hear)
            self.fillers.start()

    def hear(self, kind: str, facts: dict[str, Any]) -> None:
        """What a filler says: to the screen and into the run's events."""
        messages = {
            "retry": "source {source}: {error}; reading again in {wait_seconds:.0f} s (try {attempt})",
            "stall": "source {source}: no data for {seconds} s; still trying",
            "recovered": "source {source}: data again",
            "skipped": "source {source}: left out {where} ({reason})",
            "restart": "source {source}: filler started again, {why}",
        }
        if self.world.main:
            with contextlib.suppress(KeyError):
                self.display.say(messages[kind].format(**{"wait_seconds": 0, "attempt": 1, **facts}))
            self.run.records.append("events.jsonl", {"step": self.step, "event": kind, **facts})

    def build_model(self) -> None:
        """Decoder, loss, optimizer: initialised or restored, compiled and wrapped as the recipe and machine want."""
        recipe, device, session = self.recipe, self.world.device, self.session
        self.precision = choose_precision(recipe.train.precision, device)
        self.compiled = choose_compile(recipe.train.compile, device, self.display.say)
        with torch.device(device):
            self.decoder = build(session.config)
        source = session.checkpoint.path if session.checkpoint else session.init
        if source is None:
            initialise(self.decoder, recipe.train.seed)
        else:
            load_weights(self.decoder, source)
        self.decoder.checkpointing = recipe.train.checkpointing
        self.micro_batch = self.choose_micro_batch()
        self.accumulation = recipe.accumulation(self.micro_batch, self.world.size)
        optimizer = build_optimizer(self.decoder, recipe.optimizer)
        if self.world.sharded:
            self.decoder, optimizer = self.shard(optimizer)
        self.eager = Loss(self.decoder, self.precision, device)
        loss: nn.Module = Loss(self.decoder, self.precision, device)
        if self.compiled:
            loss.compile(dynamic=False)
        self.synchronised: nn.Module = self.decoder
        if self.world.size > 1 and not self.world.sharded:
            loss, prepared = self.world.accelerator.prepare(loss, optimizer)
            self.synchronised, optimizer = loss, prepared.optimizer
        self.loss, self.optimizer = loss, cast(AdamW, optimizer)
        self.parameters = [parameter for parameter in self.decoder.parameters() if parameter.requires_grad]
        if session.checkpoint is not None:
            path = session.checkpoint.path / "training" / "optimizer.safetensors"
            restore_optimizer(self.optimizer, dict(self.decoder.named_parameters()), path)

    def shard(self, optimizer: AdamW) -> tuple[Decoder, AdamW]:
        """The decoder and optimizer split over the processes by FSDP2, which gathers bf16 weights in a bf16 run."""
        accelerator = self.world.accelerator
        if self.precision == "bf16":
            # Inputs keep their types: rotary tables in bf16 would blur the positions.
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
            plugin: Any = accelerator.state.fsdp_plugin
            plugin.mixed_precision_policy = policy
        decoder, prepared = accelerator.prepare(self.decoder, optimizer)
        return decoder, prepared.optimizer

    def choose_micro_batch(self) -> int:
        """Rows per forward: the recipe's, or the most that fit and divide the step."""
        wanted = self.recipe.train.micro_batch
        if wanted != "auto":
            return int(wanted)
        per_process = self.recipe.rows_per_step // self.world.size
        before = self.state.get("micro_batch")
        if before and self.state["processes"] == self.world.size and per_process % before == 0:
            return before  # other sizes round differently: a resume keeps what the run has
        device = self.world.device
        if device.type == "cuda":
            available = int(torch.cuda.mem_get_info(device)[0] * 0.9)
        else:
            import psutil

            available = int(psutil.virtual_memory().available * 0.8) // self.world.size
        config, length = self.session.config.to_dict(), self.recipe.data.sequence_length
        checkpointing = self.recipe.train.checkpointing
        chosen = micro_batch_for(
            config,
            per_process,
            length,
            available,
            device="cuda" if device.type == "cuda" else "cpu",
            precision=self.precision,
            checkpointing=checkpointing,
            compiled=self.compiled,
        )
        needed = sum(
            memory_bytes(config, chosen, length, self.precision, checkpointing, compiled=self.compiled).values()
        )
        if needed > available:
            self.display.say(
                f"one row at a time is estimated to need {needed / 2**30:.1f} GiB and {available / 2**30:.1f} GiB are "
                "free: train.checkpointing=true needs less"
            )
        return self.world.least(chosen)

    def start_telemetry(self) -> Telemetry:
        """The run's meters, with the totals of its earlier lives."""
        facts = describe_device(self.world.device, self.precision, self.display.say)
        recipe = self.recipe
        telemetry = Telemetry(
            self.session.config.to_dict(),
            recipe.data.sequence_length,
            recipe.train.batch_tokens,
            self.world.device,
            facts,
            self.world.size,
        )
        if self.state:
            telemetry.totals = Totals(**self.state["totals"])
            telemetry.totals.restarts += 1
        self.facts = facts
        self.energy_at_start = energy_joules(self.world.size)
        if self.options.trackers:
            self.world.accelerator.init_trackers(self.run.name, config=scalars(flatten(recipe.model_dump(mode="json"))))
        if self.world.main:
            self.run.write("environment.json", environment(facts, self.precision, self.world.size, self.compiled))
        return telemetry

    # -- the run ----------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Steps until the recipe, --stop-after, a signal or a failure ends it."""
        self.telemetry = self.start_telemetry()
        last = self.recipe.steps
        if self.options.stop_after is not None:
            last = min(last, self.step + self.options.stop_after)
        self.announce(last)
        self.feeder = self.start_feeder(last)
        self.signals.deferred = True
        first = self.step
        try:
            self.catch_up()
            self.telemetry.stopwatch.start()
            while self.step < last and self.one_step(self.step == first, last):
                pass
        except Stopped:
            pass  # `finish` says why; what was trained is saved first
        if self.step > first and self.unsaved():
            self.save()

    def one_step(self, is_first: bool, last: int) -> bool:
        """Waits for rows, trains on them, records; False if the run is to stop instead."""
        waited_from = time.perf_counter()
        stop, save = self.wait_for_rows()
        if stop:
            return False
        loss = self.train_step(self.feeder.next(), time.perf_counter() - waited_from)
        if is_first:
            gc.collect()
            gc.freeze()  # what start-up left alive need not be looked through again
        self.record(loss, save or self.step == last)
        return True

    def start_feeder(self, last: int) -> Feeder:
        """The thread that fetches rows ahead."""
        world = self.world
        pinned = world.device.type == "cuda"
        feeder = Feeder(self.mixture, self.recipe.rows_per_step, self.micro_batch, world.rank, world.size, pinned)
        feeder.start(self.step, last)
        return feeder

    def catch_up(self) -> None:
        """Does what was due at the checkpoint that the run resumes from, if a kill came between."""
        if self.state and self.step > 0:
            done = self.state_of_records()
            if self.evaluation_due() and "eval" not in done:
                self.evaluate()
            if self.samples_due() and "samples" not in done:
                self.write_samples()

    def state_of_records(self) -> set[str]:
        """Which records of the present step are on disk already."""
        found = set()
        if self.world.main:
            for name, whole in (("eval", 1), ("samples", len(self.recipe.samples.prompts))):
                rows = read_jsonl(self.run.directory / f"{name}.jsonl")
                if sum(row.get("step") == self.step for row in rows) >= whole:
                    found.add(name)
                else:  # a kill may have come between two prompts
                    self.run.records.cut(self.step - 1, [f"{name}.jsonl"])
        return self.world.share(found)

    def wait_for_rows(self) -> tuple[bool, bool]:
        """Agrees with the other processes on the next step: (stop, save); waits for its rows unless it is to stop."""
        polls = 0  # counted, not timed: all processes flush at the same one
        while True:
            ready = self.feeder.ready
            error = None if ready else self.fillers.error(self.feeder.missing)
            late = time.monotonic() - self.saved_at > SAVE_SECONDS and self.world.main
            waiting, stop, failed, save = self.world.any(not ready, self.signals.stop, error is not None, late)
            if failed:
                self.failure = error or AutogError("a source failed on another machine: its message stands there")
                return True, True
            if stop or self.failure is not None:
                return True, True
            if not waiting:
                return False, save
            polls += 1
            if polls == POLLS_BEFORE_WORD:
                self.show(self.telemetry.flush())
                if self.feeder.missing:
                    self.display.say(f"waiting for rows of {', '.join(self.feeder.missing)}")
            time.sleep(WAIT_SECONDS)

    def check_sources(self, names: list[str]) -> bool:
        """Whether any process still waits for sources; Stopped, on all of them, if one failed or a signal came.

        Every process must call it equally often: it is how they wait together.
        """
        error = self.fillers.error(names)
        late, failed, stop = self.world.any(bool(names), error is not None, self.signals.stop)
        if failed:
            self.failure = error or AutogError("a source failed on another machine: its message stands there")
        if failed or stop:
            raise Stopped
        return late

    def train_step(self, batches: list[Tensor], waited_seconds: float) -> Tensor:
        """One optimizer step over this process's micro-batches; gives the step's summed loss on this process."""
        recipe, device = self.recipe, self.world.device
        counted = recipe.train.batch_tokens
        rate = learning_rate(recipe.schedule, recipe.optimizer.learning_rate, self.step, recipe.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        total = torch.zeros((), device=device)
        for number, rows in enumerate(batches):
            rows = rows.to(device, non_blocking=True).to(torch.int64)
            with self.local_gradients(number < len(batches) - 1):
                loss = self.loss(rows)
                # DDP averages over processes; the step's loss is the sum over all of them by all counted tokens.
                (loss * (self.world.size / counted)).backward()
            total += loss.detach()
        norm = self.clip()
        self.optimizer.found_inf = (~torch.isfinite(norm)).to(torch.float32)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.rate = rate
        self.telemetry.step(norm, waited_seconds)
        pause("step")
        return total

    def local_gradients(self, local: bool) -> contextlib.AbstractContextManager[None]:
        """No exchange of gradients on all micro-batches but the last."""
        if local and self.world.size > 1:
            return self.world.accelerator.no_sync(self.synchronised)
        return contextlib.nullcontext()

    def clip(self) -> Tensor:
        """The gradient's norm before clipping, a device scalar; non-finite norms leave the gradients for the skip."""
        limit = self.recipe.optimizer.grad_clip
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, limit if limit is not None else float("inf"))
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    # -- records ----------------------------------------------------------------------------------------------------

    def record(self, loss: Tensor, save: bool) -> None:
        """Logs, saves, evaluates and samples as the step asks, in this order."""
        recipe, step = self.recipe, self.step
        final = step == recipe.steps
        if step == 1 or step % recipe.train.log_every == 0 or final:
            self.log(loss)
        if save or final or step % recipe.checkpoint.every == 0:
            self.save(full=save or final)
        evaluate, sample = self.evaluation_due(), self.samples_due()
        if evaluate or sample:
            self.telemetry.stopwatch.pause()
            self.show(self.telemetry.flush())
            if evaluate:
                self.evaluate()
            if sample:
                self.write_samples()
            self.telemetry.stopwatch.start()

    def evaluation_due(self) -> bool:
        every = self.recipe.evaluate.every
        return self.step == self.recipe.steps or bool(every and self.step % every == 0)

    def samples_due(self) -> bool:
        every = self.recipe.samples.every
        return self.step == self.recipe.steps or bool(every and self.step % every == 0)

    def log(self, loss: Tensor) -> None:
        """Closes the log interval; the interval before it goes to file and screen."""
        row = {
            "step": self.step,
            "tokens": self.step * self.recipe.train.batch_tokens,
            "learning_rate": self.rate,
            "source_tokens": self.mixture.tokens_used(self.step * self.recipe.rows_per_step),
        }
        mean = self.world.sum(loss) / self.recipe.train.batch_tokens
        self.show(self.telemetry.log(row, mean))

    def show(self, row: dict[str, Any] | None) -> None:
        """A finished row: into metrics.jsonl and onto the screen."""
        if row is None:
            return
        self.note_skips(row.pop("skipped"))
        if self.world.main:
            self.run.records.append("metrics.jsonl", row)
        self.track(row)
        self.display.row(row)

    def track(self, row: dict[str, Any]) -> None:
        """Hands a row to the trackers that the user named; nested figures get dotted names."""
        if self.options.trackers:
            figures = {key: value for key, value in flatten(row).items() if value is not None and key != "step"}
            self.world.accelerator.log(figures, step=row["step"])

    def note_skips(self, steps: list[int]) -> None:
        """Says which updates were skipped; several in a row stop the run."""
        for step in steps:
            if self.world.main:
                self.run.records.append("events.jsonl", {"step": step, "event": "skipped step", "why": "non-finite"})
            self.display.say(f"step {step}: the gradient is not finite; this update was skipped")
        if self.telemetry.longest_skip >= SKIPS_IN_A_ROW and self.failure is None:
            self.failure = AutogError(
                f"the gradient was not finite in {self.telemetry.longest_skip} steps in a row (by step {self.step}): "
                "the run is saved; lower optimizer.learning_rate and start a new run, or look at the "
                "data of these steps"
            )

    def unsaved(self) -> bool:
        """Whether steps were made since the last checkpoint that can be resumed from."""
        newest = checkpoints(self.run.directory)[:1] if self.world.main else []
        return self.world.share(not newest or newest[0].step != self.step or not newest[0].resumable)

    def save(self, full: bool = True) -> None:
        """Writes a checkpoint, with every record up to it on disk before; then removes old ones.

        A run of weights-only checkpoints leaves the optimizer out unless the checkpoint is to be `full`.
        """
        self.telemetry.stopwatch.pause()
        row, skipped = self.telemetry.settle(self.step)
        self.show(row)
        self.note_skips(skipped)
        self.run.records.sync()
        policy = self.recipe.checkpoint
        optimizer = self.optimizer if full or not policy.weights_only else None
        with self.world.main_first() as main:
            if main:
                discard_after(self.run, self.step - 1)  # the same step without optimizer, if anything
        with self.gathering():
            save_checkpoint(
                self.run, self.step, self.decoder, optimizer, self.tokenizer, self.checkpoint_state(), self.world.main
            )
        self.saved_at = time.monotonic()
        if self.world.main:
            best = self.best["step"] if self.best else None
            retain(self.run, policy, best, self.display.say)
        self.world.wait()
        self.telemetry.stopwatch.start()

    @contextlib.contextmanager
    def gathering(self) -> Generator[None]:
        """A failed write in the main process is a failure of all, not a hang of the others."""
        error: AutogError | None = None
        try:
            yield
        except AutogError as failed:
            error = failed
        if self.world.any(error is not None)[0]:
            raise error or AutogError("the main process could not write the checkpoint: its message says why")

    def checkpoint_state(self) -> dict[str, Any]:
        """What is not in the weights and the optimizer: plain numbers."""
        rows = self.step * self.recipe.rows_per_step
        self.count_wall_time()
        return {
            "format": 1,
            "run": self.run.name,
            "step": self.step,
            "tokens": self.step * self.recipe.train.batch_tokens,
            "rows": rows,
            "base": {"row": self.mixture.base.row, "used": self.mixture.base.used},
            "source_rows": self.mixture.rows_used(rows),
            "source_tokens": self.mixture.tokens_used(rows),
            "sources": self.pinned,
            "tokenizer": self.tokenizer.sha256,
            "totals": asdict(self.telemetry.totals),
            "best": self.best,
            "precision": self.precision,
            "processes": self.world.size,
            "micro_batch": self.micro_batch,
        }

    def count_wall_time(self) -> None:
        """Adds the time and energy since the last count to the run's totals."""
        totals, now = self.telemetry.totals, time.monotonic()
        totals.wall_seconds += now - self.begun_at
        self.begun_at = now
        energy = energy_joules(self.world.size)
        if energy is not None and self.energy_at_start is not None:
            totals.energy_joules = (totals.energy_joules or 0.0) + energy - self.energy_at_start
            self.energy_at_start = energy

    def evaluate(self) -> None:
        """Scores the held-out rows; the best so far is remembered by the mixture's loss."""
        first = not self.validation.rows
        self.validation.wait(self.check_sources)
        self.world.wait()
        if first and self.validation.empty:
            self.display.say(f"no validation rows from {', '.join(self.validation.empty)}: left out of the mixture")
        figures = self.validation.measure(self.loss, self.eager, self.world, self.micro_batch)
        row: dict[str, Any] = {"step": self.step, "tokens": self.step * self.recipe.train.batch_tokens, **figures}
        mixed = figures["loss"]["mixed"]
        if mixed is not None and (self.best is None or mixed < self.best["loss"]["mixed"]):
            self.best = row
        self.track({"step": self.step, "validation": figures})
        self.display.evaluation(row)
        if self.world.main:
            self.run.records.append("eval.jsonl", row)
            if self.best is not None:
                self.run.write("best_validation.json", self.best)

    def write_samples(self) -> None:
        """Lets the model write; all processes in step, the main one records."""
        recipe = self.recipe
        rows = write_samples(
            self.decoder,
            self.tokenizer,
            recipe.samples,
            recipe.train.seed,
            self.step,
            recipe.data.sequence_length,
            self.world.device,
        )
        for row in rows:
            self.display.sample(row)
            if self.world.main:
                self.run.records.append("samples.jsonl", row)

    def announce(self, last: int) -> None:
        """What is about to happen, in two lines; and the start or resume as an event."""
        recipe, resumed = self.recipe, self.step > 0
        total = parameters(self.session.config.to_dict())["total"]
        wrap = (
            ""
            if self.world.accelerator.distributed_type == DistributedType.NO
            else (f" x {self.world.size} processes ({self.world.accelerator.distributed_type.value})")
        )
        self.display.say(
            f"{self.run.directory}: {self.session.config.model_type}, {short_count(total)} parameters ({total:,}), "
            f"{recipe.steps:,} steps of {recipe.train.batch_tokens:,} tokens = {short_count(recipe.tokens)} tokens"
        )
        self.display.say(
            f"{self.facts.name}{wrap}, {self.precision}{', compiled' if self.compiled else ''}, "
            f"micro-batch {self.micro_batch} x {self.accumulation}"
        )
        for name, now in (("precision", self.precision), ("processes", self.world.size)):
            if resumed and self.state[name] != now:
                self.display.say(f"changed since the last checkpoint: {name} {self.state[name]} -> {now}")
        if resumed:
            self.display.say(f"resuming at step {self.step:,} ({short_count(self.state['tokens'])} tokens seen)")
        if last < recipe.steps:
            self.display.say(f"this call stops at step {last:,} of {recipe.steps:,}")
        if self.world.main:
            event = {"step": self.step, "event": "resume" if resumed else "start", "processes": self.world.size}
            self.run.records.append("events.jsonl", {**event, "micro_batch": self.micro_batch})

    # -- the end ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Ends threads and child processes; the stores keep what was committed."""
        if hasattr(self, "feeder"):
            self.feeder.close()
        self.fillers.stop()
        if self.options.trackers:
            self.world.accelerator.end_training()

    def finish(self) -> int:
        """Writes the summary, says what to do next, and gives the exit code."""
        stopped = self.signals.stop and self.step < self.recipe.steps
        if self.world.main:
            summary = summarise(self)
            self.run.write("summary.json", summary)
            why = "failure" if self.failure else "signal" if stopped else "done"
            self.run.records.append("events.jsonl", {"step": self.step, "event": "stop", "why": why})
            self.run.records.sync()
            for line in closing_lines(self, summary):
                self.display.say(line)
        if self.failure is not None:
            raise self.failure
        return 130 if stopped else 0
