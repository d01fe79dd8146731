"""The report page, opened and used in a real browser."""

import re
import shlex
import shutil

import pytest

from core.files import read_json, remember
from core.protocols import UserError
from scripts.report import main
from tests.support.run_folders import write_run

SIMKD = "--distill simkd -c 0 -d 0 -b 1"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    for trial, shift in ((0, 0.0), (1, 1.0)):
        write_run(root, f"--distill kd --trial {trial}", [60, 74 + shift, 73 + shift], teacher="resnet32x4")
        write_run(root, f"{SIMKD} --trial {trial}", [70, 75, 77 + shift], teacher="resnet32x4")
    folder = write_run(root, "--distill vanilla --trial 0", [50, 60, 72], alone=True)
    args = read_json(folder / "args.json", {}, "")
    args["command"] = ["--distill", "vanilla", "--trial", "<b>&0</b>"]  # must not become markup
    remember(args, folder / "args.json")
    main(["--root", str(root), "--published", "simkd", "--title", "A <title>", "--out", str(root / "r.html")])
    return root / "r.html"


def test_one_file_with_everything_in_it(report):
    text = report.read_text()
    assert not re.findall(r"@[A-Z]+@", text) and "A &lt;title&gt;" in text and "<b>" not in text
    assert not re.findall(r"""(?:src|href)=["'](?!#)|url\((?!#)|@import|https?://(?!www\.w3\.org/2000/svg)""", text)
    assert "73.50 ± 0.71" in text and "74.42" in text and "c0ffee" in text
    with pytest.raises(UserError, match="no finished run"):
        main(["--root", str(report.parent / "nowhere"), "--out", str(report.parent / "x.html")])


def test_folders_are_left_out_where_asked(tmp_path):
    """Of the command, of the name of a run and of what is said of its protocol."""
    argv = ["--distill", "vanilla", "--pretrained", "/home/me/r.pth", "--data_folder", "/home/me/data/"]
    folder = write_run(tmp_path, shlex.join(argv), [50, 60, 72], alone=True)
    args = read_json(folder / "args.json", {}, "")
    remember(args | {"command": argv}, folder / "args.json")
    for flags in ((), ("--hide_folders",)):
        main(["--root", str(tmp_path), "--out", str(tmp_path / "r.html"), *flags])
        text = (tmp_path / "r.html").read_text()
        assert ("--data_folder /home/me/data/" in text) == ("-home-me-r.pth" in text) == (not flags)
    assert "--data_folder .../data/" in text and text.count(".../r.pth") > 1 and "home" not in text


def test_a_run_with_nan_is_named(tmp_path):
    write_run(tmp_path, "--distill vanilla", [50, float("nan"), 72], alone=True)
    with pytest.raises(UserError, match="accuracy of student alone, .* is NaN or infinite: leave these runs out"):
        main(["--root", str(tmp_path), "--out", str(tmp_path / "r.html")])


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium, of requirements-extra.txt")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs Chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,1600",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    yield driver
    driver.quit()


def column(browser, name):
    head = [th.text.split()[0] for th in browser.find_elements("css selector", "#results th")]
    at = head.index(name)
    rows = browser.find_elements("css selector", "#results tbody tr")
    return [row.find_elements("css selector", "td")[at].text for row in rows]


