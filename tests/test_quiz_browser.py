"""The quiz in a real Chromium: a full game, a study on two devices, the admin page."""

import re
import shutil

import pandas as pd
import pytest
from quiz_site import make_quiz, served

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
pytestmark = pytest.mark.skipif(
    CHROMIUM is None,
    reason="no chromium here; .ci/run installs Debian's (apt-get install chromium)",
)
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 800}


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def site(tmp_path):
    """Yield a quiz and the address where it is served."""
    quiz = make_quiz(tmp_path)
    with served(quiz) as port:
        yield quiz, f"http://127.0.0.1:{port}"
    quiz.store.close()


@pytest.fixture
def device(browser):
    """Return a function that opens a page on a new device and collects what its console says."""
    contexts, complaints = [], []

    def open_page(size=DESK, **options):
        context = browser.new_context(viewport=size, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on(
            "console",
            lambda said: (
                complaints.append(said.text) if said.type in ("error", "warning") else None
            ),
        )
        page.on("pageerror", lambda error: complaints.append(str(error)))
        return page

    yield open_page
    for context in contexts:
        context.close()
    # Violations of the content security policy, missing files and script errors end up there.
    assert complaints == []


def wait_for(page, selector):
    """Wait until the page that shows this has loaded: its keys work from then on."""
    page.wait_for_selector(selector)
    page.wait_for_load_state()


def truth(quiz, page):
    """Return whether the first tile on the page is real."""
    token = page.locator(".tile").first.get_attribute("href").rsplit("/", 1)[1]
    return quiz.tiles[quiz.store.tile_of(token)][0] == "real"


def test_a_full_game_by_keyboard_ends_on_the_leaderboard(site, device):
    quiz, address = site
    page = device()
    page.goto(address)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.locator("input[name=layout][value=single]").focus()
    page.keyboard.press("Enter")
    for number in range(1, 5):
        wait_for(page, f"text=Question {number} of 4")
        page.keyboard.press("r" if truth(quiz, page) else "g")
        wait_for(page, "role=status")
        assert page.locator(".verdict h1").inner_text().endswith("Right")
        page.keyboard.press("Enter")
    wait_for(page, "text=4 of 4 right")
    width = "image => image.decode().then(() => image.naturalWidth)"
    assert page.locator(".result-card").evaluate(width) == 1200
    page.fill("#nickname", "Ana R")
    page.keyboard.press("Enter")
    wait_for(page, "th:has-text('Ana R')")
    assert quiz.store.finished_games()[0]["correct"] == 4


def test_pairs_are_answered_with_arrows_and_tiles_enlarge_and_shrink(site, device):
    quiz, address = site
    page = device(PHONE, color_scheme="dark")
    page.goto(address)
    page.check("input[value=pair]", force=True)
    page.check("input[name=feedback][value=end]", force=True)
    page.click("button.primary")
    wait_for(page, "text=Which of the two tiles is real?")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator(".tile").nth(1).focus()
    page.keyboard.press("z")
    assert page.locator("dialog").get_attribute("open") is not None
    width = "document.querySelector('dialog img').getBoundingClientRect().width"
    before = page.evaluate(width)
    page.keyboard.press("+")
    assert page.evaluate(width) == pytest.approx(2 * before, rel=0.05)
    page.keyboard.press("Escape")
    assert page.locator("dialog").get_attribute("open") is None
    page.keyboard.press("ArrowLeft" if truth(quiz, page) else "ArrowRight")
    wait_for(page, "text=Question 2 of 4")
    assert quiz.store.answers()[0]["correct"] == 1


def test_when_the_time_is_up_the_page_moves_on_by_itself(site, device):
    quiz, address = site
    page = device()
    page.goto(address)
    page.check("input[name=timed]")
    page.check("input[name=feedback][value=end]", force=True)
    page.click("button.primary")
    wait_for(page, "text=Question 2 of 4")
    answer = quiz.store.answers()[0]
    assert (answer["choice"], answer["correct"]) == ("timeout", 0)
    assert 1.5 < answer["seconds"] < 4


def test_a_game_works_without_scripts(site, device):
    quiz, address = site
    page = device(java_script_enabled=False)
    page.goto(address)
    page.click("button.primary")
    for _ in range(4):
        page.click("button[value=real]")
        page.click("a.primary")
    assert page.locator("h1").inner_text() == "2 of 4 right"


def test_a_study_is_interrupted_continued_elsewhere_and_exported(site, device, tmp_path):
    quiz, address = site
    admin = device()
    admin.goto(address + "/admin")
    admin.fill("#token", quiz.admin_token)
    admin.keyboard.press("Enter")
    admin.fill("#name", "Reader A")
    admin.keyboard.press("Enter")
    link = admin.locator("#link-1").input_value()
    desk, phone = device(), device(PHONE, color_scheme="dark")
    desk.goto(link)
    assert link not in desk.url
    desk.keyboard.press("Enter")
    for number in range(1, 7):
        page = desk if number < 3 else phone
        if number == 3:
            phone.goto(link)
            assert "2 of 6 tiles rated" in phone.inner_text("main")
            phone.click("a.primary")
        wait_for(page, f"text=Tile {number} of 6")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.keyboard.press("4")
        page.keyboard.press("Tab")
        page.keyboard.press("2")
        page.check("input[name=scale_nuclei][value='3']", force=True)
        page.click("button[value=pause]" if number == 2 else "button[value=next]")
    phone.wait_for_selector("text=You have rated all 6 tiles")
    admin.reload()
    assert "6/6" in admin.inner_text("main")
    with admin.expect_download() as download:
        admin.click("text=Answers as CSV")
    download.value.save_as(tmp_path / "answers.csv")
    frame = pd.read_csv(tmp_path / "answers.csv")
    assert frame.question.tolist() == [1, 2, 3, 4, 5, 6]
    assert (frame.answer == 4).all()
    assert (frame.staining == 2).all()
    assert frame.source.value_counts().tolist() == [2, 2, 2]


def test_controls_and_pictures_have_names_and_pages_one_heading(site, device):
    quiz, address = site
    page = device(PHONE)
    page.goto(address)
    page.click("button.primary")
    wait_for(page, "text=Question 1 of 4")
    for path in ("/", "/play", "/leaderboard", "/admin"):
        page.goto(address + path)
        assert page.locator("h1").count() == 1
        assert page.locator("html").get_attribute("lang") == "en"
        tree = page.locator("body").aria_snapshot()
        assert not re.search(r"- (button|link|textbox|radio|checkbox|img)(:|$| \[)", tree, re.M)
        small = """[...document.querySelectorAll('button, .button, .choice')].filter(
            e => e.offsetParent && e.getBoundingClientRect().height < 40).length"""
        assert page.evaluate(small) == 0
