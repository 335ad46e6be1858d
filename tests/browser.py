"""A headless Chromium that tests look at pages with, through its DevTools protocol."""

import asyncio
import base64
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from tests.processes import WAIT_S, opening_processes, wait_until

CHROMIUM = next(
    filter(
        None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))
    ),
    None,
)
WIDTH, HEIGHT = 1700, 1000


class Box(NamedTuple):
    """Where something is, in pixels of the window, or of its frame."""

    left: float
    top: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.left + self.width

    @property
    def bottom(self) -> float:
        return self.top + self.height


_BOX = "(one => { const b = one.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; })"


class Page:
    """One page of a browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._count = socket, 0

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the protocol and return its result."""
        self._count += 1
        await self._socket.send_json({"id": self._count, "method": method, "params": parameters})
        while True:
            answer = json.loads(await self._socket.receive_str())
            if answer.get("id") == self._count:
                assert "error" not in answer, answer["error"]
                return dict(answer["result"])

    async def open(self, address: str) -> None:
        await self.call("Page.navigate", url="about:blank")  # Another fragment alone would not load a page.
        await self.call("Page.navigate", url=address)

    async def value(self, expression: str) -> Any:
        """Evaluate JavaScript on the page."""
        found = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        return found["result"].get("value")

    async def until(self, expression: str) -> Any:
        """Evaluate JavaScript until it gives something that counts as true, and return that."""
        for _ in range(int(WAIT_S * 5)):
            if found := await self.value(expression):
                return found
            await asyncio.sleep(0.2)
        text = await self.value("document.body.innerText")
        raise AssertionError(f"never: {expression}\n{str(text)[:3000]}")

    async def box(self, selector: str) -> Box:
        """Wait for the first element that a selector finds, and return where it is."""
        find = f"document.querySelector({json.dumps(selector)})"
        await self.until(f"{find} && {find}.getBoundingClientRect().height > 0")
        return Box(*await self.value(f"{_BOX}({find})"))

    async def box_of(self, text: str) -> Box:
        """Wait for the innermost element that shows a text, and return where it is."""
        has = f"(one => one.textContent.includes({json.dumps(text)}))"
        find = (
            "([...document.querySelectorAll('body *')].find(one => one.getBoundingClientRect().height > 0 &&"
            f" {has}(one) && ![...one.children].some({has})) || null)"
        )
        await self.until(f"{find} !== null")
        return Box(*await self.value(f"{_BOX}({find})"))

    async def boxes_in_frame(self, selector: str) -> list[Box]:
        """Return where elements of the page's one frame are, in pixels of the frame, once there are any."""
        find = f"[...document.querySelectorAll({json.dumps(selector)})].filter(one => one.clientHeight)"
        for _ in range(int(WAIT_S * 5)):
            tree = (await self.call("Page.getFrameTree"))["frameTree"]
            for child in tree.get("childFrames", ()):
                world = await self.call("Page.createIsolatedWorld", frameId=child["frame"]["id"])
                found = await self.call(
                    "Runtime.evaluate",
                    expression=f"{find}.map({_BOX})",
                    contextId=world["executionContextId"],
                    returnByValue=True,
                )
                if boxes := found["result"].get("value"):
                    return [Box(*box) for box in boxes]
            await asyncio.sleep(0.2)
        raise AssertionError(f"the frame never showed {selector}")

    async def picture(self, file: Path) -> None:
        """Write what is seen as PNG."""
        shot = await self.call("Page.captureScreenshot", format="png")
        file.write_bytes(base64.b64decode(shot["data"]))


@asynccontextmanager
async def browsing(folder: Path) -> AsyncIterator[Page]:
    """Open a browser window of 1700 x 1000 with its profile in a folder."""
    assert CHROMIUM is not None
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-features=IsolateSandboxedIframes",  # MLflow shows artifacts in one; its boxes can then be read
        f"--window-size={WIDTH},{HEIGHT}",
        "--remote-debugging-port=0",
        f"--user-data-dir={folder}",
    ]
    with opening_processes() as start, (folder.parent / "chromium.log").open("wb") as log:
        process = start([CHROMIUM, *options, "about:blank"], stdout=log, stderr=log)
        known = folder / "DevToolsActivePort"
        wait_until(lambda: known.is_file() and known.read_text().count("\n") >= 1, process)
        port = known.read_text().splitlines()[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                tabs = [tab for tab in await answer.json() if tab["type"] == "page"]
            async with session.ws_connect(tabs[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                await page.call("Page.enable")
                await page.call(
                    "Emulation.setDeviceMetricsOverride",
                    width=WIDTH,
                    height=HEIGHT,
                    deviceScaleFactor=1,
                    mobile=False,
                )
                yield page
