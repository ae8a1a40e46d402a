"""The page: complete, self-contained, the same bytes every time, and nothing from a report becomes markup."""

import base64
import hashlib
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from amrg.data.labels import LABELS
from amrg.pages import EMBEDDED_DATA_NOTICE, NOT_CLINICAL_NOTICE
from amrg.pages.overlays import crop_film_to_box, heat_map_data_url, mark_text_spans, named_boxes_svg, outline_data_url
from amrg.pages.plain_summary import plain_summary
from amrg.pages.plots import forest_plot_svg, line_chart_svg
from amrg.pages.result_page import Page, render_result_page, training_charts
from amrg.pages.retrieved_rows import RecalledSentence, recalled_sentence_views
from amrg.pages.score_table import forest_plot_rows, terminal_score_table, why_no_odds_ratio
from tests.pages.fake_page import page

VOID = {"meta", "link", "img", "br", "input"}


class Checker(HTMLParser):
    """Collects attributes and checks that every tag is closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.urls, self.ids, self.targets, self.alts = [], [], [], [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.urls += [v for k, v in values.items() if k in ("src", "href") and v]
        self.ids += [values["id"]] if "id" in values else []
        if tag == "img":
            assert "alt" in values
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def html():
    return render_result_page(page())


def picture(url):
    return Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))


def test_learned_metrics_are_in_the_printed_table():
    """With their intervals, on 80 columns; why one could not be asked stands below."""
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(terminal_score_table(page().scores))
    told = console.export_text()
    assert re.search(r"CheXbert F1 micro-14 +0\.500 +0\.500 +0\.500 *\n +0\.250–0\.750", told)
    assert "GREEN unavailable: <no> GPU" in told


def test_well_formed_and_self_contained(html):
    checker = Checker()
    checker.feed(html)
    assert not checker.open
    assert len(set(checker.ids)) == len(checker.ids)
    for url in checker.urls:
        assert url.startswith(("data:", "#")), url[:60]
        if url.startswith("#"):
            assert url[1:] in checker.ids
        elif url.startswith("data:image"):
            picture(url).load()
    assert not re.search(r"@import|url\(|<script .|https?:", html)


def test_the_one_script_is_the_one_that_the_policy_allows(html):
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
    assert html.count(f'http-equiv="Content-Security-Policy" content="{policy}') == 1


def test_says_what_it_must(html):
    assert NOT_CLINICAL_NOTICE in html
    assert EMBEDDED_DATA_NOTICE in html
    other = page()
    other.scores["source"] = "mimic_cxr"
    other.scores["marks"] = ["bank holds <test> rows"]
    other.scores["failures"] = ["the reports have collapsed"]
    text = render_result_page(other)
    assert EMBEDDED_DATA_NOTICE not in text
    assert "bank holds &lt;test&gt; rows" in text
    assert "Failed: the reports have collapsed" in text
    sections = (
        "summary",
        "confidence",
        "scores",
        "findings",
        "details",
        "relevance",
        "wording",
        "place",
        "probe",
        "curves",
        "chosen",
        "worst",
        "best",
    )
    for section in (*sections, "contact", "origin"):
        assert f'<section id="{section}">' in html
    assert "3 of 120 studies have films that are unlike the training films; the threshold allows 2 %" in html
    other.scores["unlike_training"] = None
    assert "unlike the training films" not in render_result_page(other)


def test_texts_are_escaped(html):
    assert "&lt;enlarged&gt; &amp; the lungs" in html
    assert "&lt;words&gt;" in html


def test_same_bytes_again(html):
    assert render_result_page(page()) == html


def test_details_and_memories(html):
    assert re.search(r"<td>side exact</td><td>1.000 \[1.000–1.000\] of \d+</td>", html)
    assert re.search(r"<td>F1 micro-13 with details</td><td>0.\d{3} \[0.\d{3}–0.\d{3}\]</td>", html)
    assert "<td>zone exact</td>" in html
    assert "<td>device kind</td>" not in html  # no case
    assert "<td>0.800 [0.800–0.800]</td><td>0.000 [0.000–0.000]</td><td>0.100</td>" in html
    assert html.count("Not recorded") == 1
    assert "40 different rows are some film's heaviest" in html
    assert "the most frequent one leads for 2.5% of the films" in html


def test_confidence_is_drawn_and_tabled(html):
    (section,) = re.findall(r'<section id="confidence">.*?</section>', html, re.DOTALL)
    assert section.count("<svg") == 2
    assert section.count("<polyline") == 4
    assert re.search(r"<td>0.7 – 0.8</td><td>(\d+)</td><td>0.750</td><td>1.000 \(\1\)</td>", section)
    assert re.search(r"<td>0.6 – 0.7</td><td>\d+</td><td>0.650</td><td>0.000 \(0\)</td>", section)
    without = page()
    without.scores["confidence"] = None
    text = render_result_page(without)
    assert "confidence" not in text.split("<main>")[1].split('id="chosen"')[0]
    assert 'href="#confidence"' not in text


def test_what_was_left_out_is_one_line_of_its_study(html):
    assert html.count("Not sure:") == 1
    assert "Not sure: Possible &lt;nodule&gt;. (0.35); Edema (0.20)</p>" in html
    assert "Edema &lt;co occurs&gt; (3 train studies); second" in html
    assert html.count("<summary>Knowledge graph") == html.count("Implausible by the knowledge graph: Edema excl") == 1


TABLE = {"present_mentioned": 3, "present_not_mentioned": 2, "absent_mentioned": 1, "absent_not_mentioned": 9}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, None),
        ({"present_mentioned": 0, "absent_mentioned": 0}, "no report mentions the finding"),
        ({"present_mentioned": 0}, "no report of a study with the finding mentions it"),
        (
            {"absent_mentioned": 0, "present_not_mentioned": 0},
            "no report of a study without the finding mentions it; "
            "every report of a study with the finding mentions it",
        ),
        ({"absent_not_mentioned": 0}, "every report of a study without the finding mentions it"),
    ],
)
def test_an_odds_ratio_is_shown_only_where_all_four_cells_are_filled(changed, reason):
    assert why_no_odds_ratio(TABLE | changed) == reason


def test_nothing_is_claimed_of_what_was_never_mentioned():
    bare = page()
    known = bare.scores["mentions"]["Cardiomegaly"]
    bare.scores["mentions"]["Cardiomegaly"] = known | {
        "present_mentioned": 0, "absent_mentioned": 0, "odds_ratio": None, "interval": None
    }  # fmt: skip
    bare.scores["systems"]["model"]["clinical"]["per_label"]["Cardiomegaly"] |= {"generated": 0, "reference": 9}
    row = re.search(r"<tr><td>Cardiomegaly</td><td>\d.*?</tr>", render_result_page(bare), re.DOTALL)[
        0
    ]  # of the first table
    assert row.endswith('<td title="no report mentions the finding">–</td></tr>')
    assert re.search(r"<td>9</td><td>0</td><td>–</td><td>\d\.\d{3}</td>", row)  # no precision of nothing


def of_labels(**given):
    """A table per label; finding=(references, generated reports, F1), names with _ for spaces."""
    named = {name.replace("_", " "): values for name, values in given.items()}
    return {f: dict(zip(("reference", "generated", "f1"), named.get(f, (0, 0, 0.0)), strict=True)) for f in LABELS}


def made_up_scores():
    clinical = {
        "micro_13": {"f1": 0.5},
        "per_label": of_labels(
            Edema=(9, 9, 0.99), Fracture=(20, 10, 0.4), Pneumonia=(30, 31, 0.8), Pneumothorax=(3, 0, 0.0),
            Consolidation=(12, 0, 0.0), Atelectasis=(10, 5, 0.6), Lung_Opacity=(50, 1, 0.1),
        ),
    }  # fmt: skip
    details = {"side opposite": {"value": 0.25, "interval": [0.1, 0.5], "cases": 12}}
    wording = {"different": 0.4, "generic": 0.2}
    model = {"clinical": clinical, "wording": wording, "details": details}
    model["details_per_finding"] = {"Edema": {"sides apart": 1}, "Fracture": {"sides apart": 2}}
    constant = {"clinical": {"micro_13": {"f1": 0.25}}, "model_minus_this": {"value": 0.25, "interval": [0.2, 0.3]}}
    return {
        "studies": 50,
        "systems": {"model": model, "best constant": constant},
        "references": {"wording": {"different": 0.96, "generic": 0.04}},
        "confidence": {
            "findings": 80, "probability": 0.7, "right": {"value": 0.65},
            "ece": {"value": 0.06, "interval": [0.04, 0.1]},
        },
    }  # fmt: skip


def test_plain_summary_sentence_by_sentence():
    assert plain_summary(made_up_scores()) == [
        "The model's clinical F1 of 0.500 is above the 0.250 of the best constant report, which is the same "
        "for every film: the difference is +0.250 [+0.200, +0.300].",
        "The model does best with Pneumonia (F1 0.800; 30 references and 31 generated reports state it), "
        "Atelectasis (F1 0.600; 10 references and 5 generated reports state it) and "
        "Fracture (F1 0.400; 20 references and 10 generated reports state it).",  # edema is in too few references
        "Of the findings in the references the model never states Consolidation (in 12) and Pneumothorax (in 3).",
        "Where both texts give the side of a finding, it is the opposite one in 3 of 12 cases (25.0% [10.0, 50.0]).",
        "20 of the 50 reports are different (references: 48); the most frequent one is written 10 times (20.0%).",
        "Of the 80 findings that it states with a probability, 65.0% are in the reference and 70.0% were expected; the "
        "calibration error is 0.060 [0.040, 0.100].",
    ]


@pytest.mark.parametrize(
    ("low", "high", "place"),
    [(-0.01, 0.3, "not distinguishable from the"), (-0.3, -0.1, "below the"), (0.0, 0.1, "not distinguishable")],
)
def test_a_model_is_above_the_constant_report_only_where_its_interval_is(low, high, place):
    scores = made_up_scores()
    scores["systems"]["best constant"]["model_minus_this"]["interval"] = [low, high]
    assert f"The model's clinical F1 of 0.500 is {place}" in plain_summary(scores)[0]


def test_plain_summary_says_nothing_without_figures():
    scores = made_up_scores()
    scores["confidence"] = None
    del scores["systems"]["best constant"]
    scores["systems"]["model"]["details"]["side opposite"] = {"value": None, "interval": None, "cases": 0}
    scores["systems"]["model"]["clinical"]["per_label"] = of_labels(Edema=(9, 9, 0.99))
    assert [sentence[:28] for sentence in plain_summary(scores)] == ["20 of the 50 reports are dif"]


def test_plain_summary_is_on_the_page(html):
    (section,) = re.findall(r'<section id="summary">.*?</section>', html, re.DOTALL)
    assert "of the 40 reports are different" in section


def test_recalled_sentences_are_told_with_what_they_stand_on(html):
    """Studies 0 and 1 have them: of film 1 and film 2, and of film 1 alone."""
    assert html.count("<h3>Recalled sentences</h3>") == 3  # study 0 is the best, too
    first, second, _ = re.findall(r'<div class="recalled">.*?</ol>', html, re.DOTALL)
    assert re.findall(r'<li value="(\d)">', first) == ["1", "2", "3", "4"]
    assert 'class="tag">Pleural Effusion <b>0.83</b></span>' in first
    assert 'class="tag">Cardiomegaly <b>0.70</b></span><span class="tag">Pleural Effusion <b>0.90</b></span>' in first
    assert '<span class="tag">No Finding</span>' in first
    assert "side left <b>0.93</b></span>" in first
    assert "severity mild (probability not known)</span>" in first
    assert "Cardiomegaly severity mild <b>0.61</b>" in first  # of two findings each detail names its own
    assert "report row 12, filed under Pleural Effusion</span>" in first
    assert (
        '<b>41.0%</b> <span class="soft">row 37 · Pleural Effusion</span><p>Small &lt;left&gt; effusion.</p>' in first
    )
    assert "Both &lt;are&gt; there." in first
    assert 'with the regions of its recalled sentences. 1: Pleural Effusion."' in first
    assert 'with the regions of its recalled sentences. 2: Cardiomegaly, Pleural Effusion."' in first
    assert "region on film 2" in first
    assert first.count('alt="Train film of row 37, region of Pleural Effusion"') == 2
    assert first.count("voted for sentences 3 and 4:") == first.count("row 5 ·") == 1  # they have the same voters
    assert 'alt="Film of study CXR1 with the regions' in second
    assert second.count("<figure>") == 1


def test_boxes_are_drawn_where_they_are():
    svg = named_boxes_svg([("1, 2", (9, 8, 12, 13)), ("<3>", (0, 0, 14, 14)), ("", (1, 1, 2, 2))], 14)
    places = re.findall(r'<rect x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)"', svg)
    expected = [("9", "8", "3", "5"), ("0", "0", "14", "14"), ("1", "1", "1", "1")]
    assert places[::2] == places[1::2] == expected  # black below white
    assert re.findall(r">([^<>]+)</text>", svg) == ["1, 2", "&lt;3&gt;"]


@pytest.mark.parametrize("box", [(0, 0, 5, 5), (6, 6, 9, 9), (13, 0, 14, 2), (12, 12, 14, 14)])
def test_names_of_boxes_are_inside_the_film_and_beside_each_other(box):
    svg = named_boxes_svg([(str(number), box) for number in range(10, 16)], 14)
    pattern = r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)" fill="#fff"'
    names = [tuple(map(float, found)) for found in re.findall(pattern, svg)]
    assert len(names) == 6
    assert all(x >= 0 and y >= 0 and x + w <= 14 + 0.02 and y + h <= 14 for x, y, w, h in names)
    for i, (x, y, w, h) in enumerate(names):
        for u, v, *_ in names[:i]:
            assert abs(x - u) >= w - 0.02 or abs(y - v) >= h - 0.02


def test_sentences_of_one_region_share_its_box_and_what_has_no_film_is_told_without():
    """Two sentences of the same box; a third lies on a film that is not at hand; a fourth has no region."""
    views = {0: np.zeros((28, 28), np.uint8)}
    boxes = [(0, 1, 2, 3, 4), (0, 1, 2, 3, 4), (2, 1, 2, 3, 4), None]
    told = recalled_sentence_views(
        [RecalledSentence(str(i), ["Edema"], i, box=box) for i, box in enumerate(boxes)], views, 14
    )
    (film,) = told["films"]
    assert (film["number"], film["told"]) == (1, ["1: Edema", "2: Edema"])
    assert re.findall(r">([^<>]+)</text>", film["boxes"]) == ["1, 2"]
    assert [one["number"] for group in told["groups"] for one in group["sentences"]] == [1, 2, 3, 4]


def test_without_probe_masks_or_studies():
    bare = page()
    bare.scores.update(probe=None, localisation={})
    text = render_result_page(type(bare)(bare.scores, {}, [], []))
    assert 'id="probe"' not in text
    assert "no lesion masks" in text
    assert "No study is shown: <code>evaluate.num_page_studies</code> is 0." in text
    assert "No training wrote a curve" in text
    assert not re.search(r'(id="|href="#)(worst|best|contact)', text)


def test_studies_chosen_by_their_reports_say_so(html):
    for name, shown, others in (("worst", "CXR3", "CXR0"), ("best", "CXR0", "CXR3")):
        (section,) = re.findall(rf'<section id="{name}".*?</section>', html, re.DOTALL)
        assert "Chosen after the fact, by the reports themselves" in section
        assert f"<h3>{shown}</h3>" in section
        assert f"<h3>{others}</h3>" not in section
        assert '<p class="verdict">1 of 2 findings found, 1 missed</p>' in section
    assert "Chosen after" not in re.search(r'<section id="chosen".*?</section>', html, re.DOTALL)[0]


def test_retrieved_rows_are_shown_with_what_is_unusual_about_them(html):
    assert "More than for the average film on rows of: Edema 30.0% (×2.4), Fracture 20.0% (×1.1).</p>" in html
    assert "Of no finding more than for the average film.</p>" in html
    assert "<b>×2.5</b> · 31.0% · region · Pleural Effusion</span>" in html
    assert "<b>×1.0</b> · 12.0% · disease token · Cardiomegaly · retrieved by 91% of the films</span>" in html
    assert '<i style="width:100.0%">' in html  # the heaviest of each list
    assert '<i style="width:38.7%">' in html


def test_a_study_whose_memory_is_not_recorded_says_so():
    bare = page()
    bare.studies[0].memory.clear()
    text = render_result_page(Page(bare.scores, bare.curves, [], bare.studies[:1]))
    assert "What the memories gave is not recorded" not in text  # it has recalled sentences
    text = render_result_page(Page(bare.scores, bare.curves, [], [replace(bare.studies[0], sentences=())]))
    assert "What the memories gave is not recorded" in text


def test_forest_plots_leave_out_what_has_no_value():
    scores = page().scores
    scores["systems"]["normal"]["language"]["CIDEr"] = {"value": None, "interval": None, "reason": "undefined"}
    rows = forest_plot_rows(scores)
    assert list(rows["CIDEr"]) == ["model", "nearest neighbour"]
    assert "GREEN" not in rows  # unavailable in words
    difference = rows["difference in clinical F1: model minus this"]
    assert list(difference) == ["nearest neighbour", "normal"]
    known = scores["systems"]["normal"]["model_minus_this"]
    assert difference["normal"] == (known["value"], *known["interval"])


def test_forest_plot_places_intervals_by_value():
    svg = forest_plot_svg({"a <b>": (0.5, 0.25, 1.0), "c": (0.0, 0.0, 0.0)}, "F1", 0.5, "a <b>")
    assert "a &lt;b&gt; 0.500, interval 0.250 to 1.000; c 0.000" in svg
    numbers = {float(t): float(x) for x, t in re.findall(r'<text x="([\d.]+)" [^>]*middle">([\d.]+)<', svg)}
    step = numbers[1.0] - numbers[0.0]
    ((low, high, _),) = re.findall(r'<line class="first" x1="([\d.]+)" x2="([\d.]+)" y1="(\d+)"', svg)
    assert float(low) == pytest.approx(numbers[0.0] + 0.25 * step, abs=0.11)
    assert float(high) == pytest.approx(numbers[1.0], abs=0.11)
    at = [float(x) for x in re.findall(r'<circle class="\w+" cx="([\d.]+)"', svg)]
    assert at == pytest.approx([numbers[0.0] + 0.5 * step, numbers[0.0]], abs=0.11)
    assert f'class="reference" x1="{at[0]}"' in svg


def test_marked_spans():
    spans = [(0, 5, "hit", "Heart"), (3, 8, "miss", "Overlap"), (10, 13, "unsure", 'A "quote"')]
    html = mark_text_spans("heart <b> and\nmore", spans)
    assert html == (
        '<mark class="hit" title="Heart: in both reports">heart</mark> &lt;b&gt; '
        '<mark class="unsure" title="A &quot;quote&quot;: uncertain">and</mark><br>more'
    )


def test_heat_is_clear_where_nothing_is_active():
    alpha = np.asarray(picture(heat_map_data_url(np.array([[0.0, 1.0], [2.0, 4.0]]))))[..., 3]
    assert alpha[0, 0] == 0
    assert alpha[0, 1] < alpha[1, 0] < alpha[1, 1]
    assert not np.asarray(picture(heat_map_data_url(np.zeros((3, 3)))))[..., 3].any()


def test_outline_is_the_border_alone():
    mask = np.zeros((20, 20), bool)
    mask[5:15, 5:15] = True
    alpha = np.asarray(picture(outline_data_url(mask)))[..., 3] > 0
    assert alpha.shape == (40, 40)
    assert alpha[10, 10:30].all()
    assert not alpha[14:26, 14:26].any()
    assert not alpha[:10].any()


def test_crop_stays_inside():
    film = np.arange(196 * 196, dtype=np.uint32).reshape(196, 196)
    assert crop_film_to_box(film, (0, 0, 1, 1), grid=14).shape == (28, 28)
    assert crop_film_to_box(film, (5, 6, 6, 7), grid=14)[0, 0] == film[70, 56]
    assert crop_film_to_box(film, (13, 13, 14, 14), grid=14).shape == (28, 28)


def test_axis_numbers_tell_near_values_apart():
    for low, high in ((133.9899, 133.9903), (0.0, 1.25), (1e-5, 9e-4), (0, 5000)):
        svg = line_chart_svg({"x": [(1, low), (2, high)]}, "x")
        numbers = re.findall(r'text-anchor="end">([^<]+)<', svg)
        assert len(set(numbers)) == len(numbers) >= 2
        steps = np.diff([float(n) for n in numbers])
        assert np.allclose(steps, steps[0], rtol=1e-6)
        assert float(numbers[0]) <= low
        assert float(numbers[-1]) >= high


def test_training_and_validation_share_a_chart():
    (chart,) = training_charts([{"epoch": 1, "train_loss": 2.0, "val_loss": 3.0}, {"epoch": 2, "train_loss": 1.0}])
    assert chart.count("<polyline") == 2
    assert "training" in chart
    assert "validation" in chart


def test_chart_places_points_by_value():
    svg = line_chart_svg({"loss": [(1, 0.0), (2, 1.0), (3, float("nan"))]}, "a < b")
    assert "a &lt; b" in svg
    (points,) = re.findall(r'points="([^"]+)"', svg)
    (x1, y1), (x2, y2) = (map(float, p.split(",")) for p in points.split())
    assert x1 < x2
    assert y1 > y2
    assert line_chart_svg({"flat": [(1, 2.0), (2, 2.0)]}, "flat")
    assert line_chart_svg({"none": []}, "none") == ""
