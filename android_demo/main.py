"""A garment in a picture: the answer at once, from the phone or the cloud, and why. A page in Flet; what it shows is `garments`.

`flet run` shows it on the desktop, `flet run --web` in a browser, `flet build apk` makes an app for Android.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import flet as ft
from garments import MODES, SAMPLES, Garments, Shown, prepare
from PIL import Image

from edgeroute import EdgerouteError, models

STORAGE = Path(os.environ.get("FLET_APP_STORAGE_DATA") or Path(__file__).parent / ".flet" / "storage" / "data")
COLOURS = {"edge": ft.Colors.GREEN_700, "cloud": ft.Colors.BLUE_700}
WIDEST = 560
NO_CLASS = "no class"


class Demo:
    """The page of one person; the models and the queue are those of the whole process."""

    shared: ClassVar[list[Garments]] = []
    """One, once it is loaded."""
    loading: ClassVar[threading.Lock] = threading.Lock()
    pages: ClassVar[set[Demo]] = set()

    def __init__(self, page: ft.Page) -> None:
        self.page, self.turn = page, 0
        self.picture: Any = None
        self.mode: Any = None
        self.data_class: str | None = "product"
        self.picker = ft.FilePicker()
        self.photo = ft.Image(
            src=png(None),
            width=112,
            height=112,
            fit=ft.BoxFit.CONTAIN,
            border_radius=8,
            gapless_playback=True,
            filter_quality=ft.FilterQuality.NONE,
        )
        self.label = ft.Text("", size=24, weight=ft.FontWeight.BOLD)
        self.source = ft.Text("", color=ft.Colors.WHITE, size=13, weight=ft.FontWeight.BOLD)
        self.badge = ft.Container(self.source, padding=ft.Padding.symmetric(vertical=2, horizontal=10), border_radius=12)
        self.sure = ft.Text("", size=14)
        self.bar = ft.ProgressBar(value=0, bar_height=6, border_radius=3)
        self.reason = ft.Text("", size=13)
        self.error = ft.Text("", size=13, color=ft.Colors.ERROR)
        self.failed = named("error", self.error)
        self.failed.visible = False
        self.modes = ft.Row(wrap=True, spacing=8, run_spacing=8)
        self.classes = ft.Row(wrap=True, spacing=8, run_spacing=8)
        self.offline = ft.Switch(label="Offline", on_change=self.switched)
        self.queue = ft.Column(spacing=4)
        self.late = ft.Column(spacing=4)
        self.samples = ft.Row(scroll=ft.ScrollMode.HIDDEN, spacing=8)

    async def start(self) -> None:
        """Shows the page, then loads the models, then answers for the first sample."""
        page = self.page
        page.title = "Garments"
        page.theme = page.dark_theme = ft.Theme(color_scheme_seed=ft.Colors.TEAL)
        page.scroll = ft.ScrollMode.AUTO
        page.padding = 12
        page.horizontal_alignment = ft.CrossAxisAlignment.CENTER
        page.appbar = ft.AppBar(
            title=ft.Text("Garments"),
            actions=[ft.TextButton("Policy", icon=ft.Icons.RULE, on_click=self.edit), ft.Container(width=4)],
        )
        page.services.append(self.picker)
        page.add(ft.SafeArea(ft.Container(self.body(), width=WIDEST)))
        try:
            await asyncio.to_thread(load)
        except EdgerouteError as e:
            self.fail(e)
            return
        Demo.pages.add(self)
        page.on_connect, page.on_disconnect = self.connected, lambda _: Demo.pages.discard(self)
        self.offline.value = self.app.offline
        self.show_choices()
        self.show_queue()
        images = models.fashion().images
        self.samples.controls = [self.sample(f"Sample {n}", images[i]) for n, i in enumerate(SAMPLES, 1)]
        await self.answer(images[SAMPLES[0]])
        if self.app.note:
            self.fail(self.app.note)

    def body(self) -> ft.Control:
        """All that is below the title."""
        buttons = [ft.FilledButton("Choose a picture", icon=ft.Icons.PHOTO_LIBRARY, on_click=self.choose)]
        if camera() is not None and self.page.platform is not None and self.page.platform.is_mobile() and not self.page.web:
            buttons.append(ft.FilledTonalButton("Take a photo", icon=ft.Icons.PHOTO_CAMERA, on_click=self.photograph))
        answer = ft.Column(
            [
                ft.Row(
                    [
                        self.photo,
                        ft.Column(
                            [
                                named("label", self.label),
                                ft.Row([named("source", self.badge), named("confidence", self.sure)]),
                                self.bar,
                            ],
                            expand=True,
                            spacing=8,
                        ),
                    ],
                    spacing=16,
                    vertical_alignment=ft.CrossAxisAlignment.START,
                ),
                named("reason", self.reason),
                self.failed,
                ft.Row(buttons, wrap=True),
            ],
            spacing=12,
        )
        return ft.Column(
            [
                card(answer),
                card(ft.Column([heading("Or one of these"), self.samples])),
                card(
                    ft.Column(
                        [
                            heading("Who answers"), self.modes,
                            heading("What is it"), self.classes,
                            self.offline,
                        ]
                    )
                ),
                card(ft.Column([named("queue", self.queue)])),
                card(ft.Column([named("late", self.late)])),
            ],
            spacing=8,
            horizontal_alignment=ft.CrossAxisAlignment.STRETCH,
        )  # fmt: skip

    def show_choices(self) -> None:
        """The modes, and the classes that the policy names."""

        def chips(row: ft.Row, choices: dict[str, str | None], now: str | None, choose: Callable[..., Any]) -> None:
            row.controls = [
                ft.Chip(label=text, selected=value == now, on_select=partial(choose, value)) for text, value in choices.items()
            ]

        chips(self.modes, {"by policy": None, **{m.replace("_", " "): m for m in MODES}}, self.mode, self.choose_mode)
        classes = self.app.classes()
        if self.data_class not in classes:
            self.data_class = None
        chips(self.classes, {**{c: c for c in classes}, NO_CLASS: None}, self.data_class, self.choose_class)

    async def choose_mode(self, mode: str | None, _: Any) -> None:
        """Asks again, in another mode."""
        self.mode = mode
        self.show_choices()
        await self.answer(self.picture)

    async def choose_class(self, data_class: str | None, _: Any) -> None:
        """Asks again, as data of another class."""
        self.data_class = data_class
        self.show_choices()
        await self.answer(self.picture)

    async def switched(self, _: Any) -> None:
        """The way to the cloud is cut, or back."""
        self.app.offline = self.offline.value

    def sample(self, name: str, image: Any) -> ft.Control:
        """A small image to tap on."""

        async def tapped(_: Any) -> None:
            await self.answer(image)

        small = ft.Image(src=png(image), width=56, height=56, fit=ft.BoxFit.FILL, border_radius=8, exclude_from_semantics=True)
        return ft.Semantics(label=name, button=True, content=ft.Container(small, on_click=tapped, ink=True, border_radius=8))

    async def choose(self, _: Any) -> None:
        """Asks for a picture of the phone's."""
        files = await self.picker.pick_files(file_type=ft.FilePickerFileType.IMAGE, with_data=True)
        if files:
            await self.take(files[0].bytes or b"")

    async def photograph(self, _: Any) -> None:
        """Asks for a photograph."""
        taking = camera()
        lens = taking.Camera(expand=True)

        async def shoot(_: Any) -> None:
            picture = await lens.take_picture()
            self.page.pop_dialog()
            await self.take(picture)

        self.page.show_dialog(
            ft.AlertDialog(content=lens, actions=[ft.FilledButton("Take it", icon=ft.Icons.CAMERA, on_click=shoot)])
        )
        try:
            cameras = await lens.get_available_cameras()
            await lens.initialize(cameras[0], taking.ResolutionPreset.MEDIUM, enable_audio=False)
        except Exception as e:  # noqa: BLE001 - whatever the phone says: no camera, no permission
            self.page.pop_dialog()
            self.fail(f"no photograph: {e or type(e).__name__}")

    async def take(self, picture: bytes) -> None:
        """Answers for a picture file."""
        try:
            image = await asyncio.to_thread(prepare, picture)
        except EdgerouteError as e:
            self.fail(e)
        else:
            await self.answer(image)

    async def answer(self, image: Any) -> None:
        """Shows the answer for that image, and the better one when it comes."""
        self.turn += 1
        turn, self.picture = self.turn, image
        self.photo.src = png(image)
        answers = self.app.classify(image, mode=self.mode, data_class=self.data_class)
        try:
            while (shown := await asyncio.to_thread(next, answers, None)) is not None:
                if turn != self.turn:  # another picture was chosen meanwhile
                    break
                self.show(shown)
        except EdgerouteError as e:
            if turn != self.turn:
                return
            self.label.value, self.source.value, self.sure.value, self.reason.value = "No answer", "", "", ""
            self.bar.value, self.badge.bgcolor = 0, None
            self.fail(e)
        self.show_queue()
        self.page.update()

    def show(self, shown: Shown) -> None:
        """One answer."""
        self.label.value = shown.label
        self.source.value = shown.source if shown.final or shown.degraded else f"{shown.source}, provisional"
        self.badge.bgcolor = COLOURS.get(shown.source, ft.Colors.BLUE_GREY_600)
        self.sure.value = "" if shown.confidence is None else f"{shown.confidence:.0%} sure"
        self.bar.value = shown.confidence or 0
        self.reason.value = shown.reason
        self.failed.visible = False
        self.page.update()

    def fail(self, e: object) -> None:
        """Says what went wrong."""
        self.error.value, self.failed.visible = str(e), True
        self.page.update()

    def show_queue(self) -> None:
        """What waits, and what came late."""
        try:
            waiting = self.app.waiting()
        except EdgerouteError as e:  # of the disk
            waiting = []
            self.fail(e)
        self.queue.controls = [heading(f"Waiting for the cloud: {len(waiting)}")]
        self.queue.controls += [
            ft.Text(f"{w.data_class or NO_CLASS}, {f'tried {w.attempts} times' if w.attempts else 'not sent yet'}", size=13)
            for w in waiting[-5:]
        ]
        late = list(self.app.late)
        self.late.controls = [heading(f"Late answers: {len(late)}")]
        self.late.controls += [
            ft.Text(
                f"{one.label}" + (f" instead of {one.instead_of}" if one.label != one.instead_of else ", as the phone said")
                + f", after {one.waited_s:.0f} s",
                size=13,
            )
            for one in late[:5]
        ]  # fmt: skip

    async def edit(self, _: Any) -> None:
        """Shows the policy as text in a dialog, from which another one can be put in force."""
        text = ft.TextField(value=self.app.policy, multiline=True, min_lines=12, max_lines=20, text_size=12, width=WIDEST)
        wrong = ft.Text("", color=ft.Colors.ERROR, size=13)
        last: str | None = text.value

        def changed(_: Any) -> None:
            button.disabled = text.value == last
            self.page.update()

        async def save(_: Any) -> None:
            nonlocal last
            tried = text.value
            try:
                await asyncio.to_thread(setattr, self.app, "policy", tried)
            except (EdgerouteError, OSError) as e:
                last = tried if isinstance(e, EdgerouteError) else None  # a full disk may have room the next time
                wrong.value = str(e).replace(f"{self.app.file}: ", "")
                changed(None)
            else:
                self.page.pop_dialog()
                self.show_choices()
                await self.answer(self.picture)

        text.on_change = changed
        button = ft.FilledButton("Put in force", on_click=save, disabled=True)  # until the text is another than that last tried
        self.page.show_dialog(
            ft.AlertDialog(
                title="Policy",
                content=ft.Column([text, named("wrong", wrong)], tight=True, width=WIDEST),
                scrollable=True,
                actions=[
                    ft.TextButton("Cancel", on_click=lambda _: self.page.pop_dialog()),
                    button,
                ],
                inset_padding=12,
            )
        )

    @property
    def app(self) -> Garments:
        """What the process shares."""
        return Demo.shared[0]

    async def connected(self, _: Any) -> None:
        """A browser that was away is back."""
        Demo.pages.add(self)
        await self.refresh()

    async def refresh(self) -> None:
        """Shows the queue anew."""
        self.show_queue()
        self.page.update()


