"""The page in a real browser: no error, no request, every plot, all of it usable by keyboard."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polytask.merge import MergeRecord

from .conftest import relation, searched

pytestmark = pytest.mark.browser

Make = Callable[..., Path]
Open = Callable[..., Any]

CROWD = ("equal", *(f"m{k:02d}" for k in range(1, 30)))

HOSTILE = "</script><b id=evil>a name that is much longer than any place on the page has room for"


@pytest.fixture(scope="session")
def pages(
    tmp_path_factory: pytest.TempPathFactory,
    make_comparison: Make,
    make_merges: Callable[..., MergeRecord],
) -> dict[str, Path]:
    """One written report per kind of page."""
    from polytask.report import write_report

    root = tmp_path_factory.mktemp("pages")
    small = make_comparison(root / "small")
    many = make_comparison(
        root / "many",
        tasks=[HOSTILE, *(f"school {k:03d}" for k in range(1, 139))],
        methods=("equal", "pcgrad"),
        seeds=(0,),
        points=12,
        probes=3,
    )
    crowd = make_comparison(
        root / "crowd", tasks=tuple(f"assay {k}" for k in range(12)), methods=CROWD, probes=2
    )
    raw = json.loads((crowd / "result.json").read_text())
    raw["failed"] = {HOSTILE: "Run x: the loss of task 'ink' is 0; gls needs > 0."}
    raw["tuning"]["stopped"] = ["Run y: At step 3 the loss of task 'ink' is nan."]
    for name, method in raw["methods"].items():
        if name != "single":
            method |= {"engine": "exact: one backward per task present", "notes": {}}
    raw["methods"]["m07"]["notes"] = {"NashMTL: the last answer was kept": 1234}
    raw["methods"]["m03"] |= {"delta_m": -400.0, "delta_m_interval": [-450.0, -350.0]}
    (crowd / "result.json").write_text(json.dumps(raw))
    bare = make_comparison(root / "bare", tasks=("only",), methods=("equal",), seeds=(0,), points=1)
    raw = json.loads((bare / "result.json").read_text())
    for method in raw["methods"].values():
        method |= {"delta_m": None, "worst": None, "cost": dict.fromkeys(method["cost"])}
        for outcome in method["tasks"].values():
            outcome |= {"values": [None], "gains": [None], "gain": None}
    del raw["level"]
    raw |= {"about": {}, "notes": [], "tuning": {}, "created": "", "command": ""}
    (bare / "result.json").write_text(json.dumps(raw))
    single = json.loads((small / "result.json").read_text())
    single["methods"] = {"single": single["methods"]["single"]}
    (root / "alone").mkdir()
    (root / "alone" / "runs").symlink_to(small / "runs")
    single["methods"]["single"]["runs"] = {}
    (root / "alone" / "result.json").write_text(json.dumps(single))
    crowded = [HOSTILE, *(f"task {k}" for k in range(19))]
    merged = {
        "merges": make_merges(),
        "merges-many": make_merges(crowded, 200, names=CROWD),
        "merges-inputs": make_merges(("french", "medicine"), 3, scored=False),
    }
    for name, record in merged.items():
        record.save(root / name)
    relation(root / "relate", ("one", "two", HOSTILE, "four"))
    relation(root / "relate-many", [HOSTILE, *(f"school {k:03d}" for k in range(1, 60))])
    searched(root / "search", ("one", "two", HOSTILE, "four"))
    searched(root / "search-many", [HOSTILE, *(f"school {k:03d}" for k in range(1, 60))])
    folders = {
        "search": [root / "search"],
        "search-many": [root / "search-many"],
        **{name: [root / name] for name in merged},
        "relate": [root / "relate"],
        "relate-many": [root / "relate-many"],
        "merges-and-runs": [root / "merges", small],
        "small": [small],
        "many": [many],
        "crowd": [crowd],
        "bare": [bare],
        "alone": [root / "alone"],
        "fit": [small / "runs" / "pcgrad-0"],
        "fit-single": [small / "runs" / "single-0-0"],
        "crowds": [crowd, small],
        "several": [small, many, small / "runs" / "dwa-1"],
    }
    return {name: write_report(runs, root / f"{name}.html") for name, runs in folders.items()}


@pytest.fixture
def visit(chromium: Any, pages: dict[str, Path]) -> Open:
    """Return a function that opens a page, at a width and in a colour scheme."""

    def go(name: str, *, width: int = 1280, scheme: str = "light") -> Any:
        chromium.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        chromium.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {
                "features": [
                    {"name": "prefers-color-scheme", "value": scheme},
                    # Nothing glides, so nothing moves under the pointer of a test.
                    {"name": "prefers-reduced-motion", "value": "reduce"},
                ]
            },
        )
        chromium.get_log("browser")
        chromium.get_log("performance")
        chromium.get(pages[name].as_uri())
        settle(chromium)
        return chromium

    return go


def settle(browser: Any) -> None:
    """Wait for two frames: plots are drawn when their width is known."""
    browser.execute_async_script(
        "const done = arguments[0];requestAnimationFrame(() => requestAnimationFrame(() => done()))"
    )


def count(browser: Any, selector: str) -> int:
    return int(
        browser.execute_script("return document.querySelectorAll(arguments[0]).length", selector)
    )


def texts(browser: Any, selector: str) -> list[str]:
    return list(
        browser.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)",
            selector,
        )
    )


def press(browser: Any, selector: str, *keys: str) -> None:
    from selenium.webdriver.common.by import By

    browser.find_element(By.CSS_SELECTOR, selector).send_keys(*keys)
    settle(browser)


def click(browser: Any, selector: str) -> None:
    """Click with the pointer: fails where something lies over the element."""
    from selenium.webdriver.common.by import By

    element = browser.find_element(By.CSS_SELECTOR, selector)
    browser.execute_script(
        "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element
    )
    element.click()
    settle(browser)


KINDS = (
    "small", "many", "crowd", "bare", "alone", "fit", "fit-single", "several", "crowds", "merges",
    "merges-many", "merges-inputs", "merges-and-runs", "relate", "relate-many",
    "search", "search-many",
)  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_loads_without_console_message_or_request(
    visit: Open, pages: dict[str, Path], name: str
) -> None:
    browser = visit(name)
    assert browser.get_log("browser") == []
    assert count(browser, "main h1") == 1
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    assert pages[name].as_uri() in asked  # the log works
    assert {url for url in asked if not url.startswith("data:")} == {pages[name].as_uri()}


def test_a_request_or_a_foreign_script_would_be_blocked(visit: Open) -> None:
    browser = visit("small")
    browser.execute_script(
        "const image = new Image(); image.src = 'http://127.0.0.1:9/x.png';"
        "document.body.append(image);"
        "const script = document.createElement('script'); script.textContent = 'window.ran = 1';"
        "document.body.append(script);"
    )
    assert browser.execute_script("return window.ran") is None
    blocked = " ".join(entry["message"] for entry in browser.get_log("browser"))
    assert "img-src" in blocked
    assert "script-src" in blocked


def test_every_plot_is_there_with_its_marks(visit: Open) -> None:
    browser = visit("small")
    # 4 tasks x 5 methods, each with an interval; 4 tasks x (5 methods + single-task models).
    assert count(browser, "#r0-gain .point .dot") == 20
    assert count(browser, "#r0-gain .point .whisker") == 20
    assert count(browser, "#r0-gain .axis") == 1
    assert "95 % interval over seeds" in texts(browser, "#r0-gain figcaption")[0]
    assert count(browser, "#r0-curves figure") == 4
    assert count(browser, "#r0-curves path.line:not(.chip *)") == 24
    assert count(browser, "#r0-weights figure path.line") == 4
    # two levels: 4 tasks and the shared part over 6 experts, of which a task sees 3
    assert count(browser, "#r0-experts figure") == 2
    assert count(browser, "#r0-experts rect.gain-cell") == (4 * 3 + 6) + 4 * 3
    assert texts(browser, "#r0-experts li") == ["'left' ignores its own experts. (3 of 3 seeds)"]
    assert count(browser, "#r0-experts-0 tbody tr") == 5
    assert count(browser, "#r0-cosines path.cells") >= 2
    assert count(browser, "#r0-cosines figure path.line") == 5 + 4
    assert count(browser, "#r0-cost figure") == 3
    assert count(browser, "#r0-cost rect.bar-fill") == 18
    assert count(browser, "#r0-why .whys li") >= 1
    assert count(browser, "#r0-fair #r0-picked-table tbody tr") == 4 + 5
    assert "1,257 in 2 streams" in texts(browser, "#r0-suite dd")
    assert "CC BY 4.0" in " ".join(texts(browser, "#r0-suite dd"))
    sizes = browser.execute_script(
        "return [...document.querySelectorAll('figure svg.target')]"
        ".map((e) => e.getBoundingClientRect().height)"
    )
    assert len(sizes) == 3 + 1 + 4 + 1 + 2 + 3 + 3
    assert min(sizes) > 60


def test_the_words_and_the_tables(visit: Open) -> None:
    browser = visit("small")
    assert "does best: a mean gain of" in texts(browser, ".verdict")[0]
    assert len(texts(browser, "#r0-methods-table tbody tr")) == 6
    rows = texts(browser, "#r0-tasks-table tbody th")
    assert [row.split("multiclass")[0] for row in rows] == ["left", "right", "sum", "ink"]
    cell = texts(browser, "#r0-tasks-table tbody td:nth-child(3)")[0]
    assert "±" in cell
    assert any(sign in cell for sign in "▲▼◇")  # never by colour alone
    assert "[" in cell


def first_column(browser: Any) -> list[str]:
    return [name.strip() for name in texts(browser, "#r0-methods-table tbody th")]


def test_tables_sort_by_click_and_by_key(visit: Open) -> None:
    from selenium.webdriver.common.keys import Keys

    browser = visit("small")
    heads = "#r0-methods-table thead th"
    gains = f"{heads}:nth-child(2)"
    before = first_column(browser)
    click(browser, f"{gains} button")
    assert texts(browser, f'{heads}[aria-sort="descending"] .key') == ["Mean gain"]
    down = first_column(browser)
    assert down != before
    assert [name for name in down if name != "single-task"] == before[1:]
    assert 0 < down.index("single-task") < 5  # the reference stands where the gain is 0
    click(browser, f"{gains} button")
    assert count(browser, f'{gains}[aria-sort="ascending"]') == 1
    assert first_column(browser) == down[::-1]
    press(browser, f"{heads}:nth-child(1) button", Keys.ENTER)
    assert count(browser, f'{heads}[aria-sort]:not([aria-sort="none"])') == 1
    assert first_column(browser)[0] == "aligned-mtl"
    press(browser, f"{heads}:nth-child(5) button", Keys.SPACE)
    assert first_column(browser)[0] == "single-task"  # the most seconds
    assert browser.execute_script("return document.activeElement.tagName") == "BUTTON"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_theme_follows_the_system_and_the_button(visit: Open, scheme: str) -> None:
    browser = visit("small", scheme=scheme)

    def shades() -> tuple[float, float]:
        """Return the lightness of the page and of a plot's text, 0 to 255."""
        found = browser.execute_script(
            "const c = (e, k) => getComputedStyle(document.querySelector(e))[k].match(/[\\d.]+/g)"
            ".slice(0, 3).map(Number).reduce((a, b) => a + b) / 3;"
            "return [c('body', 'backgroundColor'), c('figure svg text.name', 'fill')]"
        )
        return found[0], found[1]

    page, text = shades()
    assert (page < 60 and text > 180) if scheme == "dark" else (page > 200 and text < 90)
    click(browser, "#theme")
    page, text = shades()
    assert (page > 200 and text < 90) if scheme == "dark" else (page < 60 and text > 180)
    click(browser, "#theme")
    assert (shades()[0] < 60) == (scheme == "dark")


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("width", [360, 800])
def test_nothing_makes_the_page_wider_than_the_screen(visit: Open, name: str, width: int) -> None:
    browser = visit(name, width=width)
    wide = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.body.scrollWidth]"
    )
    assert max(wide) <= width
    # What is cut off can be reached: every table scrolls inside its own container.
    assert count(browser, "table") == count(browser, ".scroll > table")


