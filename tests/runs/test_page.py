"""The page of a run: what it shows, what it leaves out, and that nothing in a name breaks it."""

import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from html import escape
from html.parser import HTMLParser

import numpy as np
import pytest
from folders import unit_of, without_accuracy, write_run

pytest.importorskip("matplotlib")
from fedexp.runs import page, sections, svg
from fedexp.runs.charts import charts
from fedexp.runs.page import Live, refresh, render, report
from fedexp.runs.reading import RunData
from fedexp.runs.series import Series

VOID = {"meta", "link", "input", "br"}


class Page(HTMLParser):
    """Elements, headings and text of a page; asserts that what opens is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.headings, self.text, self.ids = [], [], [], "", []
        self.feed(text)
        self.close()
        assert self.open == []
        assert len(set(self.ids)) == len(self.ids)

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.ids += [value for key, value in attributes if key == "id"]
        if re.fullmatch("h[1-6]", tag):
            self.headings.append([int(tag[1]), ""])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
        if self.open and re.fullmatch("h[1-6]", self.open[-1]):
            self.headings[-1][1] += data

    def titles(self):
        return [title for _, title in self.headings]


def client(name, accuracy, round_=2):
    return {"round": round_, "client": name, "examples": 7, "loss": 1.0, "accuracy": accuracy}


CLIENTS = [client("St. Mary", 0.5, 1), client("St. Mary", 0.625), client("Charité", 0.875)]
FULL = replace(
    unit_of(
        bytes_down=1_500_000,
        bytes_up=500_000,
        train_seconds=0.25,
        move_seconds=0.125,
        server_seconds=0.0625,
        learning_rate=0.1,
        learning_rate_std=[0.01, 0.02],
        failures=[{"timed out": [11, 12]}, {"timed out": [12], "no reply": [13]}],
    ),
    clients=CLIENTS,
)
PARTITION = {"clients": ["St. Mary", "Charité"], "classes": ["ill", "well"]}
PARTITION |= {"counts": [[3, 0], [1, 4]], "sizes": [3, 5]}
ALL = RunData([FULL], {"alpha": 0.3}, "fedexp simulate", {"python": "3.11"}, PARTITION)


def test_a_full_run_has_every_section_in_the_order_of_its_headings():
    found = Page(render(ALL))
    assert found.titles()[1:] == [
        *("Results", "Curves", "Clients", "Partition", "Time and traffic", "Failures"),
        "Configuration",
    ]
    levels = [level for level, _ in found.headings]
    assert levels == [1] + [2] * (len(levels) - 1)


def test_sections_without_data_are_absent():
    assert Page(render(RunData([unit_of(accuracies=[])]))).titles()[1:] == [
        *("Results", "Configuration")
    ]
    assert Page(render(RunData([unit_of()]))).titles()[1:] == [
        *("Results", "Curves", "Time and traffic", "Configuration")
    ]
    assert Page(render(RunData([]))).titles()[1:] == ["Configuration"]


def test_targets_of_ones_own_are_in_the_table_and_in_the_curves():
    text = render(ALL, targets=[0.5, 0.9])
    for word in ("Rounds to 50 %", "Rounds to 90 %", "target 0.5<", "target 0.9<"):
        assert word in text
    assert "target 0.85<" not in text


def test_the_curves_that_there_are():
    bare = [unit_of(accuracies=[0.5, 0.75])]
    titles = [title for title, _ in charts([FULL], {"fedavg": ""})]
    wanted = [
        "Test accuracy, average of the iterates",
        "Test accuracy, last iterate",
        "Test accuracy, average of the iterates, by traffic",
        "Server step size",
        "Clients' learning rate, mean and spread over clients",
    ]
    assert titles == wanted
    found = charts(bare, {"fedavg": ""})
    assert [title for title, _ in found] == [wanted[0], wanted[1], wanted[3]]
    assert "At the end: fedavg 0.75." in found[0][1]


def test_a_regression_shows_its_loss():
    unit = replace(FULL, rows=without_accuracy(FULL), clients=[client("a", None)])
    text = Page(render(RunData([unit]))).text
    assert "Test loss, last iterate" in text
    assert "Best loss" in text
    assert "accuracy" not in text
    assert "target" not in text.replace("target-accuracy", "")


def test_clients_by_name_from_the_last_round_each_took_part_in():
    found = sections.clients([FULL], {"fedavg": ""})
    assert found["lines"] == [["St. Mary", 7, "62.5"], ["Charité", 7, "87.5"]]
    assert found["spread_lines"] == [["fedavg", "62.5", "62.5", "75.0", "75.0", "87.5"]]
    assert found["names"]


def test_of_many_clients_the_spread_alone():
    values = np.linspace(0, 1, 41)
    unit = replace(FULL, clients=[client(str(i), x) for i, x in enumerate(values)])
    found = sections.clients([unit], {"fedavg": ""})
    assert not found["names"]
    ((_, worst, tenth, median, mean, best),) = found["spread_lines"]
    assert (worst, best) == ("0.0", "100.0")
    assert tenth == f"{100 * values[:5].mean():.1f}"  # a tenth of 41, rounded up
    assert (median, mean) == (f"{100 * np.median(values):.1f}", f"{100 * values.mean():.1f}")


def test_of_losses_the_worst_is_the_highest():
    rows = [{"round": 1, "client": name, "loss": x} for name, x in (("a", 0.5), ("b", 2.5))]
    found = sections.clients([replace(FULL, clients=rows)], {"fedavg": ""})
    assert found["spread_lines"][0][1::4] == ["2.50", "0.500"]


def test_failures_are_counted_by_kind():
    one, other = sections.failures([FULL])
    assert one == {
        **{"strategy": "fedavg", "reason": "timed out", "replies": 3, "nodes": 2},
        **{"rounds": "1 to 2", "kind": "other"},
    }
    assert (other["reason"], other["replies"], other["rounds"]) == ("no reply", 1, "2")


def test_replies_that_were_missing_at_the_end_of_a_round_are_listed():
    rows = ({"round": 2, "num-late": 1}, {"round": 3}, {"round": 4, "num-late": 2})
    (late,) = sections.failures([replace(FULL, rows=rows)])
    assert (late["replies"], late["rounds"]) == (3, "2 to 4")
    assert "missing when the round ended" in late["reason"]


def test_time_is_split_and_traffic_summed():
    text = Page(render(ALL)).text
    for word in ("0.25", "0.12", "0.06", "0.50", "3 MB", "1 MB"):
        assert word in text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2e9, "2 GB"), (None, "–")]
)
def test_bytes_as_people_say_them(count, text):
    assert sections.size(count) == text


def test_the_partition_has_a_cell_for_every_class_of_a_client_and_a_bar_for_its_size():
    drawn = sections.partition_markup(PARTITION)
    assert drawn.count("<rect") == 3 + 2
    assert "St. Mary" in drawn
    assert "Examples of 2 clients" in drawn
    assert "<text" in sections.partition_markup(
        PARTITION | {"clients": []}
    )  # numbers, where no names
    without = {"clients": ["a"], "classes": [], "counts": [], "sizes": [3]}
    assert sections.partition_markup(without).count("<rect") == 1
    many = {"clients": list(range(1000)), "classes": [], "counts": [], "sizes": [1] * 1000}
    assert sections.partition_markup(many).count("<rect") == 100
    assert "the first 100 of 1,000" in render(replace(ALL, partition=many))


NASTY = "</style><script>alert('x')</script><b>&\"'"


def test_no_text_of_anyone_becomes_markup():
    unit = replace(
        FULL,
        strategy=NASTY,
        settings={"x": NASTY},
        about={"model": NASTY, "average": NASTY},
        clients=[client(NASTY, 0.5)],
        summary={"problem": NASTY, "ended": NASTY},
        rows=[{**row, "failures": {NASTY: [1]}} for row in FULL.rows],
    )
    partition = PARTITION | {"clients": [NASTY, "b"], "classes": [NASTY, "c"]}
    text = render(RunData([unit], {"dataset": NASTY}, NASTY, {NASTY: NASTY}, partition))
    found = Page(text)
    assert not {"script", "b"} & {tag for tag, _ in found.tags if tag == "script"}
    assert "<script" not in text
    assert found.text.count(NASTY) >= 8


def test_nothing_is_fetched_and_every_picture_is_in_words():
    text = render(ALL)
    found = Page(text)
    links = [v for _, a in found.tags for k, v in a.items() if k in ("src", "href")]
    assert links == ["data:,"]
    assert "url(" not in text
    assert "@import" not in text
    pictures = [a for tag, a in found.tags if tag == "svg"]
    assert all(a.get("aria-label") or a.get("aria-hidden") for a in pictures)
    assert sum("aria-label" in a for a in pictures) == 7
    assert ("html", {"lang": "en"}) in found.tags


def test_a_page_of_a_large_study_is_small():
    rng, units = np.random.default_rng(0), []
    for i in range(14):
        for seed in range(5):
            noise = [float(x) for x in rng.random(500)]
            more = {"bytes_up": 10**6, "bytes_down": 10**6, "learning_rate_std": noise}
            units.append(unit_of(f"strategy-{i}", noise, seed, learning_rate=noise, **more))
    assert len(render(RunData(units))) < 1e6


def test_it_reloads_itself_only_while_the_run_goes_on(tmp_path):
    folder = write_run(tmp_path / "run", [unit_of()], summaries=False)
    refresh(folder)
    text = (folder / "report.html").read_text()
    assert 'http-equiv="refresh"' in text
    assert "running" in Page(text).text
    assert report([folder]) == folder / "report.html"
    text = (folder / "report.html").read_text()
    assert 'http-equiv="refresh"' not in text
    assert "interrupted" in Page(text).text


@pytest.mark.parametrize(
    ("ended", "word"),
    [(["finished"], "finished"), (["finished", "failed"], "failed"), ([None], "interrupted")],
)
def test_the_status_is_that_of_the_worst_unit(ended, word):
    units = [replace(FULL, seed=i, summary={"ended": x} if x else {}) for i, x in enumerate(ended)]
    assert f"{word}{sum(x is not None for x in ended)} of" in Page(render(RunData(units))).text


def test_a_live_page_is_written_at_most_a_twentieth_of_the_time(tmp_path, monkeypatch):
    now, written = [0.0], []

    def slow(folder):
        written.append(now[0])
        now[0] += 0.5

    monkeypatch.setattr(page, "refresh", slow)
    monkeypatch.setattr(page.time, "monotonic", lambda: now[0])
    live = Live(tmp_path)
    while now[0] < 30:
        live()
        now[0] += 1
    assert len(written) == 3
    assert np.diff(written).min() >= 20 * 0.5


def test_a_page_that_cannot_be_written_is_heard_of_once(tmp_path):
    said = []
    live = Live(tmp_path, said.append)  # holds no run
    live()
    live()
    assert len(said) == 1
    assert said[0].startswith("report.html: ValueError: ")


def test_a_report_of_several_runs_needs_a_place(tmp_path):
    folders = [write_run(tmp_path / x, [unit_of(x)]) for x in "ab"]
    with pytest.raises(ValueError, match="Name a folder with --out"):
        report(folders)
    with pytest.raises(ValueError, match="folders=0"):
        report([], tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"is a file\. Name a folder with --out"):
        report(folders, tmp_path / "file")
    report(folders, tmp_path / "both" / "deep")
    written = {path.name for path in (tmp_path / "both" / "deep").iterdir()}
    assert written == {"results.csv", "curves.png", "curves.svg", "report.html"}


def test_what_a_sweep_varies_is_neither_in_the_title_nor_in_the_configuration():
    units = [unit_of(settings={"alpha": alpha}) for alpha in (0.1, 1.0)]
    config = {"dataset": "digits", "partitioner": "dirichlet", "alpha": 0.777}
    found = Page(render(RunData(units, config)))
    assert found.titles()[0] == "digits, dirichlet, seed 0"
    assert "0.777" not in found.text
    assert "fedavg, alpha=1.0" in found.text


def test_a_run_that_tuned_shows_what_chose(tmp_path):
    tuning = [unit_of(seed=9, settings={"learning-rate": x}) for x in (0.1, 0.3)]
    units = [unit_of(settings={"learning-rate": 0.3})]
    folder = write_run(tmp_path / "run", units, tuning=tuning)
    text = Page(report([folder]).read_text())
    assert "Tuning" in text.titles()
    assert "fedavg, learning-rate=0.1" in text.text


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (1, 10, [2, 4, 6, 8, 10]),
        (0.31, 0.33, [0.31, 0.315, 0.32, 0.325, 0.33]),
        (-5, 5, [-4, -2, 0, 2, 4]),
    ],
)
def test_ticks_are_round_numbers(low, high, wanted):
    assert svg.ticks(low, high) == pytest.approx(wanted)


def test_ticks_of_a_logarithmic_axis():
    assert svg.log_ticks(0.01, 10) == pytest.approx([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10])
    assert svg.log_ticks(1e-6, 1) == pytest.approx([10.0**p for p in range(-6, 1)])
    assert svg.log_ticks(0.5, 2) == pytest.approx([0.5, 1, 2])


def test_a_line_goes_through_its_points_and_a_long_one_keeps_its_ends():
    x = np.arange(1.0, 1001.0)
    drawn = svg.chart({"a": Series(x, x, 0 * x)}, {"a": "c0"}, label="", x="Round", y="y")
    (path,) = re.findall(r'<path class="line" d="M([^"]*)"', drawn)
    points = np.array(path.split(), float).reshape(-1, 2)
    assert len(points) <= 150
    np.testing.assert_allclose(points[[0, -1]], [[62, 258], [464, 10]])
    np.testing.assert_allclose(
        np.polyfit(*points.T, 1), [-248 / 402, 258 + 62 * 248 / 402], rtol=1e-2
    )


CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on PATH")


def browse(path, tmp_path, *flags):
    """What Chromium makes of a page, and what it says of it."""
    command = [CHROMIUM, "--headless", "--disable-gpu", "--enable-logging=stderr"]
    command += [f"--user-data-dir={tmp_path / 'chromium'}", *flags]
    command += ["--no-sandbox"] if os.geteuid() == 0 else []
    done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=120)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@needs_chromium
@pytest.mark.slow
def test_a_browser_shows_the_numbers_of_every_summary_and_complains_of_nothing(tmp_path):
    units = [
        replace(unit_of(name, [0.5, best]), summary={"best-accuracy": best, "rounds-to-target": 2})
        for name, best in (("fedavg", 0.8765), ("fedexp", 0.91234))
    ]
    folder = write_run(tmp_path / "run", units)
    dom, complaints = browse(report([folder]), tmp_path, "--dump-dom")
    assert complaints == []
    for path in folder.rglob("summary.json"):
        best = json.loads(path.read_text())["best-accuracy"]
        assert f"{100 * best:.1f}" in dom
        assert f"{best:.5g}" in dom
    broken = folder / "broken.html"
    broken.write_text(dom.replace("<head>", "<head><script>nothing()</script>"))
    assert browse(broken, tmp_path, "--dump-dom")[1]  # it would have been seen


@needs_chromium
@pytest.mark.slow
def test_on_a_phone_tables_scroll_and_the_page_does_not(tmp_path):
    units = [
        replace(
            FULL,
            strategy=f"a_rather_long_name_of_a_strategy{'+x' * i}",
            summary={"problem": "x" * 400},
        )
        for i in range(5)
    ]
    inside = render(replace(ALL, units=units, command="fedexp simulate " + "x" * 300))
    measure = (
        "const d = f.contentDocument, width = (e) => e.scrollWidth;"
        "const root = d.documentElement;"
        "document.body.append(`page ${width(root)} of ${root.clientWidth},`"
        "+ ` table ${Math.max(...[...d.querySelectorAll('.scroll')].map(width))}`)"
    )
    outside = tmp_path / "phone.html"
    outside.write_text(
        f'<body><iframe id=f style="width:360px;height:800px;border:0" srcdoc="{escape(inside)}" '
        f'onload="{escape(measure)}"></iframe>',
        encoding="utf-8",
    )
    dom, complaints = browse(outside, tmp_path, "--dump-dom", "--hide-scrollbars")
    assert complaints == []
    ((page_width, width, table),) = re.findall(
        r"page (\d+) of (\d+), table (\d+)$", re.sub("<[^>]*>", "", dom).strip()
    )
    assert int(page_width) <= int(width) == 360
    assert int(table) > 360


@needs_chromium
@pytest.mark.slow
def test_it_is_dark_where_the_reader_wants_it_dark(tmp_path):
    image = pytest.importorskip("PIL.Image")
    path = tmp_path / "page.html"
    path.write_text(render(ALL), encoding="utf-8")
    for scheme, is_dark in ((1, False), (0, True)):
        picture = tmp_path / f"{scheme}.png"
        flags = f"--screenshot={picture}", f"--blink-settings=preferredColorScheme={scheme}"
        browse(path, tmp_path, "--window-size=1280,900", *flags)
        with image.open(picture) as opened:
            mean = np.asarray(opened.convert("L")).mean()
        assert (mean < 80) == is_dark
        assert (mean > 180) != is_dark


def test_learned_step_sizes_have_a_curve_and_a_column():
    plain = unit_of(accuracies=[0.5, 0.75])
    rows = [{**row, "learned-step-size": 0.0456} for row in plain.rows]
    unit = replace(plain, rows=rows)
    title = "Learned step size, mean over clients on the log scale"
    assert title in dict(charts([unit], {"fedavg": ""}))
    assert "Learned step" in render(RunData([unit]))
    assert "0.0456" in render(RunData([unit]))
    assert "Learned step" not in render(RunData([plain]))
