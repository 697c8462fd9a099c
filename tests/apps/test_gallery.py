"""The gallery page: whole, self-contained, escaped, and working in a real browser."""

from __future__ import annotations

import http.server
import re
import shutil
import subprocess
import threading
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from mmzoo.apps.report.gallery import (
    Card,
    ClassRow,
    Gallery,
    Guess,
    Matrix,
    Number,
    Pair,
    Row,
    RowHit,
    render,
    write,
)
from mmzoo.apps.report.thumbs import SIDE, thumbnail

HOSTILE = '</script><script>document.title=\'owned\'</script>"><img src="http://{host}/leak" onerror="x">\'{{{{7*7}}}}'
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """A page as lists: every start tag with its attributes, and the text of chosen tags."""

    VOID = frozenset({"meta", "img", "input", "link", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.words.setdefault(self.open[-1], []).append(data.strip())

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [a for name, a in self.tags if name == tag and all(a.get(k) == v for k, v in wanted.items())]


def card(
    key: str, truth: str | None, *guesses: tuple[str, float], image: str = "", share: float = 0.0
) -> Card:
    return Card(key, image, tuple(Guess(*guess) for guess in guesses), truth, share)


def gallery(**changes) -> Gallery:
    red = thumbnail(Image.new("RGB", (40, 40), (200, 30, 30)))
    page = {
        "title": "clip-tiny on photos",
        "lead": "3 pictures, 2 classes",
        "numbers": [Number("top-1 accuracy", 0.5, 0.2, "largest class 31.2 %"), Number("R@1", 0.25, 0.0013)],
        "cards": [
            card("b.png", "dog", ("cat", 0.9), ("dog", 0.1), image=red, share=0.1),
            card("c.png", "ape", ("dog", 0.6), ("ape", 0.4), image=red, share=0.4),
            card("a.png", "cat", ("cat", 0.8), ("dog", 0.2), image=red, share=0.8),
        ],
        "cards_of": 3,
        "classes": [
            ClassRow("dog", 1, 0.0, None, "cat"),
            ClassRow("cat", 11, 1.0, 0.5),
            ClassRow("ape", 2, 0.5, 1.0),
        ],
        "matrix": Matrix(["ape", "cat", "dog"], [[1, 0, 1], [0, 11, 0], [0, 1, 0]]),
        "pairs": [Pair("dog", "cat", 1, 1.0)],
        "broken": [("x.jpg", "truncated")],
        "footer": {"model": "clip-tiny", "command": "mmzoo zeroshot"},
    }
    return Gallery(**(page | changes))


def test_page_is_well_formed_and_says_everything():
    text = render(gallery())
    page = Page(text)
    assert page.words["title"] == page.words["h1"] == ["clip-tiny on photos"]
    assert page.words["h2"] == [
        "Pictures",
        "What is taken for what",
        "Class by class",
        "Pictures that could not be read",
    ]
    for words in (
        "50.0 %",
        "chance 20.0 %",
        "largest class 31.2 %",
        "chance 0.13 %",
        "x.jpg",
        "truncated",
        "mmzoo zeroshot",
    ):
        assert words in text
    cards = [a for a in page.all("li") if "data-key" in a]
    assert [(a["class"], a["data-key"], a["data-truth"], a["data-guess"]) for a in cards] == [
        ("wrong", "b.png", "dog", "cat"),
        ("wrong", "c.png", "ape", "dog"),
        ("right", "a.png", "cat", "cat"),
    ]
    assert [float(a["data-bad"]) for a in cards] == [0.8, 0.2, -0.6]
    assert len(page.all("td", **{"class": "diagonal"})) == 3
    assert page.words["dt"] == ["model", "command"]


def test_sections_without_content_are_left_out():
    bare = gallery(
        numbers=[], cards=[card("a.png", None, ("cat", 0.7))], classes=[], matrix=None, pairs=[], broken=[]
    )
    page = Page(render(bare))
    assert page.words["h2"] == ["Pictures"]
    assert page.all("select", name="show") == []  # nothing to tell mistakes by
    assert page.all("option", value="given")
    assert page.all("table") == []
    assert Page(render(gallery(cards=[]))).words["h2"][0] == "What is taken for what"


def test_asks_the_network_for_nothing():
    text = render(gallery())
    page = Page(text)
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:image/"), f"<{tag} {name}={value[:40]}>"
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"data:image/[^\"]+", "", text))
    assert not page.all("link")
    assert not page.all("base")
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "'unsafe-inline'" not in policy.split("script-src")[1]


def test_names_of_strangers_are_escaped_everywhere():
    bad = HOSTILE.format(host="127.0.0.1:1")
    hostile = gallery(
        title=bad,
        lead=bad,
        numbers=[Number(bad, 0.5, 0.1, bad)],
        cards=[card(bad, bad, (bad + "?", 0.9), (bad, 0.1))],
        rows=[Row(bad, "", pictured, (RowHit(bad, "", bad),)) for pictured in (True, False)],
        rows_of=3,
        rows_score=bad,
        classes=[ClassRow(bad, 1, 0.5, 0.5, bad)],
        matrix=Matrix([bad, "b"], [[1, 0], [0, 1]]),
        pairs=[Pair(bad, bad, 1, 1.0)],
        broken=[(bad, bad)],
        footer={bad: bad},
    )
    page = Page(render(hostile))
    assert len(page.all("script")) == 1
    assert page.all("img") == []
    assert page.words["title"] == [bad]
    assert not [a for _, a in page.tags if "onerror" in a]
    assert [a["data-key"] for a in page.all("li") if "data-key" in a] == [bad]


