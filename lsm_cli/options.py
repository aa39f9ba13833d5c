"""What a recipe may say: one typed definition per option, with its range, unit and meaning, and what goes together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

BY_ATTENTION = ("soft", "eta", "sdim", "hybrid")  # searches that go by a model's attention
ATTENTIVE = ("tin", "stacked_tin")  # readers whose attention may see some fields, or embeddings of its own
SEARCHING = (*ATTENTIVE, "mhta")  # readers that have one
ENCODED = ("sasrec", "stca", "hstu")  # readers that transform a history before the candidate comes in
LAYERED = ("stacked_tin", "bst", "hstu", "stca", "sasrec")  # readers with model.layers
HEADED = ("mhta", "bst", "hstu", "stca", "sasrec")  # readers with model.block_heads
SORTING = ("bst", "hstu", "sasrec", "sdim")  # readers that sort what they read, so that no shape is fixed

Width = Annotated[int, Field(ge=1, le=1 << 16, strict=True)]
Days = Annotated[float, Field(gt=0, le=1e6, strict=True)]


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, populate_by_name=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth(cls, value: Any, info: ValidationInfo) -> Any:
        """True and false are no numbers, though Python counts with them."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation in (int, float):
            raise ValueError("should be a number, not true or false")
        return value


class DataOptions(Options):
    """What a sample sees."""

    fields: list[str] = Field([], description="side-information fields to use, in this order; empty = all of the store")
    statistics: bool = Field(True, description="use the store's point-in-time statistics (popularity, freshness)")
    calendar: bool = Field(True, description="use hour of day and day of week of the request (UTC)")
    targets: list[str] = Field([], description="optimisation targets to train; empty = all of the store")