def test_the_slider_changes_the_heat_map(visit: Open) -> None:
    from selenium.webdriver.common.keys import Keys

    browser = visit("small")
    drawn = "return document.querySelector('#r0-cosines figure svg.target').textContent"
    last = browser.execute_script(drawn)
    assert texts(browser, "#r0-cosines output") == ["step 561"]
    press(browser, "#r0-probe", Keys.HOME)
    assert texts(browser, "#r0-cosines output") == ["step 1"]
    first = browser.execute_script(drawn)
    assert first != last
    press(browser, "#r0-probe", Keys.END)
    assert browser.execute_script(drawn) == last
    click(browser, "#r0-cosines .chips.one button:nth-child(2)")
    assert browser.execute_script(drawn) != last


def test_heat_map_shows_the_cosines_of_the_record(visit: Open, pages: dict[str, Path]) -> None:
    browser = visit("fit")
    record = json.loads((pages["fit"].parent / "small/runs/pcgrad-0/record.json").read_text())
    click(browser, "#r0-cosines figure details summary")
    shown = texts(browser, ".pair > div:first-child tbody tr:nth-child(2) td")
    expected = record["probes"][-1]["cosines"][1]
    assert shown[1] == ""  # the task itself
    for text, value in zip(shown, expected, strict=True):
        if text:
            assert float(text.replace("−", "-")) == pytest.approx(value, abs=0.0051)