def load() -> None:
    """Loads what the process shares, once."""
    with Demo.loading:
        if not Demo.shared:
            Demo.shared.append(Garments(STORAGE, changed=changed))


def changed() -> None:
    """The queue has changed: every page shows it."""
    for demo in list(Demo.pages):
        demo.page.run_task(demo.refresh)


def camera() -> Any:
    """The package of the camera, which only an app that was built has; None: there is none."""
    try:
        import flet_camera
    except ImportError:
        return None
    return flet_camera


def png(image: Any) -> bytes:
    """An image as a file; None: an empty one."""
    file = BytesIO()
    (Image.new("L", (28, 28)) if image is None else Image.fromarray(image)).save(file, "PNG")
    return file.getvalue()


def named(name: str, content: ft.Control) -> ft.Control:
    """With a name by which a test finds it."""
    return ft.Semantics(identifier=name, content=content)


def heading(text: str) -> ft.Control:
    """Of a card."""
    return ft.Text(text, size=14, weight=ft.FontWeight.W_600)


def card(content: ft.Control) -> ft.Control:
    """A frame around what belongs together."""
    return ft.Card(ft.Container(content, padding=14), margin=0)


async def main(page: ft.Page) -> None:
    """Flet calls it for each page."""
    await Demo(page).start()


if __name__ == "__main__":
    threading.Thread(
        target=load, daemon=True
    ).start()  # while the page is loaded; what it raises, the page's own call raises again
    ft.run(main, host="127.0.0.1", no_cdn=True)