class ModelOptions(Options):
    """The ranking model."""

    sequence: Literal["none", "mean", "din", "tin", "stacked_tin", "mhta", "sdim", "bst", "hstu", "stca", "sasrec"] = (
        Field("stacked_tin", description="how the history is read")
    )
    max_len: int = Field(200, ge=0, le=1_000_000, description="behaviours per sample; the most recent are kept")
    dim: int = Field(16, ge=1, le=1024, description="embedding width per field")
    attention_dim: int = Field(
        0, ge=0, le=1024, description="width per field of the attention's own embeddings (DARE); 0 = shared ones"
    )
    attention_std: float = Field(
        0.0, ge=0, le=10, description="standard deviation of a fresh row of attention_dim's embeddings; 0 = init_std"
    )
    heads: Literal["auto"] | list[list[str]] = Field(
        [],
        description="fields that each attention head sees (DSI-TIN), e.g. [['item'], ['category'], ['time']]; `auto` = "
        "a head each for item-like fields, categories, places, actions and time; empty = one head that sees everything",
    )
    layers: int = Field(2, ge=1, le=8, description="layers of a reader that has them (stacked_tin, transformers)")
    block_heads: int = Field(
        2, ge=1, le=64, description="heads of mhta and the transformers (bst, hstu, stca, sasrec), which see all fields"
    )
    stack_output: Literal["found", "states", "last"] = Field(
        "found",
        description="what the head sees of a stack: what each layer found, every state, which holds the candidate, or "
        "only the last",
    )
    stack_residual: Literal["norm", "gate"] = Field(
        "norm", description="how a layer's finding joins the state: added and normed, or through a gate"
    )
    stack_feed_forward: int = Field(
        0, ge=0, le=16, description="hidden width of a feed-forward network after each layer, in widths; 0 = none"
    )
    graph_dim: int = Field(
        0, ge=0, le=1024, description="width of the item graph's vectors, a further field of the items; 0 = no graph"
    )
    graph_window: int = Field(
        10, ge=1, le=1000, description="items that many behaviours apart, or fewer, are neighbours in the item graph"
    )
    temporal: list[Literal["interval", "rank"]] = Field(
        ["interval", "rank"], description="temporal encodings of a behaviour: time to the request, rank from it"
    )
    time_tables: Literal["shared", "own", "residual"] = Field(
        "shared",
        description="temporal encodings of several targets: the same, own ones, or a residual of each on shared ones",
    )
    temporal_start: Literal["random", "zero"] = Field(
        "random",
        description="fresh temporal encodings where attention looks: random as embedding rows are, or zero, so that it "
        "and its search go by what a behaviour was until they have learned when",
    )
    intervals: int = Field(32, ge=2, le=512, description="log-spaced time-interval buckets, one second to two years")
    ranks: int = Field(32, ge=2, le=4096, description="log-spaced rank buckets")
    match_bias: bool = Field(True, description="learned attention bias where a behaviour shares the candidate's field")
    action_bias: bool = Field(False, description="learned attention bias for each action of a behaviour")
    evidence: bool = Field(True, description="pooled match statistics beside the sequence in the head")
    evidence_from: Literal["read", "history"] = Field(
        "read", description="match statistics of the behaviours read, or of all before the request, by the index"
    )
    days: list[Days] = Field(
        [1.0, 7.0, 30.0, 90.0], description="match counts over the last days, where they come from the index"
    )
    half_lives: list[Days] = Field(
        [1.0, 7.0, 30.0], description="half-lives of the time-decayed match counts; days", min_length=0, max_length=16
    )
    windows: list[Annotated[int, Field(ge=1, le=1_000_000, strict=True)]] = Field(
        [10, 50], description="extra match counts over the last n behaviours", max_length=16
    )
    init_std: float = Field(0.3, gt=0, le=10, description="standard deviation of a fresh embedding row")
    candidate: bool = Field(True, description="the candidate's own embeddings enter the head")
    bins: int = Field(16, ge=0, le=256, description="quantile bins in the encoding of each number; 0 = logarithm only")
    cross: int = Field(2, ge=0, le=6, description="DCN-v2 cross layers on the head's whole input")
    cross_rank: int = Field(16, ge=1, le=1024, description="rank of the cross layers' weights")
    quiet: bool = Field(True, description="what the reader found starts with weight zero in the head")
    hidden: list[Width] = Field([128], description="widths of the shared tower", min_length=1, max_length=8)
    target_hidden: list[Width] = Field(
        [], description="widths of a tower of each target's own on what is shared; empty = a linear head", max_length=8
    )
    experts: int = Field(
        0, ge=0, le=64, description="experts in place of the shared hidden layers, a gate per target (MMoE); 0 = none"
    )
    attention_hidden: list[Width] = Field([64], description="widths of DIN's attention network", min_length=1)
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout in the tower and in transformers")
    item_fields: list[str] = Field(
        [], description="sasrec: candidates' fields that describe the item, beside item and categories"
    )
    request_fields: list[str] = Field(
        [], description="sasrec: candidates' fields that describe the request, beside the scenario"
    )

    @field_validator("heads", mode="wrap")
    @classmethod
    def _fields_of_heads(cls, value: Any, validate: Callable[[Any], Any]) -> Any:
        try:
            return validate(value)
        except ValidationError:  # one for each kind of value that there is
            raise ValueError("should be `auto` or the fields of each head, such as [['item'], ['time']]") from None


