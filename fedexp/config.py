"""One typed configuration: flags, TOML files and Flower's run config have the same flat keys."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from fedexp.clients.settings import ALSO, ClientSettings
from fedexp.simulation.faults import Faults
from fedexp.simulation.profiles import ClientProfiles


@lru_cache(maxsize=512)  # a run asks for those of all its keys a hundred times
def _kebab(name: str) -> str:
    return name.replace("_", "-")


def _named_short(word: str, keys: Iterable[str]) -> list[str]:
    """The keys that end in ``word``, or of which it is the initials: ``lr``, ``rounds``."""
    return [k for k in keys if word in (k.rpartition("-")[2], "".join(x[0] for x in k.split("-")))]


_MOST_SHOWN = 80


def cut(value: object) -> str:
    """A value in a message: on one line, and cut where it is long.

    Example:
        >>> from fedexp.config import cut
        >>> cut("a"), cut(list(range(1000)))[-12:]
        ("'a'", '20, 21, 2...')
    """
    text = re.sub(r"\s*\n\s*", " ", repr(value))
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _encodable(text: str) -> str:
    """``text``, unless no file could hold it: a command line may be in another encoding."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("utf_8", "it should be text in UTF-8") from None
    return text


Text = Annotated[str, AfterValidator(_encodable)]

ROBUST_IS_OFF = (
    "robust is off: it compares what single clients sent, which privacy hides. Central privacy "
    "bounds every update by its clip; local privacy bounds none."
)


def robust_by_default(values: Mapping[str, Any]) -> bool:
    """Whether clients that other people run are bounded by the median client if nobody says.

    Not where privacy is asked for, which cannot be had with it.

    Example:
        >>> from fedexp.config import robust_by_default
        >>> robust_by_default({}), robust_by_default({"strategy": "fedavg(privacy=central)"})
        (True, False)
    """
    named = str(values.get("strategy", "")).replace(" ", "")
    return not (values.get("privacy") or "privacy=" in named)


SHORT = {"num-server-rounds": "rounds", "num-clients": "clients", "learning-rate": "lr"}
"""Short names of keys, as flags and in Python."""