def test_plots_are_read_by_keyboard_and_pointer(visit: Open) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    browser = visit("small")
    plot = "#r0-gain svg.target"
    assert count(browser, "#tip:not([hidden])") == 0
    press(browser, plot, Keys.ARROW_RIGHT)
    first = texts(browser, "#tip:not([hidden])")
    assert first[0].startswith("left")
    press(browser, plot, Keys.ARROW_RIGHT)
    assert texts(browser, "#tip:not([hidden])") != first
    press(browser, plot, Keys.ARROW_DOWN)
    assert texts(browser, "#tip")[0].startswith("right")
    press(browser, plot, Keys.ESCAPE)
    assert count(browser, "#tip:not([hidden])") == 0
    dot = browser.find_element(By.CSS_SELECTOR, f"{plot} .point:last-of-type .dot")
    browser.execute_script(
        "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", dot
    )
    ActionChains(browser).move_to_element(dot).perform()
    assert texts(browser, "#tip:not([hidden])")[0].startswith("ink")


def test_every_plot_has_its_numbers_as_a_table(visit: Open) -> None:
    browser = visit("small")
    plots = count(browser, "figure svg.target")
    browser.execute_script(
        "document.querySelectorAll('figure details').forEach((d) => { d.open = true; })"
    )
    settle(browser)
    assert count(browser, "figure details table tbody tr:first-child") == plots
    assert browser.get_log("browser") == []


