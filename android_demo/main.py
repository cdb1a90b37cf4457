"""A thing in a photograph: the answer at once, from the phone or the cloud, and why. A page in Flet; what it shows is `things`.

`flet run` shows it on the desktop, `flet run --web` in a browser, `flet build apk` makes an app for Android.
"""

from __future__ import annotations

import asyncio
import os
import threading
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import flet as ft
from things import PHOTOS, Card, Things, photograph, prepare

from edgeroute import EdgerouteError
from edgeroute.tools.state_colours_and_marks import STATES, StateName

STORAGE = Path(os.environ.get("FLET_APP_STORAGE_DATA") or Path(__file__).parent / ".flet" / "storage" / "data")
MODES = {"By policy": None, "Phone only": "only_edge", "Cloud first": "prefer_cloud", "Cloud only": "only_cloud"}
WIDEST = 560
CARD_HEIGHT, PHOTO = 122, 98
"""Of a card, whatever it says, so that nothing moves when an answer comes or changes; and the side of its picture."""


class Frame:
    """Card as it is shown. Its controls stay the same; `show` changes what they say."""

    def __init__(self, page: ft.Page, number: int, card: Card) -> None:
        self.page = page
        self.label = ft.Text("", size=20, weight=ft.FontWeight.BOLD, max_lines=1, overflow=ft.TextOverflow.ELLIPSIS)
        self.mark = ft.Text("", size=13, font_family="marks")
        self.state = ft.Text("", size=13, weight=ft.FontWeight.BOLD)
        self.text = ft.Text("", size=13, max_lines=3, overflow=ft.TextOverflow.ELLIPSIS)
        picture = ft.Image(
            src=card.picture, width=PHOTO, height=PHOTO, fit=ft.BoxFit.COVER, border_radius=8, gapless_playback=True,
            exclude_from_semantics=True,
        )  # fmt: skip
        row = ft.Row(
            [
                picture,
                ft.Column([self.label, ft.Row([self.mark, self.state], spacing=6, height=20), self.text], expand=True, spacing=2),
            ],
            spacing=12,
            vertical_alignment=ft.CrossAxisAlignment.START,
        )
        self.control = ft.Semantics(
            identifier=f"card{number}", content=ft.Card(ft.Container(row, padding=12, height=CARD_HEIGHT), margin=0)
        )
        self.show(card)

    def show(self, card: Card) -> None:
        """Shows a card, which may be another state of the one before."""
        self.label.value = card.label
        self.text.value = card.text or "The phone is looking at the picture."
        state = None if card.state is None else STATES[card.state]
        self.mark.value, self.state.value = ("", "") if state is None else (state.mark, state.word)
        self.mark.color = None if card.state is None else colour(self.page, card.state)


