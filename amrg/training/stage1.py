"""Stage 1: train the disease classifier, choose thresholds on validation, score the test split once.

All labelled studies are used, including those whose report lacks the chosen section.
The output of a frozen stem is computed once for every film (and its augmented copies) and cached; without a frozen
stem, films are streamed from the shards and augmented on the fly.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from amrg import distributed
from amrg.artifacts import add_artifact_failure
from amrg.config import Config
from amrg.data.film_checks import view_kinds_of_films
from amrg.data.labels import FINDINGS
from amrg.data.stream import (
    Stream,
    draw_epoch_rows,
    iter_split_samples,
    load_split_studies,
    num_films_by_study,
    num_split_studies,
    reader_processes,
    study_weights,
)
from amrg.errors import UserError
from amrg.graph.knowledge_graph import KnowledgeGraph
from amrg.models.classifier import DiseaseClassifier, Stage1Output, mean_over_views, query_cosines
from amrg.models.zero3 import gathered_parameters
from amrg.precision import autocast
from amrg.progress import print_on_rank_0, track_progress
from amrg.training import engine
from amrg.training.augment import augment_films
from amrg.training.checkpoint import hashes_of_inputs
from amrg.training.collate import ImageBatch, Stage1Collator, collate_images, hash_study_keys
from amrg.training.deepspeed_config import OptimizerSettings
from amrg.training.feature_cache import FeatureCache
from amrg.training.loop import TrainingTask, fit_task
from amrg.training.multilabel import (
    choose_finding_thresholds,
    class_counts,
    class_score_table,
    mean_auroc_interval,
    mean_class_auroc,
    multilabel_loss,
    multilabel_targets,
    positive_weights,
)

T = TypeVar("T")

#: Fewest positives in a split for a class to count in the mean AUROC.
MIN_POSITIVES = 10
_BATCH = 32  # films per forward outside training


@engine.restore_functional_linear()
def train_stage1(config: Config, data: Path, folder: Path, graph: Path | None = None) -> None:
    """Train on ``data`` and keep the epoch with the best mean AUROC on validation.

    Args:
        config: ``vision``, ``stage1`` and ``seed`` are read.
        data: a data artefact.
        folder: receives ``model/`` (``DiseaseClassifier.save_pretrained``), ``thresholds.json`` (probabilities),
            ``scores.json`` and ``curves.jsonl``; an interrupted run resumes from its checkpoints there.
        graph: graph artefact, if the disease queries exchange messages along it (``graph.queries``).
    """
    distributed.init_process_group()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        strengths_KK = None if graph is None else torch.from_numpy(KnowledgeGraph.load(graph).label_strengths())
        model = DiseaseClassifier(config.vision, strengths_KK=strengths_KK).to(distributed.local_device())
    films = (_CachedFilms if model.encoder.frozen_stem else _StreamedFilms)(config, data, folder, model)
    counts = class_counts(films.targets["train"], films.weights)  # as the classes are seen in training
    weight_K = positive_weights(*counts) if config.stage1.class_weighting else torch.ones_like(counts[0])
    _start_biases(model, *counts, weight_K)
    weight_K = weight_K.to(distributed.local_device())

    def loss(model: DiseaseClassifier, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor | float]]:
        inputs, targets_BK = batch["films"], batch["targets"].to(distributed.local_device(), non_blocking=True)
        out = films.predict(model, inputs)
        query_loss = multilabel_loss(out.of_studies(out.logits_BK, inputs.views), targets_BK, weight_K)
        cam_loss = multilabel_loss(out.of_studies(out.cam_logits_BK, inputs.views), targets_BK, weight_K)
        total = query_loss + cam_loss
        metrics: dict[str, Tensor | float] = {"query_loss": query_loss.detach(), "cam_loss": cam_loss.detach()}
        if weight := config.stage1.query_diversity_weight:
            diversity_loss = mean_over_views(query_cosines(out.queries_BQD).square().mean(1), inputs.views).mean()
            total = total + weight * diversity_loss
            metrics["diversity_loss"] = diversity_loss.detach()
        return total, metrics

    def validate(model: DiseaseClassifier) -> dict[str, float]:
        scores_NK, targets_NK = films.scores(model, "val"), films.targets["val"].numpy()
        table = class_score_table(scores_NK, targets_NK, choose_finding_thresholds(scores_NK, targets_NK))
        found = [mean_class_auroc(table, FINDINGS, least) for least in (MIN_POSITIVES, 1)]
        return {"val_auroc": next((value for value in found if value is not None), 0.5)}

    task = TrainingTask(
        model=model,
        loss=loss,
        batches=films.batches,
        steps_per_epoch=films.steps_per_epoch,
        validate=validate,
        selection_metric=("val_auroc", True),
        input_hashes=hashes_of_inputs(config.seed, config.stage1.batch_size, data),
    )
    fit_task(
        task,
        stage1_optimizer_settings(config),
        folder=folder,
        seed=config.seed,
        telemetry=config.telemetry,
        checkpointing=config.checkpoint,
    )
    with gathered_parameters(model.parameters()), torch.no_grad(), autocast(config.stage1.dtype):
        model.eval()
        probabilities = {split: films.scores(model, split) for split in ("val", "test")}
        if distributed.global_rank() == 0:
            model.save_pretrained(folder / "model")
            truth = {split: films.targets[split].numpy() for split in probabilities}
            _write_scores(probabilities, truth, films.datasets, folder)
            _record_chance_level(probabilities["val"], truth["val"], config.seed, folder)
            films.close()
    distributed.barrier()


def stage1_optimizer_settings(config: Config) -> OptimizerSettings:
    """Optimizer settings of stage 1."""
    return OptimizerSettings.of("stage1", config.stage1)


def _start_biases(model: DiseaseClassifier, positive_K: Tensor, negative_K: Tensor, weight_K: Tensor) -> None:
    """Initialise the biases of both heads to the (weighted) frequency of each label instead of 1/2."""
    with torch.no_grad():
        for bias_K in (model.query_bias_K, model.cam_head.linear.bias):
            bias_K.copy_(torch.log((positive_K * weight_K + 1) / (negative_K + 1)))


def _write_scores(
    probabilities: dict[str, np.ndarray], truth: dict[str, np.ndarray], datasets: dict[str, np.ndarray], folder: Path
) -> None:
    """Choose thresholds on validation; write them and the scores of both splits, and of each data set of a mix."""
    thresholds = choose_finding_thresholds(probabilities["val"], truth["val"])
    scores = {}
    for split, probabilities_NK in probabilities.items():
        scores[split] = _scores(probabilities_NK, truth[split], thresholds)
        mean = scores[split]["mean_auroc"]
        if names := sorted({*datasets[split]} - {""}):
            of = {name: datasets[split] == name for name in names}
            scores[split]["data_sets"] = {
                name: {"studies": int(rows.sum()), **_scores(probabilities_NK[rows], truth[split][rows], thresholds)}
                for name, rows in of.items()
            }
        shown = f"{mean:.3f}" if mean is not None else "none has so many"
        print_on_rank_0(f"{split}: mean AUROC of the findings with at least {MIN_POSITIVES} positives: {shown}")
    for name, content in (("thresholds", thresholds), ("scores", scores)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


def _scores(probabilities_NK: np.ndarray, truth_NK: np.ndarray, thresholds: dict[str, float]) -> dict[str, Any]:
    table = class_score_table(probabilities_NK, truth_NK, thresholds)
    mean = mean_class_auroc(table, FINDINGS, MIN_POSITIVES)
    return {"mean_auroc": mean, "least_positives": MIN_POSITIVES, "per_label": table}


def _record_chance_level(probabilities_NK: np.ndarray, truth_NK: np.ndarray, seed: int, folder: Path) -> None:
    """Record a failure if the interval of the mean AUROC on validation includes 0.5."""
    interval = mean_auroc_interval(probabilities_NK, truth_NK, FINDINGS, MIN_POSITIVES, seed)
    if interval is not None and interval[0] <= 0.5:
        add_artifact_failure(
            folder,
            f"stage 1 is at chance on validation: the interval of its mean AUROC, {interval[0]:.3f} to "
            f"{interval[1]:.3f}, includes 0.5; check the labels and the films, or give it more epochs or studies",
        )


class _Films:
    """Films and targets of the three splits."""

    steps_per_epoch: int

    def __init__(self, config: Config, data: Path, folder: Path, model: DiseaseClassifier) -> None:
        self.config, self.data, self.image_size = config, data, model.image_size
        settings = config.stage1
        studies = {split: load_split_studies(data, split, with_wordless=True) for split in ("train", "val", "test")}
        self.targets = {
            split: multilabel_targets(some, settings.uncertain_policy, settings.unmentioned_policy)
            for split, some in studies.items()
        }
        self.datasets = {split: np.array([study.dataset for study in some]) for split, some in studies.items()}
        self.projections = {split: [study.views for study in some] for split, some in studies.items()}
        self.weights = study_weights(data, "train", config.data.weights, with_wordless=True)

    def predict(self, model: DiseaseClassifier, inputs: ImageBatch) -> Stage1Output:
        """Predict each film of a batch from ``batches`` or ``inputs``."""
        raise NotImplementedError

    def batches(self, epoch: int, start: int) -> Iterator[dict[str, Any]]:
        """Yield this rank's share of each global batch of the epoch, from batch ``start`` on."""
        raise NotImplementedError

    def inputs(self, split: str) -> Iterator[ImageBatch]:
        """Yield batches of a split in index order, without augmentation."""
        raise NotImplementedError

    def scores(self, model: DiseaseClassifier, split: str) -> np.ndarray:
        """Predict probabilities [N, K] of a split; the ranks take turns in the batches, and all return the result.

        In the last round, a rank without a batch repeats that of another, because ZeRO-3 needs equally many forwards.
        """
        world, me = distributed.world_size(), distributed.global_rank()
        local_scores: list[tuple[int, np.ndarray]] = []
        for number, turn in enumerate(_batched(self.inputs(split), world)):
            inputs = turn[min(me, len(turn) - 1)]
            out = self.predict(model, inputs)
            scores_BK = out.of_studies(out.scores_BK, inputs.views)
            if me < len(turn):
                local_scores.append((number * world + me, scores_BK.double().sigmoid().cpu().numpy()))
        return np.concatenate(
            [part for _, part in sorted(distributed.all_gather_list(local_scores), key=lambda item: item[0])]
        )

    def close(self) -> None:
        """Remove temporary files."""