def test_methods_can_be_hidden_and_orders_chosen(visit: Open) -> None:
    browser = visit("small")
    chip = "#r0-gain .chip:first-child"
    click(browser, chip)
    assert count(browser, f'{chip}[aria-pressed="false"]') == 1
    assert count(browser, "#r0-gain .point") == 16
    browser.execute_script(
        "const menu = document.querySelector('#r0-gain select'); menu.value = 'name';"
        "menu.dispatchEvent(new Event('change'))"
    )
    assert texts(browser, "#r0-gain svg.target text.name") == ["ink", "left", "right", "sum"]
    click(browser, "#r0-curves .chips.one button:nth-child(2)")
    click(browser, "#r0-curves .controls:nth-of-type(2) .chip:first-child")
    assert count(browser, "#r0-curves figure path.line") == 20
    assert "accuracy" in texts(browser, "#r0-curves figcaption")[0]


def test_many_tasks_stay_readable(visit: Open) -> None:
    browser = visit("many")
    assert count(browser, "#evil") == 0
    assert HOSTILE in browser.execute_script("return document.body.textContent")
    assert count(browser, "#r0-gain .point") == 139  # the best method alone, to begin with
    box = browser.execute_script(
        "const b = document.querySelector('#r0-gain .plot');return [b.clientHeight, b.scrollHeight]"
    )
    assert box[0] < 800 < box[1]
    assert count(browser, "#r0-curves figure") == 6
    assert texts(browser, ".pair > div:first-child svg.target text") == []
    assert count(browser, "#r0-weights path.line:not(.faint):not(.chip *)") == 1
    assert count(browser, "#r0-weights path.line.faint") == 138
    click(browser, "#r0-curves button.step:nth-of-type(2)")
    assert texts(browser, "#r0-curves figcaption")[0].startswith("school 006")
    inside = browser.execute_script(
        "const b = document.querySelector('#r0-gain svg.target').getBoundingClientRect();"
        "return [...document.querySelectorAll('#r0-gain svg.target text.name')]"
        ".map((t) => t.getBoundingClientRect())"
        ".every((r) => r.left >= b.left - 1 && r.right <= b.right + 1)"
    )
    assert inside