class Demo:
    """The page of one person; the models and the cards are those of the whole process."""

    shared: ClassVar[list[Things]] = []
    """One, once it is loaded."""
    loading: ClassVar[threading.Lock] = threading.Lock()
    pages: ClassVar[set[Demo]] = set()

    def __init__(self, page: ft.Page) -> None:
        self.page = page
        self.mode: Any = None
        self.frames: dict[str, Frame] = {}
        self.made = 0
        self.picker = ft.FilePicker()
        self.error = ""
        self.status = ft.Text("", size=13, max_lines=2, overflow=ft.TextOverflow.ELLIPSIS)
        self.modes = ft.Row(scroll=ft.ScrollMode.HIDDEN, spacing=8, height=36)
        self.offline = ft.Switch(label="Offline", on_change=self.switched)
        self.private = ft.Switch(label="Private")
        self.samples = ft.Row(scroll=ft.ScrollMode.HIDDEN, spacing=6, height=64)
        self.top: list[ft.Control] = []
        self.list = ft.ListView(expand=True, spacing=8)

    async def start(self) -> None:
        """Shows the page, then loads the models, then answers for the first photograph of a new app."""
        page = self.page
        page.title = "Things"
        page.theme = page.dark_theme = ft.Theme(color_scheme_seed=ft.Colors.BLUE_GREY)
        page.fonts = {"marks": "marks.ttf"}  # the six marks alone: Flutter's own font has none of them
        page.padding = 12
        page.horizontal_alignment = ft.CrossAxisAlignment.CENTER
        page.appbar = ft.AppBar(
            title=ft.Text("What is it?"),
            actions=[ft.TextButton("Policy", icon=ft.Icons.RULE, on_click=self.edit), ft.Container(width=4)],
        )
        page.services.append(self.picker)
        page.on_platform_brightness_change = self.recolour
        page.add(ft.SafeArea(ft.Container(self.body(), width=WIDEST), expand=True))
        try:
            await asyncio.to_thread(load)
        except EdgerouteError as e:
            self.fail(e)
            return
        Demo.pages.add(self)
        page.on_connect, page.on_disconnect = self.connected, lambda _: Demo.pages.discard(self)
        self.offline.value = self.app.offline
        self.show_modes()
        self.samples.controls = [self.sample(name) for name in PHOTOS]
        self.error = self.app.note
        for card in reversed(self.app.cards()):  # of earlier runs
            self.frames[card.id] = self.add(card)
        self.refresh()
        if not self.app.cards():
            await self.ask(photograph(PHOTOS[0]))

    def body(self) -> ft.Control:
        """Returns all that is below the title: one list, the cards last. Only a new picture moves what is in it."""
        buttons = [ft.FilledButton("Choose a picture", icon=ft.Icons.PHOTO_LIBRARY, on_click=self.choose)]
        if camera() is not None and self.page.platform is not None and self.page.platform.is_mobile() and not self.page.web:
            buttons.append(ft.FilledTonalButton("Take a photo", icon=ft.Icons.PHOTO_CAMERA, on_click=self.photograph))
        self.top = [
            self.samples,
            ft.Row(buttons, height=40),
            self.modes,
            ft.Row([self.offline, self.private], height=40),
            ft.Container(named("status", self.status), height=36),
        ]
        self.list.controls = [*self.top]
        return self.list

    def show_modes(self) -> None:
        """Shows who is asked, as chips."""
        self.modes.controls = [
            ft.Chip(
                label=ft.Text(text, size=12),
                label_padding=2,
                show_checkmark=False,
                selected=mode == self.mode,
                on_select=partial(self.choose_mode, mode),
            )
            for text, mode in MODES.items()
        ]

    async def choose_mode(self, mode: str | None, _: Any) -> None:
        """Has the next pictures answered in another mode."""
        self.mode = mode
        self.show_modes()
        self.page.update()

    async def switched(self, _: Any) -> None:
        """Cuts the way to the cloud, or mends it."""
        await asyncio.to_thread(load)
        self.app.offline = self.offline.value
        self.refresh()

    def sample(self, name: str) -> ft.Control:
        """Returns a small photograph to tap on."""
        picture = photograph(name)

        async def tapped(_: Any) -> None:
            await self.ask(picture)

        small = ft.Image(src=picture, width=64, height=64, fit=ft.BoxFit.COVER, border_radius=8, exclude_from_semantics=True)
        content = ft.Container(small, on_click=tapped, ink=True, border_radius=8)
        return ft.Semantics(label=f"Photo {name}", button=True, content=content)

    async def choose(self, _: Any) -> None:
        """Asks for a picture of the phone's; a phone's browser offers its camera as well."""
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
            ft.AlertDialog(
                content=ft.Container(lens, width=300, height=400),
                actions=[ft.FilledButton("Take it", icon=ft.Icons.CAMERA, on_click=shoot)],
            )
        )
        try:
            cameras = await lens.get_available_cameras()
            await lens.initialize(cameras[0], taking.ResolutionPreset.MEDIUM, enable_audio=False)
        except Exception as e:  # noqa: BLE001 - whatever the phone says: no camera, no permission
            self.page.pop_dialog()
            self.fail(f"No photograph: {e or type(e).__name__}")

    async def take(self, picture: bytes) -> None:
        """Answers for a picture file."""
        try:
            square = await asyncio.to_thread(prepare, picture)
        except EdgerouteError as e:
            self.fail(e)
        else:
            await self.ask(square)

    async def ask(self, picture: bytes) -> None:
        """Shows a new card for that picture, and then in it each answer that comes."""
        self.error = ""
        frame = self.add(Card("", picture))
        self.page.update()
        try:
            await asyncio.to_thread(load)  # the buttons are there before the models
            answers = self.app.ask(picture, mode=self.mode, private=bool(self.private.value))
            while (card := await asyncio.to_thread(next, answers, None)) is not None:
                if not card.id.startswith("none"):
                    self.frames[card.id] = frame
                frame.show(card)
                self.page.update()
        except (EdgerouteError, OSError) as e:  # of the disk
            self.fail(e)
        if Demo.shared:
            self.refresh()

    def add(self, card: Card) -> Frame:
        """Puts a new frame above the others."""
        self.made += 1
        frame = Frame(self.page, self.made, card)
        self.list.controls.insert(len(self.top), frame.control)
        return frame

    def fail(self, e: object) -> None:
        """Says what went wrong."""
        self.error = self.status.value = str(e)
        self.status.color = ft.Colors.ERROR
        self.page.update()

    def refresh(self) -> None:
        """Shows anew what has changed: late answers in the cards of their pictures, and how many wait."""
        for card in self.app.cards():
            if card.id in self.frames:
                self.frames[card.id].show(card)
        count = self.app.waiting()
        words = "1 picture waits" if count == 1 else f"{count or 'No'} pictures wait"
        self.status.value = self.error or f"{words} for the cloud" + (", which is switched off." if self.app.offline else ".")
        self.status.color = ft.Colors.ERROR if self.error else None
        self.page.update()

    async def recolour(self, _: Any = None) -> None:
        """Shows all in the colours of the day or the night."""
        self.refresh()

    async def edit(self, _: Any) -> None:
        """Shows the policy as text in a dialog, from which another one can be put in force."""
        await asyncio.to_thread(load)
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
    def app(self) -> Things:
        """What the process shares."""
        return Demo.shared[0]

    async def connected(self, _: Any) -> None:
        """Has a browser that was away show what has changed."""
        Demo.pages.add(self)
        self.refresh()