class Config(BaseModel):
    """Everything a run depends on. Field names in kebab-case are flags and run-config keys.

    Empty text and 0 stand for "none" where a value may be absent, since Flower's run config knows
    only numbers, text and truth values.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        alias_generator=_kebab,
        populate_by_name=True,
    )

    strategy: Text = Field(
        "fedavg,fedexp,nesterovexp,nesterovexp+hypersgd",
        description="strategies, by comma, with settings in brackets: fedadam(eta=0.03); `all` for "
        "every one; +NAME for a local optimizer",
    )
    dataset: Text = Field("digits", description="dataset by name, FILE.npz or hub:OWNER/NAME")
    data_dir: Text = Field("", description="folder with one folder per dataset, for file formats")
    data: Text = Field(
        "", description="own files: 'FOLDER/*.csv', a folder of images, or a saved dataset"
    )
    target: Text = Field("", description="column of own files that is to be learned")
    client_from: Text = Field(
        "", description="whose a row of own files is: file, folder or column:NAME"
    )
    drop: Text = Field("", description="columns of own files to leave out, by comma")
    test_fraction: float = Field(
        0.2, gt=0, lt=1, description="of the rows of own files, held out as the test set"
    )
    standardize: bool = Field(False, description="inputs of own files to mean 0 and spread 1")
    image_size: int = Field(0, ge=0, description="own images are scaled to this many pixels square")
    impute: Literal["", "mean", "median", "zero"] = Field(
        "", description="for missing inputs of your own data: mean, median, zero"
    )
    targets: Literal["auto", "classes", "values"] = Field(
        "auto", description="of your own data: auto, classes, values (a regression)"
    )
    partitioner: str = Field("auto", description="auto: natural with --client-from, else dirichlet")
    alpha: float = Field(0.1, gt=0, description="Dirichlet concentration; small is more skewed")
    sigma: float = Field(1.0, gt=0, description="spread of log sizes, for quantity-lognormal")
    shards_per_client: int = Field(2, ge=1, description="for shards")
    classes_per_client: int = Field(2, ge=1, description="for classes")
    num_clients: int = Field(
        0, ge=0, description="clients; 0: all that a natural partition has, else 50"
    )
    fraction_train: float = Field(0.2, gt=0, le=1, description="share of clients a round")
    fraction_evaluate: float = Field(0.0, ge=0, le=1, description="share that evaluates a round")
    local_test_fraction: float = Field(0.0, ge=0, lt=1, description="of a client's rows, held out")
    model: Text = Field("mlp", description="model by name, or module:function")
    initial_model: Text = Field("", description="file of arrays to start from, .safetensors")
    metrics: Text = Field("", description="beyond loss and accuracy: module:function, by comma")
    num_server_rounds: int = Field(40, ge=1, description="rounds")
    local_steps: int = Field(
        ClientSettings.num_steps, ge=1, description="minibatch steps per client and round"
    )
    local_epochs: float = Field(
        ClientSettings.num_epochs,
        ge=0,
        description="passes over a client's rows in place of --local-steps; 0: those",
    )
    batch_size: int = Field(ClientSettings.batch_size, ge=1, description="examples a step")
    learning_rate: float = Field(ClientSettings.lr, gt=0, description="of the clients")
    learning_rate_decay: float = Field(
        ALSO["learning-rate-decay"], gt=0, le=1, description="factor every round"
    )
    scheduler: Text = Field(
        "", description="of the learning rate over the rounds: cosine, step(step-size=10), ..."
    )
    local_scheduler: Text = Field(
        ClientSettings.step_scheduler,
        description="of the learning rate over the steps of each round, as --scheduler",
    )
    learning_rate_exponent: float = Field(
        ClientSettings.lr_exponent,
        ge=0,
        description="x of a learning rate that falls with the steps, as (t + offset)^-x",
    )
    learning_rate_offset: float = Field(ClientSettings.lr_offset, gt=0, description="of that")
    augmentation: Text = Field(
        ClientSettings.augmentation,
        description="of every minibatch, by comma: noise(exponent=0.33), projection, crop, flip, "
        "jitter",
    )
    weight_decay: float = Field(ClientSettings.weight_decay, ge=0, description="of the clients")
    local_optimizer: Text = Field(
        ClientSettings.optimizer, description="by name with settings, or module:function"
    )
    hyper_learning_rate: float = Field(
        ClientSettings.hyper_lr, gt=0, description="κ of the clients that tune theirs"
    )
    hyper_height: int = Field(
        ClientSettings.hyper_height, ge=1, le=9, description="levels of the tower of learning rates"
    )
    hyper_between_rounds: Literal["fresh", "carry", "average"] = Field(
        ALSO["hyper-between-rounds"],
        description="what a tuned learning rate starts from: fresh, carry, average",
    )
    max_grad_norm: float = Field(
        ClientSettings.max_grad_norm, ge=0, description="clip local gradients; 0 for none"
    )
    server_learning_rate: float = Field(
        0.0, ge=0, description="server step η of fixed-step rules; 0: the strategy's own"
    )
    server_step_size: Literal["", "line-search"] = Field(
        "",
        description="line-search: in place of a fixed step the best of a few, on a tenth of the "
        "training data that no client gets",
    )
    epsilon: float = Field(1e-3, ge=0, description="FedExP's ε, in squared parameter units")
    epsilon_decay: float = Field(1.0, gt=0, le=1, description="ε shrinks by its square a round")
    epsilon_per_client: bool = Field(False, description="M·ε, as in the authors' code")
    smoothing: float = Field(
        0.0, ge=0, lt=1, description="of FedExP's ratio over rounds; 0: the strategy's own"
    )
    extrapolation_factor: float = Field(
        0.5, gt=0, le=1, description="of FedExP's ratio; 0.5 is the paper's"
    )
    max_step_size: float = Field(
        0.0, ge=0, description="cap on the server step; 0: the strategy's own"
    )
    relaxation: float = Field(
        0.0, ge=0, description="factor of the server step, before its cap; 0: the strategy's own"
    )
    robust: bool = Field(
        False,
        description="bound updates, weights and the step by what the median client does; "
        "`flwr run` of a deployed app does it unless told not to, or private",
    )
    clip: float = Field(0.0, ge=0, description="bound on an update's norm; 0 for none")
    clip_quantile: float = Field(
        0.0, ge=0, le=1, description="that bound follows this quantile of the norms; 0: it is fixed"
    )
    drop_beyond: float = Field(
        0.0, ge=0, description="drop updates beyond this multiple of the median norm; 0: none"
    )
    privacy: Text = Field(
        "",
        description="of clients: central(noise-multiplier=1, clip=1, delta=1e-5) or local(...)",
    )
    private_layers: Text = Field(
        "", description="arrays that stay at the clients, by comma: 'head.*'"
    )
    buffers: Literal["average", "keep"] = Field(
        "average", description="arrays that the step does not move: average of the clients, or keep"
    )
    average: str = Field(
        "ema-0.7", description="averaged iterate, scored beside the last: last-K, ema-B or poly-G"
    )
    weighted: bool = Field(True, description="weigh clients by their examples")
    engine: Literal["auto", "ray", "serial"] = Field(
        "auto", description="where clients run: serial (in this process), ray, or the faster"
    )
    num_workers: int = Field(0, ge=0, description="Ray workers; 0 for one per CPU")
    num_gpus: float = Field(0.0, ge=0, description="GPUs that the workers share")
    ray_address: Text = Field("", description="of a Ray cluster: auto or host:port")
    worker_log: bool = Field(False, description="show what clients on Ray print")
    vectorize: Literal["auto", "on", "off"] = Field(
        "auto", description="train groups of clients at once: auto, on, off"
    )
    device: Text = Field("", description="of the clients; cuda with --num-gpus, else cpu")
    timeout: float = Field(3600.0, gt=0, description="seconds to wait for the clients of a round")
    max_failed_rounds: int = Field(
        3, ge=0, description="a strategy ends after so many failed rounds in a row; 0 for never"
    )
    min_replies: int = Field(
        0, ge=0, description="a round with fewer good replies leaves the model as it was; 0: one"
    )
    faults: Text = Field(
        "", description="to order, with probabilities: drop=0.1, slow, nan, garbage, scale, crash"
    )
    client_profiles: Text = Field(
        "",
        description="of the clients' devices: speed=lognormal(0.5), availability=random(0.8), "
        "local-steps=uniform(5, 20), step-seconds=0.01, bandwidth=1e6",
    )
    min_nodes: int = Field(0, ge=0, description="devices that a run waits for; 0: one")
    sample: int = Field(0, ge=0, description="devices asked a round; 0: --fraction-train decides")
    enough: int = Field(0, ge=0, description="replies that end a round; 0: all that were asked")
    deadline: float = Field(0.0, ge=0, description="seconds that a round takes at most; 0: none")
    target_accuracy: float = Field(0.85, ge=0, le=1, description="the table counts rounds to it")
    stop_at_target: bool = Field(
        False, description="a strategy ends once its models have reached --target-accuracy"
    )
    patience: int = Field(
        0,
        ge=0,
        description="a strategy ends after so many rounds without a better test accuracy (a lower "
        "loss, where there is none); 0 for never",
    )
    max_minutes: float = Field(
        0.0, ge=0, description="the run ends then, and can be resumed; 0 for no limit"
    )
    seed: int = Field(ALSO["seed"], ge=0, description="fixes everything that is drawn")
    seeds: Text = Field("", description="several runs: 0,1,2 in place of one seed")
    sweep: Text = Field("", description="several runs: KEY=VALUE,VALUE; by ; if several keys")
    select: Text = Field("", description="of a sweep, per strategy: the point best in this score")
    tuning_seeds: Text = Field(
        "", description="seeds that select; two after the largest of --seeds if empty"
    )
    checkpoint_every: int = Field(
        0, ge=0, description="rounds from one checkpoint to the next; 0: one while it is small"
    )
    log: Text = Field("", description="also to tensorboard, mlflow, by comma")
    name: Text = Field("", description="of the run, for its folder")
    out: Text = Field("", description="run folder; runs/<time>-<name> if empty")

    @field_validator("*")
    @classmethod
    def _fits(cls, value: Any) -> Any:
        if isinstance(value, int) and value >= 1 << 63:  # as TOML and Flower's messages have it
            raise PydanticCustomError("int_64", "it should be below 2**63")
        return value

    @field_validator("faults", "client_profiles")
    @classmethod
    def _can_be_read(cls, text: str, info: ValidationInfo) -> str:
        read = {"faults": Faults.of, "client_profiles": ClientProfiles.of}[str(info.field_name)]
        try:
            read(text)
        except ValueError as error:
            raise PydanticCustomError("unread", "{why}", {"why": str(error).rstrip(".")}) from None
        return text

    @field_validator("name")
    @classmethod
    def _stays_in_its_folder(cls, name: str) -> str:
        if set(name) & set("/\\\0") or name in (".", ".."):
            raise PydanticCustomError("name", "it should have no slash, and name no other folder")
        return name

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Build from kebab-case keys, e.g. Flower's ``context.run_config``.

        Raises:
            ValueError: an unknown key, or a value out of range; one line for the first of them.
        """
        try:
            items = frozenset(values.items())
        except TypeError:  # a list, which no key takes; the line says which
            return cls._parse(values)
        return cls._parsed(items)

    @classmethod
    @lru_cache(maxsize=64)  # every client of a simulation asks for the same configuration
    def _parsed(cls, items: frozenset[tuple[str, Any]]) -> Self:
        return cls._parse(dict(items))

    @classmethod
    def _parse(cls, values: Mapping[str, Any]) -> Self:
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise ValueError(cls._line(error)) from None

    @property
    def clients(self) -> ClientSettings:
        """What the clients do unless a message says otherwise; its ``lr`` is before any decay."""
        return ClientSettings.of(self.values())

    @classmethod
    def read(cls, path: str | Path) -> dict[str, Any]:
        """The keys of a TOML file.

        Raises:
            ValueError: no such file, or not TOML.
        """
        try:
            values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"{path}: there is no such file. Name a TOML file.") from None
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            is_text = not isinstance(error, UnicodeDecodeError)
            why = getattr(error, "strerror", error) if is_text else "it is not in UTF-8"
            raise ValueError(f"{path}: cannot be read: {why}. Name a TOML file.") from None
        if tables := [name for name, value in values.items() if isinstance(value, dict)]:
            raise ValueError(f"{path}: holds a table [{tables[0]}]. Write its keys without one.")
        return values

    @classmethod
    def keys(cls) -> dict[str, Any]:
        """Kebab-case key to pydantic field."""
        return {_kebab(name): field for name, field in cls.model_fields.items()}

    def values(self) -> dict[str, Any]:
        """Kebab-case key to value; ``Config.of(c.values()) == c``."""
        return self.model_dump(by_alias=True)

    def to_toml(self) -> str:
        """As a TOML file that ``--config`` reads back."""
        return tomli_w.dumps(self.values())

    @classmethod
    def _line(cls, error: ValidationError) -> str:
        first = error.errors()[0]
        key = _kebab(str(first["loc"][0]))
        if first["type"] == "extra_forbidden":
            close = _named_short(key, cls.keys()) or difflib.get_close_matches(key, cls.keys(), 1)
            hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(cls.keys())}."
            return f"Config: unknown key {key!r}. {hint}"
        default = cls.keys()[key].default
        rule = first["msg"][0].lower() + first["msg"][1:].replace("Input", "it")
        if isinstance(first["input"], list):
            rule = f"it should be text, such as {cut(','.join(map(str, first['input'])))}"
        return (
            f"Config({key}={cut(first['input'])}): {rule.replace('input', 'it')}. "
            f"The default is {default!r}."
        )
