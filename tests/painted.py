"""A committed picture of a page, and what it has in common with the page as it is now; the browser reads both."""

from __future__ import annotations

from base64 import b64encode

from edgeroute.tools.state_colours_and_marks import STATES

LEAST, NEAR = 8, 24
"""Pixels of a colour, as a mark has; by how much these may differ from it in red, green or blue, as in a JPEG file."""
SEEN = """async ([url, colours, near]) => {
    const image = new Image(), counts = colours.map(() => 0)
    image.src = url
    await image.decode()
    const pen = new OffscreenCanvas(image.width, image.height).getContext("2d")
    pen.drawImage(image, 0, 0)
    const {data} = pen.getImageData(0, 0, image.width, image.height)
    for (let i = 0; i < data.length; i += 4)
        colours.forEach((colour, n) => { counts[n] += colour.every((part, j) => Math.abs(part - data[i + j]) <= near) })
    return [image.width, image.height, counts]
}"""


def seen(tab, picture):
    """-> the width and height of a picture, and the states of answers whose colours on a light page it has."""
    colours = [[*bytes.fromhex(state.light[1:])] for state in STATES.values()]
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    with tab.context.browser.new_page() as page:
        page.set_default_timeout(0)
        url = f"data:image/{kind};base64,{b64encode(picture).decode()}"
        width, height, counts = page.evaluate(SEEN, [url, colours, NEAR])
    return (width, height), {name for name, count in zip(STATES, counts, strict=True) if count >= LEAST}


def is_picture_of(file, tab, states, *, beside=1):
    """Asserts that a committed picture has the size and the states' colours of the page in this tab; `beside`: as often."""
    (width, height), now = seen(tab, tab.screenshot())
    size, then = seen(tab, file.read_bytes())
    assert size == (beside * width, height), f"{file.name} is {size}: take it anew"
    assert now >= states <= then, f"{file.name} has the colours of {then}, and the page those of {now}"