def test_many_methods_stay_readable(visit: Open) -> None:
    browser = visit("crowd")
    rows = texts(browser, "#r0-overview > figure svg.target text.name")
    table = texts(browser, "#r0-methods-table tbody th")
    assert len(rows) == 30
    assert rows == [name.strip() for name in table if "single" not in name]  # best mean first
    assert rows[-1] == "m03"  # far off: an arrow at the edge with its number, the others spread out
    edge = texts(browser, "#r0-overview > figure svg.target text.halo")
    assert edge == ["−400.0 %"]
    assert count(browser, "#r0-overview rect.gain-cell") == 30 * 12
    assert count(browser, "#r0-overview text.label") >= 10
    # crowded sections begin with equal weights, the best few and the reference, and can show all
    lines = "#r0-curves figure:first-of-type path.line"
    shown = count(browser, "#r0-gain .point")
    assert shown == 5 * 12
    assert count(browser, lines) == 6
    click(browser, "#r0-gain .chip:nth-child(1)")
    assert count(browser, "#r0-gain .point") == 30 * 12
    click(browser, "#r0-gain .chip:nth-child(2)")
    assert count(browser, "#r0-gain .point") == 0
    click(browser, "#r0-curves .controls:nth-of-type(2) .chip:nth-child(1)")
    assert count(browser, lines) == 31
    # one method of thirty is a menu
    assert count(browser, "#r0-why select option") == 30
    assert count(browser, "#r0-why .chips") == 0
    looks = browser.execute_script(
        "return [...document.querySelectorAll('#r0-gain .chip[title] svg')].map((s) => s.innerHTML)"
    )
    assert len(set(looks)) == len(looks) == 30  # no two methods look alike


def test_names_in_the_scatter_plot_do_not_overlap(visit: Open) -> None:
    browser = visit("crowd")
    boxes = browser.execute_script(
        "return [...document.querySelectorAll('#r0-overview text.label')]"
        ".map((t) => t.getBBox()).map((b) => [b.x, b.y + 2, b.x + b.width, b.y + b.height - 2])"
    )
    assert len(boxes) >= 10
    for i, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[:i]:
            apart = right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
            assert apart, (boxes[i], other)


def test_what_failed_and_what_was_substituted_is_told(visit: Open) -> None:
    browser = visit("crowd")
    assert (
        "Left out, because they stopped with an error: </script>" in texts(browser, ".verdict")[0]
    )
    (left_out,) = texts(browser, "#r0-results .failed li")
    assert left_out.endswith("the loss of task 'ink' is 0; gls needs > 0.")
    assert "Run y: At step 3" in " ".join(texts(browser, "#r0-fair li"))
    rows = texts(browser, "#r0-engine-table tbody tr")
    assert len(rows) == 30
    assert all("exact: one backward per task present" in row for row in rows)
    said = [row for row in rows if "updates" in row]
    assert said == [
        "m07exact: one backward per task presentNashMTL: the last answer was kept: 1,234 of 1,800 "
        "updates"
    ]
    assert count(visit("small"), "#r0-engine-table") == 0


def test_several_runs_stand_side_by_side(visit: Open) -> None:
    browser = visit("several")
    assert texts(browser, "h1") == ["3 runs side by side"]
    assert count(browser, "#side-table tbody tr") == 5 + 2
    assert count(browser, "#side .point") == 5 + 2
    assert count(browser, "article.run") == 3
    assert texts(browser, "#nav a") == ["Side by side", "small", "many", "dwa-1"]
    tones = browser.execute_script(
        "return ['#r0-gain', '#r1-gain'].map((id) => [...document.querySelectorAll(`${id} .chip`)]"
        ".find((c) => c.textContent === 'pcgrad').querySelector('.dot').getAttribute('class'))"
    )
    assert tones[0] == tones[1]  # a method keeps its colour on the whole page