def test_write_is_whole_or_not_at_all(tmp_path, monkeypatch):
    assert write(gallery(), tmp_path / "page.html") == tmp_path / "page.html"
    assert write(gallery(), tmp_path / "out") == tmp_path / "out" / "index.html"
    before = (tmp_path / "page.html").read_text()
    monkeypatch.setattr(Path, "write_text", _disk_full)
    with pytest.raises(OSError, match="No space left"):
        write(gallery(title="new"), tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "page.html"]


def _disk_full(path: Path, text: str, **_) -> int:
    path.write_bytes(text[:100].encode())
    raise OSError(28, "No space left on device", str(path))


def test_thumbnails_are_bounded():
    large = Image.effect_noise((3000, 1500), 80).convert("RGB")
    uri = thumbnail(large)
    assert uri.startswith("data:image/jpeg;base64,")
    assert len(uri) < 20_000
    assert large.size == (3000, 1500)
    icon = thumbnail(Image.new("RGBA", (48, 48), (1, 2, 3, 255)))
    assert icon.startswith("data:image/png;base64,")
    assert SIDE <= 256


needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium to look at the page with: apt-get install -y chromium"
)


def browse(page: Path, *flags: str, profile: Path, fragment: str = "") -> str:
    """Open a page headless and return the document as it stands after its script has run."""
    assert CHROMIUM is not None
    url = page.as_uri() + fragment
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={profile}",
            *flags,
            "--dump-dom",
            url,
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def shown(document: str) -> list[str]:
    """Keys of the cards that can be seen, in order."""
    return [a["data-key"] or "" for a in Page(document).all("li") if "data-key" in a and "hidden" not in a]


@pytest.mark.browser
@needs_browser
def test_sorting_filtering_and_searching_by_address(tmp_path):
    page = write(gallery(), tmp_path / "page.html")
    expected = {
        "": ["b.png", "c.png", "a.png"],
        "#sort=key": ["a.png", "b.png", "c.png"],
        "#sort=best": ["a.png", "c.png", "b.png"],
        "#sort=truth&show=wrong": ["c.png", "b.png"],
        "#find=ape&sort=nonsense": ["c.png"],
    }
    for fragment, keys in expected.items():
        assert shown(browse(page, profile=tmp_path / "profile", fragment=fragment)) == keys, fragment


@pytest.mark.browser
@needs_browser
def test_controls_work_by_hand(tmp_path):
    """A second script plays the user; the copy's policy admits it."""
    hand = """<script>
      const tools = document.getElementById("tools");
      tools.sort.value = "surest"; tools.show.value = "wrong";
      tools.show.dispatchEvent(new Event("input", {bubbles: true}));
      document.querySelectorAll("table.sortable th")[1].click();
      document.title = `${location.hash} ${document.getElementById("count").textContent} ` +
        [...document.querySelectorAll("table.sortable tbody tr")].map((row) => row.cells[1].textContent).join();
    </script></body>"""
    text = render(gallery()).replace("</body>", hand)
    text = re.sub(r"script-src 'sha256-[^']+'", "script-src 'unsafe-inline'", text)
    (tmp_path / "page.html").write_text(text)
    document = browse(tmp_path / "page.html", profile=tmp_path / "profile")
    assert shown(document) == ["b.png", "c.png"]
    assert Page(document).words["title"] == ["#sort=surest&show=wrong 2 of 3 shown 11,2,1"]


@pytest.mark.browser
@needs_browser
def test_a_hostile_page_runs_nothing_and_reaches_nobody(tmp_path):
    reached: list[str] = []

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            reached.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = f"127.0.0.1:{server.server_port}"
    try:
        bad = HOSTILE.format(host=host)
        hostile = gallery(
            cards=[card(bad, bad, (bad, 0.9))], classes=[ClassRow(bad, 1, 0.5, 0.5, bad)], broken=[(bad, bad)]
        )
        document = browse(write(hostile, tmp_path / "page.html"), profile=tmp_path / "profile")
        assert reached == []
        assert Page(document).words["title"] == ["clip-tiny on photos"]
        # the same words unescaped would have come through, had the policy not been there either
        naive = f"<title>x</title><img src='http://{host}/control'>"
        (tmp_path / "naive.html").write_text(naive)
        browse(tmp_path / "naive.html", profile=tmp_path / "profile")
        assert reached == ["/control"]
        text = (
            (tmp_path / "page.html")
            .read_text()
            .replace("</body>", naive + "<script>document.title=1</script></body>")
        )
        (tmp_path / "broken.html").write_text(text)
        document = browse(tmp_path / "broken.html", profile=tmp_path / "profile")
        assert reached == ["/control"]  # the policy stands even where escaping would have failed
        assert "<title>1</title>" not in document
    finally:
        server.shutdown()


@pytest.mark.browser
@needs_browser
def test_light_and_dark_differ_and_a_narrow_page_does_not_scroll_sideways(tmp_path):
    long = "a-very-long-file-name-without-any-place-to-break-" * 4 + ".png"
    text = render(gallery(cards=[card(long, long, (long, 0.9))], footer={"command": long * 2}))
    probe = """<script>document.title = [document.documentElement.scrollWidth <= innerWidth,
      getComputedStyle(document.body).backgroundColor].join(" ")</script></body>"""
    text = re.sub(r"script-src 'sha256-[^']+'", "script-src 'unsafe-inline'", text).replace("</body>", probe)
    (tmp_path / "page.html").write_text(text)
    titles = []
    for scheme in (1, 0):
        flags = (f"--blink-settings=preferredColorScheme={scheme}", "--window-size=500,900")
        document = browse(tmp_path / "page.html", *flags, profile=tmp_path / "profile")
        titles.append(Page(document).words["title"][0])
    assert titles == ["true rgb(246, 247, 249)", "true rgb(16, 19, 23)"]
