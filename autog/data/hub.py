"""Hub datasets through the real library: pinned to a commit, streamed, and exact about where reading stopped."""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from autog.data.documents import Notify, first_line
from autog.data.hub_client import active
from autog.data.patience import Patience
from autog.errors import AutogError, UsageError

REMEMBER_ROWS = 500  # hub rows between two remembered states; the rest is counted
FRUITLESS_PASSES = 3


@functools.cache
def quiet_datasets() -> None:
    """Leaves all trying again to the patience that is active, and the screen to autog."""
    import datasets.config

    datasets.disable_progress_bars()
    # Five seconds of sleep per close, meant for pyarrow 24 and older, go too.
    settings = {"SLEEP_TIME_ON_THREADS_SHUTDOWN": 0, "STREAMING_READ_MAX_RETRIES": 1, "STREAMING_OPEN_MAX_RETRIES": 1}
    for name, value in {**settings, "STREAMING_READ_RETRY_INTERVAL": 0, "STREAMING_OPEN_RETRY_INTERVAL": 0}.items():
        setattr(datasets.config, name, value)


def page(dataset: str) -> str:
    """Where a person looks at a dataset."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    return f"{endpoint}/datasets/{dataset}"


def refuse_gated(dataset: str) -> NoReturn:
    """UsageError for a dataset whose conditions were not accepted."""
    raise UsageError(
        f"the dataset {dataset} is gated: visit {page(dataset)}, accept its conditions, and put a token of that "
        "account into the environment variable HF_TOKEN"
    ) from None


def hub_commit(dataset: str, revision: str, notify: Notify, patience_seconds: float) -> str:
    """The commit that a revision names now; UsageError for a dataset that this user cannot read."""
    import huggingface_hub
    from huggingface_hub import errors

    with active(Patience(f"the hub dataset {dataset}", notify, patience_seconds)):
        api = huggingface_hub.HfApi()
        try:
            info = api.dataset_info(dataset, revision=revision)
            if getattr(info, "gated", False):
                api.auth_check(dataset, repo_type="dataset")
        except errors.GatedRepoError:
            refuse_gated(dataset)
        except errors.RevisionNotFoundError:
            raise UsageError(f"the dataset {dataset} has no revision {revision!r}: see {page(dataset)}") from None
        except (errors.RepositoryNotFoundError, errors.HFValidationError):
            raise UsageError(
                f"there is no dataset {dataset!r} at {page(dataset)}, or it is private: check the name there; for a "
                "private one put your token into the environment variable HF_TOKEN"
            ) from None
        except errors.OfflineModeIsEnabled:
            raise UsageError(
                f"the dataset {dataset} cannot be resolved while HF_HUB_OFFLINE is set: unset it for the first start"
            ) from None
        except errors.HfHubHTTPError as error:
            raise UsageError(f"the hub refuses {dataset} ({first_line(error)}): see {page(dataset)}") from None
        except (ValueError, KeyError) as error:
            raise AutogError(f"the hub's answer about {dataset} is not understood ({first_line(error)})") from error
    return str(info.sha)


@dataclass(frozen=True)
class HubChoice:
    """Which rows of which dataset."""

    dataset: str
    commit: str
    config: str | None
    split: str
    data_dir: str | None
    data_files: str | list[str] | None
    columns: list[str]


class HubRows:
    """The rows of a streamed hub dataset, with a position that is exact after every row.

    `datasets` tells its state; one is remembered every few hundred rows and the rows since are counted.
    """

    def __init__(self, choice: HubChoice, position: dict[str, Any] | None, notify: Notify, seconds: float) -> None:
        self.choice = choice
        self.patience = Patience(f"the hub dataset {choice.dataset}", notify, seconds)
        self.state: dict[str, Any] | None = None
        self.since, self.row = 0, 0
        if position:
            self.state, self.since, self.row = position["state"], position["since"], position["row"]
        self.iterator: Any = None

    def position(self) -> dict[str, Any]:
        return {"state": self.state, "since": self.since, "row": self.row}

    def close(self) -> None:
        """Lets go of the stream while the interpreter still runs: Arrow's threads abort a process that ends first."""
        if self.iterator is not None:
            self.iterator.close()
            self.iterator = None
            gc.collect()

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        fruitless, before = 0, self.row
        while True:
            try:
                yield from self.rows()
                return
            except (AutogError, GeneratorExit):
                raise
            except Exception as error:
                self.close()
                raise_ours(error)
                fruitless = fruitless + 1 if self.row == before else 1
                before = self.row
                if fruitless >= FRUITLESS_PASSES:
                    raise AutogError(
                        f"the hub dataset {self.choice.dataset} cannot be read past row {self.row} "
                        f"({type(error).__name__}: {first_line(error)}): see {page(self.choice.dataset)}"
                    ) from error
                self.patience.wait(error)

    def rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """One pass over the stream from the position."""
        with active(self.patience):
            dataset = stream_dataset(self.choice)
            if self.state is not None:
                dataset.load_state_dict(self.state)
            self.iterator = iter(dataset)
        skip = self.since
        while True:
            with active(self.patience):
                row = next(self.iterator, None)
                if row is None:
                    self.close()
                    return
                if skip:
                    skip -= 1
                    self.patience.beat("working")
                    continue
                self.since += 1
                self.row += 1
                if self.since >= REMEMBER_ROWS:
                    self.state, self.since = dataset.state_dict(), 0
            self.patience.attempt = 0
            yield self.row - 1, row