def test_many_methods_of_several_runs_are_a_map(visit: Open) -> None:
    browser = visit("crowds")
    assert count(browser, "#side .point") == 0
    assert count(browser, "#side rect.gain-cell") == 30 + 5
    names = texts(browser, "#side svg.target > text.name:not([text-anchor=middle])")
    assert len(names) == 34  # equal is in both
    assert names[0] == "equal"  # the only one with a place in both runs
    assert len(texts(browser, "#side-table tbody tr")) == 30 + 5


def test_a_page_of_nothing_but_nulls_says_so(visit: Open) -> None:
    browser = visit("bare")
    assert "No method has a defined mean gain" in texts(browser, ".verdict")[0]
    assert texts(browser, "#r0-gain .empty") == ["No gain is defined here."]
    assert "–" in texts(browser, "#r0-tasks-table td")[0]


def test_a_relation_has_its_tables_and_changes_with_the_method(visit: Open) -> None:
    browser = visit("relate")
    assert texts(browser, "#nav a") == ["Who helps whom", "Groups", "Left out"]
    # 4 x 4 less the diagonal; one value is not known
    assert count(browser, "#r0-help rect.gain-cell") == 11
    assert count(browser, "#r0-groups rect.gain-cell") == 12
    assert count(browser, "#r0-groups-table tbody tr") == 2
    assert "Help by tag" in texts(browser, "#r0-help figcaption")[0]
    click(browser, "#r0-help .chips.one button:nth-child(2)")
    assert "Help by gradient-cosine" in texts(browser, "#r0-help figcaption")[0]


def test_merges_have_every_table_and_map(visit: Open) -> None:
    browser = visit("merges")
    assert texts(browser, "#nav a") == [
        "Results", "Per task", "Coefficients", "Search", "Sign conflict", "Task vectors", "Notes",
    ]  # fmt: skip
    assert count(browser, "#r0-methods-table tbody tr") == 3 + 4
    assert count(browser, "#r0-tasks-table tbody tr") == 8
    assert count(browser, "#r0-gain .point") == 6 * 8  # the individual models are the line at 0
    assert count(browser, "#r0-gain .dot.open:not(.chip *)") == 2 * 8  # base and joint: no merges
    assert count(browser, "#r0-gain rect.gain-cell") == 6 * 8
    assert count(browser, "#r0-losses path.line") == 2
    assert texts(browser, "#r0-notes dd") == ["A note."]
    # whole model and 32 layers, by 28 pairs and the share on which any two disagree
    assert count(browser, "#r0-signs rect.gain-cell") == 33 * 29
    assert count(browser, "#r0-vectors rect.gain-cell") == 33 * 28
    assert texts(browser, "#r0-vectors figure:nth-of-type(2) svg text.name")[1:3] == [
        "embed.weight", "encoder.blocks.0",
    ]  # fmt: skip


def test_coefficients_by_layer_and_by_tensor(visit: Open) -> None:
    browser = visit("merges")
    cells = "#r0-coefficients rect.gain-cell"
    assert count(browser, cells) == 8  # of the best merge: one per task for all tensors
    click(browser, "#r0-coefficients .chips.one:nth-of-type(1) button:nth-child(2)")
    assert count(browser, cells) == 30 * 8
    click(browser, "#r0-coefficients .chips.one:nth-of-type(2) button:nth-child(2)")
    assert count(browser, cells) == 60 * 8