class SearchOptions(Options):
    """The first stage: which behaviours of a long history are read."""

    method: Literal["none", "hard", "soft", "eta", "sdim", "hybrid"] = Field(
        "none", description="none = the most recent model.max_len; hybrid = hard and soft results together"
    )
    top_k: int = Field(50, ge=1, le=100_000, description="behaviours to find")
    recent: int = Field(0, ge=0, le=100_000, description="most recent behaviours read beside those found")
    reach: int = Field(0, ge=0, description="behaviours that are searched, the most recent; 0 = the whole history")
    levels: list[str] = Field(
        [],
        description="fields of the hard search, finest first (`leaf` = finest category level, `any` = everything); "
        "empty = item, every category level, `any`",
    )
    min_level: str = Field("", description="coarsest level of the hard search; empty = the last of the levels")
    budgets: dict[str, Annotated[int, Field(ge=0, strict=True)]] = Field(
        {}, description="most behaviours that a level of the hard search may contribute"
    )
    within_days: float = Field(
        0.0, ge=0, le=1e6, description="only behaviours of the last so many days; 0 = of any age"
    )
    scenarios: list[str] = Field([], description="only behaviours in these scenarios; empty = in all")
    domains: list[str] = Field([], description="only behaviours in these domains; empty = in all")
    hard_k: int = Field(25, ge=0, description="hybrid: how many of top_k the hard search may find")
    score: Literal["attention", "product"] = Field(
        "attention", description="soft: the attention's own logits, or the bare product of side information (SIM)"
    )
    hashes: int = Field(
        4, ge=1, le=64, description="sdim, as search or reader: groups of hash bits; eta: times hash_bits in all"
    )
    hash_bits: int = Field(8, ge=1, le=16, description="bits of a hash group")
    source: str = Field("", alias="from", description="pointers written by `lsm search`, instead of searching")


class TrainOptions(Options):
    """The training loop."""

    epochs: int = Field(3, ge=1, le=1000, description="passes over the data; see fresh_tables")
    shuffle: Literal["samples", "requests"] = Field(
        "samples",
        description="what stands in any order: samples, or whole requests, whose candidates then share their history",
    )
    batch_size: int = Field(512, ge=1, le=1 << 20, description="samples per step")
    lr: float = Field(2e-3, gt=0, le=10, description="peak learning rate of the dense parameters (AdamW)")
    table_lr: float = Field(0.05, gt=0, le=10, description="peak learning rate of the embedding rows")
    table_optimizer: Literal["adagrad", "adam"] = Field(
        "adagrad", description="row-wise Adagrad, or Adam that moves only the rows of the step"
    )
    table_dtype: Literal["fp32", "bf16"] = Field(
        "fp32", description="how embedding rows are kept; bf16 = in half the memory, rounded up or down by chance"
    )
    table_decay: bool = Field(False, description="let the rows' learning rate follow warm-up and decay as well")
    fresh_tables: bool = Field(
        True,
        description="start the embedding tables anew in every epoch: dense layers gain from more passes, rows overfit",
    )
    weight_decay: float = Field(1e-5, ge=0, le=1, description="decoupled weight decay of the dense parameters")
    warmup: float = Field(0.05, ge=0, le=1, description="share of the steps with rising learning rate")
    decay: Literal["none", "linear", "cosine"] = Field("cosine", description="learning rate after the warm-up")
    final_lr: float = Field(0.0, ge=0, le=1, description="learning rate at the end, as a share of the peak")
    clip: float = Field(5.0, ge=0, description="largest norm of all gradients together; 0 = off")
    unknown: float = Field(
        0.01, ge=0, lt=1, description="share of ids shown as unknown while training, so that the unknown row learns"
    )
    ema: float = Field(0.999, ge=0, lt=1, description="decay of the averaged dense weights used in evaluation; 0 = off")
    metric: Literal["gauc", "auc", "logloss"] = Field(
        "gauc", description="validation metric that picks the weights, in the mean by train.weights"
    )
    evaluations: int = Field(2, ge=1, le=1000, description="validations per epoch")
    patience: int = Field(0, ge=0, description="validations without a better metric before stopping; 0 = never stop")
    valid_samples: int = Field(200_000, ge=1, description="validation samples scored while training, at most")
    checkpoint_seconds: float = Field(300, ge=0, description="seconds between checkpoints inside an epoch")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="arithmetic of the dense layers; auto = bf16 on a GPU that has it, else fp32"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to compute")
    threads: int = Field(0, ge=0, le=1024, description="CPU threads; 0 = all")
    seed: int = Field(0, ge=0, description="seed of initialisation, order and dropout")
    weights: dict[str, Annotated[float, Field(ge=0, strict=True)]] = Field(
        {}, description="loss weight per target; 1 where not named"
    )
    softmax: float = Field(
        0.0, ge=0, le=100, description="sasrec: weight of a softmax over the batch's candidates, which makes for recall"
    )
    next_item: float = Field(
        0.0, ge=0, le=100, description="sasrec: weight of each behaviour's guess at the next one, as its paper trains"
    )
    tensorboard: bool = Field(False, description="also write TensorBoard event files (extra `tensorboard`)")
    track: list[Literal["tensorboard", "mlflow"]] = Field(
        [], description="trackers beside metrics.jsonl (extras of these names); MLflow goes to MLFLOW_TRACKING_URI"
    )