class _CachedFilms(_Films):
    """Films as cached outputs of the frozen stem."""

    def __init__(self, config: Config, data: Path, folder: Path, model: DiseaseClassifier) -> None:
        super().__init__(config, data, folder, model)
        self.folder = folder / "features"
        size, batch = len(self._rows(0)), config.stage1.batch_size
        self.steps_per_epoch = size // batch
        if not self.steps_per_epoch:
            raise UserError(
                f"the split `train` has {size} studies, less than one batch of {batch}: lower the batch size"
            )
        self.copies = config.stage1.augmented_copies
        self.keys = hash_study_keys(load_split_studies(data, "train", with_wordless=True))
        # A row of a cache is a film; the offsets are the first rows of the studies.
        films = {split: num_films_by_study(data, split, with_wordless=True) for split in self.targets}
        self.film_offsets = {split: [0, *accumulate(counts)] for split, counts in films.items()}
        self.kinds = {
            split: [view_kinds_of_films(*one) for one in zip(self.projections[split], counts, strict=True)]
            for split, counts in films.items()
        }
        with torch.no_grad():
            shape = model.encoder.stem(
                torch.zeros(1, 3, *[self.image_size] * 2, device=distributed.local_device())
            ).shape[1:]
        files = [(split, copy) for split in self.targets for copy in range(self.copies if split == "train" else 1)]
        for split, copy in files[distributed.global_rank() :: distributed.world_size()]:
            self._fill(model, split, copy, shape)
        distributed.barrier()
        self.caches = {
            split: [self._cache(split, copy, shape) for copy in range(self.copies if split == "train" else 1)]
            for split in self.targets
        }

    def _cache(self, split: str, copy: int, shape: torch.Size) -> FeatureCache:
        return FeatureCache(self.folder / f"{split}-{copy}.bin", self.film_offsets[split][-1], shape)

    def _fill(self, model: DiseaseClassifier, split: str, copy: int, shape: torch.Size) -> None:
        cache = self._cache(split, copy, shape)
        if cache.done < len(cache):
            start = self.film_offsets[split].index(cache.done)
            batches = _batched(islice(iter_split_samples(self.data, split, with_wordless=True), start, None), _BATCH)
            cache.fill(self._stem(model, batches, split, copy, start))

    def _stem(self, model: DiseaseClassifier, batches: Any, split: str, copy: int, start: int) -> Iterator[Tensor]:
        total = len(range(0, len(self.targets[split]), _BATCH))
        label = f"stage1: frozen features of {split}, copy {copy + 1}"
        for number, samples in enumerate(track_progress(batches, label, total, start // _BATCH), start // _BATCH):
            images = collate_images(samples, self.image_size).images(distributed.local_device())
            if split == "train":
                images = augment_films(images, _generator(self.config.seed, copy, number))
            with torch.no_grad(), autocast(self.config.stage1.dtype):
                yield model.encoder.stem(images).cpu()

    def predict(self, model: DiseaseClassifier, inputs: ImageBatch) -> Stage1Output:
        features = inputs.values_M.to(distributed.local_device(), non_blocking=True).float()
        return model.from_stem(features, inputs.kinds)

    def batches(self, epoch: int, start: int) -> Iterator[dict[str, Any]]:
        generator = _generator(self.config.seed, epoch)
        drawn = torch.from_numpy(self._rows(epoch))
        order = drawn[torch.randperm(len(drawn), generator=generator)]
        copy_of = torch.randint(self.copies, (len(self.targets["train"]),), generator=generator)
        size = self.config.stage1.batch_size
        for step in range(start, self.steps_per_epoch):
            rows = order[step * size : (step + 1) * size][distributed.global_rank() :: distributed.world_size()]
            parts = [self._features_of_study("train", row, int(copy_of[row])) for row in rows.tolist()]
            yield {
                "films": self._batch("train", rows.tolist(), parts),
                "targets": self.targets["train"][rows],
                "study": [self.keys[row] for row in rows.tolist()],
            }

    def _rows(self, epoch: int) -> np.ndarray:
        return draw_epoch_rows(len(self.targets["train"]), self.weights, self.config.seed, epoch)

    def inputs(self, split: str) -> Iterator[ImageBatch]:
        for rows in _batched(range(len(self.targets[split])), _BATCH):
            parts = [self._features_of_study(split, row) for row in rows]
            yield self._batch(split, rows, parts)

    def _batch(self, split: str, rows: Sequence[int], features: list[Tensor]) -> ImageBatch:
        kinds = tuple(kind for row in rows for kind in self.kinds[split][row])
        return ImageBatch(torch.cat(features), tuple(map(len, features)), kinds)

    def _features_of_study(self, split: str, row: int, copy: int = 0) -> Tensor:
        """Cached features of the films of one study."""
        return self.caches[split][copy].rows_N[self.film_offsets[split][row] : self.film_offsets[split][row + 1]]

    def close(self) -> None:
        shutil.rmtree(self.folder)


class _StreamedFilms(_Films):
    """Films as images, streamed from the shards."""

    def __init__(self, config: Config, data: Path, folder: Path, model: DiseaseClassifier) -> None:
        super().__init__(config, data, folder, model)
        size = config.stage1.batch_size
        self.stream = Stream(
            data,
            "train",
            size,
            config.seed,
            distributed.global_rank(),
            distributed.world_size(),
            readers=reader_processes(config.data.loader_workers),
            collate=Stage1Collator(self.image_size, config.stage1),
            with_wordless=True,
            weights=self.weights,
        )
        self.steps_per_epoch = self.stream.steps_per_epoch

    def predict(self, model: DiseaseClassifier, inputs: ImageBatch) -> Stage1Output:
        return model(inputs.values_M, kinds=inputs.kinds)

    def batches(self, epoch: int, start: int) -> Iterator[dict[str, Any]]:
        for step, batch in enumerate(self.stream.epoch(epoch, start), start):
            generator = _generator(self.config.seed, epoch, step, distributed.global_rank())
            films = batch["films"]
            images = augment_films(films.images(distributed.local_device()), generator)
            yield {**batch, "films": replace(films, values_M=images)}

    def inputs(self, split: str) -> Iterator[ImageBatch]:
        films, total = (
            iter_split_samples(self.data, split, with_wordless=True),
            num_split_studies(self.data, split, with_wordless=True),
        )
        for samples in _batched(track_progress(films, f"films of {split}", total), _BATCH):
            inputs = collate_images(samples, self.image_size)
            yield replace(inputs, values_M=inputs.images(distributed.local_device()))


def _generator(*seeds: int) -> torch.Generator:
    state = np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