def test_a_layer_s_angles_and_signs_are_those_of_the_record(
    visit: Open, pages: dict[str, Path]
) -> None:
    browser = visit("merges")
    record = MergeRecord.load(pages["merges"].parent / "merges")
    assert record.maps is not None
    for part, choice, wanted in (
        ("signs", 4, [f"{100 * x:.0f}" for x in record.maps.layers[3].conflicts[:7] if x]),
        ("vectors", 0, [f"{x:.2f}" for x in record.maps.whole.cosines[:7] if x]),
    ):
        browser.execute_script(
            "const menu = document.querySelector(arguments[0]); menu.value = arguments[1];"
            "menu.dispatchEvent(new Event('change'))",
            f"#r0-{part} select",
            str(choice),
        )
        click(browser, f"#r0-{part} figure:first-of-type details summary")
        row = texts(browser, f"#r0-{part} figure:first-of-type tbody tr:first-child td")
        shown = [text.replace("−", "-") for text in row[1:]]
        assert [float(text) for text in shown] == [float(text) for text in wanted]


@pytest.mark.parametrize("width", [360, 1280])
def test_labels_of_layers_and_models_can_be_read(visit: Open, width: int) -> None:
    """A layer keeps its number; where pairs have no room, columns are models."""
    browser = visit("merges", width=width)
    maps = "#r0-vectors figure:nth-of-type(2) svg"
    rows = texts(browser, f"{maps} > text.name:not([text-anchor=middle])")
    assert [row.split(".")[-1] for row in rows[2:-1]] == [str(k) for k in range(30)]
    columns = texts(browser, f"{maps} > text:not(.name):not([text-anchor=middle])")
    assert len(columns) == (8 if width == 360 else 28)
    inside = browser.execute_script(
        "const b = document.querySelector(arguments[0]).getBoundingClientRect();"
        "return [...document.querySelectorAll(arguments[0] + ' text')]"
        ".map((t) => t.getBoundingClientRect())"
        ".every((r) => r.left >= b.left - 1 && r.right <= b.right + 1 && r.top >= b.top - 1)",
        maps,
    )
    assert inside


def test_inputs_alone_have_maps_and_no_scores(visit: Open) -> None:
    browser = visit("merges-inputs")
    assert texts(browser, "#nav a") == ["Sign conflict", "Task vectors"]
    assert "Two task vectors have a cosine of" in texts(browser, ".verdict")[0]
    assert count(browser, "#r0-signs rect.gain-cell") == 6  # 5 layers and the whole, one pair


def test_merges_beside_comparisons_are_named(visit: Open) -> None:
    browser = visit("merges-and-runs")
    assert texts(browser, "#side > p:last-child") == ["Merges, shown below: merges."]


def test_skip_link_focus_and_reduced_motion(visit: Open) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    browser = visit("small")
    ActionChains(browser).send_keys(Keys.TAB).perform()
    focused = "return document.activeElement.className"
    assert browser.execute_script(focused) == "skip"
    assert browser.execute_script("return document.activeElement.getBoundingClientRect().top") >= 0
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert browser.execute_script(outline) == "solid"
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    assert browser.execute_script("return document.activeElement.id") == "main"
    motion = "return getComputedStyle(document.documentElement).scrollBehavior"
    assert browser.execute_script(motion) == "auto"
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-reduced-motion", "value": "no-preference"}]},
    )
    assert browser.execute_script(motion) == "smooth"


def test_print_shows_all_of_it_on_white(visit: Open) -> None:
    browser = visit("many", scheme="dark")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    found = browser.execute_script(
        "const plot = document.querySelector('#r0-gain .plot');"
        "return [getComputedStyle(document.querySelector('.bar')).display, "
        "getComputedStyle(document.body).backgroundColor, plot.clientHeight >= plot.scrollHeight]"
    )
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert found == ["none", "rgb(255, 255, 255)", True]


def test_a_search_has_its_tables_and_sorts_them(visit: Open) -> None:
    browser = visit("search")
    assert count(browser, "#r0-served tbody tr") == 4
    assert count(browser, "#r0-tried tbody tr") == 4
    assert "behind the shared models after 4 epochs" in " ".join(texts(browser, "#r0-served td"))
    assert HOSTILE in " ".join(texts(browser, "#r0-served th, #r0-served td"))
    assert "serves a task unless something is better" in " ".join(texts(browser, "#r0-tried tr"))
    assert texts(browser, "#r0-failed dd") == ["needs <pictures>"]
    wide = browser.execute_script(
        "return [...document.querySelectorAll('.run *')].every("
        "(e) => e.getBoundingClientRect().right <= innerWidth + 1 || e.closest('.scroll, table'))"
    )
    assert wide