def load() -> None:
    """Loads what the process shares, once."""
    with Demo.loading:
        if not Demo.shared:
            Demo.shared.append(Things(STORAGE, changed=changed))


def changed() -> None:
    """Has every page show a card that has changed."""

    async def refresh(demo: Demo) -> None:
        demo.refresh()

    for demo in list(Demo.pages):
        demo.page.run_task(refresh, demo)


def camera() -> Any:
    """Returns the package of the camera, which only an app that was built has; None: there is none."""
    try:
        import flet_camera
    except ImportError:
        return None
    return flet_camera


def colour(page: ft.Page, state: StateName) -> str:
    """Returns the colour of a state on the page as it is, by day or by night."""
    return STATES[state].dark if page.platform_brightness == ft.Brightness.DARK else STATES[state].light


def named(name: str, content: ft.Control) -> ft.Control:
    """Returns a control with a name by which a test finds it."""
    return ft.Semantics(identifier=name, content=content)


async def main(page: ft.Page) -> None:
    """Shows the page. Flet calls it for each one."""
    await Demo(page).start()


if __name__ == "__main__":
    threading.Thread(
        target=load, daemon=True
    ).start()  # while the page is loaded; what it raises, the page's own call raises again
    ft.run(main, host="127.0.0.1", no_cdn=True)