def test_clicked_through(report, browser):
    """What an input changes is waited for: a browser may take its time to handle it."""
    from selenium.webdriver import ActionChains
    from selenium.webdriver.support.wait import WebDriverWait

    def comes(true):
        WebDriverWait(browser, 30, poll_frequency=0.05).until(lambda _: true())

    def view():
        return [float(v) for v in chart.get_attribute("data-view").split()]

    browser.get(report.as_uri())
    script = browser.execute_script
    assert len(column(browser, "method")) == 3
    for name in ("gain", "MACs"):  # without scrolling sideways
        (head,) = [th for th in browser.find_elements("css selector", "#results th") if th.text.startswith(name)]
        assert head.rect["x"] + head.rect["width"] <= 1280
    heads = {b.text: b for b in browser.find_elements("css selector", "#results th button")}
    heads["last epoch"].click()
    comes(lambda: [c[:5] for c in column(browser, "last")] == ["77.50", "73.50", "72.00"])
    heads["last epoch"].click()
    comes(lambda: [c[:5] for c in column(browser, "last")] == ["72.00", "73.50", "77.50"])
    heads["method"].click()
    comes(lambda: column(browser, "method") == sorted(column(browser, "method")))
    heads["gain"].click()
    comes(lambda: column(browser, "gain") == ["+5.50", "+1.50", ""])  # what has no gain stays at the end
    heads["gain"].click()
    comes(lambda: column(browser, "gain") == ["+1.50", "+5.50", ""])

    link = browser.find_element("xpath", "//tr[td[contains(., 'student alone')]]//a[contains(., '72.00')]")
    target = browser.find_element("id", link.get_attribute("href").split("#")[1])
    assert not target.get_attribute("open")
    for _ in range(2):  # once more after it was shut: the address is then the same
        link.click()
        comes(lambda: target.get_attribute("open"))
        assert "--trial '<b>&0</b>'" in target.text and "c0ffee" in target.text
        target.find_element("css selector", "summary").click()
        comes(lambda: not target.get_attribute("open"))

    chart = browser.find_element("id", "accuracy")
    script("arguments[0].scrollIntoView()", chart)
    whole = view()
    x0, x1, y0, y1 = whole
    assert len(chart.find_elements("css selector", "polyline")) == 3
    drag = ActionChains(browser).move_to_element_with_offset(chart, -80, -60).click_and_hold()
    drag.move_by_offset(160, 120).release().perform()
    comes(lambda: x0 < view()[0] < view()[1] < x1 and y0 < view()[2] < view()[3] < y1)
    ActionChains(browser).double_click(chart).perform()
    comes(lambda: view() == whole)
    ActionChains(browser).scroll_from_origin(_origin(chart), 0, -120).perform()
    comes(lambda: view()[1] - view()[0] < x1 - x0)
    ActionChains(browser).move_to_element_with_offset(chart, 10, 10).perform()
    comes(lambda: "epoch" in browser.find_element("id", "reading").text)
    browser.find_element("css selector", "#legend input").click()
    for name in ("loss", "accuracy"):
        comes(lambda name=name: len(browser.find_element("id", name).find_elements("css selector", "polyline")) == 2)

    assert script("return performance.getEntriesByType('resource').length") == 0
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_on_a_phone_by_link_and_compared(report, browser):
    from selenium.webdriver.support.wait import WebDriverWait

    def comes(true):
        WebDriverWait(browser, 30, poll_frequency=0.05).until(lambda _: true())

    def rows():
        return [row for row in browser.find_elements("css selector", "#results tbody tr") if row.is_displayed()]

    script = browser.execute_script
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    browser.get("about:blank")
    browser.get(report.as_uri() + "#sort=gain&down=1")
    comes(lambda: len(rows()) == 3)
    assert script("return document.documentElement.scrollWidth <= innerWidth")
    for name in ("gain", "MACs"):  # on the screen, without scrolling sideways
        (head,) = [th for th in browser.find_elements("css selector", "#results th") if th.text.startswith(name)]
        assert head.is_displayed() and head.rect["x"] + head.rect["width"] <= 390, (name, head.rect)
    assert "+5.50" in rows()[0].text  # sorted by the link
    browser.find_element("id", "search").send_keys("simkd")
    comes(lambda: len(rows()) == 1)
    assert "q=simkd" in browser.current_url
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    select = browser.find_element("id", "theme")
    for theme, dark in (("dark", True), ("light", False)):
        select.find_element("xpath", f"option[.='{theme}']").click()
        colour = script("return getComputedStyle(document.body).backgroundColor")
        comes(lambda colour=colour, dark=dark: (sum(map(int, re.findall(r"\d+", colour)[:3])) < 150) == dark)

    labels = [
        option.get_attribute("textContent")
        for option in browser.find_element("id", "one").find_elements("css selector", "option")
    ]
    places = [next(i for i, label in enumerate(labels) if label.startswith(name)) for name in ("simkd", "kd")]
    browser.get("about:blank")
    browser.get(report.as_uri() + "#tab=compare&one={}&other={}".format(*places))
    comes(lambda: "points" in browser.find_element("id", "paired").text)
    text = browser.find_element("id", "paired").text
    assert "+4.00 points" in text and "2 common seeds, few" in text
    assert "distill" in browser.find_element("id", "differing").text
    assert len(browser.find_elements("css selector", "#both polyline")) == 2
    browser.find_element("xpath", "//select[@id='other']/option[starts-with(., 'student alone')]").click()
    comes(lambda: "+5.00 points (1 common seed: too few" in browser.find_element("id", "paired").text)
    drawn = {line.get_attribute("data-series") for line in browser.find_elements("css selector", "#both polyline")}
    assert drawn == {str(places[0]), browser.find_element("id", "other").get_attribute("value")}
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def _origin(element):
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

    return ScrollOrigin.from_element(element)