def raise_ours(error: BaseException) -> None:
    """Raises our own error if one of the libraries has wrapped it."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, AutogError):
            raise link
        link = link.__cause__ or link.__context__


def stream_dataset(choice: HubChoice) -> Any:
    """The streamed dataset with the wanted columns only; UsageError for a choice that the dataset does not have."""
    builder = hub_builder(choice)
    try:
        dataset = builder.as_streaming_dataset(split=choice.split)
    except ValueError as error:
        if "split" in str(error).lower():
            raise UsageError(f"{choice.dataset}: {first_line(error)}: set `split` to one of them") from None
        raise
    except FileNotFoundError as error:
        raise_ours(error)
        raise_gated(error, choice.dataset)
        raise
    names = dataset.column_names or list(next(iter(dataset), {}))
    lacking = [column for column in choice.columns if column not in names]
    if lacking:
        raise UsageError(
            f"{choice.dataset} has no column {lacking[0]!r}; it has {', '.join(names) or 'none'}: name one of them"
        )
    if hasattr(builder.config, "columns") and builder.config.columns is None:
        builder.config.columns = list(dict.fromkeys(choice.columns))  # parquet: the others are not even fetched
        return builder.as_streaming_dataset(split=choice.split)
    return dataset.select_columns(list(dict.fromkeys(choice.columns)))


def hub_builder(choice: HubChoice) -> Any:
    """The dataset's builder at the pinned commit."""
    import datasets
    import datasets.exceptions

    quiet_datasets()
    if Path(choice.dataset).exists():
        raise UsageError(
            f"a file or folder {choice.dataset} in the current directory hides the hub dataset of that name: "
            "start elsewhere, or use `path` if the local one is meant"
        )
    try:
        return datasets.load_dataset_builder(
            choice.dataset,
            choice.config,
            data_dir=choice.data_dir,
            data_files=choice.data_files,
            revision=choice.commit,
        )
    except (datasets.exceptions.DataFilesNotFoundError, FileNotFoundError) as error:
        raise_ours(error)
        raise_gated(error, choice.dataset)
        wanted = ", ".join(f"{key} {value!r}" for key in ("data_dir", "data_files") if (value := getattr(choice, key)))
        raise UsageError(
            f"{choice.dataset} has no data files{f' for {wanted}' if wanted else ''}: see {page(choice.dataset)}"
        ) from None
    except ValueError as error:
        raise_ours(error)
        if "config" in str(error).lower():
            raise UsageError(f"{choice.dataset}: {flat(error)}: set `config` to one of them") from None
        raise
    except RuntimeError as error:
        raise_ours(error)
        if "script" in str(error).lower():
            raise UsageError(
                f"{choice.dataset} is a loading script, which is no longer run: use its parquet copy "
                "(`revision: refs/convert/parquet`) or another copy of it"
            ) from None
        raise


def raise_gated(error: BaseException, dataset: str) -> None:
    """The sentence about gated datasets, if that is what is behind an error."""
    from huggingface_hub import errors

    link: BaseException | None = error
    while link is not None:
        if isinstance(link, errors.GatedRepoError):
            refuse_gated(dataset)
        link = link.__cause__ or link.__context__


def flat(error: BaseException) -> str:
    """An error's whole text on one line."""
    return " ".join(str(error).split())[:600]
