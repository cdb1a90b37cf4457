"""The demo's report as one HTML file: nothing is fetched, light and dark as the reader has it."""

from __future__ import annotations

from html import escape

from edgeroute.cli.demo.curve import svg
from edgeroute.cli.demo.report import HEAD, Report, gained, notes, rows
from edgeroute.report.style import STYLE

LAST = "tbody tr:last-child > * { font-weight: 600; }"


def page(report: Report) -> str:
    """The whole file.

    Raises:
        RuntimeMissing: matplotlib is not installed.
    """
    head = "".join(f'<th scope="col">{name}</th>' for name in HEAD)
    body = "\n".join(
        f'<tr><th scope="row">{way}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>' for way, *cells in rows(report)
    )
    listed = "\n".join(f"<li>{escape(note)}</li>" for note in notes(report))
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>edgeroute demo</title>
<style>{STYLE}{LAST}</style>
<h1>edgeroute demo: {report.n:,} images on the edge, in the cloud, and routed</h1>
<p>{escape(gained(report))}</p>
<div class="wide"><table>
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table></div>
<figure role="img" aria-label="Accuracy over the share of images sent to the cloud">{svg(report)}</figure>
<ul>
{listed}
</ul>
</html>
"""
