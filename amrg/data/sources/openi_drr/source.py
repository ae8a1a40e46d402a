"""The source of the embedded data set: reports with rendered films."""

import hashlib
from dataclasses import replace

from amrg.config import DataConfig
from amrg.data.labels import FINDINGS, POSITIVE
from amrg.data.sources.openi_drr.earlier import earlier_state
from amrg.data.sources.openi_drr.film import render_film, render_two_views
from amrg.data.sources.openi_drr.findings import Finding, findings_to_render, labels_of_findings
from amrg.data.sources.openi_drr.reports import Report, read_open_i_reports
from amrg.data.sources.tables import refuse_views
from amrg.data.splits import uniform_from_hash
from amrg.data.studies import SPLITS, Study, StudyImages
from amrg.errors import UserError

_EARLIER = "-earlier"
_TRAIN, _VAL = 0.7, 0.8  # 70 % train, 10 % validation, 20 % test


class OpeniDrr:
    """Open-i studies whose findings can be rendered. Implements ``amrg.data.studies.Source``.

    Args:
        config: ``renders_per_study`` films of each train study share its text and group, with keys ``<id>-r0`` and on.
            With ``earlier_states`` the study before one whose report compares has its key and ``-earlier``, without
            a text and with a PA film alone.
            With ``lateral_films`` studies that list a second film have a lateral one.
        seed: seed of the split and of every film.

    Raises:
        UserError: a wheel is missing, or the configuration leaves a split empty.
    """

    def __init__(self, config: DataConfig, seed: int) -> None:
        refuse_views(config)
        self._config = config
        self._seed = seed
        self._findings: dict[str, tuple[Finding, ...]] = {}
        self._studies: list[Study] = []
        by_split: dict[str, list[tuple[Report, tuple[Finding, ...]]]] = {split: [] for split in SPLITS}
        usable = [
            (report, found)
            for report in read_open_i_reports()
            if (found := findings_to_render(report)) is not None
            and report.text(config.sections)
            and report.films >= config.listed_films
        ]
        order = {uid: i / len(usable) for i, uid in enumerate(sorted((r.uid for r, _ in usable), key=study_number))}
        for report, findings in usable:
            by_split[self._split(report.uid, order[report.uid])].append((report, findings))
        limits = (config.train_studies, config.val_studies, config.test_studies)
        for (split, members), limit in zip(by_split.items(), limits, strict=True):
            self._add(split, self._chosen(members, limit))

    def _split(self, uid: str, order: float) -> str:
        """Return the split of a study, which depends on its number and the seed only, not on the other studies.

        Open-i publishes no dates and no patients, so ``temporal`` uses the order of the studies' numbers, in [0, 1).
        """
        position = order if self._config.splits == "temporal" else uniform_from_hash(self._seed, "split", uid)
        return "train" if position < _TRAIN else "val" if position < _VAL else "test"

    def _chosen(
        self, members: list[tuple[Report, tuple[Finding, ...]]], limit: int | None
    ) -> list[tuple[Report, tuple[Finding, ...]]]:
        """Return at most ``limit`` members, the first of a seeded order, with the configured share of abnormal ones."""
        fraction = self._config.abnormal_fraction
        ordered = sorted(members, key=lambda member: uniform_from_hash(self._seed, "order", member[0].uid))
        if fraction is None:
            return ordered[:limit]
        abnormal = [member for member in ordered if has_abnormal_label(member[1])]
        normal = [member for member in ordered if not has_abnormal_label(member[1])]
        most = min(
            len(ordered) if limit is None else limit,
            int(len(abnormal) / fraction) if fraction > 0 else len(normal),
            int(len(normal) / (1 - fraction)) if fraction < 1 else len(abnormal),
        )
        num_abnormal = round(most * fraction)
        return abnormal[:num_abnormal] + normal[: most - num_abnormal]

    def _add(self, split: str, members: list[tuple[Report, tuple[Finding, ...]]]) -> None:
        if not members:
            raise UserError(
                f"no study is left in split {split}: raise data.{split}_studies or change abnormal_fraction"
            )
        renders = self._config.renders_per_study if split == "train" else 1
        for report, findings in sorted(members, key=lambda member: study_number(member[0].uid)):
            group = hashlib.sha256(report.uid.encode()).hexdigest()[:16]
            for index in range(renders):
                key = f"{report.uid}-r{index}" if split == "train" else report.uid
                self._findings[key] = findings
                text, ending = report.text(self._config.sections), report.ending(self._config.sections)
                views = (("PA", "LATERAL") if report.films > 1 else ("PA",)) if self._config.lateral_films else ()
                study = Study(
                    key,
                    group,
                    split,
                    text,
                    labels_of_findings(findings),
                    views,
                    context=report.context,
                    impression=ending,
                )
                before = earlier_state(findings, report.text()) if self._config.earlier_states else None
                if before is not None:
                    self._findings[key] = before.now
                    earlier = Study(f"{key}{_EARLIER}", group, split, "", labels_of_findings(before.before), views[:1])
                    self._findings[earlier.key] = before.before
                    study = replace(study, prior=earlier.key, prior_report=before.report, changes=before.changes)
                    self._studies.append(earlier)
                self._studies.append(study)

    def studies(self) -> list[Study]:
        """Return all studies with their splits."""
        return list(self._studies)

    def films(self, study: Study) -> StudyImages:
        """Render a PA film with the masks of its lesions, and a lateral one if the study has it.

        They depend on the study's key and the seed only.
        """
        digest = hashlib.sha256(study.key.removesuffix(_EARLIER).encode()).digest()
        seed = (self._seed, int.from_bytes(digest[:8], "big"))
        findings, size = self._findings[study.key], self._config.image_size
        if "LATERAL" in study.views:
            films, masks = render_two_views(findings, seed, size)
        else:
            film, masks = render_film(findings, seed, size, int(study.key.endswith(_EARLIER)))
            films = [film]
        return StudyImages(films, {label: mask for label, mask in masks.items() if study.labels[label] == POSITIVE})


def study_number(uid: str) -> int:
    """Return the number of a study: 17 for ``CXR17``."""
    return int(uid.removeprefix("CXR"))


def has_abnormal_label(findings: tuple[Finding, ...]) -> bool:
    """Whether any label but No Finding is positive."""
    labels = labels_of_findings(findings)
    return any(labels[label] == POSITIVE for label in FINDINGS)