class EngineOptions(Options):
    """How the work is done. Results are the same within rounding; `lsm profile --ablate` says what each is worth."""

    kernels: Literal["auto", "triton", "compiled", "eager"] = Field(
        "auto",
        description="attention over histories: triton = in one pass over each, compiled = fused gathers and sums, "
        "eager = written out behaviour by behaviour; auto = triton on a GPU that has it, else compiled, with matrix "
        "products for tables of few rows",
    )
    sparse_rows: bool = Field(
        True, description="read and update only the embedding rows of a step, instead of whole tables (Adagrad only)"
    )
    table_tier: Literal["device", "host", "file"] = Field(
        "device",
        description="where embedding tables lie: whole on the device; or in host memory or a scratch file (in TMPDIR), "
        "and their most used rows on the device",
    )
    cache_rows: float = Field(
        0.1,
        gt=0,
        le=1 << 31,
        description="rows of a table that the device holds, where table_tier is not `device`: a share (at most 1), or "
        "a number; tables with no more rows stay on the device whole",
    )
    memory_pool: bool = Field(
        True, description="keep freed memory for the next step: glibc's heap on the CPU, expandable segments on a GPU"
    )
    size_classes: int = Field(
        0,
        ge=0,
        le=64,
        description="sizes of GPU memory blocks between two powers of two, a power of two itself, which requests are "
        "rounded up to so that freed blocks fit again; 0 = as they come",
    )
    lasting_pool: bool = Field(
        False,
        description="tables, their optimisers and the store's columns in a pool of GPU memory of their own, apart from "
        "what comes and goes with every step",
    )
    share_histories: bool = Field(
        True,
        description="a history that several candidates of a request read is gathered and embedded once; in soft search "
        "also scored at once",
    )
    search_index: bool = Field(True, description="hard search: by the store's index where it has one, else by scanning")
    prefetch: int = Field(
        0, ge=0, le=64, description="batches that a thread assembles ahead; 0 = in line; a soft search is in line"
    )
    trajectories: Literal["auto", "device", "host"] = Field(
        "auto",
        description="where histories are gathered: device = from columns that lie there, so that only pointers move, "
        "host = from memory-mapped files; auto = device on a GPU, if they take less than a quarter of it, else host",
    )
    pinned: bool = Field(
        True, description="batches reach a GPU in one copy each, beside the computing, by pinned buffers used in turn"
    )
    cuda_graphs: bool = Field(
        False,
        description="score by replaying CUDA graphs of few batch sizes, which batches are padded to; only on a GPU",
    )
    token_budget: int = Field(
        0, ge=0, le=1 << 40, description="behaviours per step at most, instead of train.batch_size samples; 0 = off"
    )


