"""Take the screenshots of docs/guides/teach.md in a headless Chromium.

    python -m tools.teach_screens

The project is the sample of the digits with one wrong label. The images have few colours, so that the files are small.
"""

import io
import tempfile
from pathlib import Path

from PIL import Image

from tests.browser import browsing
from trainers.hegraph.teach.session import write_sample

IMAGES = Path(__file__).parents[1] / "docs" / "images"
SIZE = (900, 620)
COLOURS = 48


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "digits")
        write_sample(folder)
        wrong = sorted((folder / "train" / "six").iterdir())[0]
        wrong.rename(folder / "train" / "four" / wrong.name)
        profile = Path(temporary, "profile")
        with browsing(profile, "teach", str(folder), "--backbone", "hegraph-mini") as browser:
            browser.driver.set_window_size(*SIZE)
            browser.open("#classes form", "#accuracy")
            browser.wait(lambda: "left to encode" not in browser.text("body"))
            for tab in ("Check", "Label", "Classes"):
                browser.tab(tab)
                browser.wait(lambda tab=tab: browser.find(f"#{tab.lower()} img"))
                image = Image.open(io.BytesIO(browser.driver.get_screenshot_as_png())).convert("RGB")
                image.quantize(COLOURS).save(IMAGES / f"teach_{tab.lower()}.png", optimize=True)


if __name__ == "__main__":
    main()