class Recipe(Options):
    name: str = Field("recipe", description="what the run is called in tables")
    description: str = Field("", description="one line: the idea and its source")
    data: DataOptions = DataOptions()
    search: SearchOptions = SearchOptions()
    model: ModelOptions = ModelOptions()
    train: TrainOptions = TrainOptions()
    engine: EngineOptions = EngineOptions()

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if found := [*self._contradictions()]:
            raise ValueError("\n".join(found))
        return self

    def _contradictions(self) -> Iterator[str]:
        """What does not go together, a sentence each."""
        if self.train.precision == "fp16" and self.train.device == "cpu":
            yield "train.precision: fp16 needs a GPU; use bf16 or fp32 on the CPU"
        if not self.engine.sparse_rows and self.train.table_optimizer != "adagrad":
            yield (
                "engine.sparse_rows: only Adagrad leaves rows without gradient alone; set train.table_optimizer=adagrad"
            )
        if not self.engine.sparse_rows and self.engine.table_tier != "device":
            yield "engine.table_tier: whole tables in a step must be on the device; set sparse_rows to true"
        if self.engine.size_classes & (self.engine.size_classes - 1):
            yield f"engine.size_classes: {self.engine.size_classes} is no power of two; use 8, or 0 for off"
        if self.model.attention_dim and self.model.sequence not in ATTENTIVE:
            yield "model.attention_dim: only tin and stacked_tin have an attention to decouple; set it to 0"
        if self.model.heads and self.model.sequence not in ATTENTIVE:
            yield "model.heads: only heads of tin and stacked_tin see fields of their own; leave it empty"
        if len(set(self.model.temporal)) < len(self.model.temporal):
            yield "model.temporal: an encoding is there twice; name each once"
        if self.model.action_bias and self.model.sequence in ("none", "mean", "sdim"):
            yield f"model.action_bias: {self.model.sequence} has no attention to add to; set it to false"
        if self.model.sequence == "sasrec":
            yield from self._towers_apart()
        for name in ("softmax", "next_item"):
            if self.model.sequence != "sasrec" and getattr(self.train, name):
                yield f"train.{name}: only sasrec has a user's tower to teach; set it to 0"
        for name in ("item_fields", "request_fields"):
            if self.model.sequence != "sasrec" and getattr(self.model, name):
                yield f"model.{name}: only sasrec tells items from requests; leave it empty"
        if self.search.method in BY_ATTENTION and self.model.sequence not in SEARCHING:
            yield (
                f"search.method: {self.search.method} goes by the attention of tin, stacked_tin or mhta; set "
                "model.sequence"
            )
        for name in ("within_days", "scenarios", "domains"):
            if self.search.method in BY_ATTENTION and getattr(self.search, name):
                yield f"search.{name}: only a hard search leaves behaviours out; use search.method=hard, or drop it"
        if not self.model.max_len and (self.search.method != "none" or self.search.source):
            yield (
                "model.max_len: 0 reads nothing, whatever a search finds; set it to 1 or more, which limits no search"
            )
        if self.search.method == "hybrid" and self.search.hard_k > self.search.top_k:
            yield f"search.hard_k: {self.search.hard_k} is more than search.top_k, {self.search.top_k}; lower it"

    def _towers_apart(self) -> Iterator[str]:
        """In two towers nothing on the user's side may know the candidate."""
        if self.model.match_bias or self.model.evidence:
            yield (
                "model.sequence = 'sasrec': the user's tower never sees the candidate, so there are no matches; set "
                "model.match_bias and model.evidence to false"
            )
        if self.search.method != "none" or self.search.source:
            yield (
                "model.sequence = 'sasrec': the user's tower never sees the candidate, so nothing can be searched for "
                "it; set search.method to none and leave search.from empty"
            )
        if self.model.graph_dim or self.model.action_bias:
            yield "model.sequence = 'sasrec': set model.graph_dim to 0 and model.action_bias to false"
        if not self.model.max_len:
            yield "model.sequence = 'sasrec' is nothing without a history; set model.max_len"

    def to_toml(self) -> str:
        """Every key with its value, ready to be run again."""
        import tomli_w

        return tomli_w.dumps(self.model_dump(by_alias=True))


SECTIONS: dict[str, type[Options]] = {
    "data": DataOptions,
    "search": SearchOptions,
    "model": ModelOptions,
    "train": TrainOptions,
    "engine": EngineOptions,
}
KEYS = [
    f"{section}.{info.alias or key}"
    for section, options in SECTIONS.items()
    for key, info in options.model_fields.items()
]
